"""Recognize the dialect and the network of weights from names and shapes alone.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.spec import Linear, Network, Pooled, count_classes, replace_classes
from resnetkit.architecture.tensors import STEM_WEIGHT, TensorShape, TensorShapes, get_tensor_shapes
from resnetkit.errors import UsageError
from resnetkit.formatting import pluralize
from resnetkit.weights import infer
from resnetkit.weights.dialects import DIALECT_NAMES, TABLES, Dialect, derive_layout
from resnetkit.weights.mismatch import BATCH_COUNT, Mismatch, find_mismatches
from resnetkit.weights.unwrap import SeveralTablesError, find_prefixes, is_usual_prefix, iterate_prefixes

OWN_DIALECT = "resnetkit"
CLASSIFIER_WEIGHT, CLASSIFIER_BIAS = "head.linear.weight", "head.linear.bias"
KNOWN_DIALECTS = (OWN_DIALECT, *DIALECT_NAMES)
_IDENTITY_DIALECT = Dialect(OWN_DIALECT, ())
_OUR_NAME = re.compile(r"stem\.|stage|head\.")
_AMBIGUOUS_POOL = "shortcuts project with their stride, without a pool"


@dataclass(frozen=True)
class KeyMapping:
    """One way to read the names of a file: its dialect, the removed prefix, and our key for each name."""

    table: Dialect
    prefix: str
    names: Mapping[str, str]

    @property
    def dialect(self) -> str:
        """The name of the dialect."""
        return self.table.name

    @property
    def convention(self) -> infer.Convention:
        """The convention of the dialect for what shapes do not tell."""
        return infer.CONVENTIONS.get(self.dialect, infer.DEFAULT_CONVENTION)

    def translate_shapes(self, their_shapes: TensorShapes) -> dict[str, TensorShape]:
        """Return the shapes by our keys and in our layout; names without a key of ours are skipped."""
        ours = {our_name: their_shapes[name] for name, our_name in self.names.items()}
        return ours | {key: _squeeze_shape(ours[key]) for key in {CLASSIFIER_WEIGHT} & ours.keys()}


@dataclass(frozen=True)
class RecognizedWeights:
    """How to read the names of a file, and the network with exactly these tensors.

    ``architecture`` is the name in the file that decided what tensors do not tell. ``has_own_size`` is set if the user
    named a network of which only the conventions hold.
    """

    mapping: KeyMapping
    spec: Network
    assumed: tuple[str, ...]
    plan: Plan | None = None
    architecture: str = ""
    has_own_size: bool = False


def iterate_mappings(
    names: Collection[str], dialect: str | None = None, *, body_only: bool = False
) -> Iterator[KeyMapping]:
    """Yield every mapping that gives each name a key, the one with the fewest prefixes removed first.

    Args:
        names: The names in the file.
        dialect: The only dialect to try; None for all.
        body_only: Whether to skip the classifier and names outside the body.
    """
    for prefix, short_names in _iterate_bodies(names) if body_only else iterate_prefixes(names):
        are_ours = (any if body_only else all)(_OUR_NAME.match(name) for name in short_names.values())
        if dialect == OWN_DIALECT or (dialect is None and are_ours):
            kept = {name: key for name, key in short_names.items() if not (body_only and not _is_body(key))}
            yield KeyMapping(_IDENTITY_DIALECT, prefix, kept)
        tables = (table for table in TABLES if dialect in (None, table.name))
        yield from filter(None, (_map_names(table, prefix, short_names, body_only) for table in tables))


_FIRST_KEYS = (STEM_WEIGHT, "stage1.block1.branch.conv1.weight")


@cache
def _list_first_names() -> tuple[str, ...]:
    """Return the names that the first tensor of a network has in some dialect."""
    names = [table.find_theirs(key) for key in _FIRST_KEYS for table in TABLES]
    return tuple(dict.fromkeys((STEM_WEIGHT, *filter(None, names))))


def _iterate_bodies(names: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (prefix, {name: name without it}) for each prefix behind which a network may begin."""
    for prefix in find_prefixes(names, _list_first_names()):
        yield prefix, {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _squeeze_shape(shape: TensorShape) -> TensorShape:
    """Return the shape of a linear layer for that of a 1x1 convolution."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _is_body(name: str) -> bool:
    return bool(_OUR_NAME.match(name)) and not _is_classifier(name)


def _is_classifier(name: str) -> bool:
    """Return whether a tensor is the classifier's; the norm in a pre-activation head is the body's."""
    return name.startswith(("head.linear", "head.act"))


def _map_names(table: Dialect, prefix: str, short_names: Mapping[str, str], body_only: bool) -> KeyMapping | None:
    names, has_classifier = {}, False
    for theirs, short_name in short_names.items():
        try:
            ours = table.to_ours(short_name)
        except UsageError:
            if body_only and not table.is_body_name(short_name):
                continue
            return None
        has_classifier = has_classifier or _is_classifier(ours)
        if not (body_only and _is_classifier(ours)):
            names[theirs] = ours
    mapping = KeyMapping(table, prefix, names)
    if mapping.convention.padding_adapter and not has_classifier:
        return None  # only the name of its classifier tells this dialect, and with it option A, from the others
    return mapping if len(set(names.values())) == len(names) > 0 else None


def recognize_weights(
    their_shapes: TensorShapes,
    dialect: str | None = None,
    *,
    body_only: bool = False,
    aliases: Mapping[str, object] = MappingProxyType({}),
) -> RecognizedWeights | str:
    """Return the network of these tensors, or in a few words why it cannot be recognized.

    If a file holds more than a network, the rest is skipped unless it may belong to the network.

    Args:
        their_shapes: The shapes in the file, by name.
        dialect: The dialect of the names; None if it is unknown.
        body_only: Whether to ignore everything but the body.
        aliases: The memory of each tensor; tensors with equal memory are one.

    Raises:
        SeveralTablesError: the file holds several networks, and nothing decides between them.
    """
    if not body_only:
        whole, reason = _recognize_mappings(iterate_mappings(their_shapes, dialect), their_shapes)
        if whole:
            return whole[0]
    mappings = iterate_mappings(their_shapes, dialect, body_only=True)
    bodies, body_reason = _recognize_mappings(mappings, their_shapes)
    bodies = [body for body in bodies if body.mapping.prefix == bodies[0].mapping.prefix] if body_only else bodies
    if bodies:
        body = _choose_body(bodies, aliases)
        if body_only:
            return body
        prefixes = [candidate.mapping.prefix for candidate in bodies]
        result = _add_classifier(body, their_shapes, prefixes, aliases)
        if isinstance(result, RecognizedWeights):
            return result
        reason = reason or result
    if body_only or not reason:
        reason = body_reason
    return reason or (
        f"its names are not those of {dialect}" if dialect else "its names are not those of a known dialect"
    )


def _recognize_mappings(
    mappings: Iterable[KeyMapping], their_shapes: TensorShapes
) -> tuple[list[RecognizedWeights], str]:
    """Return one network for each prefix with a mapping that has one, and the first reason of the others."""
    networks: dict[str, RecognizedWeights] = {}
    reasons = []
    for mapping in mappings:
        if mapping.prefix in networks:
            continue
        shapes = mapping.translate_shapes(their_shapes)
        try:
            spec, assumed = infer.infer_spec(shapes, mapping.convention, mapping.table.layout.pooled_shortcuts)
        except infer.UnknownNetworkError as error:
            reasons.append(f"{mapping.dialect}: {error}")
            continue
        network_plan = plan(spec)
        mismatches = _compare(network_plan, shapes)
        if not mismatches:
            # our own names are the same for a projection and for one behind a pool
            if mapping.dialect == OWN_DIALECT and any(".shortcut.conv." in key for key in shapes):
                assumed = (*assumed, _AMBIGUOUS_POOL)
            networks[mapping.prefix] = RecognizedWeights(mapping, spec, assumed, network_plan)
        else:
            reasons.append(f"{mapping.dialect}: {mismatches[0]}")
    return list(networks.values()), (*reasons, "")[0]


def _choose_body(bodies: Sequence[RecognizedWeights], aliases: Mapping[str, object]) -> RecognizedWeights:
    """Return the body with the usual prefix, or the only one, or raise `SeveralTablesError`."""
    memories = [{aliases.get(name, name) for name in body.mapping.names} for body in bodies]
    distinct = [body for i, body in enumerate(bodies) if memories[i] not in memories[:i]]
    usual = [body for body in distinct if is_usual_prefix(body.mapping.prefix)]
    if len(distinct) > 1 and not usual:
        raise SeveralTablesError([body.mapping.prefix.removesuffix(".") for body in distinct])
    return (usual or distinct)[0]


CLASSIFIER_NOTE = "the classifier is "
_BESIDE_MODELS = re.compile(
    r"(?i)loss|criterion|metric|center|margin|arcface|prox(y|ies)|prototype|conf_?mat|confusion|(^|[._])(acc|ema)"
)


def _add_classifier(
    body: RecognizedWeights, their_shapes: TensorShapes, prefixes: Collection[str], aliases: Mapping[str, object]
) -> RecognizedWeights | str:
    """Return a body with the classifier beside it, or the reason why the rest may belong to it.

    Args:
        body: The recognized body.
        their_shapes: The shapes in the file, by name.
        prefixes: The prefixes of all networks in the file.
        aliases: The memory of each tensor.
    """
    mapping, prefix = body.mapping, body.mapping.prefix
    memory = {aliases.get(name, name) for name in mapping.names}
    rest = {
        name: shape
        for name, shape in their_shapes.items()
        if name not in mapping.names
        and aliases.get(name, name) not in memory
        and max((p for p in prefixes if name.startswith(p)), key=len, default=prefix) == prefix
    }
    usual_name = prefix + (mapping.table.find_theirs(CLASSIFIER_WEIGHT) or CLASSIFIER_WEIGHT)
    weight = _find_classifier(rest, usual_name, body.spec.stages[-1].channels)
    bias = f"{weight.removesuffix('weight')}bias"
    names = {weight: CLASSIFIER_WEIGHT} if weight else {}
    names |= {bias: CLASSIFIER_BIAS} if weight and rest.get(bias) == their_shapes[weight][:1] else {}
    part = _find_head_part({name: shape for name, shape in rest.items() if name not in names}, weight, prefix)
    if part:
        return f"{mapping.dialect}: {part} may be a part of its head"
    mapping = replace(mapping, names={**mapping.names, **names})
    if not weight:
        return replace(body, mapping=mapping)
    spec = replace(body.spec, head=Linear(their_shapes[weight][0]))
    assumed = tuple(note for note in body.assumed if note != infer.AVERAGED_MAP)
    note = CLASSIFIER_NOTE + weight.removesuffix(".weight")
    return RecognizedWeights(mapping, spec, assumed if weight == usual_name else (note, *assumed), plan(spec))


def _find_classifier(rest: TensorShapes, usual_name: str, channels: int) -> str:
    """Return the weight of the classifier: the usual name, or the only matrix for these channels."""
    candidates = [
        name
        for name, shape in rest.items()
        if name.endswith("weight") and _squeeze_shape(shape)[1:] == (channels,) and not _BESIDE_MODELS.search(name)
    ]
    return usual_name if usual_name in candidates else candidates[0] if len(candidates) == 1 else ""


def _find_head_part(rest: TensorShapes, weight: str, prefix: str) -> str:
    """Return a tensor that may be in the head: a matrix, or one in the classifier's container."""
    container = weight.removesuffix(".weight").rpartition(".")[0]
    for name, shape in rest.items():
        is_in_container = bool(container) and f"{container}." != prefix and name.startswith(f"{container}.")
        if is_in_container or (len(shape) > 1 and not _BESIDE_MODELS.search(name)):
            return name
    return ""


def _compare(network_plan: Plan, shapes: TensorShapes) -> list[Mismatch]:
    """Return the mismatches of a file; batch counts may be missing, as in files of old torch."""
    expected = get_tensor_shapes(network_plan)
    optional = {CLASSIFIER_BIAS} if CLASSIFIER_WEIGHT in shapes else set()
    required = {
        key: shape
        for key, shape in expected.items()
        if key in shapes or not (key.endswith(BATCH_COUNT) or key in optional)
    }
    return find_mismatches(required, shapes, {})


def match_named(
    network: Network, their_shapes: TensorShapes, dialect: str | None = None, *, body_only: bool = False
) -> RecognizedWeights | None:
    """Return the mapping under which the tensors fit a network best.

    The classifier in the file sets the number of classes. If ``dialect`` does not have these names, the result is None.
    If no dialect has them, the result keeps the names.

    Args:
        network: The network that the user named.
        their_shapes: The shapes in the file, by name.
        dialect: The dialect of the names; None if it is unknown.
        body_only: Whether to ignore everything but the body.
    """
    candidates = []
    has_pooled_shortcuts = derive_layout(network).pooled_shortcuts
    for mapping in iterate_mappings(their_shapes, dialect, body_only=body_only):
        if mapping.dialect != OWN_DIALECT and mapping.table.layout.pooled_shortcuts != has_pooled_shortcuts:
            continue  # the names of its shortcuts say whether they contain a pool
        shapes = mapping.translate_shapes(their_shapes)
        spec = replace(network, head=Pooled()) if body_only else _set_classes(network, shapes)
        candidates.append((len(_compare(plan(spec), shapes)), RecognizedWeights(mapping, spec, ())))
    if candidates:
        return min(candidates, key=lambda pair: pair[0])[1]
    return None if dialect else RecognizedWeights(make_identity_mapping(their_shapes), network, ())


def is_exact(recognized: RecognizedWeights, their_shapes: TensorShapes) -> bool:
    """Return whether tensors fit a network without a difference.

    Args:
        recognized: The network and the mapping of the names.
        their_shapes: The shapes in the file, by name.
    """
    return not _compare(plan(recognized.spec), recognized.mapping.translate_shapes(their_shapes))


def make_identity_mapping(names: Collection[str]) -> KeyMapping:
    """Return a mapping that keeps all names, so that an error shows those of the file."""
    return KeyMapping(_IDENTITY_DIALECT, "", {name: name for name in names})


def _set_classes(network: Network, shapes: TensorShapes) -> Network:
    classifier_shape = shapes.get("head.linear.weight", ())
    is_known = len(classifier_shape) == 2 and classifier_shape[0] and count_classes(network.head)
    return replace_classes(network, classifier_shape[0]) if is_known else network


def guess_networks(their_shapes: TensorShapes) -> str:
    """Return the catalog networks with these tensors, apart from the head: ``resnet50 or resnet50_v1``."""
    for mapping in iterate_mappings(their_shapes):
        body = _select_body(mapping.translate_shapes(their_shapes).items())
        channels = (*body.get(STEM_WEIGHT, ()), 0, 0)[1]
        blocks = list(infer.count_blocks(body).values())
        names = [
            name
            for name, row in CATALOG.items()
            if [stage.blocks for stage in row.stages] == blocks  # so that few plans are made
            and _select_body(get_tensor_shapes(plan(row)).items(), channels) == body
        ]
        if names:
            text = " or ".join(names)
            if channels != CATALOG[names[0]].input[0]:
                text += f" with {pluralize(channels, 'input channel')}"
            return text if mapping.dialect == OWN_DIALECT else f"{text} in the dialect {mapping.dialect}"
    return ""


def _select_body(shapes: Iterable[tuple[str, TensorShape]], channels: int = 0) -> dict[str, TensorShape]:
    """Return all shapes but the classifier and batch counts; ``channels`` replaces input channels."""
    body = {key: shape for key, shape in shapes if not _is_classifier(key) and not key.endswith(BATCH_COUNT)}
    if channels and STEM_WEIGHT in body:
        body[STEM_WEIGHT] = (body[STEM_WEIGHT][0], channels, *body[STEM_WEIGHT][2:])
    return body
