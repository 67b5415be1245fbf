"""Answer what a user asks about a network: a path, a name of another library, a word of its code, or a question.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from resnetkit.architecture.operations import ActivationOp
from resnetkit.architecture.plan import Plan, Section
from resnetkit.architecture.plan import plan as make_plan
from resnetkit.architecture.spec import Network
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.errors import UsageError, find_closest
from resnetkit.explain.describe import format_path_range
from resnetkit.explain.sentences import format_reason
from resnetkit.explain.topics import Topic, find_topic, list_topic_words, match_question
from resnetkit.weights.layer_aliases import find_path, find_shortcut_without_layer, list_aliases
from resnetkit.weights.model_source import LiveModule, load_card, resolve_model

# variables that hold a network, before the name of a layer
_OWNERS = r"(?:(?:self|model|net|network|module|backbone|body|encoder|resnet\w*)\.)+"
_SHARED_RELU = r"layer\d+\.\d+\.relu"  # torchvision runs it after several layers
_MIN_SIMILARITY = 0.75  # of a name that a hint suggests


@dataclass(frozen=True)
class Answer:
    """An answer; ``path`` is None if it is about no single part, and ``topic`` if the query is a name only."""

    query: str
    path: str | None
    topic: Topic | None
    text: str


def why(source: Plan | Network | str | Path | Any, query: str) -> str:
    """Explain a part of a network or a word of its code, or answer a question, with its numbers.

    Args:
        source: a plan, a spec, a model, or a name or path of one.
        query: a path, its name in another library (``layer1.0.downsample``), a word (``expansion``) or a question.

    Raises:
        UsageError: the source is not a network, or the query is unknown; the fix suggests what is known.
    """
    if not isinstance(query, str):
        raise UsageError(f"got {query!r} as a query", fix="give a path, a word or a question as text")
    return answer_query(_get_plan(source), query).text


def _get_plan(source: object) -> Plan:
    if isinstance(source, Plan):
        return source
    if isinstance(source, Network):
        return make_plan(source)
    model = resolve_model(source)
    if not isinstance(model, LiveModule):
        return make_plan(load_card(model).spec)
    for module in (model.module, getattr(model.module, "module", None)):  # DataParallel holds its network in `module`
        network_plan = getattr(module, "plan", None)
        if isinstance(network_plan, Plan):
            return network_plan
    message = f"a {type(model.module).__name__} is not a network of resnetkit"
    raise UsageError(message, where="why", fix="load it first: why(load(model), ...)")


def answer_query(plan: Plan, query: str) -> Answer:
    """Answer a path, a name of another library, a word or a question.

    Args:
        plan: plan of the network.
        query: the words of the user.

    Raises:
        UsageError: the query is unknown; the fix suggests what is known.
    """
    topic = None if query in plan.parts else find_topic(query)
    path, note = _find_part(plan, query)
    if path is None and topic is None:
        topic = match_question(query) if " " in query.strip() else None
        if topic is None:
            raise _unknown_query_error(plan, query)
    about_topic = f"{topic.answer(plan)}\nsource: {topic.source}" if topic else ""
    about_part = format_reason(plan, plan[path]) if path is not None else ""
    heading = f"{path}:" if topic and about_part else ""
    return Answer(query, path, topic, "\n".join(filter(None, [about_topic, heading, note, about_part])))


def _find_part(plan: Plan, query: str) -> tuple[str | None, str]:
    """Return the path that a query names, or None, and a note about the name."""
    for name in _list_spellings(plan, query):
        path = find_path(plan, name)
        if path is not None:
            return path, _describe_alias(plan, name, path)
        shortcut = find_shortcut_without_layer(plan, name)
        if shortcut is not None:
            return shortcut, _describe_alias(plan, name, shortcut)
    return None, ""


def _list_spellings(plan: Plan, query: str) -> Iterator[str]:
    """Yield a name as it is typed, then as a dotted path: ``layer1.0`` for ``self.layer1[0]``."""
    yield query
    name = re.sub(r"\s*\(.*\)$|/.*$|:\d+$", "", query.strip().strip("`'\""))  # ``(conv_block)``, ``()``, ``/kernel:0``
    for bare_name in dict.fromkeys((name, re.sub(f"^{_OWNERS}", "", name))):
        yield re.sub(r"([\w.]+?)\[(-?\d+)\]", lambda match: _index_layer(plan, match[1], int(match[2])), bare_name)


def _index_layer(plan: Plan, layer: str, index: int) -> str:
    """Return ``layer1.2`` for ``layer1[2]``; a negative index counts from the last block of the stage."""
    part = plan.parts.get(find_path(plan, layer) or "") if index < 0 else None
    n_blocks = len(part.children) if isinstance(part, Section) else 0
    return f"{layer}.{index + n_blocks}"


def _describe_alias(plan: Plan, name: str, path: str) -> str:
    """Return what a user of another library must know about one of its names."""
    part = plan[path]
    if re.fullmatch(_SHARED_RELU, name):
        block = plan[path.rpartition(".")[0]]
        nodes = [node.path for node in block.nodes if isinstance(node.op, ActivationOp)]
        return f"torchvision runs this one module {len(nodes)} times in the block: here {', '.join(nodes)}."
    if (
        isinstance(part, Section)
        and part.role == "shortcut"
        and name != path
        and (not part.nodes or find_path(plan, name) is None)
    ):
        kind = f"a {describe_shortcut(part)}" if part.nodes else "the identity"
        return f"This network has no layer {name}: the shortcut of its block is {kind}."
    return ""


def _unknown_query_error(plan: Plan, query: str) -> UsageError:
    words = "`resnetkit explain MODEL --questions` lists words and questions"
    if " " in query.strip():
        return UsageError("no answer to this question is known", where=query, fix=words)
    closest = _find_closest_name(plan, query)
    fix = f"did you mean {closest}?" if closest else f"{_describe_nearest_part(plan, query)}; {words}"
    return UsageError("this network has no such path, and no such word is known", where=query, fix=fix)


def _find_closest_name(plan: Plan, query: str) -> str:
    """Return the name that differs from a query in a few letters and in no number, or nothing."""
    names = [*list_topic_words(), *plan.parts, *list_aliases(plan)]
    return next(iter(find_closest(query.lower(), names, cutoff=_MIN_SIMILARITY, same_numbers=True)), "")


def _describe_nearest_part(plan: Plan, query: str) -> str:
    """Name the children of the longest part of a dotted name that exists."""
    segments = query.split(".")
    prefixes = (".".join(segments[:n]) for n in range(len(segments) - 1, 0, -1))
    part = next((plan[path] for path in (_find_part(plan, prefix)[0] for prefix in prefixes) if path), plan.root)
    children = part.children if isinstance(part, Section) else ()
    runs = [[child.path for child in run] for _, run in groupby(children, key=lambda child: child.role)]
    return f"{part.path or 'the network'} has {', '.join(map(format_path_range, runs)) or 'no parts'}"
