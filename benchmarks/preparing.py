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

PREPARATION = Preparation(256, (224, 224), IMAGENET_MEAN, IMAGENET_STD)
LARGE = (4000, 3000)


def decode(content):
    """Decode all pixels, and nothing else."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def prepare_idiom(content):
    """Resize and crop as torchvision's Resize and CenterCrop do."""
    image, side, (rows, columns) = decode(content), PREPARATION.resize, PREPARATION.crop
    width, height = image.size
    size = (side, side * height // width) if width <= height else (side * width // height, side)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - columns) / 2), round((image.height - rows) / 2)
    return np.asarray(image.crop((left, top, left + columns, top + rows)))


def prepare_ours(content):
    """Prepare an image as `evaluate` and `predict` do."""
    return load_pixels(content, PREPARATION)


METHODS = {"decode": decode, "idiom": prepare_idiom, "ours": prepare_ours}


def enlarge(content):
    """Return the same image as a camera would store it."""
    image, buffer = decode(content), io.BytesIO()
    size = LARGE if image.width >= image.height else LARGE[::-1]
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def compare_methods(contents, rounds):
    """Return the processor time of each method per round (ms per image), and the differences of pixels."""
    times = {method: [] for method in METHODS}
    for number in range(rounds + 1):
        for method, run in METHODS.items():
            spent = measure_milliseconds(run, contents)
            if number > 0:  # the first round warms up
                times[method].append(spent)
    differences = [np.abs(prepare_idiom(content).astype(int) - prepare_ours(content)) for content in contents]
    means = [float(difference.mean()) for difference in differences]
    levels = {"mean": statistics.mean(means), "largest_mean": max(means), "largest": int(max(map(np.max, differences)))}
    return {"images": len(contents), "ms": times, "levels": levels}


def measure_milliseconds(run, contents):
    """Return the milliseconds of processor time per image."""
    start = time.process_time()
    for content in contents:
        run(content)
    return 1000 * (time.process_time() - start) / len(contents)


def print_result(name, result):
    levels = result["levels"]
    print(f"{name}: {result['images']} images")
    for method, spent in result["ms"].items():
        ratios = [own / baseline for own, baseline in zip(spent, result["ms"]["idiom"], strict=True)]
        print(f"  {method:<8} {statistics.median(spent):8.2f} ms   {statistics.median(ratios):5.2f} of the idiom's")
    text = f"mean {levels['mean']:.2f} levels, at most {levels['largest_mean']:.2f} for one image"
    print(f"  idiom and ours: {text}, {levels['largest']} for one pixel", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs that are upright as they are stored")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most", type=int, default=100, help="use at most this many images")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    contents = [path.read_bytes() for path in sorted(find_images(options.folder))[: options.most]]
    if not contents:
        raise SystemExit(f"no images below {options.folder}")
    results = {"environment": {key: collect_environment()[key] for key in ("cores", "threads", "features", "gpus")}}
    results["as they are"] = compare_methods(contents, options.rounds)
    print_result("as they are", results["as they are"])
    results["4000x3000"] = compare_methods([enlarge(content) for content in contents], options.rounds)
    print_result("enlarged to 4000x3000", results["4000x3000"])
    if options.save:
        options.save.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
