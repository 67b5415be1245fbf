"""Run the trainings of docs/training.md and save their counts.

    python benchmarks/results.py [--cifar10 FOLDER] --save docs/measured/training-results.json

Without --cifar10, the row of that training is kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DIGITS = "resnetkit train digits --model resnet20"
CIFAR = "resnetkit train CIFAR10 --model resnet20 --epochs 10"


def run_training(command, folder=None):
    """Run a training and return its counts, from ``--json``."""
    words = command.split()[1:]
    with tempfile.TemporaryDirectory() as out:
        arguments = [str(folder) if word == "CIFAR10" else word for word in words] + ["--out", f"{out}/run", "--json"]
        done = subprocess.run([sys.executable, "-m", "resnetkit", *arguments], stdout=subprocess.PIPE, check=True)
    document = json.loads(done.stdout)
    return {"command": command} | {key: document[key] for key in ("split", "n", "correct", "seconds")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--save", type=Path, required=True)
    options = parser.parse_args()
    rows = {row["command"]: row for row in json.loads(options.save.read_text())} if options.save.exists() else {}
    rows[DIGITS] = run_training(DIGITS)
    if options.cifar10:
        rows[CIFAR] = run_training(CIFAR, options.cifar10)
    options.save.write_text(json.dumps(list(rows.values()), indent=2) + "\n")


if __name__ == "__main__":
    main()
