"""Image files of every kind: bounded before decoding, upright, on white, scaled, and sent in a form that does not grow."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from fgrpo import images
from fgrpo.errors import UserError
from fgrpo.files import files_below
from fgrpo.image_files import MAX_PIXELS, ImageProblem, decode, existing_below, read_complete_header, read_header

SIZE = (240, 180)


def photo() -> Image.Image:
    """Smooth waves and a little noise, as in a photograph."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    waves = np.stack([np.sin(x / 40 + y / 90), np.sin(y / 30), np.cos((x + y) / 70)], -1)
    noise = np.random.default_rng(0).normal(0, 4, waves.shape)
    return Image.fromarray((127 + 100 * waves + noise).clip(0, 255).astype(np.uint8))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def palette() -> Image.Image:
    image = Image.new("P", SIZE, 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


TRANSPARENT = {
    "rgba.png": (Image.new("RGBA", SIZE, (0, 0, 0, 0)), {}),
    "rgba.webp": (Image.new("RGBA", SIZE, (0, 0, 0, 0)), {}),
    "la.png": (Image.new("LA", SIZE, (0, 0)), {}),
    "palette.png": (palette(), {"transparency": 0}),
    "palette.gif": (palette(), {"transparency": 0}),
    "color key.png": (Image.new("RGB", SIZE, (1, 2, 3)), {"transparency": (1, 2, 3)}),
    "gray key.png": (Image.new("L", SIZE, 7), {"transparency": 7}),
    "16-bit gray key.png": (Image.fromarray(np.zeros(SIZE[::-1], np.uint16)), {"transparency": 0}),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_are_white_for_every_reader(tmp_path: Path, name: str) -> None:
    image, options = TRANSPARENT[name]
    path = tmp_path / name
    image.save(path, **options)
    assert images.open_rgb(path).getextrema() == ((255, 255),) * 3
    assert images.file_url(str(path)) is None  # another reader would see its own background
    assert sent(path).convert("RGB").getextrema() == ((255, 255),) * 3


def test_half_transparent_red_on_white_is_pink(tmp_path: Path) -> None:
    Image.new("RGBA", SIZE, (255, 0, 0, 128)).save(tmp_path / "pink.png")
    assert images.open_rgb(tmp_path / "pink.png").getpixel((0, 0)) == (255, 127, 127)


def test_16_bit_gray_is_scaled_and_32_bit_gray_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.array_equal(np.asarray(images.open_rgb(tmp_path / "ramp.png"))[0, :, 0], np.arange(256))
    for kind in (np.float32, np.int32):
        Image.fromarray(np.full((4, 4), 70000, kind)).save(tmp_path / "wide.tiff")
        with pytest.raises(UserError, match="32-bit gray"):
            images.open_rgb(tmp_path / "wide.tiff")


def gray_tiff(path: Path, values: np.ndarray, tags: dict[int, int], **options: str) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    Image.fromarray(values).save(path, "TIFF", tiffinfo=info, **options)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("white_is_zero", [True, False])
def test_gray_values_of_a_tiff_follow_its_photometric_tag(
    tmp_path: Path, kind: type, white_is_zero: bool, options: dict[str, str]
) -> None:
    path, ramp = tmp_path / "ramp.tiff", np.linspace(0, np.iinfo(kind).max, 256).round().astype(kind)[None].repeat(4, 0)
    gray_tiff(path, ramp, {}, **options)
    photometric = struct.pack("<HHIH", 262, 3, 1, 1)  # Pillow writes no other
    data = path.read_bytes()
    assert data.count(photometric) == 1
    path.write_bytes(data.replace(photometric, struct.pack("<HHIH", 262, 3, 1, int(not white_is_zero))))
    seen = np.asarray(images.open_rgb(path))[0, :, 0]
    assert np.array_equal(seen, np.arange(256)[:: -1 if white_is_zero else 1])


def test_12_bit_gray_is_scaled(tmp_path: Path) -> None:
    """Two rows of black, middle gray, white, white, packed in 12 bits."""
    row, at = bytes.fromhex("000800ffffff"), 8 + 2 + 9 * 12 + 4
    fields = ((256, 4), (257, 2), (258, 12), (259, 1), (262, 1), (273, at), (277, 1), (278, 2), (279, 2 * len(row)))
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    path = tmp_path / "12.tiff"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4) + 2 * row)
    assert np.asarray(images.open_rgb(path))[1, :, 0].tolist() == [0, 128, 255, 255]


