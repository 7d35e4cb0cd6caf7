"""Which of the layouts in `cityscapes.yaml` a folder has: the official release, or arrays of 19 or of 7 classes.

Arrays have 7 classes unless one of 64 label files to train has a larger one than 6.
"""

from __future__ import annotations

import os
import shutil
import zlib
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

from mtrlib import machine
from mtrlib.data import folder
from mtrlib.data.decoding import Source
from mtrlib.data.description import Description, shipped


def description(root: Path | None) -> Description:
    """Of what lies in `root`; where none is given, of the official release."""
    if root is None or (root / "leftImg8bit").is_dir() or any(root.glob("leftImg8bit*.zip")):
        return shipped("cityscapes")["official"]
    machine.folder(root, "the data (root)")
    labels = root / "train" / "label"
    names = sorted(os.listdir(labels))[:64] if labels.is_dir() else []
    files = [labels / name for name in names if name.lower().endswith(".npy") and (labels / name).is_file()]
    known = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return shipped("cityscapes")["19 classes" if _above_6(known) else "7 classes"]


@lru_cache(maxsize=8)
def _above_6(files: tuple[tuple[str, int, int], ...]) -> bool:
    """Whether one of the files, of which times and sizes tell a change, has a larger class."""
    label = shipped("cityscapes")["19 classes"].tasks[0]
    return any(folder.read_label(label, path, None).max() > 6 for path, *_ in files)


def source(root: Path, letters: str, split: str, limit: int | None) -> Source:
    """What `decoding` reads, as `folder.source`; the archives of the official release are unpacked."""
    what = description(root)
    if what is shipped("cityscapes")["official"]:
        _unpack(root)
    return folder.source(what, root, letters, split, limit)


def _unpack(root: Path) -> None:
    tops = ("leftImg8bit", "gtFine")
    for archive in (root / f"{top}_trainvaltest.zip" for top in tops if not (root / top).is_dir()):
        try:
            if archive.is_file():
                shutil.unpack_archive(archive, root)
        except (shutil.ReadError, BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{archive} should be a whole archive. Found a bad one: {error}.") from error
    if not all((root / top).is_dir() for top in tops):
        found = ", ".join(sorted(path.name for path in root.iterdir()))
        raise ValueError(f"{root} should hold leftImg8bit and gtFine. Found {found}.")
