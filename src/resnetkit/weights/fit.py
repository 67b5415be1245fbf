"""Whether tensors are those of a network, and if not, which network they look like: names and shapes, no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from resnetkit.architecture.catalog import ROWS
from resnetkit.architecture.plan import plan
from resnetkit.architecture.tensors import TensorShape, tensors_of
from resnetkit.errors import UsageError
from resnetkit.weights.dialects import TABLES

Shapes = Mapping[str, TensorShape]
COUNT = "num_batches_tracked"  # of a batch norm; files written before torch counted batches lack it
_STEM = "stem.conv1.weight"
_FLOAT = "a floating-point type"


@dataclass(frozen=True, slots=True)
class Misfit:
    """A tensor that keeps a file from being of a network: what came, and what was expected."""

    key: str
    came: TensorShape | str | None
    expected: TensorShape | str | None

    def __str__(self) -> str:
        return f"{short(self.key)}: came {_shown(self.came)}; expected {_shown(self.expected)}"

    @property
    def turned(self) -> bool:
        """Whether only the order of the axes differs."""
        both = (self.came, self.expected)
        return all(isinstance(shape, tuple) for shape in both) and sorted(self.came or ()) == sorted(
            self.expected or ()
        )


def _shown(value: TensorShape | str | None) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else short(str(list(value)))


def short(text: str, most: int = 100) -> str:
    """What a file says, fit to be printed: its authors choose the names of tensors."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def misfits(wanted: Shapes, given: Shapes, whole: Mapping[str, str]) -> list[Misfit]:
    """Every tensor that differs, in the order of the network; ``whole`` has the types that hold no fractions."""
    found = [Misfit(key, given.get(key), shape) for key, shape in wanted.items() if given.get(key) != shape]
    found += [Misfit(key, whole[key], _FLOAT) for key, shape in wanted.items() if key in whole and given[key] == shape]
    return found + [Misfit(key, shape, None) for key, shape in given.items() if key not in wanted]


def listed(found: Sequence[Misfit], most: int = 5) -> list[str]:
    """The first of them in three lines at most."""
    lines = [str(misfit) for misfit in found[:most]]
    step = 1 if len(lines) <= 3 else 2
    return ["; ".join(lines[i : i + step]) for i in range(0, len(lines), step)]


def advice(found: Collection[Misfit], given: Shapes, otherwise: str) -> str:
    """What to do about misfits, by what they have in common."""
    if all(misfit.expected == _FLOAT for misfit in found):
        return "save the tensors as fp32, fp16 or bf16"
    if all(misfit.turned for misfit in found):
        return "save the tensors with their axes as torch has them: O I H W"
    if all(misfit.key.startswith("head.") for misfit in found):
        return f"all but the classifier fits; {otherwise}"
    like = looks_like(given)
    return f"this file looks like {like}; {otherwise}" if like else otherwise


def looks_like(given: Shapes) -> str:
    """The networks of the catalogue that have these tensors, the head aside: ``resnet50 or resnet50_v1``."""
    for dialect, shapes in _readings(given):
        body = _body(shapes.items())
        channels = (*body.get(_STEM, ()), 0, 0)[1]
        names = [name for name in _as_deep(body) if _body(tensors_of(plan(ROWS[name])).items(), channels) == body]
        if names:
            usual = ROWS[names[0]].input[0]
            inputs = f" with {channels} input channel{'s' * (channels != 1)}" * (channels != usual)
            return " or ".join(names) + inputs + f" in the dialect {dialect}" * bool(dialect)
    return ""


def _readings(given: Shapes) -> Iterable[tuple[str, Shapes]]:
    """The names as they are, and as every dialect would have them that knows all of them."""
    yield "", given
    for table in TABLES:
        try:
            yield table.name, {table.ours(key): shape for key, shape in given.items()}
        except UsageError:
            continue


def _body(shapes: Iterable[tuple[str, TensorShape]], channels: int = 0) -> dict[str, TensorShape]:
    """All but the head and what old files lack; the stem for so many input channels, if any are named."""
    body = {key: shape for key, shape in shapes if not key.startswith("head.") and not key.endswith(COUNT)}
    if channels and _STEM in body:
        body[_STEM] = (body[_STEM][0], channels, *body[_STEM][2:])
    return body


def _as_deep(body: Shapes) -> list[str]:
    """The names with as many blocks in each stage, so that few plans are made."""
    deepest: dict[int, int] = {}
    for key in body:
        place = re.match(r"stage(\d{1,4})\.block(\d{1,4})\.", key)
        if place:
            stage, block = int(place[1]), int(place[2])
            deepest[stage] = max(deepest.get(stage, 0), block)
    blocks = [deepest[stage] for stage in sorted(deepest)]
    return [name for name, row in ROWS.items() if [stage.blocks for stage in row.stages] == blocks]