def test_a_tiff_of_32_bits_is_refused_whatever_its_values(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "wide.tiff")
    with pytest.raises(ImageProblem, match="32-bit gray"), (tmp_path / "wide.tiff").open("rb") as file:
        read_complete_header(file)


def sent(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(images.data_url(str(path)).split(",")[1])))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_sent_as_a_jpeg_of_about_its_size(tmp_path: Path, mode: str, orientation: int) -> None:
    path = tmp_path / "photo.jpg"
    photo().convert(mode).save(path, quality=85, exif=turned(orientation))
    image, upright = sent(path), images.open_rgb(path)
    assert (image.format, image.size) == ("JPEG", upright.size)
    assert upright.size == (SIZE if orientation < 5 else SIZE[::-1])
    assert len(images.data_url(str(path))) * 3 / 4 < 1.6 * path.stat().st_size
    difference = np.abs(np.asarray(image.convert("RGB"), float) - np.asarray(upright, float))
    assert difference.mean() < 3
    if mode != "CMYK" and orientation == 1:
        assert images.file_url(str(path)) is not None and difference.max() == 0


STORED = Image.fromarray(
    np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((8, 8), np.uint8)), "L"
).convert("RGB")  # 32 x 24: no two of its eight orientations are alike
UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
UPRIGHT |= {7: "TRANSVERSE", 8: "ROTATE_90"}
TURNED_FILES = {
    "png": {},
    "jpeg": {"quality": 95},
    "webp": {"lossless": True},
    "tiff": {},
    "tiff lzw": {"compression": "tiff_lzw"},
    "mpo": {"quality": 95, "save_all": True, "append_images": [STORED]},
    "avif": {"quality": 95},
}


def assert_upright(path: Path, orientation: int) -> None:
    expected = STORED.transpose(Image.Transpose[UPRIGHT[orientation]]) if orientation > 1 else STORED
    with path.open("rb") as file:
        header = read_complete_header(file)
    assert header.orientation == orientation
    assert header[:2] == images.image_size(str(path)) == expected.size
    for seen in (decode(path)[0], images.open_for_model(path), sent(path)):
        assert seen.size == expected.size
        assert np.abs(np.asarray(seen.convert("RGB"), int) - np.asarray(expected, int)).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", TURNED_FILES)
def test_every_format_is_turned_once(tmp_path: Path, name: str, orientation: int) -> None:
    kind = name.split()[0]
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"turned.{kind}"
    STORED.save(path, kind, exif=turned(orientation), **TURNED_FILES[name])
    assert_upright(path, orientation)


