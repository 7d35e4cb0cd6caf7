"""What is in the files of a data set, and what of it would stop a run: every file is read once, at its own size."""

import hashlib
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mtrlib.data import decoding, loading
from mtrlib.data.decoding import Source
from mtrlib.dataset import SPLITS
from mtrlib.tasks import Task, distinct

IMAGES = "images"
NEAR = 6  # bits of 64: frames of a video less than half a second apart; of other photographs a third and more differ
_SHOWN = 12  # classes that have a line of their own
_NOTHING = {
    **dict.fromkeys(("files", "missing", "bad", "read"), 0),
    **dict.fromkeys(("low", "high", "valid"), np.nan),
    **{"classes": None, "stops": False, "problem": "", "warning": ""},
}


def check(name: str, root: str | Path, letters: str | None = None) -> pd.DataFrame:
    """Read every file of both splits; ValueError for a root or a description that cannot be read at all.

    Parameters
    ----------
    name, root : as in `data.load`; not "rooms", which has no files.
    letters : tasks to look at. None looks at all: of a "folder" each must have files, since its description names it;
        of the others those without any file are reported and stop nothing, since few have all of them.

    Returns
    -------
    A row a split and task, and one for the images:
    split, task (a letter, or "images"), name;
    files, missing, bad : how many were found, are missing (where others are there) and cannot be used;
    read : of how many the columns to the right tell, those of bad images left out;
    low, high : of the targets at valid pixels; valid : share of valid pixels;
    classes : dict of the pixels of each class, by name; None where there are none;
    stops : whether a run would stop there, with the default `on_bad`; problem : the first reason, else empty;
    warning : of the images, what stops no run and should be known, such as images to train among those to test.
    """
    if name == "rooms" or name not in loading.NAMES:
        allowed = ", ".join(each for each in loading.NAMES if each != "rooms")
        raise ValueError(f"Parameter name should be one of {allowed}, a data set with files. Found name = {name!r}.")
    required = letters is not None or name == "folder"
    defined = loading.tasks(name, root)
    letters = "".join(defined) if letters is None else letters
    rows, firsts, hashes = [], [], []
    for split in SPLITS:
        sources, counts = {}, {}
        for letter in letters:
            try:
                sources[letter] = loading.source(name, root, letter, split, None)
            except ValueError as error:
                counts[letter] = {"stops": required, "problem": str(error)}
        if sources:
            first = next(iter(sources.values()))
            firsts.append(first)
            sizes = np.zeros((len(first.ids), 3), dtype=int)
            hashes.append(np.zeros(len(first.ids), np.uint64))
            counts[IMAGES] = _counted(first, decoding.IMAGES, sizes, True, hashes[-1])
            told = [_same(*firsts), _near([each.ids for each in firsts], hashes)] if len(firsts) == 2 else []
            if turned := (sizes[:, 2] > 4).sum():
                some = f"{turned} of {len(sizes)} images to {split}"
                told.append(f"{some} are turned as EXIF says, their labels with them.")
            counts[IMAGES]["warning"] = " ".join(filter(None, told))
            counts |= {letter: _counted(source, letter, sizes, required) for letter, source in sources.items()}
        else:  # nothing at all: one reason will do
            counts = {IMAGES: {**next(iter(counts.values())), "stops": True}}
        for task in (each for each in (IMAGES, *letters) if each in counts):
            named = defined[task].name if task in defined else ""
            rows.append({"split": split, "task": task, "name": named, **_NOTHING, **counts[task]})
    return pd.DataFrame(rows)


def class_shares(table: pd.DataFrame) -> str:
    """Of each split and task with classes in what `check` gives: how many of the classes occur, in how many images, and
    the shares of the most frequent ones, a line each."""
    lines = []
    for row in table.dropna(subset="classes").itertuples():
        counts = pd.Series(row.classes, dtype=np.int64)
        counts = counts[counts > 0].sort_values(ascending=False, kind="stable")
        images = "1 image" if row.read == 1 else f"{row.read} images"
        lines.append(f"{row.task}, {row.split}: {len(counts)} of {len(row.classes)} classes occur in {images}")
        shares = 100 * counts / counts.sum()
        lines += [f"    {name} {share:.3g} %" for name, share in shares[:_SHOWN].items()]
        if others := len(shares[_SHOWN:]):
            named = "1 other" if others == 1 else f"{others} others, together"
            lines.append(f"    and {named} {100 * counts[_SHOWN:].sum() / counts.sum():.3g} %")
    return "\n".join(lines)


