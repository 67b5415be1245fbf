"""Measure how fast images are read: by workers during training, and from Parquet compared with files.

    python benchmarks/reading.py [--rounds 5] [--steps 4] [--rows 20000] [--save FILE.json]

The images are drawn: smooth fields with grain, so that a JPEG of 500x400 has about the size of a photograph. Training
is `resnetkit train` itself; its settings take turns. The rows are small images, read in random order.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnetkit.runtime.environment import collect_environment

SETTINGS = (0, 1, 2, 4)


def draw(number, width, height):
    """Draw an image with smooth colors and some grain, as JPEG."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = pixels + rng.normal(0, 12, pixels.shape).astype(np.int16)
    written = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(written, "JPEG", quality=85)
    return written.getvalue()


def photographs(root, count):
    """Write a folder of two classes."""
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw(number, 500, 400))
    return root


def training(root, rounds, steps):
    """Measure reading and training; return workers -> images per second of every round.

    `kept` is the same steps with images that are pixels already.
    """
    from resnetkit.training.setup import prepare_run
    from resnetkit.training.trainer import Trainer

    begun = prepare_run(root, "resnet18", {"batch_size": 32}, out=root.parent / "run", device="cpu", on_progress=None)
    source, rates = begun.loaders["train"], {}
    kept = [source.load_random_crops(np.arange(step * 32, step * 32 + 32), 0.35, (0, 0)) for step in range(steps)]
    loop = Trainer(begun, lambda event: None)
    read = loop.load_batch
    result = work(loop, source, kept, steps)
    for number in range(rounds + bool(rounds)):
        for setting in ("kept", *SETTINGS):
            source.workers = 0 if setting == "kept" else setting
            loop.load_batch = read if setting != "kept" else lambda epoch, step, chosen: labelled(source, kept[step])
            pace = one_round(loop, number + 1, steps)
            if number > 0:  # the first round warms up
                rates.setdefault(str(setting), []).append(pace)
    return {
        "model": "resnet18",
        "batch": 32,
        "precision": begun.setup.precision,
        "steps": steps,
        **result,
        "rounds": rates,
    }


def work(loop, source, kept, steps):
    """Milliseconds of processor time for a image, on one core: a busy machine changes them little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source.workers = 0
    loop.load_batch = lambda epoch, step, chosen: labelled(source, kept[step])
    reading = [clocked(lambda: source.load_random_crops(np.arange(32), 0.35, (0, 0)), 32) for _ in range(5)]
    learning = [clocked(lambda: one_round(loop, 1, steps), 32 * steps) for _ in range(4)]
    torch.set_num_threads(threads)
    return {"read_ms": statistics.median(reading), "learn_ms": statistics.median(learning[1:])}


def clocked(run, images):
    """Milliseconds of this process for each image."""
    begun = time.process_time()
    run()
    return 1000 * (time.process_time() - begun) / images


def labelled(source, batch):
    """Pixels with the labels of their images."""
    return batch[0], source.labels[batch[1]], batch[1]


def one_round(loop, epoch, steps):
    """Images per second of some steps, reading among them."""
    from resnetkit.training.state import TrainState

    paces, loop.state = [], TrainState(epoch=epoch, batch_size=loop.recipe.batch_size)

    def watch(event):
        paces.append(event.images_per_second)
        if event.step == steps:
            raise StopIteration

    loop.on_event = watch
    try:
        loop.train_epoch(epoch)
    except StopIteration:
        return paces[-1]
    raise SystemExit("an epoch has fewer steps than --steps")


def small(root, rows):
    """Write the same small images as files and as Parquet in one row group, the worst case for reading at random."""
    import pyarrow
    from pyarrow import parquet

    images = [draw(number % 500, 32, 32) for number in range(rows)]
    for number, content in enumerate(images):
        path = root / "files" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    table = pyarrow.table({"image": images, "label": [number % 2 for number in range(rows)]})
    parquet.write_table(table, root / "small.parquet", row_group_size=rows)


READ = """
import json, sys, time
import numpy as np
from resnetkit.data.open import open_dataset
def peak():  # of this program alone: getrusage begins with that of the one that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
begun = time.perf_counter()
images = open_dataset(sys.argv[1]).train_split
opened, before = time.perf_counter() - begun, peak()
begun = time.perf_counter()
for i in np.random.default_rng(0).permutation(len(images)).tolist():
    images.load_image(i)
pace = len(images) / (time.perf_counter() - begun)
print(json.dumps([opened, pace, before, peak()]))
"""


def reading(root, cache):
    """Measure seconds to open, images/s in random order in one thread, and peak memory (KiB) of each source."""
    rows = {}
    for what, place in (("files", "files"), ("Parquet, first time", "small.parquet"), ("Parquet", "small.parquet")):
        done = subprocess.run(
            [sys.executable, "-c", READ, str(root / place)],
            capture_output=True, text=True, check=True, env={**sys_environment(), "RESNETKIT_CACHE": str(cache)},
        )  # fmt: skip
        rows[what] = dict(
            zip(("opened", "images_per_second", "peak_opened", "peak"), json.loads(done.stdout), strict=True)
        )
    return rows


def sys_environment():
    """Return the environment in which the interpreter finds the package."""
    import os

    return dict(os.environ)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of training; 0 leaves it out, as a busy machine should")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    results = {"environment": {key: collect_environment()[key] for key in ("cores", "threads", "features", "gpus")}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small(root, options.rows)
        results["rows"] = {"count": options.rows, "sources": reading(root, root / "cache")}
        show_rows(results["rows"]["sources"])
        place = photographs(root / "photographs", round(32 * (options.steps + 1) / 0.7))
        results["training"] = training(place, options.rounds, options.steps)
    show_training(results["training"])
    if options.save:
        options.save.write_text(json.dumps(results, indent=2) + "\n")


def show_rows(rows):
    for what, row in rows.items():
        pace, memory = row["images_per_second"], row["peak"] / 1024
        print(f"{what:<20} {row['opened']:6.2f} s to open  {pace:8.0f}/s  {memory:6.0f} MiB", flush=True)


def show_training(result):
    print(f"processor time for a image: reading {result['read_ms']:.1f} ms, learning {result['learn_ms']:.1f} ms")
    for setting, paces in result["rounds"].items():
        label = "pixels already" if setting == "kept" else f"{setting} workers"
        print(f"{label:<20} {statistics.median(paces):8.1f} images/s   {min(paces):.1f} to {max(paces):.1f}")


if __name__ == "__main__":
    main()
