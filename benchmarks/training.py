"""Compare the training throughput of resnetkit with that of a plain loop, in alternating rounds.

    python benchmarks/training.py FOLDER [--model resnet20] [--rounds 5] [--steps 60] [--save FILE.json]

Both train the same network on the same images in batches of the same size. The plain loop is common practice: fp32,
NCHW, tensors prepared beforehand, no augmentation. resnetkit's loop is `resnetkit train` itself, with augmentation.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import resnetkit as rk
from resnetkit.network.inference import PixelNormalizer
from resnetkit.runtime.environment import collect_environment
from resnetkit.training.setup import prepare_run
from resnetkit.training.state import TrainState
from resnetkit.training.trainer import Trainer


def run_plain_steps(model, optimizer, images, batch, steps):
    """Return the images per second of a plain loop."""
    inputs, labels = images
    started = time.perf_counter()
    for step in range(steps):
        chosen = slice(step * batch, (step + 1) * batch)
        loss = F.cross_entropy(model(inputs[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return steps * batch / (time.perf_counter() - started)


def run_resnetkit_steps(trainer, epoch, steps):
    """Return the images per second of the loop of `resnetkit train`, stopped after ``steps``."""
    rates = []

    def watch(event):
        rates.append(event.images_per_second)
        if event.step == steps:
            raise StopIteration

    trainer.on_event = watch
    trainer.session.state = TrainState(epoch=epoch, batch_size=trainer.run.recipe.batch_size)
    try:
        trainer.train_epoch(epoch)
    except StopIteration:
        return rates[-1]
    raise SystemExit("an epoch has fewer steps than --steps")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(options.data, options.model, {}, out=Path(folder) / "run", device="auto", on_progress=None)
    loaders, recipe = run.loaders, run.recipe
    trainer = Trainer(run, lambda event: None)

    count, device = options.steps * recipe.batch_size, torch.device(run.device)
    pixels, _ = loaders["train"].load_eval_pixels(torch.arange(count).numpy())
    labels = loaders["train"].labels[:count].to(device)
    inputs = PixelNormalizer(run.card.preparation, device)(pixels).contiguous()
    model = rk.build(run.card.spec).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)

    run_plain_steps(model, optimizer, (inputs, labels), recipe.batch_size, 5)
    run_resnetkit_steps(trainer, 1, 5)
    plain, ours = [], []
    for number in range(options.rounds):
        plain.append(run_plain_steps(model, optimizer, (inputs, labels), recipe.batch_size, options.steps))
        ours.append(run_resnetkit_steps(trainer, number + 2, options.steps))
    ratio = statistics.median(b / a for a, b in zip(plain, ours, strict=True))
    results = {
        "model": options.model,
        "batch": recipe.batch_size,
        "plain": {"setting": "fp32, N C H W, no augmentation", "images_per_second": statistics.median(plain)},
        "ours": {
            "setting": f"{run.precision}, channels last, {type(recipe.augment).__name__}",
            "images_per_second": statistics.median(ours),
        },
        "ratio": ratio,
        "rounds": options.rounds,
        "steps": options.steps,
        "environment": {key: collect_environment()[key] for key in ("cores", "threads", "features", "gpus")},
    }
    for name in ("plain", "ours"):
        print(f"{name:<6}{results[name]['images_per_second']:8.0f} images/s   {results[name]['setting']}")
    print(f"ratio {ratio:8.2f}   median of {options.rounds} pairs of {options.steps} steps of {recipe.batch_size}")
    if options.save:
        options.save.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
