"""List the networks that have the same tensors as a recognized one, and read weights by the conventions of a name.

Strides, dilation, pools, blurs, paddings and epsilon have no tensors. Networks that differ only in them have equal keys
and shapes: resnet50, resnet50_v1, resnetaa50 and resnetblur50, for example.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from resnetkit.architecture import spec as specs
from resnetkit.architecture.catalog import CATALOG

READINGS_NOTE = "the tensors also fit "
_MAX_NAMED = 6
_WEIGHTLESS = (specs.ZeroPadded, specs.Identity, specs.Subsampled)


def adopt_conventions(network: specs.Network, named: specs.Network) -> specs.Network | None:
    """Return a network with the strides, pools, edges and epsilon of another one, and the same tensors.

    Args:
        network: The network of the tensors: blocks, channels and head.
        named: The network that has the conventions.

    Returns:
        The network, or None if no network with these conventions has these tensors.
    """
    named_stages = [named.stages[min(i, len(named.stages) - 1)] for i in range(len(network.stages))]
    are_alike = (
        [type(stage.branch) for stage in network.stages] == [type(stage.branch) for stage in named_stages]
        and [conv.kernel for conv in network.stem.convs] == [conv.kernel for conv in named.stem.convs]
        and (network.order, network.bias, type(network.norm)) == (named.order, named.bias, type(named.norm))
        and (network.shortcuts == named.shortcuts or (_is_weightless(network) and _is_weightless(named)))
        and isinstance(network.head, specs.MLP) == isinstance(named.head, specs.MLP)
    )
    if not are_alike:
        return None
    stages = []
    for stage, named_stage in zip(network.stages, named_stages, strict=True):
        branch = stage.branch
        if isinstance(branch, specs.Bottleneck) and isinstance(named_stage.branch, specs.Bottleneck):
            branch = replace(branch, stride_at=named_stage.branch.stride_at)
        stages.append(replace(stage, reduce=named_stage.reduce, branch=branch))
    convs = [
        replace(named_conv, channels=conv.channels)
        for conv, named_conv in zip(network.stem.convs, named.stem.convs, strict=True)
    ]
    return replace(
        network,
        stages=tuple(stages),
        stem=replace(named.stem, convs=tuple(convs)),
        input=(network.input[0], *named.input[1:]),
        shortcuts=named.shortcuts,
        norm=named.norm,
        activation=named.activation,
    )


def _is_weightless(network: specs.Network) -> bool:
    shortcuts = network.shortcuts
    return isinstance(shortcuts, specs.NoShortcuts) or all(
        isinstance(adapter, _WEIGHTLESS) for adapter in (shortcuts.wider, shortcuts.smaller, shortcuts.same)
    )


def list_readings(network: specs.Network, rows: Mapping[str, specs.Network] = CATALOG) -> tuple[str, ...]:
    """Return the names of other networks with the same tensors, the one with the same blocks first.

    Args:
        network: The recognized network.
        rows: The networks by name.
    """
    blocks = [stage.blocks for stage in network.stages]
    names: dict[specs.Network, str] = {}
    for name in sorted(rows, key=lambda name: [stage.blocks for stage in rows[name].stages] != blocks):
        reading = adopt_conventions(network, rows[name])
        if reading is not None and replace(reading, input=network.input) != network:
            names.setdefault(reading, name)
    return tuple(names.values())


def describe_readings(network: specs.Network, dialect: str) -> str:
    """Return in a few words which other networks the tensors fit as well; empty if there are none.

    Args:
        network: The recognized network.
        dialect: The dialect of the names.
    """
    names = list(list_readings(network))
    names[_MAX_NAMED:] = [f"{len(names) - _MAX_NAMED} more"] if len(names) > _MAX_NAMED else []
    if dialect == "hf":  # transformers' option downsample_in_first_stage
        names.append("one whose first stage halves the map (a .toml file)")
    return f"{READINGS_NOTE}{', '.join(names)}: --network chooses" if names else ""
