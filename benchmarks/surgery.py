"""Measure the accuracy of a published ResNet-56 after each edit, on CIFAR-10's test images.

    python benchmarks/surgery.py CIFAR10 WEIGHTS [--only GROUP ...]

CIFAR10 holds the images as train/CLASS/*.png and test/CLASS/*.png. WEIGHTS is akamaster's resnet56-4bfd9763.th, which
classifies 9,339 of the 10,000 test images correctly. Each row has the count of correct predictions and the largest
change of a logit. Everything runs in float32, as in `evaluate`. Rows that are not measured are kept.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import resnetkit as rk
from resnetkit.architecture.card import Card
from resnetkit.data.bad_files import Error, SkippedFiles
from resnetkit.data.loader import ImageLoader
from resnetkit.data.open import open_dataset
from resnetkit.network.inference import PixelNormalizer
from resnetkit.network.layers import NetworkModule

OUT = Path(__file__).parents[1] / "docs" / "measured" / "surgery.json"
FITTED_ON, GROUPS, KEPT_FRACTION, WIDTH, BLOCKS = 256, 4, 0.75, 96, (10, 11, 9)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """``same`` counts the images with an unchanged prediction; ``apart`` is the largest change of a logit."""

    edit: str
    method: str
    correct: int
    same: int
    apart: float
    promised: bool
    macs: float  # relative to the original network


class Bench:
    """The images, the network before any edit, and the logits of the last row."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.model = rk.load(weights)
        self.truth = torch.from_numpy(open_dataset(folder / "test").train_split.labels)
        self.before = self.last = self.evaluate(self.model)[1]

    def evaluate(self, model: NetworkModule) -> tuple[int, Tensor]:
        """Return the correct predictions of `rk.evaluate`, and the logits that it saw."""
        with record_outputs(model) as outputs:
            evaluation = rk.evaluate(model, self.folder / "test")
        return evaluation.correct, torch.cat(outputs)

    def measure(self, edit: str, edited: NetworkModule, **more: Any) -> Row:
        """Measure a network with a classifier."""
        correct, logits = self.evaluate(edited)
        row = self.make_row(edit, edited, logits, **more)
        assert row.correct == correct
        return row

    @torch.inference_mode()
    def measure_function(
        self, edit: str, edited: NetworkModule, ask: Callable[[Tensor], Tensor], card: Card | None = None, **more: Any
    ) -> Row:
        """Measure a function of a network, for example one without a classifier of its own."""
        return self.make_row(edit, edited, torch.cat([ask(x) for x in self.load_images(card or edited.card)]), **more)

    def make_row(
        self,
        edit: str,
        edited: NetworkModule,
        logits: Tensor,
        *,
        method: str = "",
        promised: bool = True,
        beside: Tensor | None = None,
    ) -> Row:
        self.last, old = logits, self.before if beside is None else beside
        correct, same = (int((logits.argmax(1) == labels).sum()) for labels in (self.truth, old.argmax(1)))
        apart, macs = float((logits - old).abs().max()), edited.plan.macs / self.model.plan.macs
        row = Row(edit, method, correct, same, apart, promised, macs)
        print(f"{time.strftime('%H:%M:%S')} {row}", file=sys.stderr, flush=True)
        return row

    def load_images(self, card: Card, split: str = "test", count: int | None = None) -> Iterator[Tensor]:
        """Yield the inputs of a network with this card (N, C, H, W).

        Args:
            card: The card of the network.
            split: The folder of the images.
            count: Load only so many images, evenly spread over the split.
        """
        data = open_dataset(self.folder / split)
        source = ImageLoader(data.train_split, card.preparation, SkippedFiles(data, Error()), cache=False)
        if count is None:
            pixels = (batch for batch, _ in source.iter_batches())
        else:
            pixels = iter([source.load_eval_pixels(np.linspace(0, len(source) - 1, count).astype(int))[0]])
        return map(PixelNormalizer(card.preparation, CPU), pixels)


@contextmanager
def record_outputs(module: nn.Module, select: Callable[[Tensor], Tensor] = torch.clone) -> Iterator[list[Tensor]]:
    """Yield a list to which a hook adds the outputs of a module.

    Args:
        module: The module.
        select: A function to apply to each output.
    """
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, given, answer: outputs.append(select(answer)))
    try:
        yield outputs
    finally:
        hook.remove()


# ----------------------------------------------------------------------------------------------------------- the edits


