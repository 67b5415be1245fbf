"""Measure the gain of fine-tuning with few images: python benchmarks/fine_tuning.py CIFAR10 [--base RUN]

CIFAR10 is a folder of classes. A ResNet-20 is trained on eight classes, then on 200 images of the two others, with each
way to start. It is tested on the remaining test images of these two. A seed draws the split; every way gets the same.
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
NEW, LEARNT_FROM = ("airplane", "frog"), 100
WAYS = {
    "from random weights": {"start": "scratch"},
    "fine-tuned (the default)": {},
    "fine-tuned, norm statistics learnt": {"start": {"norm_stats": "learnt"}},
    "the head alone": {"start": {"backbone_lr_scale": 0.0}},
}


def links(images: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in images:
        (folder / path.name).symlink_to(path.resolve())


def eight(cifar: Path, folder: Path, epochs: int) -> Path:
    """Train on the eight other classes."""
    for part in ("train", "test"):
        for path in sorted((cifar / part).iterdir()):
            if path.name not in NEW:
                (folder / part).mkdir(parents=True, exist_ok=True)
                (folder / part / path.name).symlink_to(path.resolve())
    return rk.train(folder, "resnet20", out=folder / "run", epochs=epochs).path


def measure(base: Path, few: Path, rest: Path, folder: Path, seeds: int) -> list[dict]:
    rows = []
    for way, settings in WAYS.items():
        runs = [
            rk.train(few, base, out=folder / f"{way}-{seed}", settings=settings, seed=seed, split_seed=seed)
            for seed in range(seeds)
        ]
        evaluations = [rk.evaluate(run.path, rest) for run in runs]
        rows.append({
            "way": way,
            "correct": [evaluation.correct for evaluation in evaluations],
            "n": evaluations[0].n,
            "epochs": [len(run.epochs) for run in runs],
            "seconds": statistics.median(run.results.seconds for run in runs),
        })  # fmt: skip
        print(way, [format_accuracy(evaluation.correct, evaluation.n) for evaluation in evaluations], flush=True)
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
        base = options.base or eight(options.cifar, folder / "eight", options.epochs)
        for word in NEW:
            images = sorted((options.cifar / "test" / word).iterdir())
            links(images[:LEARNT_FROM], folder / "few" / word)
            links(images[LEARNT_FROM:], folder / "rest" / word)
        rows = measure(base, folder / "few", folder / "rest", folder, options.seeds)
    results = {
        "base_epochs": options.epochs,
        "images": LEARNT_FROM * len(NEW),
        "rows": rows,
        "environment": collect_environment(),
    }
    OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
