"""NYUv2 (Silberman et al., ECCV 2012) as the arrays that multi-task work shares: 795 images to train, 654 to test.

Layout: `<root>/train|val/{image,label,depth,normal}/<i>.npy`, 288 x 384 pixels; the split "test" is val.

====== ===================================== ======================== ==============================
letter file                                  target                   valid where
====== ===================================== ======================== ==============================
s      (H, W), -1 to 12                      raw                      raw is not -1
d      (H, W, 1), metres                     raw                      raw is not 0
n      (H, W, 3), unit vectors               raw                      not all three are 0
====== ===================================== ======================== ==============================

Images are (H, W, 3), float in [0, 1]; they are cut to the square at their centre (see `decoding`).
"""

from __future__ import annotations

from pathlib import Path

from mtrlib.data import folder
from mtrlib.data.decoding import Source
from mtrlib.data.description import Description
from mtrlib.tasks import Task

CLASSES = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
    *("picture", "sofa", "table", "tv", "wall", "window"),
)
DESCRIPTION = Description(
    images="{split}/image/{id}.npy",
    tasks=[
        {
            **{"letter": "s", "kind": "classes", "classes": list(CLASSES)},
            **{"files": "{split}/label/{id}.npy", "invalid": -1},
        },
        {
            "letter": "d",
            "name": "z-depth in metres",
            "kind": "regression",
            "files": "{split}/depth/{id}.npy",
            "invalid": 0,
        },
        {"letter": "n", "kind": "regression", "channels": 3, "files": "{split}/normal/{id}.npy", "invalid": 0},
    ],
    splits={"train": "train", "test": "val"},
)


def tasks(root: Path | None = None) -> dict[str, Task]:
    """Definitions, wherever the files are."""
    return DESCRIPTION.definitions


def source(root: Path, *, letters: str, split: str, size: int | None, limit: int | None = None) -> Source:
    """What `decoding` reads; ids are "train/<i>" and "val/<i>"."""
    return folder.described("nyuv2", DESCRIPTION, root, letters, split, size, limit)
