"""Measure the error of dilated networks, ours and other libraries': python benchmarks/dilation.py

    pip install segmentation-models-pytorch               optional; without it, its rows are kept
    python benchmarks/dilation.py                         some networks of each library; needs the extra dev
    python benchmarks/dilation.py --catalog [NAME ...]    every network of our catalog instead

A dilated network has the weights of an original and a larger last map. If the dilation is exact, every s-th position of
that map equals the original (a trous identity): dilated(x)[..., ::s, ::s] == original(x). The error is
max|difference| / max|original|, the largest over several image sizes, odd and even, in evaluation mode and float64;
rounding alone gives about 1e-15. Weights, norm statistics and affine weights are random, so that no error can hide
behind a one or a zero.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import resnetkit as rk
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.spec import GroupNorm, Network, NoHead
from resnetkit.errors import SpecError, UsageError, VerificationError

OUT = Path(__file__).parents[1] / "docs" / "measured" / "dilation.json"
Maps = Callable[[Tensor], Tensor]  # N C H W pixels to the last map
Pair = tuple[Maps, Maps]  # original, dilated
Size = tuple[int, int]

RANGES = {"weight": (0.5, 1.5), "bias": (-0.3, 0.3), "running_mean": (-0.3, 0.3), "running_var": (0.5, 2.0)}
SIZES = ((65, 65), (64, 64), (72, 73), (97, 81))
CATALOG_SIZES = (((33, 34), (40, 37)), ((65, 66), (72, 69)))  # the second if the last map would be one pixel
OUTPUT_STRIDES = (16, 8)
LARGE = 1e-13  # larger than the rounding error of all but the deepest networks
SMP = "segmentation-models-pytorch"
NETWORKS = {
    "resnetkit": (
        "resnet18", "resnet34", "resnet50", "resnet50_v1", "resnext50_32x4d", "wide_resnet50_2", "resnet18d",
        "resnet50d", "resnetv2_50", "resnetblur50", "seresnet50",
    ),
    "torchvision": ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2"),
    "timm": (
        "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "resnetv2_50", "resnet18d",
        "resnet50d", "resnetblur50", "seresnet50",
    ),
    SMP: ("resnet18", "resnet34", "resnet50", "resnext50_32x4d"),
}  # fmt: skip

_ATTENTION = "attention averages over the whole map: not exact by nature"
_POOL = "the average pool of the shortcut counts zeros at the edge of odd maps, and is not dilated at output stride 8"
_MOVED = "the convolution that lost its stride gets the new dilation, too"
CAUSES = {  # each was found by a correction after which the identity holds
    ("resnetkit", "seresnet50"): _ATTENTION,
    ("timm", "resnet18d"): _POOL,
    ("timm", "resnet50d"): _POOL,
    ("timm", "resnetblur50"): "at output stride 8 the blur of the last stage is not dilated",
    ("timm", "seresnet50"): _ATTENTION,
    **{(SMP, name): _MOVED for name in NETWORKS[SMP]},
}


@dataclass(frozen=True)
class Row:
    """One row of the table: the largest relative error, or the message with which a library refuses."""

    library: str
    name: str
    output_stride: int
    error: float | None
    refused: str
    cause: str


def randomize_tensors(model: nn.Module) -> nn.Module:
    """Return the model in float64 and evaluation mode, with random norm statistics, norm weights and biases."""
    for module in model.modules():
        tensors = module.state_dict()
        if isinstance(module, nn.BatchNorm2d):
            for key, (low, high) in RANGES.items():
                tensors[key].uniform_(low, high)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            tensors["bias"].uniform_(*RANGES["bias"])
    return model.double().eval()


def copy_weights(original: nn.Module, model: nn.Module) -> nn.Module:
    model.double().load_state_dict(original.state_dict())
    return model.eval()


# -------------------------------------------------------------------------------------------- a pair by each library


def make_resnetkit_pair(spec: str | Network, output_stride: int) -> Pair:
    original: Any = randomize_tensors(rk.build(spec))
    dilated, _ = rk.surgery.dilate(original, output_stride)
    return get_last_map(original), get_last_map(dilated)


def get_last_map(model: Any) -> Maps:
    last = f"stage{len(model.card.spec.stages)}"
    return lambda x: model.extract_features(x, [last])[last]


def make_torchvision_pair(name: str, output_stride: int) -> Pair:
    build = partial(getattr(torchvision.models, name), weights=None)
    original = randomize_tensors(build())
    dilated = copy_weights(original, build(replace_stride_with_dilation=(False, output_stride == 8, True)))
    return remove_head(original), remove_head(dilated)


def remove_head(model: nn.Module) -> Maps:
    return nn.Sequential(*list(model.children())[:-2])  # pooling and linear layer; forward flattens between them


def make_timm_pair(name: str, output_stride: int) -> Pair:
    original: Any = randomize_tensors(timm.create_model(name))
    dilated: Any = copy_weights(original, timm.create_model(name, output_stride=output_stride))
    return original.forward_features, dilated.forward_features


def make_smp_pair(name: str, output_stride: int) -> Pair:
    import segmentation_models_pytorch as smp

    original = randomize_tensors(smp.encoders.get_encoder(name, weights=None))
    dilated: Any = copy.deepcopy(original)
    dilated.make_dilated(output_stride)
    return get_last_output(original), get_last_output(dilated)


def get_last_output(encoder: nn.Module) -> Maps:
    return lambda x: encoder(x)[-1]


PAIRS = {
    "resnetkit": make_resnetkit_pair,
    "torchvision": make_torchvision_pair,
    "timm": make_timm_pair,
    SMP: make_smp_pair,
}


# ----------------------------------------------------------------------------------------------------------- measuring


def compute_error(pair: Pair, ratio: int, size: Size) -> Tensor:
    """Return the largest relative error on a random image of a size; infinite if the map is too small."""
    original, dilated = pair
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    expected = original(x)
    height, width = expected.shape[-2:]
    output = dilated(x)[..., ::ratio, ::ratio][..., :height, :width]  # a pool after a stage leaves one more pixel
    if output.shape != expected.shape:
        return torch.tensor(torch.inf)
    return (output - expected).abs().max() / expected.abs().max()


@torch.inference_mode()
def compute_largest_error(make: Callable[[], Pair], ratio: int, sizes: tuple[Size, ...]) -> float:
    torch.manual_seed(0)
    pair = make()
    errors = torch.stack([compute_error(pair, ratio, size) for size in sizes])
    return errors.max().item()  # unlike Python's max, it keeps a NaN


def measure_network(library: str, name: str, output_stride: int) -> Row:
    error, refused = None, ""
    try:
        error = compute_largest_error(partial(PAIRS[library], name, output_stride), 32 // output_stride, SIZES)
    except (NotImplementedError, ValueError, AssertionError) as refusal:
        refused = str(refusal)
    row = Row(library, name, output_stride, error, refused, CAUSES.get((library, name), ""))
    print(row, file=sys.stderr, flush=True)
    return row


def measure_libraries() -> Iterator[Row]:
    for library, names in NETWORKS.items():
        if find_spec(library.replace("-", "_")) is None:
            print(f"{library} isn't installed: its rows stay as they were", file=sys.stderr)
            continue
        for name, stride in product(names, OUTPUT_STRIDES):
            yield measure_network(library, name, stride)


# ---------------------------------------------------------------------------------------------- the whole catalog


def has_statistics(spec: Network) -> bool:
    """Return whether a layer uses statistics of the map, so that a larger one is another network by nature."""
    return isinstance(spec.norm, GroupNorm) or any(stage.attention for stage in spec.stages)


# only the last map is compared, so the heads are removed; those of VGG are larger than the rest
EXACT = {name: replace(spec, head=NoHead()) for name, spec in CATALOG.items() if not has_statistics(spec)}


def select_sizes(spec: Network) -> tuple[Size, ...]:
    return next(sizes for sizes in CATALOG_SIZES if all(has_large_map(spec, size) for size in sizes))


def has_large_map(spec: Network, size: Size) -> bool:
    """Return whether the last map is larger than one pixel."""
    try:
        return min(rk.plan(spec, (spec.input[0], *size)).root.output[1:]) > 1
    except SpecError:
        return False


def measure_catalog(names: list[str]) -> list[dict[str, Any]]:
    """Measure every network at half and a quarter of its output stride: 16 and 8 of 32, 2 and 1 of CIFAR's 4."""
    return [row for name in names for ratio in (2, 4) for row in measure_dilations(name, EXACT[name], ratio)]


