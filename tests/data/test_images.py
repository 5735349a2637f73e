from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.data.images import as_list, find_images, read_image
from mmprompt.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends where its pixels would begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return (
        signature
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 9)
        + b"IDAT"
    )


def refusal(source: object) -> str:
    with pytest.raises(UserError) as caught:
        read_image(source)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff"])
def test_every_allowed_format_becomes_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 6), RED).save(path)
    image = read_image(str(path))
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 4


def test_another_format_is_refused_even_with_an_allowed_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6)).save(path, format="PPM")
    assert "is not an image that can be read" in refusal(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_without_transparency_become_the_rgb_of_pil(mode: str) -> None:
    source = Image.linear_gradient("L").convert("RGB").convert(mode)
    assert np.array_equal(np.asarray(read_image(source)), np.asarray(source.convert("RGB")))


def test_cmyk_jpeg_is_read_in_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(path)
    pixel = read_image(path).getpixel((8, 8))
    assert pixel[0] > 230
    assert max(pixel[1:]) < 25


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)).save(path)
    assert np.asarray(read_image(path))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(mode: str) -> None:
    clear, half, opaque = (0, 0, 0, 0), (0, 0, 0, 128), (0, 0, 0, 255)
    source = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate((clear, half, opaque)):
        source.putpixel((x, 0), pixel)
    values = np.asarray(read_image(source.convert(mode)))[0, :, 0]
    assert values[0] == 255
    assert abs(int(values[1]) - 127) <= 1
    assert values[2] == 0


def test_a_transparent_palette_entry_lies_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=0)
    assert np.asarray(read_image(path))[0].tolist() == [[255, 255, 255], [255, 0, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_flags_are_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), BLUE)
    upright.paste(RED, (0, 0, 16, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    stored.save(path, exif=exif)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(upright))


def test_damaged_exif_does_not_refuse_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 6), RED).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_image(path).size == (8, 6)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    Image.new("RGB", (4, 4), RED).save(path, save_all=True, append_images=[Image.new("RGB", (4, 4), BLUE)])
    assert read_image(path).getpixel((0, 0)) == RED


def test_one_pixel_is_a_picture() -> None:
    assert read_image(Image.new("RGB", (1, 1), RED)).getpixel((0, 0)) == RED


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_are_scaled_from_one(dtype: type) -> None:
    array = np.array([[[0.0, 0.5, 1.0]]], dtype=dtype)
    assert read_image(array).getpixel((0, 0)) == (0, 128, 255)


def test_uint8_arrays_of_every_shape_are_read() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    rgb = np.stack([grey, grey, grey], axis=2)
    opaque = np.concatenate([rgb, np.full((2, 3, 1), 255, np.uint8)], axis=2)
    for array in (grey, grey[:, :, None], rgb, opaque):
        assert np.array_equal(np.asarray(read_image(array)), rgb)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_put_channels_first(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, 0.0, 0.5], dtype=dtype).reshape(3, 1, 1).expand(3, 2, 5).requires_grad_()
    image = read_image(tensor)
    assert image.size == (5, 2)
    assert image.getpixel((4, 1)) == (255, 0, 128)


def test_a_tensor_and_the_array_of_the_same_picture_agree() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    assert np.array_equal(np.asarray(read_image(tensor)), array)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.jpg") == f"{tmp_path}/a.jpg: is not there. Check the path of the image."


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder, but an image was expected" in refusal(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.touch()
    assert "is empty (0 bytes)" in refusal(path)


