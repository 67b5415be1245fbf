"""Facts about the network at hand, as whole sentences with its numbers; the answers to questions are made with them.

A fact holds for every network: if a network lacks something, its sentence says so.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from resnetkit.architecture import operations as ops
from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import Node, Plan, Section, plan
from resnetkit.architecture.summary import describe_part
from resnetkit.explain import describe
from resnetkit.explain.sentences import OPTION_NAMES, describe_receptive_field, format_size_formula
from resnetkit.formatting import join_names, pluralize

_MAX_NAMED = 3  # a sentence names at most this many parts


def _join(items: Iterable[object]) -> str:
    """Return ``a, b and c``."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def _join_some(items: Sequence[str]) -> str:
    return join_names(items, _MAX_NAMED) if len(items) > _MAX_NAMED else _join(items)


def _select(network: Plan, *roles: str) -> list[Node]:
    return [node for node in network.nodes if node.role in roles]


def _list_convolutions(network: Plan) -> list[tuple[Node, ops.ConvOp]]:
    return [(node, node.op) for node in network.nodes if isinstance(node.op, ops.ConvOp)]


def _get_map(shape: ops.Shape) -> str:
    return describe.format_shape(shape[1:])


def _is_plain(network: Plan) -> bool:
    return isinstance(network.spec.shortcuts, s.NoShortcuts)


def _is_pre_activation(network: Plan) -> bool:
    return network.spec.order == "norm-act-conv"


# --------------------------------------------------------------------------------------------------------- shortcuts


def _count_shortcuts(network: Plan) -> str:
    if _is_plain(network):
        return "This network has no shortcuts."
    return f"This network has {describe.format_shortcut_counts(network)}."


def _list_adapters(network: Plan) -> str:
    shortcuts = describe.list_shortcuts(network)
    adapters = [shortcut for shortcut in shortcuts if shortcut.nodes]
    if not adapters:
        missing = "shortcuts" if _is_plain(network) else "adapters, because all its shortcuts are identities"
        return f"This network has no {missing}."
    first, parent = adapters[0], adapters[0].path.removesuffix(".shortcut")
    adapter = describe.format_adapter(network[parent])
    others = f", such as {first.path} ({adapter})"
    return f"Here {len(adapters):,} of {pluralize(len(shortcuts), 'shortcut')} have an adapter{others}."


def _list_projections(network: Plan) -> str:
    nodes = _select(network, "projection")
    if not nodes:
        return "This network has no projections."
    strided = [shortcut for shortcut in describe.list_shortcuts(network) if _multiply_strides(shortcut.nodes) > 1]
    weights = sum(node.op.weights for node in nodes if isinstance(node.op, ops.ConvOp))
    note = f"{len(strided):,} with a stride" if strided else "none with a stride"
    return f"This network has {pluralize(len(nodes), 'projection')} with {weights:,} weights, {note}."


def _multiply_strides(nodes: Iterable[Node]) -> int:
    return math.prod(node.op.window[1] for node in nodes)


def _explain_first_stage(network: Plan) -> str:
    """Explain the shortcut of the very first block."""
    block = describe.list_all_blocks(network)[0]
    shortcut = describe.find_shortcut(block)
    if shortcut is None:
        return "This network has no shortcuts, so its first block has none either."
    kind = describe.format_adapter(block)
    return f"Here {shortcut.path} is {kind}: {shortcut.reason.partition(':')[0]}."


def _list_additions(network: Plan) -> str:
    nodes = _select(network, "add")
    if not nodes:
        return "This network has no additions, because it has no shortcuts."
    node, count = nodes[0], pluralize(len(nodes), "addition")
    return f"This network has {count}, the first of two maps of {describe.format_shape(node.output)} at {node.path}."


def _name_option(network: Plan) -> str:
    if _is_plain(network):
        return "This network has no shortcuts, so no option."
    option = OPTION_NAMES.get(network.spec.shortcuts)
    uses = f"This network uses option {option}" if option else "This network uses none of these options"
    return f"{uses}: {describe.format_adapter_counts(describe.count_shortcuts(network))}."


