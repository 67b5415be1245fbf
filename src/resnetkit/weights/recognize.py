"""Whose weights these are, and of which network: from names and shapes alone.

This module imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.spec import Network, Pooled, count_classes, replace_classes
from resnetkit.architecture.tensors import STEM_WEIGHT, TensorShape, TensorShapes, get_tensor_shapes
from resnetkit.errors import UsageError
from resnetkit.formatting import pluralize
from resnetkit.weights.dialects import DIALECT_NAMES, TABLES, Dialect, derive_layout
from resnetkit.weights.infer import (
    CONVENTIONS,
    DEFAULT_CONVENTION,
    Convention,
    UnknownNetworkError,
    count_blocks,
    infer_spec,
)
from resnetkit.weights.mismatch import BATCH_COUNT, find_mismatches
from resnetkit.weights.unwrap import iterate_prefixes

OWN_DIALECT = "resnetkit"
KNOWN_DIALECTS = (OWN_DIALECT, *DIALECT_NAMES)
_IDENTITY_DIALECT = Dialect(OWN_DIALECT, ())


@dataclass(frozen=True)
class KeyMapping:
    """A way to read the names of a file: whose they are, what stands before them, theirs -> ours."""

    table: Dialect
    prefix: str
    names: Mapping[str, str]

    @property
    def dialect(self) -> str:
        return self.table.name

    @property
    def convention(self) -> Convention:
        """What the dialect does where shapes say nothing."""
        return CONVENTIONS.get(self.dialect, DEFAULT_CONVENTION)

    def translate_shapes(self, their_shapes: TensorShapes) -> dict[str, TensorShape]:
        """By our names and as we have them; what is left out is left out here."""
        ours = {our_name: their_shapes[name] for name, our_name in self.names.items()}
        return {key: _squeeze_shape(shape) if key in self.table.conv_keys else shape for key, shape in ours.items()}


@dataclass(frozen=True)
class RecognizedWeights:
    """A file that was understood: how its names are read, and the network that has exactly these tensors."""

    mapping: KeyMapping
    spec: Network
    assumed: tuple[str, ...]
    plan: Plan | None = None


def iterate_mappings(
    names: Collection[str], dialect: str | None = None, *, body_only: bool = False
) -> Iterator[KeyMapping]:
    """Every way in which all of these names have a meaning, the plainest first.

    Of a ``body`` alone: all that are not a head's; the others are left out.
    """
    for prefix, short_names in iterate_prefixes(names, allow_partial=body_only):
        are_ours = all(_OUR_NAME.match(name) for name in short_names.values())
        if dialect == OWN_DIALECT or (dialect is None and are_ours):
            yield KeyMapping(
                _IDENTITY_DIALECT,
                prefix,
                {
                    name: our_name
                    for name, our_name in short_names.items()
                    if not (body_only and _is_classifier(our_name))
                },
            )
        for table in TABLES:
            if dialect in (None, table.name):
                mapping = _map_names(table, prefix, short_names, body_only)
                if mapping:
                    yield mapping


_OUR_NAME = re.compile(r"stem\.|stage|head\.")


def _squeeze_shape(shape: TensorShape) -> TensorShape:
    """Of a 1x1 convolution what a linear layer has."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _is_classifier(name: str) -> bool:
    """Whether a tensor is a classifier's; the norm that begins the head of a pre-activation network is its body's."""
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
    if CONVENTIONS.get(table.name, DEFAULT_CONVENTION).padding_adapter and not has_classifier:
        return None  # nothing but the name of its classifier tells this dialect, and with it option A, from others
    is_unique = len(set(names.values())) == len(names) > 0
    return KeyMapping(table, prefix, names) if is_unique else None


def recognize_weights(
    their_shapes: TensorShapes, dialect: str | None = None, *, body_only: bool = False
) -> RecognizedWeights | str:
    """The network of these tensors, or of a ``body`` among them, or why none can be told, in a few words."""
    reasons = []
    for mapping in iterate_mappings(their_shapes, dialect, body_only=body_only):
        shapes = mapping.translate_shapes(their_shapes)
        try:
            inferred = infer_spec(shapes, mapping.convention, mapping.table.layout.pooled_shortcuts)
        except UnknownNetworkError as error:
            reasons.append(f"{mapping.dialect}: {error}")
            continue
        network_plan = plan(inferred.spec)
        mismatches = find_mismatches(select_required_shapes(get_tensor_shapes(network_plan), shapes), shapes, {})
        if not mismatches:
            assumptions = (
                ("shortcuts project with their stride, without a pool",) if _has_ambiguous_pool(mapping, shapes) else ()
            )
            return RecognizedWeights(mapping, inferred.spec, (*inferred.assumed, *assumptions), network_plan)
        reasons.append(f"{mapping.dialect}: {mismatches[0]}")
    default_reason = (
        f"its names are not those of {dialect}" if dialect else "its names are those of no dialect that is known"
    )
    return reasons[0] if reasons else default_reason