def _same(train: Source, test: Source) -> str:
    """What to say of images to test that are images to train byte for byte, under another name; else empty."""
    files = [list(zip(of.ids, of.parts[decoding.IMAGES].files, strict=True)) for of in (train, test)]
    sizes = set.intersection(*({file.bytes for _, (file,) in each} for each in files)) - {-1}
    named = [[(file.path, name) for name, (file,) in each if file.bytes in sizes] for each in files]
    known = {hashlib.sha256(Path(path).read_bytes()).digest(): name for path, name in named[0]}
    pairs = ((known.get(hashlib.sha256(Path(path).read_bytes()).digest()), name) for path, name in named[1])
    same = [f"{name} is {other}" for other, name in pairs if other is not None]
    some = f"{len(same)} of {len(test.ids)} images to test are images to train"
    return f"{some}, byte for byte: {same[0]}." if same else ""


def difference_hash(image: np.ndarray) -> np.uint64:
    """64 bits of an image, (3, H, W), uint8: of its grey, averaged to 8 rows of 9, which are brighter than the pixel to
    their left. 0 for a plain image."""
    step = max(1, min(image.shape[1:]) // 128)  # as many pixels will do
    grey = Image.fromarray(np.ascontiguousarray(image[:, ::step, ::step].transpose(1, 2, 0))).convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    return np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)[0]


def _near(ids: list[tuple[str, ...]], hashes: list[np.ndarray]) -> str:
    """What to say of images to test that are near-duplicates of images to train, if there are any."""
    train, test = map(np.flatnonzero, hashes)
    pairs = []
    for row in test if len(train) else ():
        bits = np.bitwise_count(hashes[0][train] ^ hashes[1][row])
        if bits.min() <= NEAR:
            pairs.append((ids[1][row], ids[0][train[bits.argmin()]]))
    if not pairs:
        return ""
    one, other = pairs[0]
    return (
        f"{len(pairs)} of {len(ids[1])} images to test are near-duplicates of images to train (of the 64 bits of "
        f"their difference hashes at most {NEAR} differ), first: {one} like {other}. Frames of a video should be split "
        "by time with a gap, such as splits: {by: time, test: 0.2, gap: 30}."
    )


def _counted(source: Source, name: str, sizes: np.ndarray, required: bool, hashes: np.ndarray | None = None) -> dict:
    """The row of a task, or of the images, which fill their rows of `sizes`, (N, 3), and of
    `hashes`, (N,), their difference hashes; those of bad ones stay 0."""
    absent = list(decoding.missing(source, name).values())
    if len(absent) == len(source.ids):
        some = source.parts[name].files[0][0].path
        return {"stops": required, "problem": f"{source.where} has no files of {name}, such as {some}."}
    task = source.tasks.get(name)
    classes = task.classes if task is not None else 0
    counts = np.zeros(classes, dtype=np.int64)
    bad, ends, read, pixels, valid = [], [], 0, 0, 0
    owner = source.masks.get(name)
    masks = decoding.decoded(source, owner, sizes) if owner else repeat({})
    for row, pair in enumerate(zip(decoding.decoded(source, name, sizes), masks, strict=bool(owner))):
        wrong = [each for each in pair if not isinstance(each, dict)]
        if wrong:
            bad += filter(None, wrong[:1])
            continue
        arrays = pair[0] | pair[1]
        values = arrays["values"]
        chosen = values[..., arrays["mask"]] if "mask" in arrays else values
        read, pixels, valid = read + 1, pixels + values.size, valid + chosen.size
        ends += [chosen.min(), chosen.max()] if chosen.size else []
        if "sizes" in arrays:
            sizes[row] = arrays["sizes"]
        if hashes is not None:
            hashes[row] = difference_hash(values)
        if classes:
            counts += np.bincount(chosen.ravel(), minlength=classes)
    problems = absent + bad
    return {
        **{"files": len(source.ids) - len(absent), "missing": len(absent), "bad": len(bad), "read": read},
        **{"low": min(ends, default=np.nan), "high": max(ends, default=np.nan)},
        "valid": valid / pixels if pixels else float(task is None),
        "classes": _named(task, counts) if classes else None,
        "stops": bool(problems),
        "problem": problems[0] if problems else "",
    }


def _named(task: Task, counts: np.ndarray) -> dict[str, int]:
    names = distinct(task.class_names or map(str, range(task.classes)))
    return dict(zip(names, counts.tolist(), strict=True))