@pytest.mark.parametrize("kind", ["jpeg", "webp", "tiff", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_orientation_in_xmp_alone_counts(tmp_path: Path, kind: str, orientation: int) -> None:
    path, xmp = tmp_path / f"turned.{kind}", f'<rdf:Description tiff:Orientation="{orientation}"/>'
    options: dict[str, object] = {"xmp": xmp.encode(), "quality": 95, "lossless": True}
    if kind == "tiff":
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[700], info.tagtype[700] = xmp.encode(), 1
        options = {"tiffinfo": info}
    if kind == "png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp)
        options = {"pnginfo": text}
    STORED.save(path, kind, **options)
    assert_upright(path, orientation)


def test_a_damaged_orientation_does_not_cost_the_image(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    photo().save(path, exif=b"Exif\x00\x00no TIFF header")
    assert images.image_size(str(path)) == images.open_rgb(path).size == SIZE


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (13000, 13000, "too_many_pixels"),  # 169 megapixels
        (30000, 30000, "too_many_pixels"),  # beyond Pillow's own limit
        (MAX_PIXELS // 8192 + 1, 8192, "too_many_pixels"),
        (0, 10, "corrupt_image"),
        (8192, MAX_PIXELS // 8192, ""),
    ],
)
def test_pixels_are_bounded_before_decoding(tmp_path: Path, width: int, height: int, reason: str) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(width, height))
    if not reason:
        assert read_header(path)[:2] == (width, height)
        return
    for read in (read_header, decode):
        with pytest.raises(ImageProblem) as raised:
            read(path)
        assert raised.value.reason in (reason, "empty_image" if not width else reason)
    with pytest.raises(images.IMAGE_ERRORS):
        images.image_size(str(path))


WHOLE_FILES = {
    "png": {},
    "jpeg": {},
    "jpeg progressive": {"progressive": True},
    "mpo": {},
    "webp": {},
    "gif": {},
    "bmp": {},
    "ppm": {},
    "jpeg2000": {},
    "avif": {},
    "tiff": {},
    "tiff lzw": {"compression": "tiff_lzw"},
    "tiff deflate": {"compression": "tiff_adobe_deflate"},
    "tiff jpeg": {"compression": "jpeg"},
}


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", WHOLE_FILES)
def test_truncated_and_empty_files_are_named(tmp_path: Path, name: str) -> None:
    kind = name.split()[0]
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"photo.{kind}"
    photo().save(path, kind, **WHOLE_FILES[name])
    whole = path.read_bytes()
    with path.open("rb") as file:
        assert read_complete_header(file)[:2] == SIZE
    for data in (*(whole[: len(whole) * part // 100] for part in (99, 90, 50, 10)), b"", b"no image", whole[:40]):
        path.write_bytes(data)
        with pytest.raises(ImageProblem) as raised, path.open("rb") as file:
            read_complete_header(file)
        assert raised.value.reason == "corrupt_image"
    with pytest.raises(UserError, match=path.name):
        images.open_for_model(path)


def test_the_end_of_a_thumbnail_is_not_the_end_of_its_image(tmp_path: Path) -> None:
    thumbnail, buffer = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 12)).save(thumbnail, "JPEG")
    photo().save(buffer, "JPEG", exif=b"Exif\0\0" + thumbnail.getvalue(), quality=95)
    whole = buffer.getvalue()
    for data, is_whole in (
        (whole, True),
        (whole + bytes(10_000), True),
        (whole[:3000], False),
        (whole[:-2], False),
    ):
        if is_whole:
            assert read_complete_header(io.BytesIO(data))[:2] == SIZE
        else:
            with pytest.raises(ImageProblem, match="lacks its end"):
                read_complete_header(io.BytesIO(data))


def test_narrow_images_are_refused_for_models_alone(tmp_path: Path) -> None:
    for size, is_refused in (((2000, 10), False), ((2001, 10), True), ((10, 2001), True)):
        path = tmp_path / f"{size[0]}.png"
        Image.new("RGB", size).save(path)
        assert images.open_rgb(path).size == size
        for read in (images.open_for_model, lambda p: images.data_url(str(p))):
            if is_refused:
                with pytest.raises(UserError, match="too narrow"):
                    read(path)
            else:
                read(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "image_path_leads_out"),
        ("../secret.png", "image_path_leads_out"),
        ("a/../../secret.png", "image_path_leads_out"),
        ("a/b\0.png", "image_path_leads_out"),
        ("a/missing.png", "missing_image"),
        ("a", "missing_image"),
        ("x" * 5000, "missing_image"),
        ("", "no_image"),
        (None, "no_image"),
        (7, "no_image"),
        (["a/b.png"], "no_image"),
    ],
)
def test_image_paths_stay_below_their_folder(tmp_path: Path, name: object, reason: str) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "secret.png").touch()
    (tmp_path / "data" / "a" / "b.png").touch()
    assert existing_below(tmp_path / "data", "./a/b.png").is_file()
    with pytest.raises(ImageProblem) as raised:
        existing_below(tmp_path / "data", name)
    assert raised.value.reason == reason


def test_links_to_folders_are_entered_without_cycles_or_doubles(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other disk"
    (data / "b").mkdir(parents=True)
    (other / "deep").mkdir(parents=True)
    (data / "b" / "1.parquet").touch()
    (other / "deep" / "2.parquet").touch()
    (data / "linked").symlink_to(other)
    (data / "a twin").symlink_to(data / "b")  # counts under its own path, b
    (data / "b" / "up").symlink_to(data)
    (data / "out").symlink_to(tmp_path)
    (other / "back").symlink_to(data)
    (data / "broken").symlink_to(tmp_path / "nothing")
    assert files_below(data, "*.parquet") == [data / "b/1.parquet", data / "linked/deep/2.parquet"]
    assert files_below(tmp_path / "nothing") == []
