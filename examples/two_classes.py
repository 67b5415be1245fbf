"""From a folder of 200 pictures of two classes to a page about the classifier: five commands, each printed, then run.

python examples/two_classes.py [FOLDER [OPTIONS OF TRAIN ...]]

Without FOLDER it draws its own: suns and moons over hills, of every size and brightness, as JPEGs.
"""

import math
import random
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from resnetkit.cli import main
from resnetkit.data.readers.image_folder import open_image_folder


def drawn(name: str, draw: random.Random) -> Image.Image:
    """A sun with its rays, or a moon: a bite taken out of it."""
    width, height = draw.randrange(120, 400), draw.randrange(120, 400)
    sky = tuple(draw.randrange(20, 120) for _ in range(3))
    image = Image.new("RGB", (width, height), sky)
    pen, r = ImageDraw.Draw(image), draw.randrange(14, min(width, height) // 5)
    x, y = draw.randrange(2 * r, width - 2 * r), draw.randrange(2 * r, height - 2 * r)
    light = tuple(draw.randrange(170, 256) for _ in range(3))
    if name == "sun":
        for i in range(12):
            turn = math.tau * i / 12
            pen.line(
                (x, y, x + 1.8 * r * math.cos(turn), y + 1.8 * r * math.sin(turn)), fill=light, width=max(2, r // 8)
            )
    pen.ellipse((x - r, y - r, x + r, y + r), fill=light)
    if name == "moon":
        away = draw.choice((-1, 1)) * r * 0.6
        pen.ellipse((x - r + away, y - r, x + r + away, y + r), fill=sky)
    hill = tuple(draw.randrange(0, 90) for _ in range(3))
    pen.ellipse((-width // 2, height * 0.85, width * 1.5, height * 2), fill=hill)
    return image.filter(ImageFilter.GaussianBlur(draw.random() * 1.5))


def make(folder: Path, count: int = 100, seed: int = 0) -> Path:
    """``folder`` with a folder of pictures for each of the two classes."""
    draw = random.Random(seed)
    for name in ("moon", "sun"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            drawn(name, draw).save(folder / name / f"{i:03}.jpg", quality=draw.randrange(40, 96))
    return folder


def run(*words: str) -> None:
    """Print a command, run it, and stop with its exit code if it fails."""
    print(f"\n$ resnetkit {' '.join(words)}", flush=True)
    code = main(words)
    if code:
        raise SystemExit(code)


def five_commands(folder: Path, out: Path, options: list[str]) -> None:
    """What README shows."""
    inbox = open_image_folder(folder, "").train_split.format_location(0)
    run("check", str(folder))
    run("train", str(folder), "--out", str(out), *options)
    run("evaluate", str(out), str(folder))
    run("predict", inbox, "--model", str(out), "--top", "2")
    run("report", str(out))


if __name__ == "__main__":
    chosen, *rest = sys.argv[1:] or [""]
    with tempfile.TemporaryDirectory() as temporary:
        pictures = Path(chosen) if chosen else make(Path(temporary) / "sky")
        out = next(path for i in range(1, 10**6) if not (path := Path(f"runs/two-classes-{i}")).exists())
        five_commands(pictures, out, rest or ["--model", "resnet20", "--set", "input_size=[3,48,48]"])
