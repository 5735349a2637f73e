"""Images in: from a path, a PIL image, an array or a tensor to one upright RGB image; and the files of folders.

Everything odd about image files ends here: rotation flags, palettes, grey, 16 bits, CMYK, transparency, animation,
damage and bombs. This file knows no backbone and resizes nothing. NumPy and PIL are imported with the first image:
who only lists files needs neither.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.quiet import quiet

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

ImageLike: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray | Tensor"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 100_000_000

_ADVICE = f"Give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file, or remove it."
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(source: ImageLike, max_pixels: int = MAX_PIXELS, name: str = "the image") -> Image.Image:
    """Turn anything that holds one image into an upright RGB image.

    Args:
        source: the path or the bytes of a file (JPEG, PNG, WebP, BMP, GIF or TIFF; the first frame of an
            animation), a PIL image, an array [H, W] or [H, W, 1|3|4], or a tensor [H, W] or [1|3|4, H, W].
            Arrays and tensors are uint8 in 0..255 or floating point in 0..1. A fourth channel is opacity.
        max_pixels: of a file or a PIL image; known before they are decoded.
        name: what the messages call an image without a path.
    Returns:
        An RGB image: rotation flags applied, grey and palette expanded, 16 bits reduced to 8, transparency laid on
        white.
    Raises:
        UserError: the file is missing, damaged, no image or too large; or the shape or range is another.
    """
    import numpy as np
    from PIL import Image

    if isinstance(source, str | Path | bytes | Image.Image):
        with quiet():  # PIL warns of what is handled here: its own size limit, damaged metadata
            if isinstance(source, Image.Image):
                return _to_rgb(source, name, max_pixels)
            if isinstance(source, bytes):
                return _read_opened(io.BytesIO(source), name, max_pixels)
            return _read_file(Path(source), max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, "array", "[H, W] or [H, W, 1|3|4]")
    import torch

    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    raise UserError(
        f"an image is a {type(source).__name__}, but a path, bytes, a PIL image, an array or a tensor was expected. "
        "Open it with PIL first."
    )


def _read_file(path: Path, max_pixels: int) -> Image.Image:
    try:
        if path.is_dir():
            raise bad_file(path, "is a folder, but an image was expected", "Give the path of an image.")
        if not path.is_file():
            raise bad_file(path, "is not there", "Check the path of the image.")
        if path.stat().st_size == 0:
            raise bad_file(path, "is empty (0 bytes)", "Copy the image again or remove it.")
    except OSError as error:
        raise bad_file(path, f"cannot be read ({error.strerror})", "Check the path of the image.") from None
    return _read_opened(path, str(path), max_pixels)


def _read_opened(file: Path | io.BytesIO, place: str, max_pixels: int) -> Image.Image:
    from PIL import Image

    try:
        opened = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(place, max_pixels) from None
    except Image.UnidentifiedImageError:
        raise bad_file(place, "is not an image that can be read", _ADVICE) from None
    except Exception as error:  # PIL's format readers raise nearly anything on damaged headers
        raise bad_file(place, f"is a damaged image ({_first_line(error)})", _ADVICE) from None
    if opened.format == "TIFF":
        _silence_libtiff()
    with opened:
        image = _to_rgb(opened, place, max_pixels)
        if opened.format == "PNG" and _is_cut(opened, file):
            raise bad_file(place, "is a damaged image (its data end before its last row)", _ADVICE)
        return image


@functools.cache
def _silence_libtiff() -> None:
    """Let libtiff print nothing by itself: what is wrong with a file is in what is raised."""
    import ctypes

    from PIL import _imaging

    with contextlib.suppress(OSError, AttributeError):  # it is built in, where it cannot be asked
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _is_cut(opened: Image.Image, file: Path | io.BytesIO) -> bool:
    """Return whether the data of a PNG file end before its last row, which PIL then leaves empty without a word."""
    is_empty = opened.crop((0, opened.height - 1, opened.width, opened.height)).getbbox() is None
    if not is_empty and not opened.info.get("interlace"):
        return False  # as nearly all, so that few files are unpacked twice
    if isinstance(file, io.BytesIO):
        return _lacks_rows(file)
    with file.open("rb") as handle:
        return _lacks_rows(handle)


_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
"""First column and step, first row and step, of the passes of an interlaced PNG."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a PNG, by its type of colour."""
_PIECE = 2**20


