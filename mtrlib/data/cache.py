"""Decoded data on disk: folders of memory-mapped arrays, each written once.

The cache is the folder that the environment variable MTRLIB_CACHE names, else ~/.cache/mtrlib. An entry is a folder
of .npy files, named by its part of the data and by a digest of what it was made from. It is written under a lock and
a temporary name, then renamed: a reader finds all of it or nothing, and of two processes one writes while the other
waits. `manifest.json` has the sha256 of every file; the first time that a process opens an entry it reads and compares
them. A damaged entry is renamed and made again. Nothing is ever removed; delete entries, or all of the cache, when
nothing uses them.
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
from torch import Tensor

from mtrlib import machine, sealed

Layout = dict[str, tuple[tuple[int, ...], type | np.dtype]]  # shape and dtype of each array
_ROWS = 256  # rows copied at once by `rows`
_FORMAT = "cache 2"  # part of every entry's name: entries of another format are left alone
_checked: set[tuple] = set()  # states of entries that this process has compared with their manifests


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
    OSError : of one line, where the disk has no room or cannot be written to.
    """
    made_from = [_FORMAT, *made_from]
    digest = hashlib.sha256("\0".join(made_from).encode(errors="surrogateescape")).hexdigest()[:32]
    root = Path(machine.expanded(os.environ.get("MTRLIB_CACHE") or "~/.cache/mtrlib")).absolute()
    finished = root / f"{name}-{digest}"
    if finished.is_dir():
        try:
            _compare(finished)
            return finished
        except (sealed.Damaged, FileNotFoundError):
            pass  # looked at again under the lock: another process may have made it anew
    with sealed.locked(finished.with_name(f"{finished.name}.lock")):
        if finished.is_dir():
            try:
                _compare(finished)
                return finished
            except sealed.Damaged as error:
                sealed.set_aside(finished, error.reason)
        partial = finished.with_name(f"{finished.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: its lock is ours now
        try:
            partial.mkdir()
            _write(partial, finished.name, layout, fill)
            os.replace(partial, finished)
        except OSError as error:
            told = error if error.errno is None else sealed.unwritable(finished, error)
            raise told from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return finished


def read(folder: Path) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Arrays of an entry that `entry` has just given, memory-mapped copy-on-write, and the notes on their rows.

    Raises ValueError, naming the folder, for an entry that something has damaged since.
    """
    try:
        arrays = {path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in folder.glob("*.npy")}
        notes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["notes"]
    except (OSError, ValueError, EOFError, LookupError, TypeError) as error:
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


def _compare(folder: Path) -> None:
    """Raises `sealed.Damaged` for an entry that is not what its manifest says; reads it once a process."""
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    state = (folder, *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
    if state in _checked:
        return
    manifest = json.loads(sealed.read(folder / "manifest.json"))
    if manifest["entry"] != folder.name:
        raise sealed.Damaged(folder, f"it is {manifest['entry']}")
    for name, written in manifest["sha256"].items():
        if not (folder / name).is_file() or _sha256(folder / name) != written:
            raise sealed.Damaged(folder, f"{name} is missing or not what was written")
    _checked.add(state)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, name: str, layout: Layout, fill: Callable[[dict[str, np.memmap]], dict[int, str]]) -> None:
    needed = sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free. "
            "Set the environment variable MTRLIB_CACHE to a folder with more room."
        )
    arrays = {}
    for array, (shape, dtype) in layout.items():
        path = folder / f"{array}.npy"
        arrays[array] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        _reserve(path)
    notes = fill(arrays)
    for array in arrays.values():
        array.flush()
    digests = {f"{array}.npy": _sha256(folder / f"{array}.npy") for array in layout}
    manifest = {"entry": name, "notes": notes, "sha256": digests}
    sealed.seal(folder / "manifest.json", json.dumps(manifest).encode())


def _reserve(path: Path) -> None:
    """Take the room of a file now: on a disk that fills up later, a write to a map would end the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