def _count_keras_blocks(network: Plan) -> str:
    blocks = describe.list_all_blocks(network)
    if _is_plain(network):
        return f"This network has {pluralize(len(blocks), 'block')} without shortcuts, so it has neither."
    projected = [block.path for block in blocks if any(node.role == "projection" for node in block.nodes)]
    identities = [block.path for block in blocks if not (describe.find_shortcut(block) or block).nodes]
    counts = f"{pluralize(len(projected), 'conv_block')} and {pluralize(len(identities), 'identity_block')}"
    n_others = len(blocks) - len(projected) - len(identities)
    note = f"; the shortcuts of {pluralize(n_others, 'block')} have no weights but an adapter" if n_others else ""
    first = f"; the first conv_block is {projected[0]}" if projected else ""
    return f"This network has {counts}{first}{note}."


# ---------------------------------------------------------------------------------------------- channels and branches


def _list_widths(network: Plan) -> list[int] | None:
    """Return the width of each stage; None if a branch has no width."""
    branches = [stage.branch for stage in network.spec.stages]
    widths = [branch.width for branch in branches if isinstance(branch, s.Basic | s.Bottleneck)]
    return widths if len(widths) == len(branches) else None


def _list_planes(network: Plan) -> str:
    channels = [stage.channels for stage in network.spec.stages]
    branches = [stage.branch for stage in network.spec.stages]
    if all(isinstance(branch, s.Bottleneck) for branch in branches) and not any(c % 4 for c in channels):
        planes, widths = [c // 4 for c in channels], _list_widths(network)
        wide = "" if planes == widths else f" Its 3x3 convolutions have the widths {_join(widths or ())}."
        return f"Here planes are {_join(planes)}; times 4 they give {_join(channels)} channels.{wide}"
    if all(isinstance(branch, s.Basic) and branch.width == stage.channels
           for branch, stage in zip(branches, network.spec.stages, strict=True)):  # fmt: skip
        return f"Here the blocks are basic, with expansion 1: planes and channels are {_join(channels)}."
    return f"The stages of this network have {_join(channels)} channels, which no expansion describes."


def _list_inplanes(network: Plan) -> str:
    stages = describe.list_stages(network)
    received, sent = (_join(shape[0] for shape in shapes)
                      for shapes in ([t.input for t in stages], [t.output for t in stages]))  # fmt: skip
    return f"Here the stages receive {received} channels and output {sent}."


def _list_blocks(network: Plan) -> str:
    counts = [stage.blocks for stage in network.spec.stages]
    return f"Here the stages have {counts} blocks, {sum(counts)} in all."


def _name_branches(network: Plan) -> str:
    kinds = list(dict.fromkeys(type(stage.branch).__name__.lower() for stage in network.spec.stages))
    n_blocks = len(describe.list_all_blocks(network))
    return f"The {pluralize(n_blocks, 'block')} of this network have {_join(kinds)} branches."


def _weigh_bottleneck(network: Plan) -> str:
    """Compare the weights of the last bottleneck with those of two 3x3 convolutions."""
    stage = network.spec.stages[-1]
    if not isinstance(stage.branch, s.Bottleneck):
        return f"{_name_branches(network)} A bottleneck of 256 channels has 69,632 weights, two 3x3 1,179,648."
    block = describe.list_all_blocks(network)[-1]
    weights = _count_branch_weights(network, block.path)
    basic = 18 * stage.channels**2
    return f"Here {block.path}.branch has {weights:,} weights; two 3x3 on {stage.channels:,} channels have {basic:,}."


def _count_branch_weights(network: Plan, block: str) -> int:
    prefix = f"{block}.branch."
    return sum(op.weights for node, op in _list_convolutions(network) if node.path.startswith(prefix))


def _list_growth(network: Plan) -> str:
    """Compare the first and the last stage: their channels, maps, and the cost of one convolution."""
    first, *_, last = describe.list_stages(network) * 2
    sizes = [f"{stage.path} has {stage.output[0]} channels at {_get_map(stage.output)}" for stage in (first, last)]
    (path, macs), (last_path, last_macs) = _measure_largest_kernel(first), _measure_largest_kernel(last)
    cost = f"both cost {macs:,} MACs" if macs == last_macs else f"cost {macs:,} and {last_macs:,} MACs"
    return f"Here {_join(sizes)}. The convolutions {path} and {last_path} {cost}."


def _measure_largest_kernel(stage: Section) -> tuple[str, int]:
    """Return the convolution with the largest kernel in the last block of a stage, and its MACs."""
    nodes = [node for node in describe.list_blocks(stage)[-1].nodes if node.role == "branch-conv"]
    node = max(nodes, key=lambda node: node.op.window[0])
    return node.path, node.macs


def _describe_groups(network: Plan) -> str:
    grouped = [(node, op) for node, op in _list_convolutions(network) if op.groups > 1]
    if not grouped:
        return f"Here all {len(_list_convolutions(network)):,} convolutions have 1 group, so each sees all channels."
    node, op = grouped[0]
    shares = f"each of {op.groups} groups sees {op.in_channels // op.groups} of {op.in_channels} channels"
    return f"Here {len(grouped):,} of the convolutions have groups: at {node.path}, {shares}."


# ------------------------------------------------------------------------------------------- operations of all kinds


def _list_strides(network: Plan) -> str:
    strided = [node for node in network.nodes if node.op.window[1] > 1 and ".shortcut" not in node.path]
    if not strided:
        return f"No operation outside a shortcut has a stride here; the last map is {_describe_last_map(network)}."
    places = [f"{node.path} ({node.input[1]} -> {node.output[1]})" for node in strided]
    return f"Here the strides outside the shortcuts are at {_join_some(places)}."


def _describe_last_map(network: Plan) -> str:
    return describe.format_shape(describe.list_stages(network)[-1].output)


def _describe_reduction(network: Plan) -> str:
    sizes = f"{_get_map(network.input)} become maps of {_describe_last_map(network)}"
    return f"Here images of {sizes}: the output stride is {network.root.stride}."


def _describe_dilation(network: Plan) -> str:
    dilated = [(node, op) for node, op in _list_convolutions(network) if op.dilation > 1]
    if not dilated:
        return f"Here no convolution is dilated; the last map is {_describe_last_map(network)}."
    node, op = dilated[0]
    return f"Here {len(dilated):,} of the convolutions have one, such as {node.path} with {op.dilation}."


def _count_biases(network: Plan) -> str:
    convolutions = _list_convolutions(network)
    n_biased = sum(op.bias for _, op in convolutions)
    linear = [node for node in network.nodes if isinstance(node.op, ops.LinearOp)]
    note = f"; {linear[-1].path} has {linear[-1].output[0]:,} biases" if linear else ""
    return f"Here {n_biased} of {pluralize(len(convolutions), 'convolution')} have a bias{note}."


def _list_paddings(network: Plan) -> str:
    pairs = dict.fromkeys((op.kernel, op.dilation, op.padding) for _, op in _list_convolutions(network))
    texts = [f"{kernel}x{kernel}{f' (dilation {dilation})' if dilation > 1 else ''} pads {padding}"
             for kernel, dilation, padding in pairs]  # fmt: skip
    return f"Here {_join(texts)}."


def _count_norms(network: Plan) -> str:
    norms = [node for node in network.nodes if isinstance(node.op, ops.NormOp)]
    if not norms:
        return "This network has no norms."
    n_params, first = sum(node.params for node in norms), norms[0]
    counts = f"{pluralize(len(norms), 'norm')} with {n_params:,} params"
    return f"This network has {counts}; the first is {first.path}: {first.op} over {first.output[0]} channels."


def _count_activations(network: Plan) -> str:
    nodes = [node for node in network.nodes if isinstance(node.op, ops.ActivationOp)]
    if not nodes:
        return "This network has no activations."
    block = describe.list_all_blocks(network)[0].path
    in_block = sum(node.path.startswith(f"{block}.") for node in nodes)
    kinds = _join(dict.fromkeys(str(node.op) for node in nodes))
    count = f"{pluralize(len(nodes), 'activation')} ({kinds})"
    return f"This network has {count}, each a layer of its own, and {in_block} of them in {block}."


def _weigh_activations(network: Plan) -> str:
    outputs = sum(node.activations for node in network.nodes if isinstance(node.op, ops.ActivationOp))
    mebibytes, total = (n * 4 / 2**20 for n in (outputs, network.activations))
    return f"Here the outputs of activations take {mebibytes:.1f} of {total:.1f} MiB for one image in fp32."


def _describe_stem_pool(network: Plan) -> str:
    pools = _select(network, "stem-pool")
    stage_pools = len(_select(network, "stage-pool"))
    others = f" {pluralize(stage_pools, 'pool')} end its stages." if stage_pools else ""
    if not pools:
        return f"This network has no pool in its stem.{others}"
    node = pools[0]
    sizes = f"{node.op}: {describe.format_shape(node.input)} -> {describe.format_shape(node.output)}"
    return f"Here stem.pool is a {sizes}.{others}"


def _describe_stem(network: Plan) -> str:
    if "stem" not in network.parts:
        return "This network has no stem."
    stem = network["stem"]
    cost = f"{stem.macs:,} MACs, {stem.macs / network.macs:.1%} of all"
    sizes = f"{describe.format_shape(stem.input)} -> {describe.format_shape(stem.output)}"
    return f"Here the stem is {describe_part(network, stem)}: {sizes} for {cost}."


def _describe_head_pool(network: Plan) -> str:
    pools = _select(network, "global-average", "average")
    if not pools:
        return f"This network has no pool in a head; it outputs {_describe_last_map(network)}."
    node = pools[0]
    return f"Here head.pool turns {describe.format_shape(node.input)} into a vector of {node.output[0]:,}."


def _describe_classifier(network: Plan) -> str:
    linear = [node for node in network.nodes if isinstance(node.op, ops.LinearOp)]
    if not linear:
        return f"This network has no linear layer; it outputs {describe.format_shape(network.output)}."
    node, n_params = linear[-1], sum(node.params for node in linear)
    sizes = f"{node.input[0]:,} features to {node.output[0]:,} logits"
    count = f"{n_params:,} params, {n_params / network.params:.1%} of all, in {pluralize(len(linear), 'linear layer')}"
    return f"Here {node.path} maps {sizes}; {count}."


def _describe_output(network: Plan) -> str:
    is_classifier = any(isinstance(node.op, ops.LinearOp) for node in network.nodes)
    kind = f"{network.output[0]:,} logits" if is_classifier else f"features of {describe.format_shape(network.output)}"
    return f"This network outputs {kind}."


def _compute_initial_std(network: Plan) -> str:
    node, op = _list_convolutions(network)[0]
    fan_in, fan_out = op.in_channels // op.groups * op.kernel**2, op.out_channels * op.kernel**2
    std = f"sqrt(2 / {fan_out}) = {math.sqrt(2 / fan_out):.4f}"
    return f"Here {node.path} has fan_in {fan_in} and fan_out {fan_out}, so its standard deviation is {std}."


def _list_last_norms(network: Plan) -> str:
    nodes = _select(network, "branch-last-norm")
    if not nodes or _is_plain(network):
        return "This network has no last norm of a branch before an addition."
    return f"Here it would set {pluralize(len(nodes), 'norm')} to zero, the first at {nodes[0].path}."


def _describe_attention(network: Plan) -> str:
    nodes = _select(network, "branch-attention")
    if not nodes:
        return "This network has no attention."
    share = sum(node.macs for node in nodes) / network.macs
    count = f"{len(nodes):,} branches with {share:.2%} of its MACs"
    return f"This network has it in {count}, such as {nodes[0].path}: {nodes[0].op}."


def _count_dropouts(network: Plan) -> str:
    nodes = _select(network, "head-drop", "branch-drop")
    if not nodes:
        return "This network has no dropout and no stochastic depth."
    return f"This network has {pluralize(len(nodes), 'such operation')}, the first at {nodes[0].path} ({nodes[0].op})."


# ------------------------------------------------------------------------------------------------- the whole network


def _count_depth(network: Plan) -> str:
    convolutions, linear = len(_select(network, "branch-conv")), len(_select(network, "hidden", "classifier"))
    stem = "1 for the stem + " if network.spec.stem.convs else ""
    layers = f"{pluralize(convolutions, 'convolution')} of branches + {pluralize(linear, 'linear layer')}"
    return f"Here: {stem}{layers} = {network.depth}."


def _describe_depth(network: Plan) -> str:
    counts = describe.format_shortcut_counts(network)
    return f"This network has depth {network.depth} and {counts}."


def _describe_receptive_field(network: Plan) -> str:
    stage = describe.list_stages(network)[-1]
    return f"Here images have {_get_map(network.input)} pixels. {describe_receptive_field(network, stage)}"


def _count_macs(network: Plan) -> str:
    flops = 2 * network.macs / 1e9
    return f"Here one image of {describe.format_shape(network.input)} takes {network.macs:,} MACs, {flops:,.2f} GFLOPs."


def _count_params(network: Plan) -> str:
    largest = max(network.root.children, key=lambda part: part.params)
    share = f"{largest.params / network.params:.0%} of them in {largest.path}"
    return f"This network has {network.params:,} params, {share}."


def _compare_with_vgg(network: Plan) -> str:
    vgg = plan(CATALOG["vgg19"])
    if network.input != vgg.input:
        return f"This network takes {network.macs:,} MACs for its images of {describe.format_shape(network.input)}."
    return f"This network has {network.macs / vgg.macs:.0%} of the MACs of VGG-19 and {network.params:,} params."


def _describe_version(network: Plan) -> str:
    strided = [node for node in _select(network, "branch-conv") if node.op.window[1] > 1]
    if not all(isinstance(stage.branch, s.Bottleneck) for stage in network.spec.stages) or not strided:
        return f"{_name_branches(network)} For them the versions do not differ."
    node = strided[0]
    version, kernel = "v1" if node.path.endswith("conv1") else "v1.5", node.op.window[0]
    return f"Here {node.path}, a {kernel}x{kernel}, has the stride, as in {version}."


def _describe_order(network: Plan) -> str:
    if _is_pre_activation(network):
        return "This network is of that kind: norm and activation come before each convolution."
    has_norms = any(isinstance(node.op, ops.NormOp) for node in network.nodes)
    layers = "norms and activations" if has_norms else "activations"
    return f"This network is not of that kind: its {layers} come after convolutions."


def _describe_formula(network: Plan) -> str:
    block = describe.list_all_blocks(network)[0].path
    if _is_plain(network):
        return f"This network has no shortcuts: {block} computes its branch alone."
    formula = "branch(activation(norm(x))) + shortcut(x)" if _is_pre_activation(network) else (
        f"{network.spec.activation}(branch(x) + shortcut(x))")  # fmt: skip
    weights = _count_branch_weights(network, block)
    return f"Here {block} computes {formula}, and its branch has {weights:,} weights."


def _apply_size_formula(network: Plan) -> str:
    nodes = [node for node in network.nodes if node.op.window[0] > 1]
    node = next((node for node in nodes if node.op.window[1] > 1), nodes[0])
    formula = format_size_formula(node)[0].removeprefix("size: ")
    return f"Here, at {node.path}: {formula}."


def _describe_image_sizes(network: Plan) -> str:
    pool = _select(network, "global-average", "average")
    vector = f", which {pool[0].path} turns into {pool[0].output[0]:,} numbers for any size" if pool else ""
    return f"Here images of {_get_map(network.input)} become maps of {_describe_last_map(network)}{vector}."


FACTS: dict[str, Callable[[Plan], str]] = {
    "activations": _count_activations,
    "activation_memory": _weigh_activations,
    "adapters": _list_adapters,
    "additions": _list_additions,
    "attention": _describe_attention,
    "biases": _count_biases,
    "blocks": _list_blocks,
    "bottleneck": _weigh_bottleneck,
    "branches": _name_branches,
    "classifier": _describe_classifier,
    "depth": _describe_depth,
    "depth_count": _count_depth,
    "dilation": _describe_dilation,
    "dropouts": _count_dropouts,
    "first_block": _explain_first_stage,
    "formula": _describe_formula,
    "groups": _describe_groups,
    "growth": _list_growth,
    "head_pool": _describe_head_pool,
    "image_sizes": _describe_image_sizes,
    "init": _compute_initial_std,
    "inplanes": _list_inplanes,
    "keras_blocks": _count_keras_blocks,
    "last_norms": _list_last_norms,
    "macs": _count_macs,
    "norms": _count_norms,
    "option": _name_option,
    "order": _describe_order,
    "output": _describe_output,
    "paddings": _list_paddings,
    "params": _count_params,
    "planes": _list_planes,
    "projections": _list_projections,
    "receptive_field": _describe_receptive_field,
    "reduction": _describe_reduction,
    "shortcuts": _count_shortcuts,
    "size": _apply_size_formula,
    "stem": _describe_stem,
    "stem_pool": _describe_stem_pool,
    "strides": _list_strides,
    "version": _describe_version,
    "vgg": _compare_with_vgg,
}
