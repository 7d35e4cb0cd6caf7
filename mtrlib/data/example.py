"""A small data set on disk, as a folder of your own might be: what the notebook `new_dataset` and tests read.

Rooms, 48 x 64 pixels, with four classes instead of those of `rooms`, depth in millimetres, normals as colours, and a
task that the paper does not have: inverse depth, which is left out beyond five metres.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from mtrlib import machine, sealed
from mtrlib.data import description
from mtrlib.data.loading import load

CLASSES = {"floor": "floor", "wall": "wall", "ceiling": "ceiling"}  # of rooms -> here; everything else is a thing
MARK = "# Written by mtrlib.data.write_example"
BEGUN = f"{MARK}: not yet complete.\n"
TEXT = """\
{mark}: {train} rooms to train, {test} to test, seed {seed}.
images: images/{{id}}.png            # 8-bit RGB, 48 x 64 pixels
tasks:
  - letter: s                       # a letter of the paper, with other classes
    kind: classes
    classes: [floor, wall, ceiling, thing]
    files: segments/{{id}}.png       # 8-bit grey
    invalid: 255                    # pixels without a label
  - letter: d
    name: depth in metres
    kind: regression
    files: depth/{{id}}.png          # 16-bit grey, millimetres
    scale: 0.001                    # target = scale * raw + offset
    invalid: 0
    error: absolute error
  - letter: n
    kind: regression
    channels: 3
    files: normals/{{id}}.png        # 8-bit RGB
    scale: 0.00784313725490196      # 2 / 255
    offset: -1.0
    error: angle                    # degrees
  - letter: i                       # a new letter
    name: inverse depth
    kind: regression
    files: inverse/{{id}}.npy        # (48, 64), float32, 1 / metres
    invalid: 0
    loss: squared
    error: absolute error
splits:
  train: "train_*"                  # patterns of ids; or lists, files of ids, or {{ratio: 0.8}}
  test: "test_*"
"""


def write_example(folder: str | Path, train: int = 256, test: int = 64, seed: int = 0) -> Path:
    """Write the data set into a folder, unless it is there already; what a killed process began is written anew.

    Parameters
    ----------
    folder : where to; made where it does not exist.
    train, test : number of images of each split.
    seed : of the rooms.

    Raises
    ------
    ValueError : for a folder that holds anything else.
    """
    for name, number in (("train", train), ("test", test)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"Parameter {name} should be a positive integer. Found {name} = {number!r}.")
    folder = machine.folder(Path(folder), "the example", made=True)
    text = TEXT.format(mark=MARK, train=train, test=test, seed=seed)
    if _found(folder) != text:
        _refuse_others(folder)  # before a lock comes to lie beside them
        with sealed.locked(folder.with_name(f".{folder.name}.lock")):
            if _found(folder) != text:  # not even by the one that held the lock before
                _write_all(folder, text, {"train": train, "test": test}, seed)
    return folder


def _found(folder: Path) -> str:
    path = folder / description.FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _refuse_others(folder: Path) -> None:
    """ValueError for a folder with anything but an example, also for one whose description was edited since."""
    found = _found(folder)
    numbers = re.match(rf"{re.escape(MARK)}: (\d+) rooms to train, (\d+) to test, seed (\d+)\.\n", found)
    written = numbers and TEXT.format(mark=MARK, **dict(zip(("train", "test", "seed"), numbers.groups(), strict=True)))
    if found in (BEGUN, written):
        return
    if folder.exists() and any(file != sealed.partial(folder / description.FILE) for file in folder.iterdir()):
        raise ValueError(
            f"The folder of the example should be empty or hold one. Found other files in {folder}: "
            "set example to false to read your own data."
        )


def _write_all(folder: Path, text: str, sizes: dict[str, int], seed: int) -> None:
    _refuse_others(folder)
    path = folder / description.FILE
    folder.mkdir(exist_ok=True)
    sealed.write(path, BEGUN.encode())  # whose the files are, if this is killed
    for name in ("images", "segments", "depth", "normals", "inverse"):
        (folder / name).mkdir(exist_ok=True)
        for old in (folder / name).iterdir():
            if re.fullmatch(r"\.?(train|test)_[0-9]{4,}\.(png|npy)(\.partial)?", old.name):
                old.unlink()
    for split, number in sizes.items():
        rooms = load("rooms", tasks="sdn", split=split, size=64, limit=number, seed=seed)
        numbers = np.array([list(CLASSES).index(name) if name in CLASSES else 3 for name in rooms.class_names])
        for row in range(number):
            _write(folder, f"{split}_{row:04d}", rooms, row, numbers.astype(np.uint8))
    sealed.write(path, text.encode())  # last: with it the data set is complete


def _write(folder: Path, name: str, rooms, row: int, numbers: np.ndarray) -> None:
    """One image: rows 8 to 55 of a room of 64 pixels."""
    rows = slice(8, 56)
    segments = numbers[rooms.targets["s"][row, rows].numpy()]
    segments[0] = 255  # as where annotators leave a border out
    metres = (2 ** (16 * rooms.targets["d"][row, 0, rows].numpy().astype(float)) - 1) / 512
    normals = np.rint((rooms.targets["n"][row, :, rows].numpy() + 1) * 127.5).astype(np.uint8)
    inverse = np.where(metres < 5, 1 / np.maximum(metres, 0.1), 0).astype(np.float32)
    pictures = {
        "images": rooms.images[row, :, rows].numpy().transpose(1, 2, 0),
        "segments": segments,
        "depth": np.rint(1000 * metres).astype(np.uint16),
        "normals": normals.transpose(1, 2, 0),
    }
    for kind, values in pictures.items():
        content = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(values)).save(content, format="PNG")
        sealed.write(folder / kind / f"{name}.png", content.getvalue())
    content = io.BytesIO()
    np.save(content, inverse)
    sealed.write(folder / "inverse" / f"{name}.npy", content.getvalue())
