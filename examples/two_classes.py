"""Train a classifier on 200 images of two classes and write its report: five commands, each printed, then run.

python examples/two_classes.py [FOLDER [OPTIONS OF TRAIN ...]]

Without FOLDER, the example draws its own images: suns and moons over hills, of every size and brightness, as JPEGs.
"""

import math
import random
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from resnetkit.cli import main
from resnetkit.data.readers.image_folder import open_image_folder


def draw_image(name: str, rng: random.Random) -> Image.Image:
    """Draw a sun with its rays, or a crescent moon."""
    width, height = rng.randrange(120, 400), rng.randrange(120, 400)
    sky = tuple(rng.randrange(20, 120) for _ in range(3))
    image = Image.new("RGB", (width, height), sky)
    pen, r = ImageDraw.Draw(image), rng.randrange(14, min(width, height) // 5)
    x, y = rng.randrange(2 * r, width - 2 * r), rng.randrange(2 * r, height - 2 * r)
    light = tuple(rng.randrange(170, 256) for _ in range(3))
    if name == "sun":
        for i in range(12):
            turn = math.tau * i / 12
            pen.line(
                (x, y, x + 1.8 * r * math.cos(turn), y + 1.8 * r * math.sin(turn)), fill=light, width=max(2, r // 8)
            )
    pen.ellipse((x - r, y - r, x + r, y + r), fill=light)
    if name == "moon":
        offset = rng.choice((-1, 1)) * r * 0.6
        pen.ellipse((x - r + offset, y - r, x + r + offset, y + r), fill=sky)
    hill = tuple(rng.randrange(0, 90) for _ in range(3))
    pen.ellipse((-width // 2, height * 0.85, width * 1.5, height * 2), fill=hill)
    return image.filter(ImageFilter.GaussianBlur(rng.random() * 1.5))


def write_dataset(folder: Path, count: int = 100, seed: int = 0) -> Path:
    """Write a folder with a folder of ``count`` images for each of the two classes."""
    rng = random.Random(seed)
    for name in ("moon", "sun"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            draw_image(name, rng).save(folder / name / f"{i:03}.jpg", quality=rng.randrange(40, 96))
    return folder


def run(*arguments: str) -> None:
    """Print a command, run it, and stop with its exit code if it fails."""
    print(f"\n$ resnetkit {' '.join(arguments)}", flush=True)
    code = main(arguments)
    if code:
        raise SystemExit(code)


def run_five_commands(folder: Path, out: Path, options: list[str]) -> None:
    """Run the commands that README shows."""
    inbox = open_image_folder(folder, "").train_split.format_location(0)
    run("check", str(folder))
    run("train", str(folder), "--out", str(out), *options)
    run("evaluate", str(out), str(folder))
    run("predict", inbox, "--model", str(out), "--top", "2")
    run("report", str(out))


if __name__ == "__main__":
    data, *train_options = sys.argv[1:] or [""]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(data) if data else write_dataset(Path(temporary) / "sky", seed=4)
        out = next(path for i in range(1, 10**6) if not (path := Path(f"runs/two-classes-{i}")).exists())
        run_five_commands(folder, out, train_options or ["--model", "resnet20", "--set", "input_size=[3,48,48]"])
