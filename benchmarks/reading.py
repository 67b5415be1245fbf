"""Measure how fast images are read: by workers during training, and from Parquet compared with files.

    python benchmarks/reading.py [--rounds 5] [--steps 4] [--rows 20000] [--save FILE.json]

The images are drawn: smooth fields with grain, so that a JPEG of 500x400 has about the size of a photograph. Training
is `resnetkit train` itself; its settings take turns. The rows are small images, read in random order.
"""

import argparse
import io
import json
import os
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

WORKERS = (0, 1, 2, 4)


def draw_image(number, width, height):
    """Draw an image with smooth colors and some grain, as JPEG."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = pixels + rng.normal(0, 12, pixels.shape).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_photographs(root, count):
    """Write a folder of two classes."""
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_image(number, 500, 400))
    return root


def measure_training(root, rounds, steps):
    """Measure reading and training; return workers -> images per second of every round.

    `kept` is the same steps with images that are pixels already.
    """
    from resnetkit.training.setup import prepare_run
    from resnetkit.training.trainer import Trainer

    run = prepare_run(root, "resnet18", {"batch_size": 32}, out=root.parent / "run", device="cpu", on_progress=None)
    source, rates = run.loaders["train"], {}
    crops = [source.load_random_crops(np.arange(step * 32, step * 32 + 32), 0.35, (0, 0)) for step in range(steps)]
    kept = [(pixels, source.labels[indices], indices) for pixels, indices in crops]
    loop = Trainer(run, lambda event: None)
    iter_epoch = loop.session.batches.iter_epoch
    result = measure_processor_time(loop, source, kept, steps)
    for number in range(rounds + bool(rounds)):
        for setting in ("kept", *WORKERS):
            source.workers = 0 if setting == "kept" else setting
            loop.session.batches.iter_epoch = iter_epoch if setting != "kept" else lambda epoch, step: iter(kept)
            rate = run_steps(loop, number + 1, steps)
            if number > 0:  # the first round warms up
                rates.setdefault(str(setting), []).append(rate)
    return {
        "model": "resnet18",
        "batch": 32,
        "precision": run.precision,
        "steps": steps,
        **result,
        "rounds": rates,
    }


def measure_processor_time(loop, source, kept, steps):
    """Measure reading and learning in ms of processor time per image, on one core.

    Other work on the machine changes these numbers little.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source.workers = 0
    loop.session.batches.iter_epoch = lambda epoch, step: iter(kept)
    reading = [
        measure_milliseconds(lambda: source.load_random_crops(np.arange(32), 0.35, (0, 0)), 32) for _ in range(5)
    ]
    learning = [measure_milliseconds(lambda: run_steps(loop, 1, steps), 32 * steps) for _ in range(4)]
    torch.set_num_threads(threads)
    return {"read_ms": statistics.median(reading), "learn_ms": statistics.median(learning[1:])}


def measure_milliseconds(run, images):
    """Return the milliseconds of processor time per image."""
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start) / images


def run_steps(loop, epoch, steps):
    """Run some training steps, reading included, and return the images per second."""
    from resnetkit.training.state import TrainState

    rates, loop.session.state = [], TrainState(epoch=epoch, batch_size=loop.run.recipe.batch_size)

    def watch(event):
        rates.append(event.images_per_second)
        if event.step == steps:
            raise StopIteration

    loop.on_event = watch
    try:
        loop.train_epoch(epoch)
    except StopIteration:
        return rates[-1]
    raise SystemExit("an epoch has fewer steps than --steps")


def write_small_images(root, rows):
    """Write the same small images as files and as Parquet in one row group, the worst case for reading at random."""
    import pyarrow
    from pyarrow import parquet

    images = [draw_image(number % 500, 32, 32) for number in range(rows)]
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


def measure_reading(root, cache):
    """Measure seconds to open, images/s in random order in one thread, and peak memory (KiB) of each source."""
    rows = {}
    for source, file_name in (
        ("files", "files"),
        ("Parquet, first time", "small.parquet"),
        ("Parquet", "small.parquet"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", READ, str(root / file_name)],
            capture_output=True, text=True, check=True, env={**os.environ, "RESNETKIT_CACHE": str(cache)},
        )  # fmt: skip
        rows[source] = dict(
            zip(("opened", "images_per_second", "peak_opened", "peak"), json.loads(done.stdout), strict=True)
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of training; 0 measures processor time only")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    results = {"environment": {key: collect_environment()[key] for key in ("cores", "threads", "features", "gpus")}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_small_images(root, options.rows)
        results["rows"] = {"count": options.rows, "sources": measure_reading(root, root / "cache")}
        show_rows(results["rows"]["sources"])
        place = write_photographs(root / "photographs", round(32 * (options.steps + 1) / 0.7))
        results["training"] = measure_training(place, options.rounds, options.steps)
    show_training(results["training"])
    if options.save:
        options.save.write_text(json.dumps(results, indent=2) + "\n")


def show_rows(rows):
    for source, row in rows.items():
        rate, memory = row["images_per_second"], row["peak"] / 1024
        print(f"{source:<20} {row['opened']:6.2f} s to open  {rate:8.0f}/s  {memory:6.0f} MiB", flush=True)


def show_training(result):
    print(f"processor time per image: reading {result['read_ms']:.1f} ms, learning {result['learn_ms']:.1f} ms")
    for setting, rates in result["rounds"].items():
        label = "pixels already" if setting == "kept" else f"{setting} workers"
        print(f"{label:<20} {statistics.median(rates):8.1f} images/s   {min(rates):.1f} to {max(rates):.1f}")


if __name__ == "__main__":
    main()
