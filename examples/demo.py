"""Train, evaluate and use a classifier in five commands; each is printed, then run.

python examples/demo.py [--epochs N] [--out FOLDER]
"""

import argparse
import sys
import time
from pathlib import Path

from resnetkit.cli import main
from resnetkit.data.dataset import split_dataset
from resnetkit.data.open import open_dataset
from resnetkit.errors import ResnetkitError


def run(*arguments: str) -> None:
    """Print a command, run it, and stop with its exit code if it fails."""
    print(f"\n$ resnetkit {' '.join(arguments)}", flush=True)
    code = main(arguments)
    if code:
        raise SystemExit(code)


def write_images(folder: Path, count: int) -> None:
    """Write digits of the test split as images that are twenty times as large."""
    folder.mkdir()
    held_out = split_dataset(open_dataset("digits"), 0).get_split("test")
    for digit in range(count):
        i = held_out.labels.tolist().index(digit)
        image = held_out.load_image(i)
        image.resize((160, 160), 0).save(folder / f"{held_out.names[i]}.png".replace(" ", "-"))


def demo(epochs: int | None, out: Path) -> None:
    """Run the five commands."""
    started = time.perf_counter()
    run("explain", "resnet20")
    run("explain", "resnet20", "--why", "stage2.block1.shortcut")
    train_options = ["--epochs", str(epochs)] if epochs else []
    run("train", "digits", "--model", "resnet20", "--out", str(out), *train_options)
    run("evaluate", str(out), "digits")
    write_images(out / "images", 10)
    run("predict", str(out / "images"), "--model", str(out))
    run("explain", str(out), "--picture", str(out / "network.svg"))
    print(f"\nIn {time.perf_counter() - started:.0f} seconds this wrote to {out}:")
    print("  model/         the trained network: config.json and model.safetensors")
    print("  report.html    the report: curves, confusion matrix, accuracy of each class")
    print("  metrics.jsonl  one line per epoch")
    print(f"  run.toml       the recipe, to run again: resnetkit train digits --config {out / 'run.toml'}")
    print("  environment.json   the versions and the machine")
    print("  network.svg    a drawing of the network")
    print("  images/        the digits that it classified")
    print("\nTo use the commands yourself:  . .venv/bin/activate")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    free_folder = next(path for i in range(1, 10**6) if not (path := Path(f"runs/demo-{i}")).exists())
    try:
        demo(options.epochs, options.out or free_folder)
    except ResnetkitError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
