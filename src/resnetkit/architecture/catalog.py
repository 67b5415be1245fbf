"""Every network by name. A row is the spec itself, made of a few words; adding a model adds a row.

Names: ``resnet50`` has the stride at the 3x3 (torchvision, v1.5), ``resnet50_v1`` at the first 1x1 (the paper);
``resnet20`` is the paper's CIFAR network with option A (zeros on both sides), ``_a_end``, ``_b`` and ``_c`` the others;
``cifar_resnet18`` has ImageNet's blocks behind a 3x3 stem; ``plain34`` has no shortcuts.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from resnetkit.architecture.spec import (
    OPTION_A,
    OPTION_A_END,
    OPTION_B,
    OPTION_C,
    Basic,
    Bottleneck,
    Branch,
    Conv,
    FirstBlock,
    Linear,
    Network,
    NoShortcuts,
    Shortcuts,
    Stage,
    Stem,
)
from resnetkit.errors import UsageError, suggestion
from resnetkit.text import from_json, from_toml, read_text

CIFAR_INPUT = (3, 32, 32)
THREE_BY_THREE = {64: Stem((Conv(64, 3),), ()), 16: Stem((Conv(16, 3),), ())}


def _stages(blocks: tuple[int, ...], channels: int, branches: list[Branch]) -> tuple[Stage, ...]:
    """Stages that double the channels; all but the first halve the map."""
    return tuple(
        Stage(n, channels * 2**i, branch, FirstBlock(1 if i == 0 else 2))
        for i, (n, branch) in enumerate(zip(blocks, branches, strict=True))
    )


def _basic(*blocks: int, channels: int = 64, **network: Any) -> Network:
    branches: list[Branch] = [Basic(channels * 2**i) for i in range(len(blocks))]
    return Network(_stages(blocks, channels, branches), **network)


def _bottleneck(*blocks: int, width: int = 64, groups: int = 1, v1: bool = False, **network: Any) -> Network:
    branches: list[Branch] = [Bottleneck(width * 2**i, groups, 1 if v1 else 2) for i in range(len(blocks))]
    return Network(_stages(blocks, 256, branches), **network)


def _cifar(depth: int, shortcuts: Shortcuts | NoShortcuts) -> Network:
    """The paper's section 4.2: 6n + 2 layers, 16, 32 and 64 channels."""
    n = (depth - 2) // 6
    cifar: dict[str, Any] = {"stem": THREE_BY_THREE[16], "head": Linear(10), "input": CIFAR_INPUT}
    return _basic(n, n, n, channels=16, shortcuts=shortcuts, **cifar)


def _for_cifar(network: Network) -> Network:
    """ImageNet's stages behind a 3x3 stem without a pool (kuangliu's networks)."""
    return Network(network.stages, THREE_BY_THREE[64], Linear(10), CIFAR_INPUT)


_PLAIN: dict[str, Any] = {"shortcuts": NoShortcuts()}
_DEPTHS = (20, 32, 44, 56, 110, 1202)

ROWS: dict[str, Network] = {
    "resnet18": _basic(2, 2, 2, 2),
    "resnet34": _basic(3, 4, 6, 3),
    "resnet50": _bottleneck(3, 4, 6, 3),
    "resnet101": _bottleneck(3, 4, 23, 3),
    "resnet152": _bottleneck(3, 8, 36, 3),
    "resnext50_32x4d": _bottleneck(3, 4, 6, 3, width=128, groups=32),
    "resnext101_32x8d": _bottleneck(3, 4, 23, 3, width=256, groups=32),
    "resnext101_64x4d": _bottleneck(3, 4, 23, 3, width=256, groups=64),
    "wide_resnet50_2": _bottleneck(3, 4, 6, 3, width=128),
    "wide_resnet101_2": _bottleneck(3, 4, 23, 3, width=128),
    "resnet50_v1": _bottleneck(3, 4, 6, 3, v1=True),
    "resnet101_v1": _bottleneck(3, 4, 23, 3, v1=True),
    "resnet152_v1": _bottleneck(3, 8, 36, 3, v1=True),
    "resnet18_a": _basic(2, 2, 2, 2, shortcuts=OPTION_A),
    "resnet18_c": _basic(2, 2, 2, 2, shortcuts=OPTION_C),
    "resnet34_a": _basic(3, 4, 6, 3, shortcuts=OPTION_A),
    "resnet34_c": _basic(3, 4, 6, 3, shortcuts=OPTION_C),
    "plain18": _basic(2, 2, 2, 2, **_PLAIN),
    "plain34": _basic(3, 4, 6, 3, **_PLAIN),
    **{f"resnet{depth}": _cifar(depth, OPTION_A) for depth in _DEPTHS},
    **{f"resnet{depth}_a_end": _cifar(depth, OPTION_A_END) for depth in _DEPTHS},
    **{f"resnet{depth}_b": _cifar(depth, OPTION_B) for depth in _DEPTHS},
    **{f"resnet{depth}_c": _cifar(depth, OPTION_C) for depth in _DEPTHS},
    **{f"plain{depth}": _cifar(depth, NoShortcuts()) for depth in _DEPTHS if depth < 1000},
    "cifar_resnet18": _for_cifar(_basic(2, 2, 2, 2)),
    "cifar_resnet34": _for_cifar(_basic(3, 4, 6, 3)),
    "cifar_resnet50": _for_cifar(_bottleneck(3, 4, 6, 3)),
    "cifar_resnet101": _for_cifar(_bottleneck(3, 4, 23, 3)),
    "cifar_resnet152": _for_cifar(_bottleneck(3, 8, 36, 3)),
}


def names(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern, in the order of the rows; a word without a star matches inside a name."""
    star = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
    return [name for name in ROWS if fnmatchcase(name, star)]


_PLACES = "name a catalogue entry, a .toml or .json file, a model folder or a run folder"


def spec(source: str | Path | Network) -> Network:
    """The spec of a name, or of a ``.toml`` or ``.json`` file; a spec is itself.

    An unknown name raises `UsageError` with the nearest one, a faulty file `TextError` with every fault.
    """
    if isinstance(source, Network):
        return source
    if str(source).endswith((".toml", ".json")):
        path = Path(source)
        read = from_toml if path.suffix == ".toml" else from_json
        return read(Network, read_text(path, "this network"), str(path))
    if source not in ROWS and os.sep in str(source):
        beside = Path(source).parent
        there = [str(entry) for entry in beside.iterdir()] if beside.is_dir() else []
        raise UsageError(
            "there is no such file or folder", where=str(source), fix=suggestion(str(source), there, _PLACES)
        )
    if source not in ROWS:
        fix = suggestion(str(source), list(ROWS), "`resnetkit models` lists every name")
        raise UsageError(f"there is no network called {str(source)!r}", where="model", fix=fix)
    return ROWS[str(source)]


def name_of(source: str | Path | Network) -> str:
    """What to call a network: its name, its file's stem, or the row that has its spec."""
    if isinstance(source, Network):
        return next((name for name, row in ROWS.items() if row == source), "custom")
    return Path(source).stem
