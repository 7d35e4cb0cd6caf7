"""Decoded data on disk: folders of memory-mapped arrays, each written once.

The cache is the folder that the environment variable MTRLIB_CACHE names, else ~/.cache/mtrlib. An entry is a folder
of .npy files, named by its part of the data and by a digest of what it was made from. It is written under a lock and
a temporary name, then renamed: a reader finds all of it or nothing, and of two processes one writes while the other
waits. Nothing is ever removed; delete entries, or all of the cache, when nothing uses them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

Layout = dict[str, tuple[tuple[int, ...], type | np.dtype]]  # shape and dtype of each array
_ROWS = 256  # rows copied at once by `rows`


def entry(
    name: str, made_from: Iterable[str], layout: Layout, fill: Callable[[dict[str, np.memmap]], dict[int, str]]
) -> Path:
    """Folder of a finished entry, made now where there is none.

    Parameters
    ----------
    name : first part of the folder's name.
    made_from : everything that the content depends on; another text is another entry.
    layout : the arrays.
    fill : writes into the arrays (zeros at first) and returns notes on their rows; where it raises, nothing is kept.

    Raises
    ------
    OSError : where the disk has no room (a full disk would end the process at its first write to a map).
    """
    digest = hashlib.sha256("\0".join(made_from).encode(errors="surrogateescape")).hexdigest()[:32]
    root = Path(os.environ.get("MTRLIB_CACHE") or "~/.cache/mtrlib").expanduser().absolute()
    finished = root / f"{name}-{digest}"
    if finished.is_dir():
        return finished
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{finished}.lock"):
        if not finished.is_dir():
            partial = finished.with_name(f"{finished.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: its lock is ours now
            partial.mkdir()
            try:
                _write(partial, layout, fill)
                os.replace(partial, finished)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return finished


def read(folder: Path) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Arrays of an entry, memory-mapped copy-on-write, and the notes on their rows.

    Raises ValueError, naming the folder, for an entry that something has damaged.
    """
    try:
        arrays = {path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in folder.glob("*.npy")}
        notes = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"The cache entry {folder} cannot be read ({error}). Delete that folder.") from error
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, {int(row): notes[row] for row in notes}


def rows(folder: Path, index: list[int]) -> Path:
    """Entry with the rows `index` alone of each array of the entry `folder`: a copy, so that it too is mapped."""
    arrays = {name: values.numpy() for name, values in read(folder)[0].items()}

    def fill(copies: dict[str, np.memmap]) -> dict[int, str]:
        for name, copy in copies.items():
            for start in range(0, len(index), _ROWS):
                copy[start : start + _ROWS] = arrays[name][index[start : start + _ROWS]]
        return {}

    layout: Layout = {name: ((len(index), *values.shape[1:]), values.dtype) for name, values in arrays.items()}
    return entry(f"{folder.name}-rows", [folder.name, *map(str, index)], layout, fill)


def _write(folder: Path, layout: Layout, fill: Callable[[dict[str, np.memmap]], dict[int, str]]) -> None:
    needed = sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free. "
            "Set the environment variable MTRLIB_CACHE to a folder with more room."
        )
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (shape, dtype) in layout.items()
    }
    notes = fill(arrays)
    for array in arrays.values():
        array.flush()
    with open(folder / "notes.json", "w", encoding="utf-8") as file:
        json.dump(notes, file)
        file.flush()
        os.fsync(file.fileno())
