"""Measure the time to prepare a photograph: decode, resize, center crop.

    python benchmarks/preparing.py FOLDER [--rounds 7] [--most 100] [--save FILE.json]

The images of FOLDER are measured in their own size and enlarged to 4000x3000. Three methods take turns, so that other
work on the machine disturbs all alike. `decode` is Pillow's decoding alone, `idiom` adds a resize and a crop of the
whole image, `ours` is the preparation of `evaluate` and `predict`. Ratios are those of a round, relative to `idiom`.
"""

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.architecture.card import IMAGENET_MEAN, IMAGENET_STD, Preparation
from resnetkit.images.decode import find_images
from resnetkit.images.prepare import load_pixels
from resnetkit.runtime.environment import collect_environment

HOW = Preparation(256, (224, 224), IMAGENET_MEAN, IMAGENET_STD)
LARGE = (4000, 3000)


def decode(content):
    """Decode all pixels, and nothing else."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def idiom(content):
    """Resize and crop as torchvision's Resize and CenterCrop do."""
    image, side, (rows, columns) = decode(content), HOW.resize, HOW.crop
    width, height = image.size
    size = (side, side * height // width) if width <= height else (side * width // height, side)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - columns) / 2), round((image.height - rows) / 2)
    return np.asarray(image.crop((left, top, left + columns, top + rows)))


def ours(content):
    return load_pixels(content, HOW)


WAYS = {"decode": decode, "idiom": idiom, "ours": ours}


def enlarged(content):
    """Return the same image as a camera would store it."""
    image, written = decode(content), io.BytesIO()
    size = LARGE if image.width >= image.height else LARGE[::-1]
    image.resize(size, Image.Resampling.BICUBIC).save(written, "JPEG", quality=90)
    return written.getvalue()


def compared(contents, rounds):
    """Way -> milliseconds of processor time for a image in each round, and how far apart the pixels are."""
    times = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, run in WAYS.items():
            spent = clocked(run, contents)
            if number > 0:  # the first round warms up
                times[way].append(spent)
    apart = [np.abs(idiom(content).astype(int) - ours(content)) for content in contents]
    means = [float(difference.mean()) for difference in apart]
    levels = {"mean": statistics.mean(means), "largest_mean": max(means), "largest": int(max(map(np.max, apart)))}
    return {"images": len(contents), "ms": times, "levels": levels}


def clocked(run, contents):
    """Milliseconds of this process for each image, in one thread."""
    begun = time.process_time()
    for content in contents:
        run(content)
    return 1000 * (time.process_time() - begun) / len(contents)


def show(name, result):
    levels = result["levels"]
    print(f"{name}: {result['images']} images")
    for way, spent in result["ms"].items():
        ratios = [own / baseline for own, baseline in zip(spent, result["ms"]["idiom"], strict=True)]
        print(f"  {way:<8} {statistics.median(spent):8.2f} ms   {statistics.median(ratios):5.2f} of the idiom's")
    text = f"mean {levels['mean']:.2f} levels, at most {levels['largest_mean']:.2f} for one image"
    print(f"  idiom and ours: {text}, {levels['largest']} for one pixel", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs that are upright as they are stored")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most", type=int, default=100, help="images that are taken")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    contents = [path.read_bytes() for path in sorted(find_images(options.folder))[: options.most]]
    if not contents:
        raise SystemExit(f"no images below {options.folder}")
    results = {"environment": {key: collect_environment()[key] for key in ("cores", "threads", "features", "gpus")}}
    results["as they are"] = compared(contents, options.rounds)
    show("as they are", results["as they are"])
    results["4000x3000"] = compared([enlarged(content) for content in contents], options.rounds)
    show("enlarged to 4000x3000", results["4000x3000"])
    if options.save:
        options.save.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
