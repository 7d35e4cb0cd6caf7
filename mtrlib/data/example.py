"""A small data set on disk, as a folder of your own might be: what the notebook `new_dataset` and tests read.

Rooms, 48 x 64 pixels, with four classes instead of those of `rooms`, depth in millimetres, normals as colours, and a
task that the paper does not have: inverse depth, which is left out beyond five metres (`example.yaml` describes them).
"""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from mtrlib import machine, rooms
from mtrlib.data import description, sealed
from mtrlib.data.loading import load, positive
from mtrlib.dataset import Dataset
from mtrlib.tasks import Task

CLASSES = ["floor", "wall", "ceiling"]  # of rooms; everything else is a thing
MARK = "# Written by mtrlib.data.write_example"
BEGUN = f"{MARK}: not yet complete.\n"
DESCRIPTION = Path(__file__).with_name("example.yaml").read_text(encoding="utf-8")
_NUMBERS = r"[0-9]+ rooms to train, [0-9]+ to test, seed [0-9]+(, version [0-9]+ of the rooms)?"
_OURS = re.compile(rf"{re.escape(BEGUN)}|{re.escape(MARK)}: {_NUMBERS}\.\n{re.escape(DESCRIPTION)}")


def write_example(folder: str | Path, train: int = 256, test: int = 64, seed: int = 0) -> Path:
    """Write the data set, `train` and `test` images of rooms of a seed, into a folder, unless it is there already; what
    a killed process began, or earlier rooms gave, is written anew. ValueError for a folder that holds anything else."""
    positive(train=train, test=test)
    folder, text = Path(folder), _text(train, test, seed)
    described(folder, train, test, seed)  # before a lock comes to lie beside what is there

    def make() -> Path:
        folder.mkdir(exist_ok=True)
        sealed.write(folder / description.FILE, BEGUN.encode())  # whose the files are, if this is killed
        for name in ("images", "segments", "depth", "normals", "inverse"):
            (folder / name).mkdir(exist_ok=True)
            for old in (folder / name).iterdir():
                if re.fullmatch(r"\.?(train|test)_[0-9]{4,}\.(png|npy)(\.partial)?", old.name):
                    old.unlink()
        for split, number in {"train": train, "test": test}.items():
            data = load("rooms", tasks="sdn", split=split, size=64, limit=number, seed=seed)
            for row in range(number):
                _write(folder, f"{split}_{row:04d}", data, row)
        sealed.write(folder / description.FILE, text.encode())  # last: with it the data set is complete
        return folder

    lock = folder.with_name(f".{folder.name}.lock")
    return sealed.kept(lock, lambda: _found(folder) == text, lambda: folder, make)


def described(folder: Path, train: int, test: int, seed: int = 0) -> tuple[str, dict[str, Task]]:
    """The digest of the description and the definitions of the tasks, as `data.digest` and `data.tasks` read them once
    it is written: nothing is. Parameters and errors as of `write_example`."""
    _found(machine.folder(folder, "the example", made=True))
    text = _text(train, test, seed)
    return description.digest([text]), description.parsed(folder / description.FILE, text).definitions


def _text(train: int, test: int, seed: int) -> str:
    which = f"{train} rooms to train, {test} to test, seed {seed}, version {rooms.VERSION} of the rooms"
    return f"{MARK}: {which}.\n{DESCRIPTION}"


def _found(folder: Path) -> str:
    """The description in a folder; ValueError for a folder with anything but an example, or with an edited one."""
    path = folder / description.FILE
    files = set(folder.iterdir()) if folder.exists() else set()  # before the description, which is written first
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if files - {sealed.partial(path)} and not _OURS.fullmatch(text):
        found = f"Found other files in {folder}: set example to false to read your own data."
        raise ValueError(f"The folder of the example should be empty or hold one. {found}")
    return text


def _write(folder: Path, name: str, data: Dataset, row: int) -> None:
    """One image: rows 8 to 55 of a room of 64 pixels."""
    image, s, d, n = (each[row][..., 8:56, :].numpy() for each in (data.images, *data.targets.values()))
    classes = np.uint8([CLASSES.index(each) if each in CLASSES else 3 for each in data.class_names])[s]
    classes[0] = 255  # as where annotators leave a border out
    metres = (2 ** (16 * d[0].astype(float)) - 1) / 512
    arrays = {
        "images": image.transpose(1, 2, 0),
        "segments": classes,
        "depth": np.rint(1000 * metres).astype(np.uint16),
        "normals": np.rint((n + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0),
        "inverse": np.where(metres < 5, 1 / np.maximum(metres, 0.1), 0).astype(np.float32),
    }
    for kind, values in arrays.items():
        content, is_png = io.BytesIO(), kind != "inverse"
        Image.fromarray(np.ascontiguousarray(values)).save(content, "PNG") if is_png else np.save(content, values)
        sealed.write(folder / kind / f"{name}.{'png' if is_png else 'npy'}", content.getvalue())
