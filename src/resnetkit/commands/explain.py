"""``resnetkit explain``.

This module imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resnetkit.architecture.card import Card, card_of
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.summary import HEADINGS, LEFT, cells, rows, total
from resnetkit.commands.output import output_file, prose, results, say, table, then
from resnetkit.commands.weights_options import AS_TOLD, Weights, loaded
from resnetkit.errors import UsageError
from resnetkit.serialization import to_data, to_toml
from resnetkit.training.recipe import is_weights_file


@dataclass(frozen=True)
class Options:
    """A network as a table, and why each part of it is there.

    Examples: resnetkit explain resnet50; resnetkit explain resnet50 --why stage2.block1.shortcut; resnetkit explain
    resnet50 --why layer1.0.downsample --why conv2_block1_0_conv; resnetkit explain resnet50 --html resnet50.html;
    resnetkit explain vgg19 --compare plain34 resnet34 --picture fig3.svg; resnetkit explain my-model/ --image cat.jpg;
    resnetkit explain resnet18 --toml > mine.toml
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A name, a .toml or .json file, a model folder, a run folder, or a weights file of any library."""
    why: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """A path to explain in words, such as stage2.block1.shortcut, or what another library calls it; may be given more
    than once."""
    depth: int = 1
    """1 stages, 2 blocks, 3 branches and shortcuts, 4 operations."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SIZE")] = ()
    """Another size of image: a side, or height and width."""
    names: Annotated[str, tyro.conf.arg(metavar="LIBRARY")] = ""
    """A column with what torchvision, timm, hf, keras, caffe or kuangliu calls each part."""
    compare: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL")] = ()
    """Other networks: what differs, block by block."""
    picture: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """An .svg file to draw the network to, or those that are compared beside each other."""
    html: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """An .html file to write: the network drawn to scale, every block of it on a click, for any size of image."""
    image: Annotated[str, tyro.conf.arg(metavar="PICTURE")] = ""
    """What a trained network sees in a picture, as a page: --html names it."""
    toml: bool = False
    """The spec itself, as TOML to edit."""
    json: bool = False
    """One JSON document instead of a table."""
    weights: Weights = AS_TOLD


_ALONE = {  # what each of these does not go together with
    "image": ("compare", "why", "names", "picture", "size", "toml"),
    "toml": ("compare", "why", "names", "picture", "size", "html", "json"),
    "compare": ("why", "names", "html"),
}


def _refuse_together(options: Options) -> None:
    """Raise `UsageError` for options of which one would not be heeded."""
    for name, others in _ALONE.items():
        for other in others:
            if getattr(options, name) and getattr(options, other):
                what = f"--{name} and --{other} do not go together"
                raise UsageError(what, where="resnetkit explain", fix=f"one command with --{name}, one with --{other}")


def run(options: Options) -> int:
    _refuse_together(options)
    if options.image:
        return _look(options)
    card = _card(options.model, options.weights)
    if options.toml:
        print(to_toml(card.spec), end="")
        return 0
    made = plan(card.spec, _size(options.size))
    if options.compare:
        return _compare(made, card.name, options)
    if options.picture:
        _draw(made, card.name, output_file(options.picture, ".svg"))
    if options.html:
        _page(made, card.name, output_file(options.html, ".html"))
    if options.json:
        results("explain", **_record(made, card.name, options))
    elif options.why:
        prose("\n\n".join(_answers(made, options.why)))
    elif not options.picture and not options.html:
        _show(made, options)
        then("resnetkit explain", options.model, *options.weights.words(), "--why", _interesting(made))
    return 0


def _card(model: str, weights: Weights) -> Card:
    """Of a weights file, or a folder of transformers, the card that reading it comes to."""
    if is_weights_file(model):
        return loaded(model, weights).card
    weights.refuse(model)
    return card_of(model)


def _size(image: tuple[int, ...]) -> tuple[int, int] | None:
    if len(image) > 2:
        raise UsageError(f"an image has a side, or height and width, not {len(image)} numbers", where="--size")
    return (image[0], image[-1]) if image else None


