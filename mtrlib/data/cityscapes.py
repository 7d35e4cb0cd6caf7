"""Which of the layouts in `cityscapes.yaml` a folder has: the official release, or arrays of 19 or of 7 classes.

Arrays have 7 classes unless one of 64 label files to train has a larger one than 6 (250 and 255 are none), or where
folders say the number: `label_19` is taken before `label_7`, and `label` before both.
"""

import shutil
import zlib
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

from mtrlib import machine
from mtrlib.data import folder, listing
from mtrlib.data.decoding import Source
from mtrlib.data.description import Description, shipped


def description(root: Path | None) -> Description:
    """Of what lies in `root`; where none is given, of the official release."""
    layouts = shipped("cityscapes")
    if root is None or (root / "leftImg8bit").is_dir() or any(root.glob("leftImg8bit*.zip")):
        return layouts["official"]
    machine.folder(root, "the data (root)")
    for name in ("label_19", "label_7"):
        if not (root / "train" / "label").is_dir() and (root / "train" / name).is_dir():
            return layouts[name]
    every = (path for path in listing.walk(root / "train" / "label") if path.suffix.lower() == ".npy")
    labels = (folder.read_label(layouts["19 classes"].tasks[0], str(path), None) for path in islice(every, 64))
    return layouts["19 classes" if any(((raw > 6) & (raw < 250)).any() for raw in labels) else "7 classes"]


def source(root: Path, letters: str, split: str, limit: int | None) -> Source:
    """What `decoding` reads, as `folder.source`; the archives of the official release are unpacked."""
    what = description(root)
    if what is not shipped("cityscapes")["official"]:
        return folder.source(what, root, letters, split, limit)
    tops = ("leftImg8bit", "gtFine")
    for archive in (root / f"{top}_trainvaltest.zip" for top in tops if not (root / top).is_dir()):
        try:
            if archive.is_file():
                shutil.unpack_archive(archive, root)
        except (shutil.ReadError, BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{archive} should be a whole archive. Found a bad one: {error}.") from error
    if not all((root / top).is_dir() for top in tops):
        there = ", ".join(sorted(path.name for path in root.iterdir()))
        raise ValueError(f"{root} should hold leftImg8bit and gtFine. Found {there}.")
    return folder.source(what, root, letters, split, limit)