def edit_exactly(bench: Bench) -> Iterator[Row]:
    """Measure edits after which the outputs are unchanged."""
    model = bench.model
    yield bench.measure("none", model)
    yield bench.measure("norms folded", rk.surgery.fold_norms(model)[0])
    longer, _ = rk.surgery.insert(model, "stage2.block4", 2)
    yield bench.measure("two blocks inserted behind stage2.block4", longer)
    deeper, _ = rk.surgery.deepen(model, BLOCKS)
    yield bench.measure(f"deepened from 9-9-9 to {'-'.join(map(str, BLOCKS))} blocks", deeper)
    wider, _ = rk.surgery.widen(model, 3, WIDTH)
    yield bench.measure(f"stage3 widened from 64 to {WIDTH}", wider)
    yield bench.measure("shortcuts of option B instead of A", rk.surgery.shortcuts(model, "B")[0])
    four, _ = rk.surgery.input_channels(model, 4)
    fourth = partial(nn.functional.pad, pad=(0, 0, 0, 0, 0, 1), value=0.5)
    yield bench.measure_function(
        "4 input channels", four, lambda x: four(fourth(x)), model.card, method="0.5 everywhere in the fourth"
    )


def remove_heads(bench: Bench) -> Iterator[Row]:
    """Measure networks without a classifier, followed by the old classifier."""
    linear = bench.model.head.linear
    cut, _ = rk.surgery.cut(bench.model, "stage3")
    yield bench.measure_function(
        "cut behind stage3", cut, lambda x: linear(cut(x).mean((2, 3))), method="averaged, old classifier"
    )
    pooled, _ = rk.surgery.head(bench.model, "pooled")
    yield bench.measure_function("head pooled", pooled, lambda x: linear(pooled(x)), method="old classifier")


def dilate(bench: Bench) -> Iterator[Row]:
    """Measure dilated networks whose head averages the old grid, or the whole finer map."""
    for stride in (2, 1):
        edited, _ = rk.surgery.dilate(bench.model, stride)
        step, edit = 4 // stride, f"dilated to output stride {stride}"
        with record_outputs(edited.stage3, lambda maps: maps[..., ::step, ::step].mean((2, 3))) as averages:  # noqa: B023
            dense = bench.measure(edit, edited, method="averaged over the whole map", promised=False)
        logits = edited.head.linear(torch.cat(averages)).detach()
        yield bench.make_row(edit, edited, logits, method="averaged over the old grid")
        yield dense


def convert_to_gray(bench: Bench) -> Iterator[Row]:
    """Measure gray images in three channels and in one."""
    model, (edited, _) = bench.model, rk.surgery.input_channels(bench.model, 1)
    as_color = replace(edited.card, preparation=replace(edited.card.preparation, mean=(0.0,), std=(1.0,)))
    usual = PixelNormalizer(model.card.preparation, CPU)
    ask = partial(run_in_three_channels, model, lambda x: usual((x * 255).permute(0, 2, 3, 1)))
    method = "gray images in three channels, each with its own mean and deviation"
    yield bench.measure_function("none", model, ask, as_color, method=method, promised=False)
    method = "gray images in three channels, the mean and deviation of all"
    yield bench.measure_function(
        "none", model, partial(run_in_three_channels, model, lambda x: x), edited.card, method=method, promised=False
    )
    yield bench.measure("1 input channel", edited, method="gray images; beside the row above", beside=bench.last)


def run_in_three_channels(model: NetworkModule, prepare: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return model(prepare(x.expand(-1, 3, -1, -1)))


def change_outputs(bench: Bench) -> Iterator[Row]:
    """Measure edits after which the network computes something else."""
    images = next(bench.load_images(bench.model.card, "train", FITTED_ON))
    normed, _ = rk.surgery.group_norm(bench.model, images, GROUPS)
    method = f"refitted on {FITTED_ON} images of train"
    yield bench.measure(f"group norm, {GROUPS} groups", normed, method=method, promised=False)
    pruned, _ = rk.surgery.prune(bench.model, KEPT_FRACTION)
    yield bench.measure(
        f"pruned to {KEPT_FRACTION:g} of the widths", pruned, method="not trained again", promised=False
    )


EDITS = {
    "kept": edit_exactly,
    "parts": remove_heads,
    "dilated": dilate,
    "gray": convert_to_gray,
    "changed": change_outputs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--only", nargs="+", choices=EDITS, default=[*EDITS])
    options = parser.parse_args()
    bench = Bench(options.cifar10, options.weights)
    new = {name: [asdict(row) for row in EDITS[name](bench)] for name in options.only}
    before = json.loads(OUT.read_text())["rows"] if OUT.exists() else {}
    rows = {name: {**before, **new}[name] for name in EDITS if name in {**before, **new}}
    OUT.write_text(json.dumps({"weights": options.weights.name, "n": len(bench.truth), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
