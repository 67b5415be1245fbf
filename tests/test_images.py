"""One decoder, one preparation."""

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

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from resnetkit import file_types as kinds
from resnetkit.architecture.card import IMAGENET_MEAN, IMAGENET_STD, Preparation, make_default_preparation
from resnetkit.architecture.catalog import spec
from resnetkit.errors import ImageError
from resnetkit.images import jpeg as jpegs
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
    image = Image.fromarray(np.full((6, 5, 3), 200, np.uint8))
    assert decode(encoded(image, kind)).size == (5, 6)


# ---------------------------------------------------------------------------------------------- what is no picture


def png(rows, width, depth, colour, *chunks):
    """A PNG of bytes, one row each, so that no encoder has a part in what is expected."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0), *chunks]
    parts += [b"IDAT" + zlib.compress(b"".join(b"\0" + row for row in rows)), b"IEND"]
    return PNG_START + b"".join(map(chunk, parts))


PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(part):
    return struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 44815912\n" % (b"0" * 64)
OTHERS = {  # first bytes, or a format that Pillow writes
    "PSD": b"8BPS\0\1" + bytes(30),
    "EPS": "EPS",
    "FITS": b"SIMPLE  =                    T" + b" " * 50,
    "PDF": "PDF",
    "TIFF": "TIFF",
    "JPEG 2000": "JPEG2000",
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn --><svg xmlns="http://www.w3.org/2000/svg"/>',
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(20),
    "AVIF": b"\0\0\0\x18ftypavif" + bytes(20),
    "ICO": "ICO",
    "PPM": "PPM",
    "OpenEXR": b"v/1\x01" + bytes(20),
    "DICOM": bytes(128) + b"DICM" + bytes(20),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_d07_other_formats_are_refused_by_name_and_never_parsed(tmp_path, monkeypatch, kind):
    content = OTHERS[kind]
    if isinstance(content, str):
        content = encoded(Image.fromarray(noise(16, 16, 3)), content)
    Image.init()
    for name in set(Image.OPEN) - set(FORMATS):
        monkeypatch.setitem(Image.OPEN, name, (lambda *_, name=name: pytest.fail(name),) * 2)
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    for source, where in ((path, str(path)), (content, "the bytes given")):
        with pytest.raises(ImageError) as caught:
            decode(source)
        assert str(caught.value) == (
            f"error: format {kind} is not accepted; allowed: JPEG, PNG, WEBP, BMP, GIF\n"
            f"where: {where}\nfix: save it as PNG or JPEG"
        )


NO_PICTURES = {
    "this is a git-LFS pointer, not the file (real size 44,815,912 bytes)": LFS,
    "this is a git-LFS pointer, not the file": LFS[:60],
    "this is an HTML page, not a picture": b"\xef\xbb\xbf\n<!DOCTYPE html><title>sign in</title><svg></svg>",
    "this is an XML text, not a picture": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "this is a JSON text, not a picture": b'{"data":{"error": "not found"}}',
    "this is an MP4 video, not a picture": b"\0\0\0\x18ftypisom",
    "this is a zip archive, not a picture": b"PK\x03\x04",
    "this is a gzip archive, not a picture": b"\x1f\x8b\x08",
    "this is a tar archive, not a picture": b"a.png" + bytes(252) + b"ustar",
    "this is a safetensors file, not a picture": struct.pack("<Q", 2) + b"{}",
    "this is a pickle, not a picture": b"\x80\x02}.",
    "this is an HDF5 file, not a picture": b"\x89HDF\r\n\x1a\n",
    "the file is empty": b"",
    "not a picture that is read here (JPEG, PNG, WEBP, BMP, GIF)": b"no picture",
    "damaged, or of a rare sort: its JPEG header cannot be read": b"\xff\xd8\xff\xe0",
}


@pytest.mark.parametrize("told", NO_PICTURES)
def test_w03_w04_what_is_no_picture_is_named(tmp_path, told):
    path = tmp_path / "picture.jpg"
    path.write_bytes(NO_PICTURES[told])
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert (caught.value.what, caught.value.where) == (told, (str(path),))
    assert caught.value.fix == (
        "git lfs pull" if "LFS" in told
        else "fetch the file itself again" if "text" in told or "page" in told or "empty" in told
        else "unpack it" if "archive" in told
        else ""
    )  # fmt: skip


def test_every_row_of_the_table_is_a_pattern_that_no_row_before_it_hides():
    starts = {"JPEG": b"\xff\xd8\xff", "PNG": PNG_START, "WEBP": b"RIFF0000WEBP", "GIF": b"GIF89a",
              "BMP": b"BM0000" + bytes(4)}  # fmt: skip
    starts |= {kind: start for kind, start in OTHERS.items() if isinstance(start, bytes)}
    assert {kind: kinds.detect_file_type(start) for kind, start in starts.items()} == {kind: kind for kind in starts}
    assert set(FORMATS) < set(kinds.IMAGE_TYPES)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ImageError, match="there is no such file"):
        decode(tmp_path / "none.png")
    with pytest.raises(ImageError, match="this is a folder"):
        decode(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="this is no file"):
        decode(tmp_path / "pipe.png")


def test_too_little_memory_is_no_damage(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(ImageError, match="there is not enough memory for it"):
        decode(encoded(Image.new("RGB", (4, 4))))


# -------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("keep", [1, 7, 20, 200])
def test_damaged_files_are_named(tmp_path, keep):
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(Image.fromarray(noise(20, 20, 3)))[:keep])
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert caught.value.where == (str(path),)
    assert caught.value.what.startswith(("not a picture", "damaged"))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("side", [8, 16, 40, 130])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_d02_a_jpeg_that_is_cut_is_damaged(mode, side, progressive):
    whole = encoded(Image.fromarray(noise(side, side, 3)).convert(mode), "JPEG", progressive=progressive)
    for keep in (len(whole) // 2, len(whole) - 10, len(whole) - 2, len(whole) - 1):
        with pytest.raises(ImageError, match="damaged"):
            decode(whole[:keep])
    assert np.array_equal(decode(whole), decode(whole + b"what a camera writes behind a picture"))


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"subsampling": 0}, {"quality": 95}], ids=str)
def test_d02_a_jpeg_that_is_cut_and_closed_is_not_filled_with_grey(options):
    whole = encoded(Image.fromarray(noise(90, 120, 3)), "JPEG", **options)
    for share in range(50, 100, 5):
        with pytest.raises(ImageError, match="damaged: its data stop before its pixels do"):
            decode(whole[: len(whole) * share // 100] + b"\xff\xd9")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_d02_a_grey_picture_is_no_damage(mode, progressive):
    for side in (1, 8, 33, 100):
        for blocks in (0, 2):
            grey = Image.new(mode, (side, side), (128,) * len(mode) if mode != "L" else 128)
            decode(encoded(grey, "JPEG", progressive=progressive, restart_marker_blocks=blocks))


def test_d02_cut_files_of_other_formats_are_whole_or_damaged():
    image = Image.fromarray(noise(16, 12, 3))
    for kind, options in (("PNG", {}), ("BMP", {}), ("GIF", {}), ("WEBP", {}), ("WEBP", {"lossless": True})):
        content = encoded(image, kind, **options)
        whole = np.asarray(decode(content))
        for keep in range(len(content) - 60, len(content)):
            found = try_read(decode, content[:keep])
            assert isinstance(found, ImageError) or np.array_equal(found, whole)


# ------------------------------------------------------------------------------------------------- values by hand


def shown(content, colour="RGB"):
    return np.asarray(decode(content, colour)).tolist()


def jpeg(colour, mode):
    """A picture of one colour with the bytes ``colour`` stored in each channel."""
    return encoded(Image.new(mode, (16, 16), colour), "JPEG", quality=100, subsampling=0)


def test_d05_cmyk_as_adobe_inverts_it():
    cyan, magenta, yellow, black = 40, 120, 200, 30
    expected = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    stored = jpeg((cyan, magenta, yellow, black), "CMYK")  # Pillow writes 255 - ink, and Adobe's mark
    assert b"Adobe" in stored
    assert np.allclose(shown(stored)[5][5], expected, atol=2)

    luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow  # YCCK: the inks as if they were light (JFIF's formulas)
    blue, red = 128 + 0.564 * (yellow - luma), 128 + 0.713 * (cyan - luma)
    ycck = bytearray(jpeg((*(255 - round(part) for part in (luma, blue, red)), black), "CMYK"))
    ycck[ycck.index(b"Adobe") + 11] = 2  # the transform
    assert np.allclose(shown(bytes(ycck))[5][5], expected, atol=3)


def test_d05_sixteen_bits_become_eight():
    deep = [[0, 128, 129, 257], [65535, 65535 - 129, 128 * 257, 60000]]
    rows = [struct.pack(">4H", *row) for row in deep]
    assert shown(png(rows, 4, 16, 0), "L") == [[0, 0, 1, 1], [255, 254, 128, 233]]
    assert shown(png(rows, 4, 16, 0, b"tRNS" + struct.pack(">H", 128)), "L") == [[0, 255, 1, 1], [255, 254, 128, 233]]
    assert shown(png([struct.pack(">3H", 0, 257, 65535)], 1, 16, 2)) == [[[0, 1, 255]]]


def test_d05_palettes_and_transparency():
    palette = b"PLTE" + bytes([10, 20, 30, 200, 100, 0, 7, 7, 7])
    assert shown(png([bytes([0, 1, 2])], 3, 8, 3, palette)) == [[[10, 20, 30], [200, 100, 0], [7, 7, 7]]]
    on_white = [[[255, 255, 255], [255 - 55 * 51 // 255, 255 - 155 * 51 // 255, 255 - 51], [7, 7, 7]]]
    assert shown(png([bytes([0, 1, 2])], 3, 8, 3, palette, b"tRNS" + bytes([0, 51]))) == on_white
    assert shown(png([bytes([0, 0, 100, 51, 90, 255])], 3, 8, 4), "L") == [[255, 255 - 155 * 51 // 255, 90]]
    assert shown(png([bytes([1, 2, 3, 255, 100, 0, 200, 51])], 2, 8, 6)) == [[[1, 2, 3], [224, 204, 244]]]
    assert shown(png([bytes([5, 90])], 2, 8, 0, b"tRNS\0\5"), "L") == [[255, 90]]
    assert shown(png([bytes([1, 2, 3, 4, 5, 6])], 2, 8, 2, b"tRNS\0\1\0\2\0\3")) == [[[255] * 3, [4, 5, 6]]]


def test_d05_one_bit_and_grey():
    assert shown(png([b"\xa0"], 3, 1, 0)) == [[[255] * 3, [0] * 3, [255] * 3]]
    assert shown(png([b"\xa0"], 3, 1, 0), "L") == [[255, 0, 255]]
    assert shown(png([b"\1\x5a"], 2, 8, 0)) == [[[1] * 3, [90] * 3]]


def test_d05_a_progressive_jpeg_is_the_same_picture():
    slope = np.stack(np.broadcast_arrays(*np.ogrid[0:200:5, 0:200:4], 90), axis=2).astype(np.uint8)
    plain, progressive = (encoded(Image.fromarray(slope), "JPEG", quality=95, progressive=p) for p in (False, True))
    assert np.array_equal(decode(plain), decode(progressive))
    assert np.abs(np.asarray(decode(plain)).astype(int) - slope).max() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_d05_a_colour_profile_is_passed_over(kind):
    image = Image.fromarray(noise(8, 8, 3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with_profile = encoded(image, kind, icc_profile=profile)
    assert profile in with_profile or kind == "PNG"
    assert np.array_equal(decode(with_profile), decode(encoded(image, kind)))


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_d05_the_first_frame_is_the_picture(kind, options):
    first, *others = (Image.new("RGB", (5, 4), colour) for colour in ((200, 10, 0), (0, 0, 255), (9, 255, 9)))
    moving = encoded(first, kind, save_all=True, append_images=others, duration=10, **options)
    assert Image.open(io.BytesIO(moving)).n_frames == 3
    assert shown(moving) == [[[200, 10, 0]] * 5] * 4


def test_d05_the_first_of_several_pictures_in_a_jpeg():
    both = encoded(
        Image.new("RGB", (8, 8), (255, 0, 0)), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    assert shown(both) == shown(encoded(Image.new("RGB", (8, 8), (255, 0, 0)), "JPEG"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {}),
                                               ("WEBP", {"lossless": True})])  # fmt: skip
def test_d05_pictures_are_made_upright(orientation, kind, options):
    upright = Image.fromarray(noise(3, 2, 3)).resize((16, 24), Image.Resampling.NEAREST)
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    turned = upright if orientation == 1 else upright.transpose(Image.Transpose(stored[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(turned, kind, exif=exif, **options))
    assert np.allclose(found, upright, atol=2 if kind == "JPEG" else 0)
    how = Preparation(12, (12, 12), IMAGENET_MEAN, IMAGENET_STD)
    twin = load_pixels(encoded(upright, kind, **options), how)
    assert np.allclose(resize_and_crop(found, how), twin, atol=2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_d05_thin_pictures(size):
    width, height = size
    line = (np.arange(width * height) // 20).astype(np.uint8).reshape(height, width)
    content = png([row.tobytes() for row in line], width, 8, 0)
    assert np.array_equal(decode(content, "L"), line)
    pixels = load_pixels(content, Preparation(256, (224, 224), (0.5,), (0.5,)))
    middle = line.ravel()[[max(line.size // 2 - 2, 0), min(line.size // 2 + 1, line.size - 1)]]
    assert pixels.shape == (224, 224, 1)
    assert middle[0] <= pixels.min() <= pixels.max() <= middle[1]


# --------------------------------------------------------------------------------------------------------- bombs


def test_a_bomb_is_refused_from_its_header():
    for side in (8_001, 10_001, 13_000, 50_000):
        with pytest.raises(ImageError) as caught:
            decode(PNG_START + chunk(b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT"))
        assert caught.value.what == f"it has more than {MAX_IMAGE_PIXELS:,} pixels"


def bombs():
    side, row = 50_000, bytes(1 + 50_000 // 8)
    squeeze = zlib.compressobj(9)
    piece = squeeze.compress(row * 500) + squeeze.flush(zlib.Z_FULL_FLUSH)  # the same 100 times, as each begins afresh
    checksum = struct.pack(">I", side * len(row) % 65521 << 16 | 1)
    ends = piece[:2], squeeze.flush()[:-4] + checksum
    head = PNG_START + chunk(b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    yield "real", head + chunk(b"IDAT" + ends[0] + piece[2:] * 100 + ends[1]) + chunk(b"IEND")
    yield "forged", head + chunk(b"IDAT" + zlib.compress(bytes(1000))) + chunk(b"IEND")
    for kind, data in ((b"tEXt", b"key\0text"), (b"zTXt", b"key\0\0" + zlib.compress(b"text"))):
        yield (
            kind.decode(),
            png([b"\0"], 1, 8, 0).replace(b"\0\0\0\x0aIDAT", chunk(kind + data) * 100_000 + b"\0\0\0\x0aIDAT"),
        )
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "red")]
    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=10)
    second = moving.index(b"ANMF", moving.index(b"ANMF") + 1)
    frame = moving[second : moving.index(b"ANMF", second + 1)]
    body = moving[8:second] + frame * 10_000
    yield "WebP", b"RIFF" + struct.pack("<I", len(body)) + body
    yield "canvas", moving[:24] + (13_000 - 1).to_bytes(3, "little") * 2 + moving[30:]


MEASURE = """
import sys, time
from pathlib import Path
from resnetkit.errors import ImageError
from resnetkit.images.decode import decode, try_read