def _look(options: Options) -> int:
    """A page of what a trained network sees."""
    if options.image.isdecimal() and not Path(options.image).exists():
        raise UsageError("--image names a picture", where=options.image, fix=f"--size {options.image}")
    out = output_file(options.html or f"{Path(options.image).stem}-seen.html", ".html")
    from resnetkit.explain.grad_cam import look
    from resnetkit.explain.grad_cam_page import page

    model = loaded(options.model, options.weights)
    found = look(model, Path(options.image))
    _write(out, page(found, model.card.name, Path(options.image).name))
    if options.json:
        answers = [{"label": answer.label, "share": answer.share} for answer in found.answers]
        results("look", model=options.model, image=options.image, answers=answers, page=str(out))
    else:
        table(("answer", "share"), [(answer.label, f"{answer.share:.1%}") for answer in found.answers])
    then("resnetkit predict", options.image, "--model", options.model, *options.weights.words())
    return 0


def _compare(made: Plan, name: str, options: Options) -> int:
    from resnetkit.explain import compare

    plans = {name: made}
    for other in options.compare:
        card = _card(other, AS_TOLD)
        plans[_unlike(card.name, plans)] = plan(card.spec, _size(options.size))
    found = compare.compare(plans)
    if options.picture:
        from resnetkit.explain.drawings.side_by_side import figure

        _write(output_file(options.picture, ".svg"), figure(plans))
    if options.json:
        results("compare", **compare.record(found))
    elif not options.picture:
        table(*compare.totals_table(found), compare.LEFT_OF_TOTALS)
        print()
        table(*compare.rows_table(found), compare.LEFT_OF_ROWS)
        print()
        prose("\n".join(compare.sentences(found)))
        then("resnetkit explain", options.model, "--compare", *options.compare, "--picture", "compared.svg")
    return 0


def _unlike(name: str, taken: Container[str]) -> str:
    """The name, numbered where another network has it already."""
    return next(each for i in itertools.count(1) if (each := name if i == 1 else f"{name} ({i})") not in taken)


def _answers(made: Plan, words: tuple[str, ...]) -> list[str]:
    """A path, or another library's name and the path that it means here; then the answer."""
    from resnetkit.explain.why import why
    from resnetkit.weights.layer_aliases import resolve

    paths = [(word, resolve(made, word)) for word in words]
    return [f"{word if word == path else f'{word}: {path}'}\n{why(made, path)}" for word, path in paths]


def _show(made: Plan, options: Options) -> None:
    shown = [
        (row.path, *_named(made, row.path, options.names).values(), *cells(row)[1:])
        for row in rows(made, options.depth)
    ]
    headings = (HEADINGS[0], *([options.names] if options.names else []), *HEADINGS[1:])
    left = LEFT + bool(options.names)
    table(headings, shown, left, drop=("stride", "field", "share"), last=("output",))
    prose(total(made))


def _named(made: Plan, path: str, library: str) -> dict[str, str]:
    """What a library calls a part, if one was asked for."""
    from resnetkit.weights.layer_aliases import called

    return {library: called(made, path, library)} if library else {}


def _interesting(made: Plan) -> str:
    """The shortcut that most people ask about: the first one with an adapter."""
    shortcuts = [part for part in made.parts.values() if part.role == "shortcut"]
    told = next((part for part in shortcuts if part.nodes), None) or next(iter(shortcuts), made.root.children[0])
    return told.path


def _draw(made: Plan, name: str, path: Path) -> None:
    from resnetkit.explain.drawings.overview import picture

    _write(path, picture(made, name))


def _page(made: Plan, name: str, path: Path) -> None:
    from resnetkit.explain.page import page

    _write(path, page(name, made.spec))


def _write(path: Path, text: str) -> None:
    from resnetkit.files import write_text

    write_text(path, text)
    say(f"wrote {path}")


def _record(made: Plan, name: str, options: Options) -> dict[str, object]:
    from resnetkit.explain.why import why
    from resnetkit.weights.layer_aliases import resolve

    asked = {path: resolve(made, path) for path in options.why}
    return {
        "model": name,
        "spec": to_data(made.spec),
        "input": made.input,
        "params": made.params,
        "macs": made.macs,
        "activations": made.activations,
        "depth": made.depth,
        "receptive_field": made.receptive_field,
        "rows": [asdict(row) | _named(made, row.path, options.names) for row in rows(made, options.depth)],
        "why": {
            word: {"path": path, "reason": made[path].reason, "text": why(made, path)} for word, path in asked.items()
        },
    }
