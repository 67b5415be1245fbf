"""How other ecosystems name the tensors of a network: tables from our paths to theirs, and back. No torch.

A row pairs two patterns. ``{s}``, ``{b}`` and ``{i}`` stand for the number of a stage, a block and a convolution as we
count them, from 1; ``{b-1}`` is the same number counted from 0. ``*`` is a tensor's own name (weight, running_mean).
Every table is a bijection on the tensors of a plan; a test holds each of them to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from resnetkit.architecture.plan import Plan
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import UsageError

_PLACEHOLDER = re.compile(r"\{([a-z])(-1)?\}|\*")


@dataclass(frozen=True)
class Dialect:
    """Names of tensors: rows of (ours, theirs)."""

    name: str
    rows: tuple[tuple[str, str], ...]

    def theirs(self, key: str) -> str:
        """Their name for our ``path.tensor``; raises `UsageError` where they have none."""
        return self._translate(key, self._forward)

    def ours(self, key: str) -> str:
        """Our ``path.tensor`` for their name; raises `UsageError` where we have none."""
        return self._translate(key, self._backward)

    def table(self, plan: Plan) -> dict[str, str]:
        """Ours -> theirs for every tensor of a plan."""
        return {key: self.theirs(key) for key in tensors_of(plan)}

    def _translate(self, key: str, rows: list[tuple[re.Pattern[str], str]]) -> str:
        for pattern, target in rows:
            match = pattern.fullmatch(key)
            if match:
                return _fill(target, match.groupdict())
        raise UsageError(f"{self.name} has no name for this tensor", where=key)

    @cached_property
    def _forward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(ours), theirs) for ours, theirs in self.rows]

    @cached_property
    def _backward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs), ours) for ours, theirs in self.rows]


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern whose groups hold numbers counted from 1 (``s``) or from 0 (``s0``), and the tensor's name."""
    parts, end = [], 0
    for mark in _PLACEHOLDER.finditer(text):
        parts.append(re.escape(text[end : mark.start()]))
        letter = mark[1]
        parts.append(rf"(?P<{letter}{'0' * bool(mark[2])}>\d{{1,9}})" if letter else r"(?P<tensor>\w+)")
        end = mark.end()
    return re.compile("".join(parts) + re.escape(text[end:]))


def _fill(text: str, found: dict[str, str]) -> str:
    counted = {key.rstrip("0"): int(value) + key.endswith("0") for key, value in found.items() if key != "tensor"}

    def write(mark: re.Match[str]) -> str:
        return str(counted[mark[1]] - bool(mark[2])) if mark[1] else found["tensor"]

    return _PLACEHOLDER.sub(write, text)


TORCHVISION = Dialect(
    "torchvision",
    (
        ("stem.conv1.*", "conv1.*"),
        ("stem.norm1.*", "bn1.*"),
        ("stage{s}.block{b}.branch.conv{i}.*", "layer{s}.{b-1}.conv{i}.*"),
        ("stage{s}.block{b}.branch.norm{i}.*", "layer{s}.{b-1}.bn{i}.*"),
        ("stage{s}.block{b}.shortcut.conv.*", "layer{s}.{b-1}.downsample.0.*"),
        ("stage{s}.block{b}.shortcut.norm.*", "layer{s}.{b-1}.downsample.1.*"),
        ("head.linear.*", "fc.*"),
    ),
)

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (TORCHVISION,)}
