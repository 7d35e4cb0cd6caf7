"""One file of an image or label, read whole and checked, and brought to the size that is asked for.

Images that are not square are cut to the square at their centre, then resized. Colours are resampled bilinearly over
the area that a pixel covers (antialiased). Everything else takes the nearest pixel's raw value, the same pixel for
every label and mask: a mean would invent classes, and would mix invalid depths into valid ones.
"""

import struct
import threading
import tokenize
import zlib
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

PALETTES = tuple(f"{bits}-bit palette PNG" for bits in (8, 4, 2, 1))  # the same indices in fewer bits
COLOURS = ("8-bit RGB PNG", "8-bit RGBA PNG", *(f"{bits}-bit grey PNG" for bits in (1, 2, 4, 8)), *PALETTES)
IMAGES = (*COLOURS, "8-bit grey with alpha PNG", "RGB JPEG", "L JPEG", "CMYK JPEG")  # as they are seen, without alpha
_NAMED = {IMAGES: "a PNG of up to 8 bits a channel or a JPEG"}
_ROUNDING = 1e-3  # how far the floats of an image may lie out of [0, 1]: a quarter of a step of eight bits
_PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}  # PNG colour types
SEGMENTS = (
    ": where colours stand for classes, `colors` says which; where they are ids of segments, as in COCO's panoptic "
    "files, write the class of each pixel to a grey PNG"
)
READ = {  # what gives the array of a file that is not read here, by its suffix
    ".mat": "scipy.io.loadmat(old)[name]",
    **dict.fromkeys((".h5", ".hdf5"), "h5py.File(old)[name][:]"),
    ".npz": "numpy.load(old)[name]",
    **dict.fromkeys((".exr", ".pfm"), "cv2.imread(old, -1)"),
    **dict.fromkeys((".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"), "numpy.asarray(PIL.Image.open(old))"),
}
# numpy parses the header of an array with `ast`. Threads that do so at once disturb each other: a SystemError now and
# then, seen with Python 3.11 (and reported as python/cpython issue 106905).
_PARSING = threading.Lock()
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error)  # what PIL raises of it


def read_colours(path: str) -> tuple[Image.Image, int]:
    """An image, PNG, JPEG or NPY, as RGB and as its EXIF says that it is seen; and the EXIF orientation.

    ValueError naming the file for a bad one, and where the orientation keeps width and height: nobody can tell then
    whether labels are turned with it.
    """
    if not path.lower().endswith(".npy"):
        image, orientation = read_image(path, IMAGES), 1
        with suppress(*_DAMAGE):  # such EXIF says nothing
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        image = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
        if orientation not in range(2, 9):
            return image, 1
        if orientation < 5 or image.width == image.height:
            found = f"EXIF orientation {orientation} of {image.width} x {image.height} pixels"
            wanted = "be stored as it is seen: nobody can tell whether its labels are turned with it"
            raise ValueError(f"{path} should {wanted}. Found {found}.")
        return Image.fromarray(np.ascontiguousarray(_turned(np.asarray(image), orientation))), orientation
    values = channels_last(path, read_array(path), 3)
    if values.dtype != np.uint8:
        if not (values.dtype.kind == "f" and -_ROUNDING <= values.min() <= values.max() <= 1 + _ROUNDING):
            found = f"{values.dtype}, {values.min()} to {values.max()}"
            raise ValueError(f"{path} should hold uint8, or floats in [0, 1]. Found {found}.")
        values = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values)), 1


def read_image(path: str, kinds: Sequence[str], size: tuple[int, ...] | None = None, hint: str = "") -> Image.Image:
    """A whole image of one of `kinds` and, unless None, of `size` (width, height, ...); else ValueError naming it, with
    the hint where it has colours.

    PNG checksums are checked. A file of more pixels than PIL's MAX_IMAGE_PIXELS is bad. A file that may not be read, or
    a disk that fails, is no bad file: that is an OSError.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    allowed = _NAMED.get(kinds) or " or ".join(kinds)
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
    except _DAMAGE as error:
        raise ValueError(f"{path} is truncated or damaged: {error}.") from error
    if kind not in kinds:
        raise ValueError(f"{path} should be {allowed}. Found {kind}{hint if 'RGB' in kind else ''}.")
    refuse_other_size(path, image.size, size)
    return image


def convert(path: str | Path) -> str:
    """How to write a file of another kind, as the suffix says, to one that is read."""
    suffix = Path(path).suffix.lower()
    how = f" by numpy.save(new, {READ[suffix]})" if suffix in READ else ""
    return f"convert {suffix or 'them'} to .npy{how}, or to .png"


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


def channels_last(path: str, values: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, C) of an array that is so, or (C, H, W), or of one channel (H, W); ValueError for any other."""
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim == 3 and values.shape[2] != channels == values.shape[0]:
        values = np.moveaxis(values, 0, 2)
    if values.ndim != 3 or values.shape[2] != channels:
        raise ValueError(f"{path} should be an array (H, W, {channels}). Found {values.shape}.")
    return values


def like_image(path: str, values: np.ndarray, image_size: tuple[int, ...] | None) -> np.ndarray:
    """A label, (H, W, ...), as its image is seen: turned with it where it is as large as what is stored of that.

    image_size : width, height and EXIF orientation of the image; None where they are not known. ValueError for a label
    of another width and height.
    """
    if image_size is not None and image_size[2:] > (4,) and values.shape[:2] == image_size[:2]:
        values = _turned(values, image_size[2])
    refuse_other_size(path, values.shape[1::-1], image_size)
    return values


def refuse_other_size(path: str, size: tuple[int, int], image_size: tuple[int, ...] | None, of: str = "image") -> None:
    """ValueError for a label of another width and height than its image; None for those that are not known."""
    if image_size is not None and size != image_size[:2]:
        raise ValueError("{} should be {} x {} like its {}. Found {} x {}.".format(path, *image_size[:2], of, *size))


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) -> (W, H, ...), what is stored as it is seen. orientation : of EXIF, 5 to 8."""
    return values.swapaxes(0, 1)[:: -1 if orientation in (7, 8) else 1, :: -1 if orientation in (6, 7) else 1]


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
