"""Measure the gain of fine-tuning with few images: python benchmarks/fine_tuning.py CIFAR10 [--base RUN]

CIFAR10 is a folder of classes. A ResNet-20 is trained on eight classes, then on 200 images of the two others, with each
method. It is tested on the remaining test images of these two. A seed draws the split; every method gets the same.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import resnetkit as rk
from resnetkit.evaluation.result import format_accuracy
from resnetkit.runtime.environment import collect_environment

OUT = Path(__file__).parents[1] / "docs" / "measured" / "fine-tuning.json"
NEW, IMAGES_PER_CLASS = ("airplane", "frog"), 100
METHODS = {
    "from random weights": {"start": "scratch"},
    "fine-tuned (the default)": {},
    "fine-tuned, norm statistics updated": {"start": {"norm_stats": "updated"}},
    "the head alone": {"start": {"backbone_lr_scale": 0.0}},
}


def link_images(images: list[Path], folder: Path) -> None:
    """Create a folder of links to images."""
    folder.mkdir(parents=True)
    for path in images:
        (folder / path.name).symlink_to(path.resolve())


def train_base(cifar: Path, folder: Path, epochs: int) -> Path:
    """Train a network on the eight other classes and return its run folder."""
    for split in ("train", "test"):
        for path in sorted((cifar / split).iterdir()):
            if path.name not in NEW:
                (folder / "data" / split).mkdir(parents=True, exist_ok=True)
                (folder / "data" / split / path.name).symlink_to(path.resolve())
    return rk.train(folder / "data", "resnet20", out=folder / "run", epochs=epochs).path


def measure_methods(base: Path, few: Path, rest: Path, folder: Path, seeds: int) -> list[dict]:
    """Train on ``few`` images with each method and seed, and test on the ``rest``."""
    rows = []
    for method, settings in METHODS.items():
        runs = [
            rk.train(few, base, out=folder / f"{method}-{seed}", settings=settings, seed=seed, split_seed=seed)
            for seed in range(seeds)
        ]
        evaluations = [rk.evaluate(run.path, rest) for run in runs]
        rows.append({
            "way": method,
            "correct": [evaluation.correct for evaluation in evaluations],
            "n": evaluations[0].n,
            "epochs": [len(run.epochs) for run in runs],
            "seconds": statistics.median(run.results.seconds for run in runs),
        })  # fmt: skip
        print(method, [format_accuracy(evaluation.correct, evaluation.n) for evaluation in evaluations], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = options.base or train_base(options.cifar, folder / "eight", options.epochs)
        for word in NEW:
            images = sorted((options.cifar / "test" / word).iterdir())
            link_images(images[:IMAGES_PER_CLASS], folder / "few" / word)
            link_images(images[IMAGES_PER_CLASS:], folder / "rest" / word)
        rows = measure_methods(base, folder / "few", folder / "rest", folder, options.seeds)
    results = {
        "base_epochs": options.epochs,
        "images": IMAGES_PER_CLASS * len(NEW),
        "rows": rows,
        "environment": collect_environment(),
    }
    OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
