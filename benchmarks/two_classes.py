"""Run the five commands of README on 200 photographs of two classes: python benchmarks/two_classes.py CIFAR10

The photographs are airplanes and frogs of CIFAR-10's test folder; those of `predict` are not among them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resnetkit.runtime.environment import collect_environment

OUT = Path(__file__).parents[1] / "docs" / "measured" / "two-classes.json"
CLASSES, COUNT = ("airplane", "frog"), 100
COMMANDS = (
    "resnetkit check flowers",
    "resnetkit train flowers --model resnet18",
    "resnetkit evaluate runs/flowers-resnet18-1 flowers",
    "resnetkit predict inbox --model runs/flowers-resnet18-1",
    "resnetkit report runs/flowers-resnet18-1",
)


def link_photographs(cifar: Path, folder: Path) -> None:
    """Create ``flowers`` with two classes, and an ``inbox`` with ten other photographs."""
    for name in CLASSES:
        images = sorted((cifar / "test" / name).iterdir())
        for place, chosen in ((f"flowers/{name}", images[:COUNT]), ("inbox", images[COUNT : COUNT + 5])):
            (folder / place).mkdir(parents=True, exist_ok=True)
            for path in chosen:
                (folder / place / path.name).symlink_to(path.resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar", type=Path)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        link_photographs(parser.parse_args().cifar, Path(name))
        for command in COMMANDS:
            words, started = [sys.executable, "-m", *command.split()], time.perf_counter()
            done = subprocess.run(words, cwd=name, stdout=subprocess.PIPE, text=True, check=True)
            last = [line for line in done.stdout.splitlines() if not line.startswith("wrote ")][-1]
            rows.append({"command": command, "seconds": time.perf_counter() - started, "last": last})
            print(rows[-1], flush=True)
    results = {"classes": CLASSES, "images": COUNT * len(CLASSES), "rows": rows, "environment": collect_environment()}
    OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
