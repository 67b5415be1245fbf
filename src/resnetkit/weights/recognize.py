"""Recognize the dialect and the network of weights from names and shapes alone.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.spec import Network, Pooled, count_classes, replace_classes
from resnetkit.architecture.tensors import STEM_WEIGHT, TensorShape, TensorShapes, get_tensor_shapes
from resnetkit.errors import UsageError
from resnetkit.formatting import pluralize
from resnetkit.weights import infer
from resnetkit.weights.dialects import DIALECT_NAMES, TABLES, Dialect, derive_layout
from resnetkit.weights.mismatch import BATCH_COUNT, Mismatch, find_mismatches
from resnetkit.weights.unwrap import iterate_prefixes

OWN_DIALECT = "resnetkit"
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
        return {key: _squeeze_shape(shape) if key in self.table.conv_keys else shape for key, shape in ours.items()}


@dataclass(frozen=True)
class RecognizedWeights:
    """The result of recognizing a file: how to read its names, and the network with exactly these tensors."""

    mapping: KeyMapping
    spec: Network
    assumed: tuple[str, ...]
    plan: Plan | None = None


def iterate_mappings(
    names: Collection[str], dialect: str | None = None, *, body_only: bool = False
) -> Iterator[KeyMapping]:
    """Yield every mapping that gives each name a key, the one with the fewest prefixes removed first.

    Args:
        names: The names in the file.
        dialect: The only dialect to try; None for all.
        body_only: Whether to skip the classifier and names outside the body.
    """
    for prefix, short_names in iterate_prefixes(names, allow_partial=body_only):
        are_ours = all(_OUR_NAME.match(name) for name in short_names.values())
        if dialect == OWN_DIALECT or (dialect is None and are_ours):
            kept = {name: key for name, key in short_names.items() if not (body_only and _is_classifier(key))}
            yield KeyMapping(_IDENTITY_DIALECT, prefix, kept)
        tables = (table for table in TABLES if dialect in (None, table.name))
        yield from filter(None, (_map_names(table, prefix, short_names, body_only) for table in tables))


def _squeeze_shape(shape: TensorShape) -> TensorShape:
    """Return the shape of a linear layer for that of a 1x1 convolution."""
    return shape[:2] if shape[2:] == (1, 1) else shape


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
    their_shapes: TensorShapes, dialect: str | None = None, *, body_only: bool = False
) -> RecognizedWeights | str:
    """Return the network of these tensors, or in a few words why it cannot be recognized.

    Args:
        their_shapes: The shapes in the file, by name.
        dialect: The dialect of the names; None if it is unknown.
        body_only: Whether to ignore everything but the body.
    """
    reasons = []
    for mapping in iterate_mappings(their_shapes, dialect, body_only=body_only):
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
            return RecognizedWeights(mapping, spec, assumed, network_plan)
        reasons.append(f"{mapping.dialect}: {mismatches[0]}")
    if reasons:
        return reasons[0]
    return f"its names are not those of {dialect}" if dialect else "its names are not those of a known dialect"


def _compare(network_plan: Plan, shapes: TensorShapes) -> list[Mismatch]:
    """Return the mismatches of a file; batch counts may be missing, as in files of old torch."""
    expected = get_tensor_shapes(network_plan)
    required = {key: shape for key, shape in expected.items() if key in shapes or not key.endswith(BATCH_COUNT)}
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
