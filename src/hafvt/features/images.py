"""Open pictures. They are untrusted input: path, size and bytes are checked before they are decoded."""

from __future__ import annotations

import base64
import os
import stat
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hafvt.errors import missing_package
from hafvt.features.encoders.base import ContentError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS  # a progressive JPEG has about 10 scans of all pixels
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # AVIF only where Pillow reads it
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
LEADS_OUT = "leads outside the picture folder"
LEADS_OUT_BY_LINK = f"a link {LEADS_OUT}: put the item table beside the real pictures, or copy them here"
# By EXIF orientation: the method of Pillow that turns a picture upright.
TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

# Pillow warns of each oddity of a file; what matters is raised as a PictureError. Filters are of the whole
# process and no thread may change them for a while, so this one stays.
warnings.filterwarnings("ignore", module=r"PIL\.")

# A pipe must not block, and the file must not be replaced by a link between the check of its path and here.
_OPEN_FLAGS = (
    os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)


class PictureError(ContentError):
    """What is wrong with a picture, in a few words."""


def open_picture(root: Path | None, value: str, side: int = 512) -> Image:
    """Return a picture of an item table in RGB, upright by its EXIF orientation, on a white background.

    The path must lead to a regular file inside `root` after links are resolved. The content, not the name,
    determines the format. Of an animation, the first frame is used.

    Args:
        root: the folder that relative paths start from; None if the dataset has none.
        value: the path in the item table.
        side: larger pictures are reduced until their shorter side has this many pixels.

    Raises:
        PictureError: the path, the file or its content cannot be used; or the file is a JPEG that ends too
            early, then `content` is the picture as far as it goes, like browsers show it.
        HafvtError: Pillow is not installed.
    """
    return decode_picture(_read(root, value), side)


def decode_picture(data: bytes, side: int = 512) -> Image:
    """Return the picture in the bytes of a file, see `open_picture`."""
    try:
        from PIL import Image, UnidentifiedImageError, features
    except ImportError:
        raise missing_package("classic", "pillow") from None
    formats = FORMATS if features.check("avif") else FORMATS[:-1]
    try:
        return _decode(data, formats, side)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"not a picture ({', '.join(formats)} are read)") from None
    except Image.DecompressionBombError:
        raise PictureError("too many pixels") from None
    except Exception as error:  # decoders raise nearly anything for broken bytes
        reason = " ".join(str(error).split())[:100]
        problem = f"broken picture ({reason or type(error).__name__})"
    picture = _decode_without_end(data, side) if data.startswith(JPEG_START) else None
    raise PictureError(problem if picture is None else "its end is missing, the rest is used", picture)


def _decode_without_end(data: bytes, side: int) -> Image | None:
    """Return the picture in a JPEG that ends too early, as far as it goes; None if nothing can be seen."""
    with suppress(Exception):
        picture = _decode(data + JPEG_END, ("JPEG",), side)
        if np.ptp(np.asarray(picture)) > 0:  # missing parts are of one color
            return picture
    return None


def _decode(data: bytes, formats: tuple[str, ...], side: int) -> Image:
    """Return the picture in the bytes of a file, see `open_picture`; raise any error if they are broken."""
    from PIL import Image

    with Image.open(BytesIO(data), formats=formats) as image:
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise PictureError(f"{width} x {height} pixels are too many")
        if image.format == "JPEG" and width * height * data.count(JPEG_SCAN) > MAX_SCANNED_PIXELS:
            raise PictureError("too many scans")
        image.draft("RGB", (side, side))  # a JPEG is decoded at 1/2, 1/4 or 1/8 if that is large enough
        picture, orientation = _to_rgb(image), _orientation(image)
    if orientation in TRANSPOSITIONS:
        picture = picture.transpose(Image.Transpose[TRANSPOSITIONS[orientation]])
    scale = side / min(picture.size)
    if scale >= 1:
        return picture
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def thumbnail(root: Path | None, value: str, side: int) -> bytes:
    """Return a picture, see `open_picture`, encoded anew as JPEG, at most `side` pixels wide and high."""
    try:
        picture = open_picture(root, value, side)
    except PictureError as error:
        if error.content is None:
            raise
        picture = error.content
    picture.thumbnail((side, side))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def thumbnail_data_uri(root: Path | None, value: str, side: int) -> str | None:
    """Return a `thumbnail` as a data: URI; None if the picture cannot be opened."""
    try:
        jpeg = thumbnail(root, value, side)
    except PictureError:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _read(root: Path | None, value: str) -> bytes:
    """Return the bytes of a picture file, read once."""
    if root is None:
        raise PictureError("the dataset has no picture folder")
    if value.lower().startswith(("http://", "https://")):
        raise PictureError("a web address, not fetched yet")
    if ".." in Path(value).parts:
        raise PictureError(LEADS_OUT)
    if not root.is_dir():
        raise PictureError(f"the picture folder {root} is missing")
    try:
        root = root.resolve()
        path = (root / value).resolve(strict=True)
        if not path.is_relative_to(root):
            is_link = (root / value).is_relative_to(root)
            raise PictureError(LEADS_OUT_BY_LINK if is_link else LEADS_OUT)
        with open(path, "rb", opener=lambda name, _: os.open(name, _OPEN_FLAGS)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PictureError("not a regular file")
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise PictureError("no such file") from None
    except IsADirectoryError:
        raise PictureError("not a regular file") from None
    except (OSError, RuntimeError, ValueError) as error:  # no permission, a loop of links, a bad name
        raise PictureError(f"cannot be read ({getattr(error, 'strerror', None) or 'bad path'})") from None
    if len(data) > MAX_BYTES:
        raise PictureError(f"larger than {MAX_BYTES // 2**20} MiB")
    return data


def _to_rgb(image: Image) -> Image:
    """Return the picture in RGB, transparent parts white, 16-bit values scaled to 8 bits, not clipped."""
    from PIL import Image

    image.load()
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(layered, mask=layered.getchannel("A"))
        return flat
    return image.convert("RGB")


def _orientation(image: Image) -> int:
    """Return the EXIF orientation; 1, upright, if there is none or the EXIF data are damaged."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # the parser raises nearly anything for broken bytes
        return 1
