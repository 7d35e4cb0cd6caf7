"""Cityscapes (Cordts et al., CVPR 2016, arXiv 1604.01685), the official release or the arrays that multi-task work
shares; what lies in the root tells which. The split "test" is val, whose labels are public.

Official: `leftImg8bit`, `gtFine` and `disparity`, listed by `torchvision.datasets.Cityscapes`. Arrays:
`<root>/train|val/{image,label,depth}/<i>.npy`, 128 x 256 pixels; images are (H, W, 3), float in [0, 1].

====== ========================================== ========================== ============================
letter file                                       target                     valid where
====== ========================================== ========================== ============================
s      official: labelIds, 8-bit grey PNG         one of 19 classes          the class is one of them
s      arrays: (H, W), 7 or 19 classes            raw                        raw is not -1
d      official: disparity, 16-bit grey PNG       (raw - 1) / 256 pixels     raw is not 0
d      arrays: (H, W, 1), inverse depth           raw                        raw is not 0
====== ========================================== ========================== ============================

Arrays have 7 classes unless one of the first `_LOOKED_AT` label files to train has a larger one than 6. Images are cut
to the square at their centre (see `decoding`).
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

from torchvision import datasets

from mtrlib import machine
from mtrlib.data import decoding, description, folder
from mtrlib.data.decoding import Source
from mtrlib.data.description import Description, Label
from mtrlib.tasks import Task

CLASSES = {
    19: tuple(
        kind.name for kind in sorted(datasets.Cityscapes.classes, key=lambda k: k.train_id) if 0 <= kind.train_id < 19
    ),
    7: ("flat", "construction", "object", "nature", "sky", "human", "vehicle"),
}
_LOOKED_AT = 64
_UNLABELLED = 255
_FOLDERS = {"train": "train", "test": "val"}


def tasks(root: Path | None) -> dict[str, Task]:
    """Definitions; the number of classes is that of the files in `root` (19 where none is given)."""
    number = 19 if root is None or _official(root) else _number_of_classes(root)
    return _arrays(number).definitions


def source(root: Path, *, letters: str, split: str, size: int | None, limit: int | None = None) -> Source:
    """What `decoding` reads; ids are the names of the official images, or "train/<i>" and "val/<i>"."""
    if not _official(root):
        what = _arrays(_number_of_classes(root))
        return folder.described("cityscapes", what, root, letters, split, size, limit)
    try:
        listed = datasets.Cityscapes(str(root), _FOLDERS[split], "fine", "semantic")
    except OSError as error:
        raise decoding.unreadable(error.filename or root, error) from error
    except RuntimeError as error:
        found = sorted(path.name for path in root.iterdir())
        raise ValueError(f"{root} should hold leftImg8bit and gtFine. Found {', '.join(found)}.") from error
    except (BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{root} should hold whole archives of leftImg8bit and gtFine. Found a bad one: {error}."
        ) from error
    suffix = "_leftImg8bit.png"
    images = sorted(Path(path) for path in listed.images)[:limit]
    ids = [path.name.removesuffix(suffix) for path in images]
    if not images:
        raise ValueError(f"{root} should hold images leftImg8bit/{_FOLDERS[split]}/<city>/*{suffix}. Found none.")

    def files(kind: str, top: str, end: str) -> list[decoding.File]:
        named = zip(images, ids, strict=True)
        return [
            decoding.find(kind, root / top / _FOLDERS[split] / path.parent.name / f"{name}{end}")
            for path, name in named
        ]

    parts = {decoding.IMAGES: decoding.images(files("images", "leftImg8bit", suffix), size, folder.read_image)}
    labels = {
        "s": (
            _label("s", 19, invalid=_UNLABELLED),
            files("labels of s", "gtFine", "_gtFine_labelIds.png"),
            "8-bit grey PNG",
            _train_ids(),
        ),
        "d": (
            _label("d", 0, invalid=0, scale=1 / 256, offset=-1 / 256),
            files("labels of d", "disparity", "_disparity.png"),
            "16-bit grey PNG",
            None,
        ),
    }
    for letter in letters:
        label, found, kind, table = labels[letter]
        parts[letter] = folder.label_part(label, found, size, (kind,), table)
    defined = {letter: task for letter, task in tasks(root).items() if letter in letters}
    return Source("cityscapes", "cityscapes 2", root, split, tuple(ids), parts, {}, {t: defined[t] for t in letters})


def _official(root: Path) -> bool:
    return (root / "leftImg8bit").is_dir() or any(root.glob("leftImg8bit*.zip"))


def _label(letter: str, classes: int, **fields) -> Label:
    kind = {"kind": "classes", "classes": list(CLASSES[classes])} if letter == "s" else {"kind": "regression"}
    name = {} if letter == "s" else {"name": "disparity"}
    return Label(letter=letter, **{"files": f"{{split}}/{letter}/{{id}}.npy", **kind, **name, **fields})


def _arrays(classes: int) -> Description:
    return Description(
        images="{split}/image/{id}.npy",
        tasks=[
            _label("s", classes, files="{split}/label/{id}.npy", invalid=-1),
            _label("d", 0, files="{split}/depth/{id}.npy", invalid=0),
        ],
        splits=_FOLDERS,
    )


def _number_of_classes(root: Path) -> int:
    """7 or 19, by the first label files to train."""
    machine.folder(root, "the data (root)")
    folders = [root / "train" / name for name in ("image", "label")]
    changed = tuple(each.stat().st_mtime_ns for each in folders if each.is_dir())
    known = [(str(path), path.stat()) for path in _first(root, changed) if path.is_file()]
    return 19 if any(_highest(path, at.st_mtime_ns, at.st_size) > 6 for path, at in known) else 7


@lru_cache(maxsize=8)
def _first(root: Path, changed: tuple[int, ...]) -> list[Path]:
    """The first label files to train, some of which may not be there; `changed` is when their folders were."""
    names = [name for name, _ in description.find(_arrays(19), root, "train")]
    return description.places(root, [f"train/label/{name}.npy" for name in names[:_LOOKED_AT]])


@lru_cache(maxsize=4 * _LOOKED_AT)
def _highest(path: str, modified: int, size: int) -> float:
    label = _label("s", 19, invalid=-1)
    return float(folder.read_label(label, path, None).max())


def _train_ids() -> dict[int, int]:
    """From a labelId of the official files to one of 19 classes, or -1 for none."""
    kinds = [kind for kind in datasets.Cityscapes.classes if kind.id >= 0]
    return {_UNLABELLED: -1} | {kind.id: kind.train_id if 0 <= kind.train_id < 19 else -1 for kind in kinds}