def peak():  # of this process alone: getrusage also counts the process that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

base = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    content, start = path.read_bytes(), time.process_time()
    found = try_read(decode, content)
    told = found.what if isinstance(found, ImageError) else found.size
    print(f"{path.stem}|{time.process_time() - start:.3f}|{peak() - base:.1f}|{told}")
"""


def test_d06_bombs_take_no_time_and_no_memory(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(Image.new("RGB", (4, 4))))
    (tmp_path / "1.webp").write_bytes(encoded(Image.new("RGB", (4, 4)), "WEBP"))
    for name, content in bombs():
        (tmp_path / f"bomb-{name}").write_bytes(content)
    assert 200_000 < (tmp_path / "bomb-real").stat().st_size < 500_000
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    few = measure_cpu_budget()
    assert all(float(seconds) < few and float(megabytes) < 100 for _, seconds, megabytes, _ in rows), done.stdout
    many = f"it has more than {MAX_IMAGE_PIXELS:,} pixels"
    told = {name: told for name, _, _, told in rows if name.startswith("bomb")}
    assert told == {"bomb-real": many, "bomb-forged": many, "bomb-canvas": many, "bomb-tEXt": "(1, 1)",
                    "bomb-zTXt": "(1, 1)", "bomb-WebP": "(8, 8)"}  # fmt: skip


@given(st.binary(max_size=60), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF"]))
def test_random_bytes_give_only_our_error(content, start):
    with pytest.raises(ImageError):
        decode(start + content)


# Pillow keeps the box of a resize in fp32, and torchvision resizes without one. So where something is resampled and cut,
# a pixel may be one level apart; where both of its passes stand on a tie of rounding, a rare one is two.
def one_level_apart(found, expected):
    apart = np.abs(found.astype(int) - expected)
    return apart.max() <= 2 and np.count_nonzero(apart > 1) <= 3 + apart.size // 500


def of_torchvision(image, side, crop):
    pixels = np.asarray(tv.CenterCrop(crop)(tv.Resize(side)(image)))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def plain(side, crop, colour="RGB"):
    return Preparation(side, crop, (0.5,) * len(colour), (0.5,) * len(colour))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (32, 32), (100, 33), (7, 9)])
def test_preparation_is_that_of_torchvision(size):
    image = Image.fromarray(noise(size[1], size[0], 3))
    steps = tv.Compose([tv.Resize(36), tv.CenterCrop((32, 28)), tv.ToImage(), tv.ToDtype(torch.float32, scale=True),
                        tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)])  # fmt: skip
    how = Preparation(36, (32, 28), IMAGENET_MEAN, IMAGENET_STD)
    pixels = resize_and_crop(image, how)
    assert pixels.shape == (32, 28, 3)
    scale, shift = compute_scale_and_shift(how)
    got = torch.from_numpy((pixels * scale + shift).transpose(2, 0, 1))
    one_level = 1.01 / 255 / min(IMAGENET_STD)
    torch.testing.assert_close(got.float(), steps(image), atol=one_level, rtol=0)


@given(st.data(), st.sampled_from(["L", "RGB"]), st.integers(1, 300), st.booleans())
def test_every_size_is_prepared_as_torchvision_does(data, colour, side, whole):
    long, short = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700))
    width, height = (long, max(short, -(-long * side * side // 4_000_000)))  # of a ribbon theirs would be 4 MB and more
    crop = (side, side) if whole else (data.draw(st.integers(1, side)), data.draw(st.integers(1, side)))
    image = Image.fromarray(noise(height, width, 3)).convert(colour)
    found = resize_and_crop(image, plain(side, crop, colour))
    assert one_level_apart(found, of_torchvision(image, side, crop))


@pytest.mark.parametrize("size", [(3, 70), (70, 3), (21, 2), (2, 21), (4000, 31), (1, 50), (700, 9)])
def test_the_middle_of_a_ribbon_is_that_of_torchvision(size):
    image = Image.fromarray(noise(size[1], size[0], 3))
    for side, crop in ((64, (64, 56)), (9, (9, 9))):
        assert one_level_apart(resize_and_crop(image, plain(side, crop)), of_torchvision(image, side, crop))


@given(st.integers(1, 90), st.integers(0, 40), st.booleans())
def test_without_a_cut_or_without_resampling_every_bit_is_torchvisions(side, more, upright):
    size = (side, side + more) if upright else (side + more, side)
    cut = Image.fromarray(noise(size[1], size[0], 3))
    assert np.array_equal(resize_and_crop(cut, plain(side, (side, side))), of_torchvision(cut, side, (side, side)))
    square = Image.fromarray(noise(side + more, side + more, 3))
    assert np.array_equal(
        resize_and_crop(square, plain(side, (side, side))), of_torchvision(square, side, (side, side))
    )


# ------------------------------------------------------------------------------------- JPEGs that are decoded smaller


def drawn(width, height, grain):
    coarse = Image.fromarray(noise(5, 6, 3)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse) + np.random.default_rng(1).normal(0, grain, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_a_jpeg_is_reduced_as_far_as_its_shorter_side_allows():
    sizes = {(640, 480): {0: 1, 480: 1, 121: 1, 120: 2, 61: 2, 60: 4, 31: 4, 30: 8, 1: 8},
             (1000, 64): {17: 1, 16: 2, 8: 4, 5: 4, 4: 8}, (641, 480): {30: 1}, (642, 480): {30: 2},
             (4000, 3000): {267: 8, 268: 4}, (2000, 2400): {178: 8, 179: 4}, (1992, 1992): {125: 4, 124: 8},
             (1024, 768): {256: 1}, (500, 375): {256: 1}}  # fmt: skip
    for (width, height), reductions in sizes.items():
        content = encoded(drawn(width, height, 0), "JPEG")
        for shorter, by in reductions.items():
            assert decode(content, shorter_side=shorter).size == (width // by, height // by)
    assert decode(encoded(Image.new("RGB", (640, 480)), "PNG"), shorter_side=60).size == (640, 480)


@pytest.mark.parametrize("grain", [0, 12, 40])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1280, 320), (512, 512)])
@pytest.mark.parametrize("kind", ["RGB", "L", "MPO"])
def test_a_reduced_picture_looks_the_same(kind, size, grain):
    image = drawn(*size, grain)
    content = encoded(image, "MPO", save_all=True, append_images=[image]) if kind == "MPO" else (
        encoded(image.convert(kind), "JPEG"))  # fmt: skip
    assert Image.open(io.BytesIO(content)).format == ("MPO" if kind == "MPO" else "JPEG")
    for colour in ("RGB", "L"):
        how = plain(64, (56, 56), colour)
        full, fast = resize_and_crop(decode(content, colour), how).astype(int), load_pixels(content, how)
        assert decode(content, colour, 64).size != size
        assert np.abs(full - fast).mean() <= 1


def test_a_picture_of_a_camera_looks_nearly_the_same_with_less_to_average():
    how, grainy = plain(178, (156, 156)), drawn(2400, 2000, 20)
    edges = Image.fromarray(np.kron(noise(20, 24, 3), np.ones((100, 100, 1), np.uint8)))  # no filter agrees at these
    for image, allowed in ((grainy, 1), (edges, 2)):
        content = encoded(image, "JPEG", quality=90)
        assert decode(content, shorter_side=178).size == (300, 250)
        full, fast = resize_and_crop(decode(content), how).astype(int), load_pixels(content, how)
        assert np.abs(full - fast).mean() < allowed


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_reduced_picture_is_made_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(drawn(640, 480, 5), "JPEG", exif=exif)
    full, small = decode(content), decode(content, shorter_side=60)
    assert small.size == (full.width // 4, full.height // 4)
    assert np.abs(np.asarray(full.reduce(4)).astype(int) - np.asarray(small)).mean() < 1


@pytest.mark.parametrize("mode", ["CMYK", "progressive", "RGB"])
def test_rare_sorts_of_jpeg_are_decoded_in_full_size(mode):
    options = {"CMYK": {}, "progressive": {"progressive": True}, "RGB": {"keep_rgb": True}}[mode]
    content = encoded(drawn(320, 240, 5).convert("CMYK" if mode == "CMYK" else "RGB"), "JPEG", **options)
    assert np.array_equal(decode(content, shorter_side=30), decode(content))


def test_the_limit_on_pixels_is_that_of_the_full_size():
    content = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG"))
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = struct.pack(">HH", 8008, 8008)
    with pytest.raises(ImageError) as caught:
        decode(bytes(content), shorter_side=100)
    assert caught.value.what == f"it has more than {MAX_IMAGE_PIXELS:,} pixels"


@pytest.mark.parametrize("grain", [0, 30])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 5}, {"subsampling": 1, "quality": 95}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_cut_jpeg_is_refused_in_any_size(mode, options, grain):
    whole = encoded(drawn(520, 400, grain).convert(mode), "JPEG", **options)
    scan = whole.index(b"\xff\xda") + 20
    last = len(whole) - (60 if grain == 0 else 200)  # some blocks before the end
    for keep in [*range(scan, last, (last - scan) // 6), last]:
        for end in (b"", b"\xff\xd9"):
            for shorter in (0, 100, 50, 25):
                with pytest.raises(ImageError, match="damaged"):
                    decode(whole[:keep] + end, shorter_side=shorter)
    assert decode(whole, shorter_side=25).size == (65, 50)


@given(st.integers(2, 120), st.sampled_from([(64, 64), (96, 64), (80, 48), (16, 16), (33, 97)]), st.integers(0, 2))
def test_the_verdict_on_the_last_blocks_is_the_same_in_any_size(missing, size, subsampling):
    whole = encoded(drawn(*size, 30), "JPEG", subsampling=subsampling)
    cut = whole[: max(len(whole) - missing, whole.index(b"\xff\xda") + 14)] + b"\xff\xd9"
    verdicts = {
        type(try_read(lambda one, s=s: decode(one, shorter_side=s), cut))
        for s in (0, *(min(size) // by for by in (4, 8, 16)))
    }
    assert len(verdicts) == 1


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_what_is_missing_is_found_below_strong_colours(subsampling):
    for colour in itertools.product((0, 255), repeat=3):
        for height in (33, 48):  # of 33 the last row of blocks shows one row of pixels
            content = encoded(Image.new("RGB", (200, height), colour), "JPEG", subsampling=subsampling)
            with pytest.raises(ImageError, match="damaged: its data stop before its pixels do"):
                decode(content[:-12] + b"\xff\xd9")


def test_a_cut_between_a_byte_and_its_zero_is_seen_even_in_the_last_block():
    blocks = (np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8) for seed in range(40))
    contents = [encoded(Image.fromarray(block), "JPEG", quality=100) for block in blocks]
    split = [
        content[: content.rindex(b"\xff\0") + 1] + b"\xff\xd9" for content in contents if b"\xff\0" in content[-90:]
    ]
    assert len(split) > 3
    for content in split:
        with pytest.raises(ImageError, match="damaged: its data stop before its pixels do"):
            decode(content)


def test_the_first_picture_of_an_mpo_needs_its_own_end():
    both = encoded(drawn(64, 64, 20), "MPO", save_all=True, append_images=[drawn(64, 64, 20)])
    assert decode(both).size == (64, 64)
    first = both.index(b"\xff\xd9\xff\xd8")
    with pytest.raises(ImageError, match="damaged: its data stop before its pixels do"):
        decode(both[: first - 300] + both[first:])
    with pytest.raises(ImageError, match="damaged: broken data stream"):  # libjpeg's own word: no end of its own
        decode(both[: first - 300] + both[first + 2 :])


def test_of_several_pictures_the_first_is_judged_by_its_own_data():
    for seed in range(40):
        block = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8))
        both = encoded(block, "MPO", save_all=True, append_images=[block], quality=100)
        end = both.index(b"\xff\xd9\xff\xd8")
        if (split := both.rfind(b"\xff\0", end - 60, end)) > 0:
            with pytest.raises(ImageError, match="damaged"):
                decode(both[: split + 1] + both[end:])


def test_what_stands_behind_a_picture_may_hold_anything():
    plain, progressive = (encoded(Image.fromarray(noise(64, 64, 3)), "JPEG", progressive=p) for p in (False, True))
    assert decode(plain + b"\xff\xda" * 500 + plain).size == (64, 64)  # a short film, as telephones make them
    with pytest.raises(ImageError, match="it has more than 200 scans"):
        decode(progressive + b"\xff\xda" * 500)


def test_grey_pictures_are_no_damage_in_any_size():
    for side in (64, 72, 136):
        for level in (126, 128, 130):
            content = encoded(Image.new("RGB", (side, side), (level,) * 3), "JPEG")
            for by in (1, 2, 4, 8):
                assert decode(content, shorter_side=side // by // 2).size == (side // by, side // by)


def test_what_ends_in_nearly_the_grey_of_what_is_missing_is_not_decoded_in_full_again(monkeypatch):
    monkeypatch.setattr(jpegs, "_check_complete", lambda *_: pytest.fail("in full, and twice"))
    for level in (127, 129):
        pixels = noise(128, 128, 3)
        pixels[-32:, -32:] = level
        for shorter in (0, 16):
            decode(encoded(Image.fromarray(pixels), "JPEG"), shorter_side=shorter)


def test_a_picture_of_the_right_size_is_not_resampled():
    pixels = noise(32, 32, 3)
    assert np.array_equal(
        load_pixels(encoded(Image.fromarray(pixels)), make_default_preparation(spec("resnet20"))), pixels
    )


def test_the_usual_preparation():
    assert make_default_preparation(spec("resnet50")).resize == 256
    assert make_default_preparation(spec("resnet20")).crop == (32, 32)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (5000, 3)])
def test_ribbons_take_no_memory(size):
    how = Preparation(256, (224, 224), IMAGENET_MEAN, IMAGENET_STD)
    ribbon = Image.new("RGB", size, (9, 9, 9))
    ribbon.paste((200, 9, 9), (size[0] // 2 - 2, size[1] // 2 - 2, size[0] // 2 + 2, size[1] // 2 + 2))
    pixels = resize_and_crop(ribbon, how)
    assert pixels.shape == (224, 224, 3)
    assert pixels[112, 112, 0] > 100


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_random_crops_have_the_size_and_depend_on_the_draw_alone(width, height, seed):
    image = Image.fromarray(noise(height, width, 3))
    how = Preparation(9, (8, 9), IMAGENET_MEAN, IMAGENET_STD)
    first, second = (random_resized_crop(image, how, 0.3, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (8, 9, 3)
    assert np.array_equal(first, second)


def test_headers_and_scans_without_end_are_refused_at_once():
    image = Image.fromarray(noise(64, 64, 3))
    plain, progressive = encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True)
    scans, scan = progressive.split(b"\xff\xda"), plain[plain.index(b"\xff\xda") : -2]
    bombs = {
        "it has more than 200 scans": b"\xff\xda".join([*scans[:-1], *[scans[-2]] * 300, scans[-1]]),
        "damaged: broken data stream when reading image file": plain[:-2] + scan * 20_000 + b"\xff\xd9",
        "its header has more than 2,000 parts": plain[:2] + b"\xff\xfe\0\2" * 100_000 + plain[2:],
        "damaged, or of a rare sort: its JPEG header cannot be read": plain[:2] + b"\xff" * 5_000_000 + plain[2:],
    }
    for told, content in bombs.items():
        started = time.perf_counter()
        with pytest.raises(ImageError) as caught:
            decode(content)
        assert caught.value.what == told
        assert time.perf_counter() - started < 3  # without the limits: half a minute and more
    assert decode(plain[:2] + b"\xff\xfe\0\2" * 1000 + plain[2:]).size == (64, 64)


def test_runs_of_a_bitmap_are_bounded():
    head = b"BM" + bytes(8) + (54).to_bytes(4, "little")
    body = (40).to_bytes(4, "little") + (60_000_000).to_bytes(4, "little") + (1).to_bytes(4, "little")
    body += (1).to_bytes(2, "little") + (8).to_bytes(2, "little") + (1).to_bytes(4, "little") + bytes(20)
    with pytest.raises(ImageError) as caught:
        decode(head + body + bytes(2000))
    assert caught.value.what == f"it has more than {MAX_IMAGE_PIXELS:,} pixels"


def test_a_file_that_is_larger_than_any_picture_is_not_read(tmp_path):
    path = tmp_path / "long.jpg"
    path.write_bytes(encoded(Image.fromarray(noise(8, 8, 3)), "JPEG"))
    os.truncate(path, 3 * 2**30)  # a hole
    with pytest.raises(ImageError, match="it has more than 256,000,000 bytes"):
        decode(path)


def test_decoding_leaves_the_filters_of_warnings_alone():
    bad = encoded(Image.fromarray(noise(8, 8, 3)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09" + bytes(30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: try_read(decode, bad), range(40)))
        assert warnings.filters == before