def measure_dilations(name: str, spec: Network, ratio: int) -> Iterator[dict[str, Any]]:
    """Yield the row of a network; nothing if it has no such output stride.

    If the error is large, ``own`` is the error that rounding alone causes.
    """
    stride, started, own = get_stride(spec) // ratio, time.perf_counter(), None
    try:
        error = compute_largest_error(partial(make_resnetkit_pair, spec, stride), ratio, select_sizes(spec))
    except UsageError as refusal:
        print(f"{name}: {refusal}", file=sys.stderr)
        return
    except VerificationError:
        error = compute_largest_error(partial(make_unverified_pair, spec, ratio), ratio, select_sizes(spec))
    if error > LARGE:
        own = float(f"{compute_largest_error(partial(make_layout_pair, spec), 1, select_sizes(spec)):.2g}")
    row = {"name": name, "output_stride": stride, "error": float(f"{error:.2g}"), "own": own}
    print(json.dumps(row), f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    yield row


def get_stride(spec: Network) -> int:
    return rk.plan(spec)[f"stage{len(spec.stages)}"].stride


def make_unverified_pair(spec: Network, ratio: int) -> Pair:
    """Return the pair of `make_resnetkit_pair`, without the verification of surgery."""
    original, stages = randomize_tensors(rk.build(spec)), list(spec.stages)
    strided = [i for i, stage in enumerate(stages) if stage.reduce.stride > 1]
    for i in strided[-round(math.log2(ratio)) :]:
        stages[i] = replace(stages[i], reduce=replace(stages[i].reduce, atrous=True))
    return get_last_map(original), get_last_map(copy_weights(original, rk.build(replace(spec, stages=tuple(stages)))))


def make_layout_pair(spec: Network) -> Pair:
    """Return a network twice, the second in another memory order, so that only rounding differs."""
    ask = get_last_map(randomize_tensors(rk.build(spec)))
    return ask, lambda x: ask(x.expand(2, -1, -1, -1).contiguous(memory_format=torch.channels_last))[:1]


# ----------------------------------------------------------------------------------------------------------- the file


def update_libraries(before: dict[str, Any]) -> dict[str, Any]:
    new = [asdict(row) for row in measure_libraries()]
    libraries = dict.fromkeys(row["library"] for row in new)
    now = {name: rk.__version__ if name == "resnetkit" else version(name) for name in ("torch", *libraries)}
    kept = [row for row in before.get("rows", []) if row["library"] not in libraries]
    return {"versions": {**before.get("versions", {}), **now}, "sizes": SIZES, "rows": new + kept}


def update_catalog(before: dict[str, Any], names: list[str]) -> dict[str, Any]:
    new = measure_catalog(names)
    kept = [row for row in before.get("catalog", []) if row["name"] not in names]
    order = list(CATALOG)
    rows = sorted(new + kept, key=lambda row: (order.index(row["name"]), -row["output_stride"]))
    return {"catalog_sizes": CATALOG_SIZES, "catalog": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", nargs="*", choices=EXACT, metavar="NAME", help="all of them without a name")
    names = parser.parse_args().catalog
    before = json.loads(OUT.read_text()) if OUT.exists() else {}
    results = before | (update_libraries(before) if names is None else update_catalog(before, names or list(EXACT)))
    OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
