"""``resnetkit explain``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resnetkit.architecture.card import Card, card_of
from resnetkit.architecture.listing import HEADINGS, LEFT, cells, rows, total
from resnetkit.architecture.plan import Plan, plan
from resnetkit.commands.output import output_file, prose, results, say, table, then
from resnetkit.commands.source import AS_TOLD, Weights, loaded
from resnetkit.errors import UsageError
from resnetkit.learn.recipe import is_weights_file
from resnetkit.text import to_data, to_toml


@dataclass(frozen=True)
class Options:
    """A network as a table, and why each part of it is there.

    Examples: resnetkit explain resnet50; resnetkit explain resnet50 --why stage2.block1.shortcut; resnetkit explain
    resnet18 --toml > mine.toml; resnetkit explain mine.toml --picture mine.svg
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A name, a .toml or .json file, a model folder, a run folder, or a weights file of any library."""
    why: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """A path to explain in words, such as stage2.block1.shortcut; may be given more than once."""
    depth: int = 1
    """1 stages, 2 blocks, 3 branches and shortcuts, 4 operations."""
    image: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SIZE")] = ()
    """Another size of image: a side, or height and width."""
    picture: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """An .svg file to draw the network to."""
    toml: bool = False
    """The spec itself, as TOML to edit."""
    json: bool = False
    """One JSON document instead of a table."""
    weights: Weights = AS_TOLD


def run(options: Options) -> int:
    card = _card(options.model, options.weights)
    if options.toml:
        print(to_toml(card.spec), end="")
        return 0
    made = plan(card.spec, _size(options.image))
    if options.picture:
        _draw(made, card.name, output_file(options.picture, ".svg"))
    if options.json:
        results("explain", **_record(made, card.name, options))
    elif options.why:
        prose("\n\n".join(_answers(made, options.why)))
    elif not options.picture:
        _show(made, options.depth)
        then("resnetkit explain", options.model, "--why", _interesting(made))
    return 0


def _card(model: str, weights: Weights) -> Card:
    """Of a weights file, or a folder of transformers, the card that reading it comes to."""
    return loaded(model, weights).card if is_weights_file(model) else card_of(model)


def _size(image: tuple[int, ...]) -> tuple[int, int] | None:
    if len(image) > 2:
        raise UsageError(f"an image has a side, or height and width, not {len(image)} numbers", where="--image")
    return (image[0], image[-1]) if image else None


def _answers(made: Plan, paths: tuple[str, ...]) -> list[str]:
    from resnetkit.explain.why import why

    return [f"{path}\n{why(made, path)}" for path in paths]


def _show(made: Plan, depth: int) -> None:
    table(
        HEADINGS, [cells(row) for row in rows(made, depth)], LEFT, drop=("stride", "field", "share"), last=("output",)
    )
    prose(total(made))


def _interesting(made: Plan) -> str:
    """The shortcut that most people ask about: the first one with an adapter."""
    shortcuts = [part for part in made.parts.values() if part.role == "shortcut"]
    told = next((part for part in shortcuts if part.nodes), None) or next(iter(shortcuts), made.root.children[0])
    return told.path


def _draw(made: Plan, name: str, path: Path) -> None:
    from resnetkit.explain.picture import picture
    from resnetkit.files import write_text

    write_text(path, picture(made, name))
    say(f"wrote {path}")


def _record(made: Plan, name: str, options: Options) -> dict[str, object]:
    from resnetkit.explain.why import why

    return {
        "model": name,
        "spec": to_data(made.spec),
        "input": made.input,
        "params": made.params,
        "macs": made.macs,
        "activations": made.activations,
        "depth": made.depth,
        "receptive_field": made.receptive_field,
        "rows": [asdict(row) for row in rows(made, options.depth)],
        "why": {path: {"reason": made[path].reason, "text": why(made, path)} for path in options.why},
    }
