"""Decoded data on disk: folders of memory-mapped arrays, each written once.

The cache is the folder that the environment variable MTRLIB_CACHE names, else ~/.cache/mtrlib. An entry is named by
its part of the data and a digest of what it was made from, written under a lock, and renamed when it is whole.
`manifest.json` has the sha256 of every file, compared the first time that a process opens an entry; a damaged one is
renamed and made again. Of a list of files, an entry serves every shorter list that it begins with, and gives any other
the rows that both have. Nothing is ever removed; delete entries, or all of the cache, when nothing uses them.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtrlib import machine
from mtrlib.data import sealed

Layout = dict[str, tuple[tuple[int, ...], type | np.dtype]]  # shape and dtype of each array
_FORMAT = "cache 4"  # part of every entry's name: entries of another format are left alone
_checked: set[tuple] = set()  # states of entries that this process has compared with their manifests


def entry(
    name: str,
    made_from: Iterable[str],
    layout: Layout,
    fill: Callable[..., dict[int, str]],
    of_rows: Sequence[str] = (),
) -> Path:
    """Folder of a finished entry, made now where there is none; OSError of one line where the disk does not take it.

    Parameters
    ----------
    name : first part of the folder's name.
    made_from : everything that the content depends on; another text is another entry.
    layout : the arrays.
    fill : writes into the arrays (zeros at first) and returns notes on their rows; where it raises, nothing is kept.
        With `of_rows` its second argument lists the rows that it should write: the others are there already.
    of_rows : what each row depends on beside `made_from`. Where given, the entry may have more rows than the layout
        says, those of a longer list that begins with this one: take the first.
    """
    root = Path(machine.expanded(os.environ.get("MTRLIB_CACHE") or "~/.cache/mtrlib")).absolute()
    family, rows = f"{name}-{_digest([_FORMAT, *made_from])}", [_digest([row]) for row in of_rows]
    finished = root / (f"{family}-{_digest(rows)}" if of_rows else family)
    if _sound(finished):
        return finished
    others = _rows_of(root, family) if of_rows else {}
    for folder, theirs in others.items():
        if theirs[: len(rows)] == rows and _sound(folder):
            return folder
    nearest = max(others, key=lambda folder: len({*rows} & {*others[folder]}), default=None)
    places = {row: place for place, row in enumerate(others.get(nearest, []))}
    old = {number: places[row] for number, row in enumerate(rows) if row in places}  # number of a row -> place there
    if old and not _sound(nearest):
        old = {}

    def make() -> bool:
        partial = finished.with_name(f"{finished.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: its lock is ours now
        try:
            partial.mkdir()
            arrays = _empty(partial, layout)
            old_arrays, old_notes = read(nearest) if old else ({}, {})
            for array, values in old_arrays.items():
                for number, place in old.items():
                    arrays[array][number] = values[place].numpy()
            notes = {number: old_notes[place] for number, place in old.items() if place in old_notes}
            new = [number for number in range(len(rows)) if number not in old]
            notes |= fill(arrays, new) if of_rows else fill(arrays)
            for array in arrays.values():
                array.flush()
            sums = {f"{array}.npy": _sha256(partial / f"{array}.npy") for array in layout}
            manifest = {"entry": finished.name, "rows": rows, "notes": notes, "sha256": sums}
            sealed.seal(partial / "manifest.json", json.dumps(manifest).encode())
            os.replace(partial, finished)
        except OSError as error:
            raise (error if error.errno is None else sealed.unwritable(finished, error)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True

    _sound(finished, make)
    return finished


def read(folder: Path, number: int | None = None) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Arrays of an entry that `entry` has just given, memory-mapped copy-on-write, and the notes on their rows: of the
    first `number` rows, or of all."""
    arrays = {path.stem: np.load(path, mmap_mode="c", allow_pickle=False)[:number] for path in folder.glob("*.npy")}
    notes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["notes"]
    first = {int(row): note for row, note in notes.items() if number is None or int(row) < number}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, first


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:32]


def _rows_of(root: Path, family: str) -> dict[Path, list[str]]:
    """What the rows of each entry of a family were made from."""
    rows = {}
    for folder in sorted(root.glob(f"{family}-{'[0-9a-f]' * 32}")):
        with suppress(sealed.Damaged, OSError):  # it is set aside when it is asked for itself
            rows[folder] = json.loads(sealed.read(folder / "manifest.json"))["rows"]
    return rows


def _sound(folder: Path, make: Callable[[], bool] | None = None) -> bool:
    """Whether there is such an entry, by `make` if need be, as its manifest says; a damaged one is set aside."""
    if make is None and not folder.is_dir():
        return False  # without a lock: the cache may be one to read alone
    lock = folder.with_name(f"{folder.name}.lock")
    return sealed.kept(lock, folder.is_dir, lambda: _compare(folder), make or (lambda: False))


def _compare(folder: Path) -> bool:
    """True; raises `sealed.Damaged` for an entry that is not what its manifest says. Reads it once a process."""
    stats = ((path, path.stat()) for path in sorted(folder.iterdir()))
    state = (*((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats),)
    if state in _checked:
        return True
    try:
        manifest = json.loads(sealed.read(folder / "manifest.json"))
    except sealed.Damaged as error:
        raise sealed.Damaged(folder, error.reason) from error  # the whole of it
    if manifest["entry"] != folder.name:
        raise sealed.Damaged(folder, f"it is {manifest['entry']}")
    for name, written in manifest["sha256"].items():
        if not (folder / name).is_file() or _sha256(folder / name) != written:
            raise sealed.Damaged(folder, f"{name} is missing or not what was written")
    _checked.add(state)
    return True


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _empty(folder: Path, layout: Layout) -> dict[str, np.memmap]:
    """Zeros whose room is taken now: on a disk that fills up later, a write to a map would end the process."""
    needed = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        advice = "Set the environment variable MTRLIB_CACHE to a folder with more room."
        raise OSError(f"{folder} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free. {advice}")
    arrays = {}
    for array, (shape, dtype) in layout.items():
        path = folder / f"{array}.npy"
        arrays[array] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return arrays
