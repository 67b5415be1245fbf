"""One decoder, one preparation."""

import io
import os
import zlib

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnetkit.architecture.card import IMAGENET_MEAN, IMAGENET_STD, Preparation, preparation_for
from resnetkit.architecture.catalog import spec
from resnetkit.errors import PictureError
from resnetkit.images.decode import FORMATS, MOST_PIXELS, decode
from resnetkit.images.prepare import open_prepared, prepare, random_crop, scale_and_shift


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


@pytest.mark.parametrize("kind", ["TIFF", "PDF", "EPS", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused_whatever_they_are_called(tmp_path, kind):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(Image.fromarray(noise(16, 16, 3)), kind))
    with pytest.raises(PictureError) as caught:
        decode(path)
    assert caught.value.what == "not a picture that is read here (JPEG, PNG, WEBP, BMP, GIF)"
    assert caught.value.where == (str(path),)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_made_upright(orientation):
    upright = Image.fromarray(noise(7, 5, 3))
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    turned = upright if orientation == 1 else upright.transpose(Image.Transpose(stored[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(turned, exif=exif)), upright)


def test_transparency_lies_on_white():
    clear = Image.fromarray(np.dstack([noise(4, 4, 3), np.zeros((4, 4), np.uint8)]))
    assert np.asarray(decode(encoded(clear))).min() == 255
    palette = Image.new("P", (4, 4), 0)
    assert np.asarray(decode(encoded(palette, transparency=0))).min() == 255
    assert np.asarray(decode(encoded(clear.convert("LA")), "L")).min() == 255


def test_sixteen_bits_become_eight():
    deep = np.array([[0, 257, 65535], [128 * 257, 300, 60000]], dtype=np.uint16)
    found = np.asarray(decode(encoded(Image.fromarray(deep)), "L"))
    assert np.array_equal(found, (deep / 257).round().astype(np.uint8))


def test_cmyk_grey_and_one_bit():
    assert decode(encoded(Image.new("CMYK", (3, 3), (0, 0, 0, 0)), "JPEG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(Image.new("L", (3, 3), 90))).getpixel((0, 0)) == (90, 90, 90)
    assert decode(encoded(Image.new("1", (3, 3), 1)), "L").getpixel((0, 0)) == 255


@pytest.mark.parametrize("keep", [0, 1, 20, 200])
def test_damaged_files_are_named(tmp_path, keep):
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(Image.fromarray(noise(20, 20, 3)))[:keep])
    with pytest.raises(PictureError) as caught:
        decode(path)
    assert caught.value.where == (str(path),)
    assert caught.value.what.startswith(("not a picture", "damaged"))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(PictureError, match="there is no such file"):
        decode(tmp_path / "none.png")
    with pytest.raises(PictureError, match="this is a folder"):
        decode(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="this is no file"):
        decode(tmp_path / "pipe.png")


def test_a_bomb_is_refused_from_its_header():
    head = bytearray(encoded(Image.new("1", (8, 8))))
    for side in (8_001, 10_001, 13_000, 50_000):
        head[16:24] = side.to_bytes(4, "big") * 2
        head[29:33] = zlib.crc32(bytes(head[12:29])).to_bytes(4, "big")
        with pytest.raises(PictureError) as caught:
            decode(bytes(head))
        assert caught.value.what == f"it has more than {MOST_PIXELS:,} pixels"


@given(st.binary(max_size=60), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF"]))
def test_random_bytes_give_only_our_error(content, start):
    with pytest.raises(PictureError):
        decode(start + content)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (32, 32), (100, 33), (7, 9)])
def test_preparation_is_that_of_torchvision(size):
    image = Image.fromarray(noise(size[1], size[0], 3))
    steps = tv.Compose([tv.Resize(36), tv.CenterCrop((32, 28)), tv.ToImage(), tv.ToDtype(torch.float32, scale=True),
                        tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)])  # fmt: skip
    how = Preparation(36, (32, 28), IMAGENET_MEAN, IMAGENET_STD)
    pixels = prepare(image, how)
    assert pixels.shape == (32, 28, 3)
    scale, shift = scale_and_shift(how)
    got = torch.from_numpy((pixels * scale + shift).transpose(2, 0, 1))
    torch.testing.assert_close(got.float(), steps(image), atol=2e-6, rtol=1e-5)


def test_a_picture_of_the_right_size_is_not_resampled():
    pixels = noise(32, 32, 3)
    assert np.array_equal(open_prepared(encoded(Image.fromarray(pixels)), preparation_for(spec("resnet20"))), pixels)


def test_the_usual_preparation():
    assert preparation_for(spec("resnet50")).resize == 256
    assert preparation_for(spec("resnet20")).crop == (32, 32)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (5000, 3)])
def test_ribbons_take_no_memory(size):
    how = Preparation(256, (224, 224), IMAGENET_MEAN, IMAGENET_STD)
    ribbon = Image.new("RGB", size, (9, 9, 9))
    ribbon.paste((200, 9, 9), (size[0] // 2 - 2, size[1] // 2 - 2, size[0] // 2 + 2, size[1] // 2 + 2))
    pixels = prepare(ribbon, how)
    assert pixels.shape == (224, 224, 3)
    assert pixels[112, 112, 0] > 100


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_random_crops_have_the_size_and_depend_on_the_draw_alone(width, height, seed):
    image = Image.fromarray(noise(height, width, 3))
    how = Preparation(9, (8, 9), IMAGENET_MEAN, IMAGENET_STD)
    first, second = (random_crop(image, how, 0.3, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (8, 9, 3)
    assert np.array_equal(first, second)