def test_a_text_file_named_jpg_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("no picture")
    assert "a.jpg: is not an image that can be read. Give a JPEG, PNG, WEBP, BMP, GIF or TIFF" in refusal(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_a_truncated_picture_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"a.{suffix}: is" in refusal(path)


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_png_whose_data_end_in_order_but_early_is_refused(mode: str, is_interlaced: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    whole = Image.new(mode, (13, 11), 0 if mode in ("1", "L", "P", "I;16") else (0,) * len(mode))
    path.write_bytes(png_with_rows(whole, is_interlaced, 1.0))
    assert read_image(path).size == (13, 11)  # its last row is as empty as one that is not there
    for share in (0.0, 0.5, 0.95):
        data = png_with_rows(whole, is_interlaced, share)
        path.write_bytes(data)
        for source in (path, data):
            assert "is a damaged image" in refusal(source)


def png_with_rows(image: Image.Image, is_interlaced: bool, share: float) -> bytes:
    """A black PNG in whose data, sound in themselves, a share of the bytes is missing at the end."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    header = buffer.getvalue()[16:29]
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    sizes = [(len(range(x, 13, dx)), len(range(y, 11, dy))) for x, y, dx, dy in starts] if is_interlaced else [(13, 11)]
    n_bits = header[8] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[header[9]]
    n_bytes = sum(rows * (1 + (columns * n_bits + 7) // 8) for columns, rows in sizes if columns)
    chunks = {
        b"IHDR": header[:12] + bytes([is_interlaced]),
        b"PLTE": bytes(768),
        b"IDAT": zlib.compress(bytes(round(n_bytes * share))),
        b"IEND": b"",
    }
    if header[9] != 3:
        del chunks[b"PLTE"]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_libtiff_prints_nothing_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    assert "is a damaged image" in refusal(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("side", [10_001, 20_000, 60_000])
def test_a_huge_picture_is_refused_by_its_header_without_a_warning(tmp_path: Path, side: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(side, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal(path) == f"{path}: has more than 100 megapixels. Scale it down."


def test_a_picture_below_our_limit_and_above_that_of_pil_gives_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "a.png"
    Image.new("L", (12, 12)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).size == (12, 12)


def test_floating_point_pixels_are_refused() -> None:
    assert "has floating-point pixels of unknown range" in refusal(Image.new("F", (2, 2)))


def test_an_unconvertible_mode_is_refused() -> None:
    assert "has pixels of mode La, which cannot become RGB" in refusal(Image.new("La", (2, 2)))


def test_a_picture_without_pixels_is_refused() -> None:
    assert "is 0 by 5 pixels" in refusal(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (2, 4, 4, 3), (0, 4, 3)])
def test_arrays_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    assert f"has the shape {list(shape)}, but one image is [H, W] or [H, W, 1|3|4]" in refusal(np.zeros(shape))


def test_a_folder_that_is_named_like_an_image_is_none(tmp_path: Path) -> None:
    (tmp_path / "one.png").mkdir()
    (tmp_path / "one.png" / "two.png").touch()
    assert [name for name, _ in find_images([tmp_path])] == ["one.png/two.png"]


def test_a_tensor_with_channels_last_is_told_to_permute() -> None:
    assert "Use permute(2, 0, 1)" in refusal(torch.zeros(6, 5, 3))


@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, float("nan"), float("inf")])
def test_floats_outside_zero_to_one_are_refused(value: float) -> None:
    assert "but 0 to 1 was expected" in refusal(np.full((2, 2, 3), value))


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool])
def test_other_number_types_are_refused(dtype: type) -> None:
    assert "but uint8 (0 to 255) or floating point (0 to 1) was expected" in refusal(np.zeros((2, 2, 3), dtype))


def test_other_objects_are_refused() -> None:
    assert "an image is a float, but a path" in refusal(3.5)


def test_the_bytes_of_a_file_are_an_image_too(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), RED).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert read_image(data).getpixel((0, 0)) == RED
    assert "the image: is not an image" in refusal(b"no image")
    with pytest.raises(UserError, match=r"^images\[3\]: has more than 1e-05 megapixels"):
        read_image(data, max_pixels=10, name="images[3]")


def test_an_array_or_a_column_of_paths_is_many_images() -> None:
    paths = ["a.png", "b.png"]
    for many in (np.array(paths), np.array(paths, dtype=object), iter(paths)):
        assert as_list(many) == paths
    assert len(as_list(np.zeros((4, 4, 3), np.uint8))) == 1
