"""Decoding of image files, and the preparation of their pixels for a network."""

import io
import itertools
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from resnetkit.architecture.card import IMAGENET_MEAN, IMAGENET_STD, Preparation, make_default_preparation
from resnetkit.architecture.catalog import spec
from resnetkit.errors import ImageError
from resnetkit.file_types import IMAGE_TYPES, detect_file_type
from resnetkit.images.decode import FORMATS, MAX_IMAGE_PIXELS, decode, try_read
from resnetkit.images.prepare import compute_scale_and_shift, load_pixels, random_resized_crop, resize_and_crop

from helpers.tiny import measure_cpu_budget


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind):
    image = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
    assert decode(encoded(image, kind)).size == (16, 16)


TIFF_VARIANTS = {
    "plain": {}, "LZW": {"compression": "tiff_lzw"}, "deflate": {"compression": "tiff_deflate"},
    "PackBits": {"compression": "packbits"},
}  # fmt: skip


@pytest.mark.parametrize("variant", TIFF_VARIANTS)
def test_tiff_has_the_pixels_of_png(variant):
    pixels = noise(9, 12, 3)
    decoded = decode(encoded(Image.fromarray(pixels), "TIFF", **TIFF_VARIANTS[variant]))
    assert np.array_equal(np.asarray(decoded), pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    expected = decode(encoded(deep), "L")
    assert np.array_equal(np.asarray(decode(encoded(deep, "TIFF", **TIFF_VARIANTS[variant]), "L")), expected)
    assert np.array_equal(np.asarray(expected), pixels[..., 0])


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
def test_orientation_is_applied_once(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 32, 1).repeat(48, 0))  # dark left, light right
    decoded = np.asarray(decode(encoded(image, kind, exif=exif), "L")).astype(int)
    assert decoded.shape == (64, 48)
    assert decoded[:30].max() < 20
    assert decoded[34:].min() > 235


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(dtype):
    with pytest.raises(ImageError, match="floating-point or 32-bit numbers, whose range is unknown"):
        decode(encoded(Image.fromarray(noise(9, 12).astype(dtype)), "TIFF"))


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "PPM"])
def test_truncated_files_of_other_formats_are_refused(kind):
    content = encoded(Image.fromarray(noise(40, 60, 3)), kind)
    for size in (20, len(content) // 2, len(content) - 1):
        with pytest.raises(ImageError):
            decode(content[:size])


def test_icons_are_checked_like_their_images():
    image = Image.fromarray(noise(48, 48, 3))
    assert decode(encoded(image, "ICO", sizes=[(16, 16), (48, 48)])).size == (48, 48)
    assert decode(encoded(image, "ICO", sizes=[(32, 32)], bitmap_format="bmp")).size == (32, 32)
    large = encoded(Image.new("L", (9000, 8000)))  # more pixels than the entry of the icon says
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(large), 22)
    with pytest.raises(ImageError, match="more than 64,000,000 pixels"):
        decode(b"\0\0\1\0\1\0" + entry + large)
    bitmap = struct.pack("<IiiHHIIiiII", 40, 9000, 16000, 1, 24, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ImageError, match="a bitmap in the icon is larger than 256x256 pixels"):
        decode(b"\0\0\1\0\1\0" + entry + bitmap)
    with pytest.raises(ImageError, match="the icon has no image"):
        decode(b"\0\0\1\0\0\0")


# ------------------------------------------------------------------------------------------------------ not an image


def png(rows, width, depth, color_type, *chunks):
    """Build a PNG from bytes, one item per row, so that the expected values do not depend on an encoder."""
    payloads = [b"IHDR" + struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0), *chunks]
    payloads += [b"IDAT" + zlib.compress(b"".join(b"\0" + row for row in rows)), b"IEND"]
    return PNG_START + b"".join(map(chunk, payloads))


PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(payload):
    return struct.pack(">I", len(payload) - 4) + payload + struct.pack(">I", zlib.crc32(payload))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 44815912\n" % (b"0" * 64)
