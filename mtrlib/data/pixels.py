"""One file of an image or label, read whole and checked, and brought to the size that is asked for.

Images that are not square are cut to the square at their centre, then resized. Colours are resampled bilinearly over
the area that a pixel covers (antialiased). Everything else takes the nearest pixel's raw value, the same pixel for
every label and mask: a mean would invent classes, and would mix invalid depths into valid ones.
"""

from __future__ import annotations

import struct
import threading
import tokenize
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

COLOURS = ("8-bit RGB PNG", "8-bit RGBA PNG", "RGB JPEG")  # of an image; alpha is dropped
PALETTES = tuple(f"{bits}-bit palette PNG" for bits in (8, 4, 2, 1))  # the same indices in fewer bits
_PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}  # PNG colour types
# numpy parses the header of an array with `ast`. Threads that do so at once disturb each other: a SystemError now and
# then, seen with Python 3.11 (and reported as python/cpython issue 106905).
_PARSING = threading.Lock()


def read_colours(path: str) -> Image.Image:
    """An image, PNG, JPEG or NPY, as RGB; ValueError naming the file for a bad one."""
    if not path.lower().endswith(".npy"):
        return read_image(path, COLOURS).convert("RGB")
    values = read_array(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"{path} should be an array (H, W, 3). Found {values.shape}.")
    if values.dtype != np.uint8:
        if not (values.dtype.kind == "f" and 0 <= values.min() <= values.max() <= 1):
            found = f"{values.dtype}, {values.min()} to {values.max()}"
            raise ValueError(f"{path} should hold uint8, or floats in [0, 1]. Found {found}.")
        values = np.rint(values * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def read_image(path: str, kinds: Sequence[str], size: tuple[int, int] | None = None) -> Image.Image:
    """A whole image of one of `kinds` and, unless None, of `size` (width, height); else ValueError naming the file.

    PNG checksums are checked. A file of more pixels than PIL's MAX_IMAGE_PIXELS is bad. A file that may not be read, or
    a disk that fails, is no bad file: that is an OSError.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    allowed = " or ".join(kinds)
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
            kind, pixels, most = _kind(image, data), image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most and pixels > most:
                raise Image.DecompressionBombError(f"{pixels} pixels, PIL allows {most}")
            image.verify()  # checksums of a PNG; the image cannot be used afterwards
        image = Image.open(BytesIO(data), formats=("PNG", "JPEG"))
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} should be {allowed}. Found {len(data)} bytes of no image.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large an image: {error}.") from error
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}.") from error
    if kind not in kinds:
        raise ValueError(f"{path} should be {allowed}. Found {kind}.")
    refuse_other_size(path, image.size, size)
    return image


def read_array(path: str) -> np.ndarray:
    """The numbers in a NPY file; ValueError naming it for anything else."""
    try:
        with open(path, "rb"), _PARSING:  # open says why a file cannot be read
            values = np.lib.format.open_memmap(path, mode="r")  # a map: no more than the file has
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{path} is truncated or damaged: {' '.join(str(error).split())}.") from error
    if values.dtype.kind not in "biuf" or not values.size:
        raise ValueError(f"{path} should be an array of numbers. Found {values.dtype}.")
    return values


def refuse_other_size(path: str, size: tuple[int, int], image_size: tuple[int, int] | None) -> None:
    """ValueError for a label of another width and height than its image; None for those that are not known."""
    if image_size is not None and size != image_size:
        raise ValueError("{} should be {} x {} like its image. Found {} x {}.".format(path, *image_size, *size))


def unreadable(path: str | Path, error: OSError) -> OSError:
    """One line for a file that is there and cannot be read: that is no bad file, and is never left out."""
    return OSError(f"{path} cannot be read: {error.strerror or error}.")


def square(image: Image.Image, size: int | None) -> Image.Image:
    """The square at the centre, resized to `size`; the image as it is for None."""
    if size is None:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)


def nearest(values: np.ndarray, size: int | None) -> np.ndarray:
    """(H, W, ...) -> (size, size, ...): of the square at the centre, the pixels in which the new ones' centres lie."""
    if size is None:
        return values
    height, width = values.shape[:2]
    side = min(height, width)
    index = (2 * np.arange(size) + 1) * side // (2 * size)
    return values[np.ix_((height - side) // 2 + index, (width - side) // 2 + index)]


def _kind(image: Image.Image, data: bytes) -> str:
    """Bit depth, colours and format. The header of a PNG has the truth: PIL opens 16-bit RGB as 8-bit RGB."""
    if image.format != "PNG":
        return f"{image.mode} JPEG"
    header, bits, colour = data[12:16], *data[24:26]
    return f"{bits}-bit {_PNG_COLOURS.get(colour, 'unknown')} PNG" if header == b"IHDR" else "PNG without a header"
