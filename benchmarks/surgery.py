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
FITTED_ON, GROUPS, SHARE, WIDTH, BLOCKS = 256, 4, 0.75, 96, (10, 11, 9)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """``same`` counts the images whose answer is the one before, ``apart`` is the largest change of a logit."""

    edit: str
    method: str
    correct: int
    same: int
    apart: float
    promised: bool
    macs: float  # as a share of those before


class Bench:
    """The images, the network before any edit, and the logits of the last row."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.model = rk.load(weights)
        self.truth = torch.from_numpy(open_dataset(folder / "test").train_split.labels)
        self.before = self.last = self.evaluated(self.model)[1]

    def evaluated(self, model: NetworkModule) -> tuple[int, Tensor]:
        """Return the correct predictions of `rk.evaluate`, and the logits that it saw."""
        with answers_of(model) as seen:
            evaluation = rk.evaluate(model, self.folder / "test")
        return evaluation.correct, torch.cat(seen)

    def row(self, edit: str, edited: NetworkModule, **more: Any) -> Row:
        """Measure a network with a classifier."""
        correct, logits = self.evaluated(edited)
        row = self.counted(edit, edited, logits, **more)
        assert row.correct == correct
        return row

    @torch.inference_mode()
    def by_hand(
        self, edit: str, edited: NetworkModule, ask: Callable[[Tensor], Tensor], card: Card | None = None, **more: Any
    ) -> Row:
        """Measure a network without a classifier of its own, or one that is used in another way."""
        return self.counted(edit, edited, torch.cat([ask(x) for x in self.images(card or edited.card)]), **more)

    def counted(
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

    def images(self, card: Card, part: str = "test", count: int | None = None) -> Iterator[Tensor]:
        """Images as a network of this card sees them (N C H W); ``count`` of them from all over a part."""
        data = open_dataset(self.folder / part)
        source = ImageLoader(data.train_split, card.preparation, SkippedFiles(data, Error()), cache=False)
        if count is None:
            pixels = (batch for batch, _ in source.iter_batches())
        else:
            pixels = iter([source.load_eval_pixels(np.linspace(0, len(source) - 1, count).astype(int))[0]])
        return map(PixelNormalizer(card.preparation, CPU), pixels)


@contextmanager
def answers_of(part: nn.Module, of: Callable[[Tensor], Tensor] = torch.clone) -> Iterator[list[Tensor]]:
    """Record the outputs of a module from now on, or what ``of`` makes of them."""
    seen: list[Tensor] = []
    hook = part.register_forward_hook(lambda module, given, answer: seen.append(of(answer)))
    try:
        yield seen
    finally:
        hook.remove()


# ----------------------------------------------------------------------------------------------------------- the edits


def kept(bench: Bench) -> Iterator[Row]:
    """Edits after which the answers are those before."""
    model = bench.model
    yield bench.row("none", model)
    yield bench.row("norms folded", rk.surgery.fold_norms(model)[0])
    longer, _ = rk.surgery.insert(model, "stage2.block4", 2)
    yield bench.row("two blocks inserted behind stage2.block4", longer)
    deeper, _ = rk.surgery.deepen(model, BLOCKS)
    yield bench.row(f"deepened from 9-9-9 to {'-'.join(map(str, BLOCKS))} blocks", deeper)
    wider, _ = rk.surgery.widen(model, 3, WIDTH)
    yield bench.row(f"stage3 widened from 64 to {WIDTH}", wider)
    yield bench.row("shortcuts of option B instead of A", rk.surgery.shortcuts(model, "B")[0])
    four, _ = rk.surgery.input_channels(model, 4)
    fourth = partial(nn.functional.pad, pad=(0, 0, 0, 0, 0, 1), value=0.5)
    yield bench.by_hand(
        "4 input channels", four, lambda x: four(fourth(x)), model.card, method="0.5 everywhere in the fourth"
    )


def parts(bench: Bench) -> Iterator[Row]:
    """Networks without a classifier, and the old one behind them."""
    linear = bench.model.head.linear
    cut, _ = rk.surgery.cut(bench.model, "stage3")
    yield bench.by_hand(
        "cut behind stage3", cut, lambda x: linear(cut(x).mean((2, 3))), method="averaged, old classifier"
    )
    pooled, _ = rk.surgery.head(bench.model, "pooled")
    yield bench.by_hand("head pooled", pooled, lambda x: linear(pooled(x)), method="old classifier")


def dilated(bench: Bench) -> Iterator[Row]:
    """Measure the same map on the old grid, and a finer one, which the head averages."""
    for stride in (2, 1):
        edited, _ = rk.surgery.dilate(bench.model, stride)
        step, edit = 4 // stride, f"dilated to output stride {stride}"
        with answers_of(edited.stage3, lambda maps: maps[..., ::step, ::step].mean((2, 3))) as averages:  # noqa: B023
            dense = bench.row(edit, edited, method="averaged over the whole map", promised=False)
        logits = edited.head.linear(torch.cat(averages)).detach()
        yield bench.counted(edit, edited, logits, method="averaged over the old grid")
        yield dense


def gray(bench: Bench) -> Iterator[Row]:
    """Gray images in three channels and in one."""
    model, (edited, _) = bench.model, rk.surgery.input_channels(bench.model, 1)
    as_color = replace(edited.card, preparation=replace(edited.card.preparation, mean=(0.0,), std=(1.0,)))
    usual = PixelNormalizer(model.card.preparation, CPU)
    ask = partial(_in_three, model, lambda x: usual((x * 255).permute(0, 2, 3, 1)))
    method = "gray images in three channels, each with its own mean and deviation"
    yield bench.by_hand("none", model, ask, as_color, method=method, promised=False)
    method = "gray images in three channels, the mean and deviation of all"
    yield bench.by_hand(
        "none", model, partial(_in_three, model, lambda x: x), edited.card, method=method, promised=False
    )
    yield bench.row("1 input channel", edited, method="gray images; beside the row above", beside=bench.last)


def _in_three(model: NetworkModule, prepare: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return model(prepare(x.expand(-1, 3, -1, -1)))


def changed(bench: Bench) -> Iterator[Row]:
    """Edits after which the network computes something else."""
    images = next(bench.images(bench.model.card, "train", FITTED_ON))
    normed, _ = rk.surgery.group_norm(bench.model, images, GROUPS)
    method = f"refitted on {FITTED_ON} images of train"
    yield bench.row(f"group norm, {GROUPS} groups", normed, method=method, promised=False)
    pruned, _ = rk.surgery.prune(bench.model, SHARE)
    yield bench.row(f"pruned to {SHARE:g} of the widths", pruned, method="not trained again", promised=False)


EDITS = {"kept": kept, "parts": parts, "dilated": dilated, "gray": gray, "changed": changed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--only", nargs="+", choices=EDITS, default=[*EDITS])
    options = parser.parse_args()
    bench = Bench(options.cifar10, options.weights)
    new = {name: [asdict(row) for row in EDITS[name](bench)] for name in options.only}
    before = json.loads(OUT.read_text())["rows"] if OUT.exists() else {}  # the others stay as they were measured last
    rows = {name: {**before, **new}[name] for name in EDITS if name in {**before, **new}}
    OUT.write_text(json.dumps({"weights": options.weights.name, "n": len(bench.truth), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