OTHER_FORMATS = {  # first bytes, or a format that Pillow writes
    "PSD": b"8BPS\0\1" + bytes(30),
    "EPS": "EPS",
    "FITS": b"SIMPLE  =                    T" + b" " * 50,
    "PDF": "PDF",
    "JPEG 2000": "JPEG2000",
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn --><svg xmlns="http://www.w3.org/2000/svg"/>',
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(20),
    "OpenEXR": b"v/1\x01" + bytes(20),
    "DICOM": bytes(128) + b"DICM" + bytes(20),
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_other_formats_are_rejected_by_name_and_never_parsed(tmp_path, monkeypatch, kind):
    content = OTHER_FORMATS[kind]
    if isinstance(content, str):
        content = encoded(Image.fromarray(noise(16, 16, 3)), content)
    Image.init()
    for name in set(Image.OPEN) - set(FORMATS):
        monkeypatch.setitem(Image.OPEN, name, (lambda *_, name=name: pytest.fail(name),) * 2)
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    for source, where in ((path, str(path)), (content, "the given bytes")):
        with pytest.raises(ImageError) as caught:
            decode(source)
        assert str(caught.value) == (
            f"error: format {kind} is not supported; allowed: JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, ICO, PPM\n"
            f"where: {where}\nfix: save it as PNG or JPEG"
        )


NOT_IMAGES = {
    "this is a git-LFS pointer, not the file (real size 44,815,912 bytes)": LFS,
    "this is a git-LFS pointer, not the file": LFS[:60],
    "this is an HTML page, not an image": b"\xef\xbb\xbf\n<!DOCTYPE html><title>sign in</title><svg></svg>",
    "this is an XML text, not an image": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "this is a JSON text, not an image": b'{"data":{"error": "not found"}}',
    "this is an MP4 video, not an image": b"\0\0\0\x18ftypisom",
    "this is a zip archive, not an image": b"PK\x03\x04",
    "this is a gzip archive, not an image": b"\x1f\x8b\x08",
    "this is a tar archive, not an image": b"a.png" + bytes(252) + b"ustar",
    "this is a safetensors file, not an image": struct.pack("<Q", 2) + b"{}",
    "this is a pickle, not an image": b"\x80\x02}.",
    "this is an HDF5 file, not an image": b"\x89HDF\r\n\x1a\n",
    "the file is empty": b"",
    "not a supported image; allowed: JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, ICO, PPM": b"just text",
    "damaged, or an unusual variant: the JPEG header cannot be read": b"\xff\xd8\xff\xe0",
}


@pytest.mark.parametrize("message", NOT_IMAGES)
def test_error_names_the_type_of_a_file_that_is_not_an_image(tmp_path, message):
    path = tmp_path / "image.jpg"
    path.write_bytes(NOT_IMAGES[message])
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert (caught.value.what, caught.value.where) == (message, (str(path),))
    assert caught.value.fix == (
        "git lfs pull" if "LFS" in message
        else "fetch the file itself again" if "text" in message or "page" in message or "empty" in message
        else "unpack it" if "archive" in message
        else ""
    )  # fmt: skip


def test_no_file_type_is_hidden_by_an_earlier_pattern():
    starts = {"JPEG": b"\xff\xd8\xff", "PNG": PNG_START, "WEBP": b"RIFF0000WEBP", "GIF": b"GIF89a",
              "BMP": b"BM0000" + bytes(4)}  # fmt: skip
    starts |= {kind: start for kind, start in OTHER_FORMATS.items() if isinstance(start, bytes)}
    assert {kind: detect_file_type(start) for kind, start in starts.items()} == {kind: kind for kind in starts}
    assert set(FORMATS) < set(IMAGE_TYPES)


def test_missing_files_folders_and_pipes_are_errors(tmp_path):
    with pytest.raises(ImageError, match="the file does not exist"):
        decode(tmp_path / "none.png")
    with pytest.raises(ImageError, match="this is a folder"):
        decode(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        decode(tmp_path / "pipe.png")


def test_out_of_memory_is_not_reported_as_damage(monkeypatch):
    def run_out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", run_out_of_memory)
    with pytest.raises(ImageError, match="not enough memory to decode it"):
        decode(encoded(Image.new("RGB", (4, 4))))


# -------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("keep", [1, 7, 20, 200])
def test_error_names_a_damaged_file(tmp_path, keep):
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(Image.fromarray(noise(20, 20, 3)))[:keep])
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert caught.value.where == (str(path),)
    assert caught.value.what.startswith(("not a supported image", "damaged"))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("side", [8, 16, 40, 130])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_truncated_jpeg_is_damaged(mode, side, progressive):
    whole = encoded(Image.fromarray(noise(side, side, 3)).convert(mode), "JPEG", progressive=progressive)
    for keep in (len(whole) // 2, len(whole) - 10, len(whole) - 2, len(whole) - 1):
        with pytest.raises(ImageError, match="damaged"):
            decode(whole[:keep])
    assert np.array_equal(decode(whole), decode(whole + b"trailing data of a camera"))


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"subsampling": 0}, {"quality": 95}], ids=str)
def test_truncated_jpeg_with_an_end_marker_is_not_filled_with_gray(options):
    whole = encoded(Image.fromarray(noise(90, 120, 3)), "JPEG", **options)
    for percent in range(50, 100, 5):
        with pytest.raises(ImageError, match="damaged: the data stop before the last pixel"):
            decode(whole[: len(whole) * percent // 100] + b"\xff\xd9")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_gray_image_is_not_damaged(mode, progressive):
    for side in (1, 8, 33, 100):
        for blocks in (0, 2):
            gray = Image.new(mode, (side, side), (128,) * len(mode) if mode != "L" else 128)
            decode(encoded(gray, "JPEG", progressive=progressive, restart_marker_blocks=blocks))


def test_truncated_files_of_other_formats_are_intact_or_damaged():
    image = Image.fromarray(noise(16, 12, 3))
    for kind, options in (("PNG", {}), ("BMP", {}), ("GIF", {}), ("WEBP", {}), ("WEBP", {"lossless": True})):
        content = encoded(image, kind, **options)
        whole = np.asarray(decode(content))
        for keep in range(len(content) - 60, len(content)):
            result = try_read(decode, content[:keep])
            assert isinstance(result, ImageError) or np.array_equal(result, whole)


# ------------------------------------------------------------------------------------------------- values by hand


def pixels_of(content, mode="RGB"):
    return np.asarray(decode(content, mode)).tolist()


def jpeg(color, mode):
    """Build an image of a single color."""
    return encoded(Image.new(mode, (16, 16), color), "JPEG", quality=100, subsampling=0)


def test_cmyk_is_inverted_as_adobe_stores_it():
    cyan, magenta, yellow, black = 40, 120, 200, 30
    expected = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    stored = jpeg((cyan, magenta, yellow, black), "CMYK")  # Pillow writes 255 - ink, and Adobe's mark
    assert b"Adobe" in stored
    assert np.allclose(pixels_of(stored)[5][5], expected, atol=2)

    luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow  # YCCK: the inks as if they were light (JFIF's formulas)
    blue, red = 128 + 0.564 * (yellow - luma), 128 + 0.713 * (cyan - luma)
    ycck = bytearray(jpeg((*(255 - round(channel) for channel in (luma, blue, red)), black), "CMYK"))
    ycck[ycck.index(b"Adobe") + 11] = 2  # the transform
    assert np.allclose(pixels_of(bytes(ycck))[5][5], expected, atol=3)


def test_sixteen_bits_become_eight():
    deep = [[0, 128, 129, 257], [65535, 65535 - 129, 128 * 257, 60000]]
    rows = [struct.pack(">4H", *row) for row in deep]
    assert pixels_of(png(rows, 4, 16, 0), "L") == [[0, 0, 1, 1], [255, 254, 128, 233]]
    assert pixels_of(png(rows, 4, 16, 0, b"tRNS" + struct.pack(">H", 128)), "L") == [
        [0, 255, 1, 1],
        [255, 254, 128, 233],
    ]
    assert pixels_of(png([struct.pack(">3H", 0, 257, 65535)], 1, 16, 2)) == [[[0, 1, 255]]]


def test_palettes_and_transparency():
    palette = b"PLTE" + bytes([10, 20, 30, 200, 100, 0, 7, 7, 7])
    assert pixels_of(png([bytes([0, 1, 2])], 3, 8, 3, palette)) == [[[10, 20, 30], [200, 100, 0], [7, 7, 7]]]
    on_white = [[[255, 255, 255], [255 - 55 * 51 // 255, 255 - 155 * 51 // 255, 255 - 51], [7, 7, 7]]]
    assert pixels_of(png([bytes([0, 1, 2])], 3, 8, 3, palette, b"tRNS" + bytes([0, 51]))) == on_white
    assert pixels_of(png([bytes([0, 0, 100, 51, 90, 255])], 3, 8, 4), "L") == [[255, 255 - 155 * 51 // 255, 90]]
    assert pixels_of(png([bytes([1, 2, 3, 255, 100, 0, 200, 51])], 2, 8, 6)) == [[[1, 2, 3], [224, 204, 244]]]
    assert pixels_of(png([bytes([5, 90])], 2, 8, 0, b"tRNS\0\5"), "L") == [[255, 90]]
    assert pixels_of(png([bytes([1, 2, 3, 4, 5, 6])], 2, 8, 2, b"tRNS\0\1\0\2\0\3")) == [[[255] * 3, [4, 5, 6]]]


def test_one_bit_and_grayscale():
    assert pixels_of(png([b"\xa0"], 3, 1, 0)) == [[[255] * 3, [0] * 3, [255] * 3]]
    assert pixels_of(png([b"\xa0"], 3, 1, 0), "L") == [[255, 0, 255]]
    assert pixels_of(png([b"\1\x5a"], 2, 8, 0)) == [[[1] * 3, [90] * 3]]


def test_progressive_jpeg_has_the_same_pixels():
    slope = np.stack(np.broadcast_arrays(*np.ogrid[0:200:5, 0:200:4], 90), axis=2).astype(np.uint8)
    plain, progressive = (encoded(Image.fromarray(slope), "JPEG", quality=95, progressive=p) for p in (False, True))
    assert np.array_equal(decode(plain), decode(progressive))
    assert np.abs(np.asarray(decode(plain)).astype(int) - slope).max() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_color_profile_is_ignored(kind):
    image = Image.fromarray(noise(8, 8, 3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with_profile = encoded(image, kind, icc_profile=profile)
    assert profile in with_profile or kind == "PNG"
    assert np.array_equal(decode(with_profile), decode(encoded(image, kind)))


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_first_frame_of_an_animation_is_decoded(kind, options):
    first, *later = (Image.new("RGB", (5, 4), color) for color in ((200, 10, 0), (0, 0, 255), (9, 255, 9)))
    animation = encoded(first, kind, save_all=True, append_images=later, duration=10, **options)
    assert Image.open(io.BytesIO(animation)).n_frames == 3
    assert pixels_of(animation) == [[[200, 10, 0]] * 5] * 4


def test_first_image_of_an_mpo_is_decoded():
    both = encoded(
        Image.new("RGB", (8, 8), (255, 0, 0)), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    assert pixels_of(both) == pixels_of(encoded(Image.new("RGB", (8, 8), (255, 0, 0)), "JPEG"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {}),
                                               ("WEBP", {"lossless": True})])  # fmt: skip
def test_exif_orientation_is_applied(orientation, kind, options):
    upright = Image.fromarray(noise(3, 2, 3)).resize((16, 24), Image.Resampling.NEAREST)
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    turned = upright if orientation == 1 else upright.transpose(Image.Transpose(stored[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(turned, kind, exif=exif, **options))
    assert np.allclose(decoded, upright, atol=2 if kind == "JPEG" else 0)
    preparation = Preparation(12, (12, 12), IMAGENET_MEAN, IMAGENET_STD)
    expected = load_pixels(encoded(upright, kind, **options), preparation)
    assert np.allclose(resize_and_crop(decoded, preparation), expected, atol=2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_images_of_one_row_or_column(size):
    width, height = size
    line = (np.arange(width * height) // 20).astype(np.uint8).reshape(height, width)
    content = png([row.tobytes() for row in line], width, 8, 0)
    assert np.array_equal(decode(content, "L"), line)
    pixels = load_pixels(content, Preparation(256, (224, 224), (0.5,), (0.5,)))
    middle = line.ravel()[[max(line.size // 2 - 2, 0), min(line.size // 2 + 1, line.size - 1)]]
    assert pixels.shape == (224, 224, 1)
    assert middle[0] <= pixels.min() <= pixels.max() <= middle[1]


# --------------------------------------------------------------------------------------------------------- bombs


def test_decompression_bomb_is_rejected_by_its_header():
    for side in (8_001, 10_001, 13_000, 50_000):
        with pytest.raises(ImageError) as caught:
            decode(PNG_START + chunk(b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT"))
        assert caught.value.what == f"the image has more than {MAX_IMAGE_PIXELS:,} pixels"


def bombs():
    side, row = 50_000, bytes(1 + 50_000 // 8)
    compressor = zlib.compressobj(9)
    block = compressor.compress(row * 500) + compressor.flush(
        zlib.Z_FULL_FLUSH
    )  # repeated 100 times, as each is independent
    checksum = struct.pack(">I", side * len(row) % 65521 << 16 | 1)
    ends = block[:2], compressor.flush()[:-4] + checksum
    head = PNG_START + chunk(b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    yield "real", head + chunk(b"IDAT" + ends[0] + block[2:] * 100 + ends[1]) + chunk(b"IEND")
    yield "forged", head + chunk(b"IDAT" + zlib.compress(bytes(1000))) + chunk(b"IEND")
    for kind, data in ((b"tEXt", b"key\0text"), (b"zTXt", b"key\0\0" + zlib.compress(b"text"))):
        yield (
            kind.decode(),
            png([b"\0"], 1, 8, 0).replace(b"\0\0\0\x0aIDAT", chunk(kind + data) * 100_000 + b"\0\0\0\x0aIDAT"),
        )
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "red")]
    animation = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=10)
    second = animation.index(b"ANMF", animation.index(b"ANMF") + 1)
    frame = animation[second : animation.index(b"ANMF", second + 1)]
    body = animation[8:second] + frame * 10_000
    yield "WebP", b"RIFF" + struct.pack("<I", len(body)) + body
    yield "canvas", animation[:24] + (13_000 - 1).to_bytes(3, "little") * 2 + animation[30:]


MEASURE = """
import sys, time
from pathlib import Path
from resnetkit.errors import ImageError
from resnetkit.images.decode import decode, try_read

def peak():  # of this process only; getrusage also counts the parent process
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

base = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    content, start = path.read_bytes(), time.process_time()
    image = try_read(decode, content)
    result = image.what if isinstance(image, ImageError) else image.size
    print(f"{path.stem}|{time.process_time() - start:.3f}|{peak() - base:.1f}|{result}")
"""


@pytest.fixture(scope="module")
def max_cpu_seconds():
    return measure_cpu_budget()


def test_bombs_use_little_time_and_memory(tmp_path, max_cpu_seconds):
    (tmp_path / "0.png").write_bytes(encoded(Image.new("RGB", (4, 4))))
    (tmp_path / "1.webp").write_bytes(encoded(Image.new("RGB", (4, 4)), "WEBP"))
    for name, content in bombs():
        (tmp_path / f"bomb-{name}").write_bytes(content)
    assert 200_000 < (tmp_path / "bomb-real").stat().st_size < 500_000
    process = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in process.stdout.splitlines()]
    assert all(float(seconds) < max_cpu_seconds and float(megabytes) < 100 for _, seconds, megabytes, _ in rows), (
        process.stdout
    )
    too_many = f"the image has more than {MAX_IMAGE_PIXELS:,} pixels"
    results = {name: result for name, _, _, result in rows if name.startswith("bomb")}
    assert results == {"bomb-real": too_many, "bomb-forged": too_many, "bomb-canvas": too_many, "bomb-tEXt": "(1, 1)",
                    "bomb-zTXt": "(1, 1)", "bomb-WebP": "(8, 8)"}  # fmt: skip


@given(st.binary(max_size=60), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF"]))
def test_random_bytes_raise_only_image_error(content, start):
    with pytest.raises(ImageError):
        decode(start + content)


# Pillow stores the box of a resize in fp32, and torchvision resizes without a box. A pixel that is resampled and cropped
# may thus differ by one level. If both passes of the filter are at a rounding tie, a rare pixel differs by two.
def differs_by_one_level(pixels, expected):
    difference = np.abs(pixels.astype(int) - expected)
    return difference.max() <= 2 and np.count_nonzero(difference > 1) <= 3 + difference.size // 500


def prepare_with_torchvision(image, side, crop):
    pixels = np.asarray(tv.CenterCrop(crop)(tv.Resize(side)(image)))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def make_preparation(side, crop, mode="RGB"):
    return Preparation(side, crop, (0.5,) * len(mode), (0.5,) * len(mode))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (32, 32), (100, 33), (7, 9)])
def test_preparation_matches_torchvision(size):
    image = Image.fromarray(noise(size[1], size[0], 3))
    steps = tv.Compose([tv.Resize(36), tv.CenterCrop((32, 28)), tv.ToImage(), tv.ToDtype(torch.float32, scale=True),
                        tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)])  # fmt: skip
    preparation = Preparation(36, (32, 28), IMAGENET_MEAN, IMAGENET_STD)
    pixels = resize_and_crop(image, preparation)
    assert pixels.shape == (32, 28, 3)
    scale, shift = compute_scale_and_shift(preparation)
    got = torch.from_numpy((pixels * scale + shift).transpose(2, 0, 1))
    one_level = 1.01 / 255 / min(IMAGENET_STD)
    torch.testing.assert_close(got.float(), steps(image), atol=one_level, rtol=0)


@given(st.data(), st.sampled_from(["L", "RGB"]), st.integers(1, 300), st.booleans())
def test_preparation_matches_torchvision_at_every_size(data, mode, side, is_uncropped):
    long, short = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700))
    width, height = (
        long,
        max(short, -(-long * side * side // 4_000_000)),
    )  # torchvision needs more than 4 MB for a longer image
    crop = (side, side) if is_uncropped else (data.draw(st.integers(1, side)), data.draw(st.integers(1, side)))
    image = Image.fromarray(noise(height, width, 3)).convert(mode)
    pixels = resize_and_crop(image, make_preparation(side, crop, mode))
    assert differs_by_one_level(pixels, prepare_with_torchvision(image, side, crop))


@pytest.mark.parametrize("size", [(3, 70), (70, 3), (21, 2), (2, 21), (4000, 31), (1, 50), (700, 9)])
def test_center_of_a_very_long_image_matches_torchvision(size):
    image = Image.fromarray(noise(size[1], size[0], 3))
    for side, crop in ((64, (64, 56)), (9, (9, 9))):
        assert differs_by_one_level(
            resize_and_crop(image, make_preparation(side, crop)), prepare_with_torchvision(image, side, crop)
        )


@given(st.integers(1, 90), st.integers(0, 40), st.booleans())
def test_without_cropping_or_resampling_all_pixels_equal_torchvisions(side, extra, is_portrait):
    size = (side, side + extra) if is_portrait else (side + extra, side)
    cropped = Image.fromarray(noise(size[1], size[0], 3))
    assert np.array_equal(
        resize_and_crop(cropped, make_preparation(side, (side, side))),
        prepare_with_torchvision(cropped, side, (side, side)),
    )
    square = Image.fromarray(noise(side + extra, side + extra, 3))
    assert np.array_equal(
        resize_and_crop(square, make_preparation(side, (side, side))),
        prepare_with_torchvision(square, side, (side, side)),
    )


# ---------------------------------------------------------------------------------- JPEGs decoded at a reduced size


def draw_image(width, height, grain):
    coarse = Image.fromarray(noise(5, 6, 3)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse) + np.random.default_rng(1).normal(0, grain, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_jpeg_is_reduced_as_far_as_its_shorter_side_allows():
    sizes = {(4000, 3000): {0: 1, 62: 8, 63: 4, 125: 4, 126: 2, 127: 2, 128: 8, 133: 8, 134: 4, 267: 4, 268: 2, 535: 2, 536: 1},
             (1504, 1504): {1: 8, 224: 2, 268: 2, 269: 1}, (1496, 4000): {1: 1, 32: 1, 224: 1}, (2001, 3000): {128: 1},
             (2002, 3000): {128: 2}, (500, 375): {32: 1}}  # fmt: skip
    for (width, height), reductions in sizes.items():
        content = encoded(Image.new("RGB", (width, height)), "JPEG")
        for shorter_side, reduction in reductions.items():
            assert decode(content, shorter_side=shorter_side).size == (width // reduction, height // reduction)
    assert decode(encoded(Image.new("RGB", (640, 480)), "PNG"), shorter_side=60).size == (640, 480)


@pytest.mark.parametrize("grain", [0, 40])
@pytest.mark.parametrize("size", [(2000, 1600), (1600, 2000)])
@pytest.mark.parametrize("kind", ["RGB", "L", "MPO"])
def test_reduced_image_is_close_to_the_full_one(kind, size, grain):
    image = draw_image(*size, grain)
    content = encoded(image, "MPO", save_all=True, append_images=[image]) if kind == "MPO" else (
        encoded(image.convert(kind), "JPEG"))  # fmt: skip
    assert Image.open(io.BytesIO(content)).format == ("MPO" if kind == "MPO" else "JPEG")
    for mode in ("RGB", "L"):
        preparation = make_preparation(64, (56, 56), mode)
        full, fast = resize_and_crop(decode(content, mode), preparation).astype(int), load_pixels(content, preparation)
        assert decode(content, mode, 64).size != size
        assert np.abs(full - fast).mean() <= 1


def test_reduced_camera_image_is_close_with_less_oversampling():
    preparation, grainy = make_preparation(178, (156, 156)), draw_image(2400, 2000, 20)
    edges = Image.fromarray(
        np.kron(noise(20, 24, 3), np.ones((100, 100, 1), np.uint8))
    )  # filters differ most at hard edges
    for image, allowed in ((grainy, 1), (edges, 2)):
        content = encoded(image, "JPEG", quality=90)
        assert decode(content, shorter_side=178).size == (600, 500)
        full, fast = resize_and_crop(decode(content), preparation).astype(int), load_pixels(content, preparation)
        assert np.abs(full - fast).mean() < allowed


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied_to_a_reduced_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(draw_image(2000, 1600, 5), "JPEG", exif=exif)
    full, small = decode(content), decode(content, shorter_side=60)
    assert small.size == (full.width // 4, full.height // 4)
    assert np.abs(np.asarray(full.reduce(4)).astype(int) - np.asarray(small)).mean() < 1


@pytest.mark.parametrize("mode", ["CMYK", "progressive", "RGB"])
def test_unusual_jpegs_are_reduced_as_well(mode):
    options = {"CMYK": {}, "progressive": {"progressive": True}, "RGB": {"keep_rgb": True}}[mode]
    content = encoded(draw_image(2000, 1600, 5).convert("CMYK" if mode == "CMYK" else "RGB"), "JPEG", **options)
    small, full = decode(content, shorter_side=60), decode(content)
    assert small.size == (500, 400)
    assert np.abs(np.asarray(full.reduce(4)).astype(int) - np.asarray(small)).mean() < 1


JPEG_VARIANTS = [
    *({"subsampling": value, "quality": 60} for value in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")),
    {"progressive": True},
    {"optimize": True, "quality": 97},
    {"quality": 10},
    {"restart_marker_blocks": 3},
    {"keep_rgb": True},
]


@pytest.mark.parametrize("options", JPEG_VARIANTS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_decoded_as_by_pillow_and_rejected_without_their_last_byte(mode, options):
    for side, grain in itertools.product((8, 33, 120), (0, 30)):
        image = draw_image(side, side + 5, grain).convert(mode)
        content = encoded(image, "JPEG", **({} if "keep_rgb" in options and mode != "RGB" else options))
        assert np.array_equal(decode(content), Image.open(io.BytesIO(content)).convert("RGB"))
        for n_missing in (1, 2, 8, 40):
            if content[-2 - n_missing :].find(b"\xff\xda") < 0 and len(content) > 700 + n_missing:
                with pytest.raises(ImageError, match=r"damaged: (the data stop before the last pixel|broken data)"):
                    decode(content[: -2 - n_missing] + b"\xff\xd9", shorter_side=side // 5)


def test_bytes_between_the_segments_of_a_jpeg_are_skipped():
    content = encoded(draw_image(40, 30, 9), "JPEG")
    expected, table = np.asarray(decode(content)), content.index(b"\xff\xdb")
    for filler in (b"\xff\0", b"\xff\0" * 30, b"camera", b"\xff" * 9, b"\xff\xff\0a\xff\xff"):
        filled = content[:table] + filler + content[table:]
        assert np.array_equal(decode(filled), expected)
        assert np.array_equal(decode(filled[:-2] + b"\0\0" + filled[-2:]), expected)  # some cameras end like this
        with pytest.raises(ImageError, match="damaged: the data stop before the last pixel"):
            decode(filled[:-10] + b"\xff\xd9")
        with pytest.raises(ImageError, match="damaged: the end marker is missing"):
            decode(filled[:-2])


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 10}, {"subsampling": 0}], ids=str)
def test_left_over_data_of_a_jpeg_are_rejected(options):
    content = encoded(draw_image(40, 30, 9), "JPEG", **options)
    assert np.array_equal(decode(content[:-2] + b"\0" * 20 + content[-2:]), decode(content))  # padding
    for data in (b"\x5a" * 20, content[-60:-2]):
        with pytest.raises(ImageError, match="damaged: data are left over after the last pixel"):
            decode(content[:-2] + data + content[-2:])


def test_corrupt_data_of_a_jpeg_are_rejected():
    content = encoded(draw_image(200, 200, 9), "JPEG", restart_marker_blocks=10)
    marker = content.index(b"\xff\xd3")
    with pytest.raises(ImageError, match="damaged: the data stop before the last pixel"):
        decode(content[: marker - 30] + content[marker:])
    table = content.index(b"\xff\xc4") + 5
    with pytest.raises(ImageError, match="damaged"):  # a table without the codes that the data use
        decode(content[:table] + bytes(16) + content[table + 16 :])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}], ids=str)
def test_size_that_the_file_cannot_hold_is_rejected_before_decoding(kind, options, monkeypatch):
    content = bytearray(encoded(Image.fromarray(noise(16, 16, 3)), kind, **options))
    size = struct.pack(">HH", 7900, 8000) if kind == "JPEG" else struct.pack("<II", 8000, 7900)
    if kind == "PNG":
        content[16:24] = size[::-1]
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        start = 18 if kind == "BMP" else content.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0") + 5
        content[start : start + len(size)] = size
    for name in ("PIL.ImageFile.ImageFile.load", "simplejpeg.decode_jpeg"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ImageError) as caught:
        decode(bytes(content))
    assert caught.value.what == "damaged: the file is too short for the size in its header"


def test_smallest_files_of_large_images_are_accepted():
    for options in ({}, {"optimize": True}, {"progressive": True}, {"progressive": True, "optimize": True}):
        for mode in ("L", "RGB", "CMYK"):
            assert decode(encoded(Image.new(mode, (800, 600)), "JPEG", **options)).size == (800, 600)
    for kind in ("PNG", "BMP", "GIF", "WEBP"):
        assert decode(encoded(Image.new("RGB", (800, 600)), kind)).size == (800, 600)


# ------------------------------------------------------------------------------------------------- damaged PNGs

PNG_IMAGES = {
    **{mode: Image.fromarray(noise(40, 30, 3)).convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "I;16": Image.fromarray(noise(40, 30).astype(np.uint16) * 257),
    "black": Image.new("RGB", (30, 40)),
    "transparent": Image.new("RGBA", (30, 40)),
}


def split_png(content):
    """Split a PNG into its chunks: name and payload."""
    position, chunks = len(PNG_START), []
    while position < len(content):
        (length,) = struct.unpack_from(">I", content, position)
        chunks.append(content[position + 4 : position + 8 + length])
        position += 12 + length
    return chunks


def join_png(chunks):
    return PNG_START + b"".join(map(chunk, chunks))


@pytest.mark.parametrize("kind", [*PNG_IMAGES, "animated"])
def test_png_without_its_last_row_is_rejected(kind):
    image = PNG_IMAGES.get(kind, PNG_IMAGES["RGB"])
    options = {"save_all": True, "append_images": [Image.new("RGB", image.size)]} if kind == "animated" else {}
    chunks = split_png(encoded(image, **options))
    (index,) = (i for i, payload in enumerate(chunks) if payload.startswith(b"IDAT"))
    rows = zlib.decompress(chunks[index][4:])
    assert decode(join_png(chunks)).size == image.size
    for keep in (len(rows) - 1, len(rows) * 39 // 40, len(rows) // 3):
        chunks[index] = b"IDAT" + zlib.compress(rows[:keep])
        with pytest.raises(ImageError, match=r"damaged: (the data stop before the last pixel|image file is truncated)"):
            decode(join_png(chunks))


@pytest.mark.parametrize(("depth", "color_type"), [(1, 0), (2, 3), (4, 3), (8, 2), (16, 0), (16, 6), (8, 4)])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 8), (3, 17)])
@pytest.mark.parametrize("is_interlaced", [False, True])
def test_rows_of_png_are_counted_at_every_depth(size, depth, color_type, is_interlaced):
    channels, (width, height) = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type], size
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = (
        [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in passes] if is_interlaced else [size]
    )
    rows = b"".join((b"\0" + bytes(-(-columns * depth * channels // 8))) * n for columns, n in parts if columns)
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, is_interlaced)
    chunks = [head, b"PLTE" + bytes(12), b"IDAT" + zlib.compress(rows), b"IEND"]
    assert decode(join_png(chunks)).size == size
    chunks[2] = b"IDAT" + zlib.compress(rows[:-1])
    with pytest.raises(ImageError, match="damaged"):
        decode(join_png(chunks))


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"IDAT", b"IEND"])
def test_png_with_a_flipped_bit_in_a_critical_chunk_is_rejected(name):
    content = bytearray(encoded(PNG_IMAGES["P"]))
    checksum = content.index(name) + 4 + int.from_bytes(content[content.index(name) - 4 : content.index(name)], "big")
    content[checksum] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        decode(bytes(content))


BROKEN_EXIF = [b"Exif\0\0", b"Exif\0\0MM\0*", b"Exif\0\0XX\0*\0\0\0\x08\0\1", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk"]


@pytest.mark.parametrize("exif", BROKEN_EXIF, ids=repr)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "profile"])
def test_image_with_unreadable_exif_is_not_rotated(kind, exif):
    image = Image.fromarray(noise(12, 20, 3))
    if kind == "profile":
        text = b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode() if b"junk" not in exif else b"not hex")
        chunks = split_png(encoded(image))
        content = join_png([chunks[0], b"zTXtRaw profile type exif\0\0" + zlib.compress(text), *chunks[1:]])
    else:
        content = encoded(image, kind, exif=exif)
    without_exif = encoded(image, "PNG" if kind == "profile" else kind)
    assert np.array_equal(decode(content), decode(without_exif))


@pytest.mark.parametrize("orientation", [0, 9, 60_000])
def test_unknown_orientation_is_no_rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(encoded(Image.fromarray(noise(12, 20, 3)), "PNG", exif=exif)).size == (20, 12)


def test_pixel_limit_applies_to_the_full_size():
    content = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG"))
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = struct.pack(">HH", 8008, 8008)
    with pytest.raises(ImageError) as caught:
        decode(bytes(content), shorter_side=100)
    assert caught.value.what == f"the image has more than {MAX_IMAGE_PIXELS:,} pixels"


@pytest.mark.parametrize("grain", [0, 30])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 5}, {"subsampling": 1, "quality": 95}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_truncated_jpeg_is_rejected_at_any_size(mode, options, grain):
    whole = encoded(draw_image(520, 400, grain).convert(mode), "JPEG", **options)
    scan = whole.index(b"\xff\xda") + 20
    last = len(whole) - (60 if grain == 0 else 200)  # some blocks are missing
    for keep in [*range(scan, last, (last - scan) // 6), last]:
        for end in (b"", b"\xff\xd9"):
            for shorter_side in (0, 100, 50, 25):
                with pytest.raises(ImageError, match="damaged"):
                    decode(whole[:keep] + end, shorter_side=shorter_side)
    assert decode(whole, shorter_side=25).size == (520, 400)


@given(st.integers(2, 120), st.sampled_from([(64, 64), (96, 64), (80, 48), (16, 16), (33, 97)]), st.integers(0, 2))
def test_damage_of_the_last_blocks_is_detected_alike_at_any_size(n_missing, size, subsampling):
    whole = encoded(draw_image(*size, 30), "JPEG", subsampling=subsampling)
    truncated = whole[: max(len(whole) - n_missing, whole.index(b"\xff\xda") + 14)] + b"\xff\xd9"
    sides = (0, *(min(size) // factor for factor in (4, 8, 16)))
    results = {type(try_read(partial(decode, shorter_side=side), truncated)) for side in sides}
    assert len(results) == 1


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_missing_blocks_are_detected_below_saturated_colors(subsampling):
    for color in itertools.product((0, 255), repeat=3):
        for height in (33, 48):  # with 33, the last row of blocks has one row of pixels
            content = encoded(Image.new("RGB", (200, height), color), "JPEG", subsampling=subsampling)
            with pytest.raises(ImageError, match="damaged: the data stop before the last pixel"):
                decode(content[:-12] + b"\xff\xd9")


def test_cut_within_an_escaped_byte_is_detected_even_in_the_last_block():
    blocks = (np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8) for seed in range(40))
    contents = [encoded(Image.fromarray(block), "JPEG", quality=100) for block in blocks]
    truncated = [
        content[: content.rindex(b"\xff\0") + 1] + b"\xff\xd9" for content in contents if b"\xff\0" in content[-90:]
    ]
    assert len(truncated) > 3
    for content in truncated:
        with pytest.raises(ImageError, match="damaged: the data stop before the last pixel"):
            decode(content)


def test_first_image_of_an_mpo_needs_its_own_end_marker():
    both = encoded(draw_image(64, 64, 20), "MPO", save_all=True, append_images=[draw_image(64, 64, 20)])
    assert decode(both).size == (64, 64)
    first = both.index(b"\xff\xd9\xff\xd8")
    with pytest.raises(ImageError, match="damaged: the data stop before the last pixel"):
        decode(both[: first - 300] + both[first:])
    with pytest.raises(ImageError, match="damaged: broken data stream"):  # the message of libjpeg
        decode(both[: first - 300] + both[first + 2 :])


def test_first_image_of_an_mpo_is_checked_by_its_own_data():
    for seed in range(40):
        block = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8))
        both = encoded(block, "MPO", save_all=True, append_images=[block], quality=100)
        end = both.index(b"\xff\xd9\xff\xd8")
        if (cut := both.rfind(b"\xff\0", end - 60, end)) > 0:
            with pytest.raises(ImageError, match="damaged"):
                decode(both[: cut + 1] + both[end:])


def test_data_after_the_end_marker_are_ignored():
    plain, progressive = (encoded(Image.fromarray(noise(64, 64, 3)), "JPEG", progressive=p) for p in (False, True))
    assert decode(plain + b"\xff\xda" * 500 + plain).size == (64, 64)  # a short video, as phones append it
    with pytest.raises(ImageError, match="the image has more than 200 scans"):
        decode(progressive + b"\xff\xda" * 500)


def test_gray_images_are_not_damaged_at_any_size():
    for side in (64, 72, 136, 1600):
        for level in (126, 128, 130):
            content = encoded(Image.new("RGB", (side, side), (level,) * 3), "JPEG")
            for factor in (1, 2, 4, 8):
                assert decode(content, shorter_side=side // factor // 6).getpixel((0, 0)) == (level,) * 3


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}], ids=str)
def test_truncated_jpeg_is_rejected_at_a_reduced_size(options):
    content = encoded(draw_image(1600, 1600, 9), "JPEG", **options)
    assert decode(content, shorter_side=32).size == (200, 200)
    for n_missing in (1, 3, 100):
        with pytest.raises(ImageError, match="damaged: the data stop before the last pixel"):
            decode(content[: -2 - n_missing] + b"\xff\xd9", shorter_side=32)


def test_fine_patterns_are_not_reduced():
    y, x = np.mgrid[0:360, 0:480]
    for first, second in itertools.combinations(
        [(255, 0, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255)], 2
    ):
        for period, subsampling in itertools.product((2, 5), ("4:2:0", "4:4:4")):
            image = Image.fromarray(np.where(((x + y) % period < 1)[..., None], first, second).astype(np.uint8))
            content = encoded(image, "JPEG", subsampling=subsampling)
            for side in (16, 32, 100):
                preparation = make_preparation(side, (side, side))
                full = resize_and_crop(decode(content), preparation).astype(int)
                assert np.abs(full - load_pixels(content, preparation)).mean() <= 1


def test_image_of_the_right_size_is_not_resampled():
    pixels = noise(32, 32, 3)
    assert np.array_equal(
        load_pixels(encoded(Image.fromarray(pixels)), make_default_preparation(spec("resnet20"))), pixels
    )


def test_default_preparation():
    assert make_default_preparation(spec("resnet50")).resize == 256
    assert make_default_preparation(spec("resnet20")).crop == (32, 32)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (5000, 3)])
def test_very_long_images_need_little_memory(size):
    preparation = Preparation(256, (224, 224), IMAGENET_MEAN, IMAGENET_STD)
    image = Image.new("RGB", size, (9, 9, 9))
    image.paste((200, 9, 9), (size[0] // 2 - 2, size[1] // 2 - 2, size[0] // 2 + 2, size[1] // 2 + 2))
    pixels = resize_and_crop(image, preparation)
    assert pixels.shape == (224, 224, 3)
    assert pixels[112, 112, 0] > 100


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_random_crops_depend_only_on_the_generator(width, height, seed):
    image = Image.fromarray(noise(height, width, 3))
    preparation = Preparation(9, (8, 9), IMAGENET_MEAN, IMAGENET_STD)
    first, second = (random_resized_crop(image, preparation, 0.3, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (8, 9, 3)
    assert np.array_equal(first, second)


def test_endless_headers_and_scans_are_rejected_quickly(max_cpu_seconds):
    image = Image.fromarray(noise(64, 64, 3))
    plain, progressive = encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True)
    scans, scan = progressive.split(b"\xff\xda"), plain[plain.index(b"\xff\xda") : -2]
    bombs = {
        "the image has more than 200 scans": b"\xff\xda".join([*scans[:-1], *[scans[-2]] * 300, scans[-1]]),
        "damaged: broken data stream when reading image file": plain[:-2] + scan * 20_000 + b"\xff\xd9",
        "the header has more than 2,000 segments": plain[:2] + b"\xff\xfe\0\2" * 100_000 + plain[2:],
        "damaged, or an unusual variant: the JPEG header cannot be read": plain[:2] + b"\xff" * 5_000_000 + plain[2:],
    }
    for message, content in bombs.items():
        start = time.process_time()
        with pytest.raises(ImageError) as caught:
            decode(content)
        assert caught.value.what == message
        assert time.process_time() - start < 2 * max_cpu_seconds  # without the limits: more than half a minute
    assert decode(plain[:2] + b"\xff\xfe\0\2" * 1000 + plain[2:]).size == (64, 64)


def test_size_of_a_run_length_encoded_bitmap_is_limited():
    head = b"BM" + bytes(8) + (54).to_bytes(4, "little")
    body = (40).to_bytes(4, "little") + (60_000_000).to_bytes(4, "little") + (1).to_bytes(4, "little")
    body += (1).to_bytes(2, "little") + (8).to_bytes(2, "little") + (1).to_bytes(4, "little") + bytes(20)
    with pytest.raises(ImageError) as caught:
        decode(head + body + bytes(2000))
    assert caught.value.what == f"the image has more than {MAX_IMAGE_PIXELS:,} pixels"


def test_file_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "long.jpg"
    path.write_bytes(encoded(Image.fromarray(noise(8, 8, 3)), "JPEG"))
    os.truncate(path, 3 * 2**30)  # a sparse file
    with pytest.raises(ImageError, match="the file has more than 256,000,000 bytes"):
        decode(path)


def test_decoding_does_not_change_the_warning_filters():
    bad_exif = encoded(Image.fromarray(noise(8, 8, 3)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09" + bytes(30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: try_read(decode, bad_exif), range(40)))
        assert warnings.filters == before
