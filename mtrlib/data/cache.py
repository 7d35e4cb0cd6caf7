"""Decoded data on disk: folders of memory-mapped arrays, each written once.

The cache is the folder that the environment variable MTRLIB_CACHE names, else ~/.cache/mtrlib. An entry is a folder
of .npy files, named by its part of the data and by a digest of what it was made from. It is written under a lock and
a temporary name, then renamed: a reader finds all of it or nothing, and of two processes one writes while the other
waits. `manifest.json` has the sha256 of every file; the first time that a process opens an entry it reads and compares
them. A damaged entry is renamed and made again. Of a list of files, an entry serves every shorter list that it begins
with, and gives a longer one the rows that both begin with. Nothing is ever removed; delete entries, or all of the
cache, when nothing uses them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtrlib import machine, sealed

Layout = dict[str, tuple[tuple[int, ...], type | np.dtype]]  # shape and dtype of each array
_ROWS = 256  # rows copied at once by `rows`
_FORMAT = "cache 3"  # part of every entry's name: entries of another format are left alone
_checked: set[tuple] = set()  # states of entries that this process has compared with their manifests


def entry(
    name: str,
    made_from: Iterable[str],
    layout: Layout,
    fill: Callable[..., dict[int, str]],
    of_rows: Sequence[str] = (),
) -> Path:
    """Folder of a finished entry, made now where there is none.

    Parameters
    ----------
    name : first part of the folder's name.
    made_from : everything that the content depends on; another text is another entry.
    layout : the arrays.
    fill : writes into the arrays (zeros at first) and returns notes on their rows; where it raises, nothing is kept.
        With `of_rows` its second argument is the first row that it should write: those before are there already.
    of_rows : what each row depends on beside `made_from`. Where given, the entry may have more rows than the layout
        says, those of a longer list that begins with this one: take the first.

    Raises
    ------
    OSError : of one line, where the disk has no room or cannot be written to.
    """
    digests = _digests("\0".join([_FORMAT, *made_from]), of_rows)
    root = Path(machine.expanded(os.environ.get("MTRLIB_CACHE") or "~/.cache/mtrlib")).absolute()
    family = f"{name}-{digests[0][:8]}-" if of_rows else f"{name}-"  # of the lists with this first row
    finished = root / f"{family}{digests[-1]}"
    if _sound(finished):
        return finished
    alike = _alike(root, family, digests) if of_rows else []
    shared, other = next((found for found in alike if _sound(found[1])), (0, None))
    if other and shared == len(digests):
        return other
    with sealed.locked(_lock(finished)):
        if finished.is_dir():  # another process has made it meanwhile
            try:
                _compare(finished)
                return finished
            except sealed.Damaged as error:
                sealed.set_aside(finished, error.reason)
        partial = finished.with_name(f"{finished.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: its lock is ours now

        def fill_all(arrays: dict[str, np.memmap]) -> dict[int, str]:
            if not of_rows:
                return fill(arrays)
            copied, notes = read(other, shared) if other else ({}, {})
            for array, values in copied.items():
                arrays[array][:shared] = values.numpy()
            return notes | fill(arrays, shared)

        try:
            partial.mkdir()
            _write(partial, {"entry": finished.name, "rows": digests}, layout, fill_all)
            os.replace(partial, finished)
        except OSError as error:
            told = error if error.errno is None else sealed.unwritable(finished, error)
            raise told from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return finished


def read(folder: Path, number: int | None = None) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Arrays of an entry that `entry` has just given, memory-mapped copy-on-write, and the notes on their rows: of the
    first `number` rows, or of all.

    Raises ValueError, naming the folder, for an entry that something has damaged since.
    """
    try:
        arrays = {path.stem: np.load(path, mmap_mode="c", allow_pickle=False)[:number] for path in folder.glob("*.npy")}
        notes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["notes"]
    except (OSError, ValueError, EOFError, LookupError, TypeError) as error:
        raise ValueError(f"The cache entry {folder} cannot be read ({error}). Delete that folder.") from error
    kept = {int(row): note for row, note in notes.items() if number is None or int(row) < number}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, kept


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


def _digests(made_from: str, of_rows: Sequence[str]) -> list[str]:
    """What names the first row, the first two, ... and all; of no rows, what they would be made from."""
    state, digests = hashlib.sha256(made_from.encode(errors="surrogateescape")), []
    for row in of_rows:
        state.update(b"\0" + row.encode(errors="surrogateescape"))
        digests.append(state.hexdigest()[:32])
    return digests or [state.hexdigest()[:32]]


def _alike(root: Path, family: str, digests: list[str]) -> list[tuple[int, Path]]:
    """The entries of a family and how many of their first rows are those of `digests`: the most first, and of those
    with as many the shortest."""
    found = []
    for folder in root.glob(f"{family}{'[0-9a-f]' * 32}"):
        try:
            rows = json.loads(sealed.read(folder / "manifest.json"))["rows"]
        except (sealed.Damaged, OSError):
            continue  # it is set aside when it is asked for itself
        shared = sum(here == there for here, there in zip(rows, digests, strict=False))
        found.append((-shared, len(rows), folder))
    return [(-shared, folder) for shared, _, folder in sorted(found)]


def _sound(folder: Path) -> bool:
    """Whether there is such an entry and it is what its manifest says; a damaged one is set aside."""
    if not folder.is_dir():
        return False
    try:
        _compare(folder)
        return True
    except (sealed.Damaged, FileNotFoundError):
        pass  # looked at again under the lock: another process may have made it anew
    with sealed.locked(_lock(folder)):
        try:
            _compare(folder)
            return True
        except FileNotFoundError:
            return False
        except sealed.Damaged as error:
            sealed.set_aside(folder, error.reason)
            return False


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


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


def _write(folder: Path, about: dict, layout: Layout, fill: Callable[[dict[str, np.memmap]], dict[int, str]]) -> None:
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
    manifest = {**about, "notes": notes, "sha256": digests}
    sealed.seal(folder / "manifest.json", json.dumps(manifest).encode())


def _reserve(path: Path) -> None:
    """Take the room of a file now: on a disk that fills up later, a write to a map would end the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
