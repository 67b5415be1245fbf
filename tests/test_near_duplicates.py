"""Near duplicates: copies that were compressed again, resized, slightly cropped or mirrored."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnetkit.data.near_duplicates import find_near_duplicates, make_thumbnail


def draw(seed, size=96):
    """Draw an image with structure at every scale, as photographs have it."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size, 3))
    for cells, weight in ((3, 60), (7, 40), (15, 25), (31, 15)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight / 128 * (np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), float) - 128)
    return Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))


def compress(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def crop(image, left, top, right, bottom):
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


COPIES = {
    "compressed": lambda image: compress(image, 30),
    "halved": lambda image: image.resize((48, 48)),
    "enlarged": lambda image: image.resize((210, 180)),
    "cropped": lambda image: crop(image, 0.05, 0.05, 0.05, 0.05),
    "cropped at a corner": lambda image: crop(image, 0.08, 0.08, 0, 0),
    "cropped at a side": lambda image: crop(image, 0.06, 0, 0, 0),
    "mirrored": ImageOps.mirror,
    "all of it": lambda image: compress(ImageOps.mirror(crop(image, 0.05, 0.03, 0.02, 0.05)).resize((70, 80)), 50),
}


def to_thumbnails(images):
    content = b"".join(map(make_thumbnail, images))
    return np.frombuffer(content, np.uint8).reshape(-1, 32, 32)


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_among_other_images(name):
    originals = [draw(seed) for seed in range(25)]
    pairs = find_near_duplicates(to_thumbnails([*originals, *map(COPIES[name], originals)]))
    assert [(pair.first, pair.second) for pair in pairs] == [(i, i + 25) for i in range(25)]
    assert {pair.is_mirrored for pair in pairs} == {name in ("mirrored", "all of it")}


def test_a_thousand_distinct_images_have_no_pair():
    rng = np.random.default_rng(0)
    progress = []
    skies = np.linspace(220, 90, 32)[:, None] + rng.normal(0, 4, (300, 32, 32))  # the same sky, other noise
    noise = rng.integers(0, 256, (400, 32, 32))
    flat = np.repeat(rng.integers(0, 256, (100, 1, 1)), 32 * 32, 2).reshape(-1, 32, 32)
    drawn = to_thumbnails([draw(seed, 40) for seed in range(200)])
    thumbnails = np.concatenate([skies.clip(0, 255), noise, flat, drawn]).astype(np.uint8)
    assert find_near_duplicates(thumbnails, lambda done, total: progress.append((done, total))) == []
    assert progress[-1] == (1000, 1000)


def test_many_copies_of_one_image_are_bounded():
    image = draw(0)
    thumbnails = to_thumbnails([compress(image, 30 + i % 60) for i in range(100)])
    pairs = find_near_duplicates(thumbnails)
    assert 100 <= len(pairs) <= 100 * 16
    assert {index for pair in pairs for index in (pair.first, pair.second)} == set(range(100))


def test_no_and_small_images():
    assert find_near_duplicates(to_thumbnails([])) == []
    assert make_thumbnail(Image.new("RGB", (31, 400))) == b""


def test_check_reports_near_duplicates_by_their_harm(tmp_path, cli):
    root = tmp_path / "d"
    for seed in range(12):
        folder = root / ("train" if seed < 8 else "val") / ("ant" if seed % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        draw(seed).save(folder / f"{seed}.png")
    crop(draw(0), 0.05, 0.05, 0.05, 0.05).save(root / "val" / "bee" / "leak.png")
    ImageOps.mirror(draw(1)).save(root / "train" / "bee" / "relabeled.jpg", quality=60)
    draw(2).resize((60, 60)).save(root / "train" / "bee" / "small.png")
    draw(3).save(root / "val" / "ant" / "equal.bmp")  # equal pixels are no near duplicate
    code, out, _ = cli("check", root, "--page", tmp_path / "c.html", "--json")
    document = json.loads(out)
    train, val = root / "train", root / "val"
    assert code == 3
    assert {finding["kind"]: finding["examples"] for finding in document["findings"]} == {
        "leaks between splits": [f"{train}/ant/3.png = {val}/ant/equal.bmp (the same pixels)"],
        "near duplicates: leaks between splits": [f"{train}/bee/0.png = {val}/bee/leak.png (nearly the same)"],
        "near duplicates: conflicting labels": [
            f"{train}/ant/1.png = {train}/bee/relabeled.jpg (nearly the same, mirrored)"
        ],
        "near duplicates: duplicates": [f"{train}/bee/2.png = {train}/bee/small.png (nearly the same)"],
    }
    assert len(document["near_duplicates"]) == 3
    assert "Near duplicates in different splits" in (tmp_path / "c.html").read_text()