def _lacks_rows(file: BinaryIO) -> bool:
    """Return whether a PNG holds fewer bytes of pixels than its header asks for."""
    file.seek(8)
    n_missing, unpacker = 0, zlib.decompressobj()
    try:
        for kind, data in _chunks(file):
            if kind == b"IHDR":
                width, height, bits, colour, _, _, is_interlaced = struct.unpack(">IIBBBBB", data)
                for x, x_step, y, y_step in _PASSES if is_interlaced else ((0, 1, 0, 1),):
                    columns, rows = -(-(width - x) // x_step), -(-(height - y) // y_step)
                    n_missing += rows * (1 + -(-columns * bits * _CHANNELS[colour] // 8)) if columns > 0 else 0
            elif kind == b"IDAT":
                while data and n_missing > 0:
                    n_missing -= len(unpacker.decompress(data, _PIECE))
                    data = unpacker.unconsumed_tail
    except zlib.error:  # where PIL has stopped as well
        return True
    return n_missing > 0


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    while len(head := file.read(8)) == 8:
        n_bytes, kind = struct.unpack(">I4s", head)
        yield kind, file.read(n_bytes + 4)[:n_bytes]


def _too_large(place: str, max_pixels: int) -> UserError:
    return bad_file(place, f"has more than {max_pixels / 10**6:g} megapixels", "Scale it down.")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _to_rgb(image: Image.Image, place: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    import numpy as np
    from PIL import Image, ImageOps

    if image.width == 0 or image.height == 0:
        raise bad_file(place, f"is {image.width} by {image.height} pixels", "Give an image with at least one pixel.")
    if image.width * image.height > max_pixels:
        raise _too_large(place, max_pixels)
    try:
        image.load()
    except Exception as error:  # as for headers, now for pixel data
        raise bad_file(place, f"is a damaged image ({_first_line(error)})", _ADVICE) from None
    with contextlib.suppress(Exception):  # a damaged rotation flag is no reason to refuse sound pixels
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise bad_file(place, "has floating-point pixels of unknown range", "Save it with 8 bits a channel.")
    if image.mode in _SIXTEEN_BIT:
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except ValueError:
        raise bad_file(place, f"has pixels of mode {image.mode}, which cannot become RGB", "Save it as RGB.") from None


def _from_array(array: np.ndarray, kind: str, shapes: str) -> Image.Image:
    import numpy as np
    from PIL import Image

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or array.size == 0:
        raise UserError(f"an image {kind} has the shape {list(array.shape)}, but one image is {shapes}. Reshape it.")
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also so for NaN, which is in no order
            raise UserError(
                f"a floating-point image {kind} has values from {array.min():g} to {array.max():g}, "
                "but 0 to 1 was expected. Divide it by 255 or undo its normalisation."
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(
            f"an image {kind} holds {array.dtype}, but uint8 (0 to 255) or floating point (0 to 1) was expected. "
            "Convert it."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "the image")


def _from_tensor(tensor: Tensor) -> Image.Image:
    shapes = "[H, W] or [1|3|4, H, W]"
    if tensor.ndim == 3 and (tensor.shape[0] not in (1, 3, 4) or not tensor.numel()):
        raise UserError(
            f"an image tensor has the shape {list(tensor.shape)}, but one image is {shapes}. "
            "Use permute(2, 0, 1) if the channels come last."
        )
    array = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    # tensors [C, H, W], arrays [H, W, C]
    return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, "tensor", shapes)


def is_one(images: ImageLike | Iterable[ImageLike]) -> bool:
    """Return whether this is one image; a 4-d tensor or array is many."""
    from PIL import Image

    if isinstance(images, str | Path | bytes | Image.Image):
        return True
    if getattr(getattr(images, "dtype", None), "kind", "") in {"O", "U", "S"}:  # NumPy's array of paths, pandas' column
        return False
    return hasattr(images, "ndim") and bool(images.ndim < 4)  # an array or a tensor


def as_list(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return one image or many as a list."""
    if is_one(images):
        return [images]  # type: ignore[list-item]
    if not isinstance(images, Iterable):
        kind = type(images).__name__
        raise bad_value("images", kind, "it must be an image or a list of images", "Give paths or PIL images.")
    return list(images)


def is_visible(path: Path, folder: Path) -> bool:
    """Return whether nothing on the way from a folder to a path is hidden, or beside it on a Mac."""
    return not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def find_images(places: Sequence[Path]) -> list[tuple[str, Path]]:
    """Find image files, with their names in the output: relative to a folder that is given alone, else as given.

    Folders are searched to the bottom, in order of names; hidden files in them are passed over.
    """
    advice = "Give image files or a folder of images."
    named: dict[str, Path] = {}
    for place in places:
        if place.is_dir():
            for path in sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
                if path.is_dir() or not is_visible(path, place):
                    continue
                named[(path.relative_to(place) if len(places) == 1 else path).as_posix()] = path
        elif place.is_file():
            named[str(place)] = place
        else:
            raise bad_file(place, "is not there", advice)
    if not named:
        names = ", ".join(str(place) for place in places) or "nothing"
        raise UserError(f"there is no image in {names}. {advice}")
    return list(named.items())