def _has_ambiguous_pool(mapping: KeyMapping, shapes: TensorShapes) -> bool:
    """Our own names are the same for a projection and for one behind a pool."""
    return mapping.dialect == OWN_DIALECT and any(".shortcut.conv." in key for key in shapes)


def match_named(
    network: Network, their_shapes: TensorShapes, dialect: str | None = None, *, body_only: bool = False
) -> RecognizedWeights | None:
    """The reading under which the tensors fit this network best; the classifier says how many classes there are.

    None where the names have no meaning in the ``dialect``; without one they are then compared as they are.
    """
    best, fewest_mismatches = None, math.inf
    for mapping in iterate_mappings(their_shapes, dialect, body_only=body_only):
        if (
            mapping.dialect != OWN_DIALECT
            and mapping.table.layout.pooled_shortcuts != derive_layout(network).pooled_shortcuts
        ):
            continue  # the names of its shortcuts say whether a pool stands in them
        shapes = mapping.translate_shapes(their_shapes)
        spec = replace(network, head=Pooled()) if body_only else _set_classes(network, shapes)
        n_mismatches = len(find_mismatches(select_required_shapes(get_tensor_shapes(plan(spec)), shapes), shapes, {}))
        if n_mismatches < fewest_mismatches:
            best, fewest_mismatches = RecognizedWeights(mapping, spec, ()), n_mismatches
    if best is None and not dialect:
        best = RecognizedWeights(make_identity_mapping(their_shapes), network, ())
    return best


def make_identity_mapping(names: Collection[str]) -> KeyMapping:
    """No translation, so that an error shows a file's own names."""
    return KeyMapping(_IDENTITY_DIALECT, "", {name: name for name in names})


def _set_classes(network: Network, shapes: TensorShapes) -> Network:
    classifier_shape = shapes.get("head.linear.weight", ())
    is_known = len(classifier_shape) == 2 and classifier_shape[0] and count_classes(network.head)
    return replace_classes(network, classifier_shape[0]) if is_known else network


def guess_networks(their_shapes: TensorShapes) -> str:
    """The networks of the catalogue that have these tensors, the head aside: ``resnet50 or resnet50_v1``."""
    for mapping in iterate_mappings(their_shapes):
        body = _select_body(mapping.translate_shapes(their_shapes).items())
        channels = (*body.get(STEM_WEIGHT, ()), 0, 0)[1]
        names = [
            name
            for name in _find_equal_depth(body)
            if _select_body(get_tensor_shapes(plan(CATALOG[name])).items(), channels) == body
        ]
        if names:
            default_channels = CATALOG[names[0]].input[0]
            channel_note = f" with {pluralize(channels, 'input channel')}" * (channels != default_channels)
            return (
                " or ".join(names)
                + channel_note
                + f" in the dialect {mapping.dialect}" * (mapping.dialect != OWN_DIALECT)
            )
    return ""


def _select_body(shapes: Iterable[tuple[str, TensorShape]], channels: int = 0) -> dict[str, TensorShape]:
    """All but the head and what old files lack; the stem for so many input channels, if any are named."""
    body = {key: shape for key, shape in shapes if not _is_classifier(key) and not key.endswith(BATCH_COUNT)}
    if channels and STEM_WEIGHT in body:
        body[STEM_WEIGHT] = (body[STEM_WEIGHT][0], channels, *body[STEM_WEIGHT][2:])
    return body


def _find_equal_depth(body: TensorShapes) -> list[str]:
    """The names with as many blocks in each stage, so that few plans are made."""
    blocks = list(count_blocks(body).values())
    return [name for name, row in CATALOG.items() if [stage.blocks for stage in row.stages] == blocks]


def select_required_shapes(expected: TensorShapes, actual: TensorShapes) -> dict[str, TensorShape]:
    """What a file has to hold: counts of batches may be missing, as torch did not always write them."""
    return {key: shape for key, shape in expected.items() if key in actual or not key.endswith(BATCH_COUNT)}
