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

from resnetkit.architecture.card import Card, resolve_card
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.summary import (
    HEADINGS,
    N_TEXT_COLUMNS,
    format_summary_row,
    format_summary_total,
    list_summary_rows,
)
from resnetkit.commands.output import check_output_file, log, print_json, print_table, print_text, suggest_next
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.errors import UsageError
from resnetkit.serialization import to_data, to_toml
from resnetkit.training.resolve import is_weights_file


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
    weights: WeightsOptions = DEFAULT_WEIGHTS


_CONFLICTS = {  # what each of these does not go together with
    "image": ("compare", "why", "names", "picture", "size", "toml"),
    "toml": ("compare", "why", "names", "picture", "size", "html", "json"),
    "compare": ("why", "names", "html"),
}


def _check_conflicts(options: Options) -> None:
    """Raise `UsageError` for options of which one would not be heeded."""
    for name, conflicts in _CONFLICTS.items():
        for conflict in conflicts:
            if getattr(options, name) and getattr(options, conflict):
                message = f"--{name} and --{conflict} do not go together"
                raise UsageError(
                    message, where="resnetkit explain", fix=f"one command with --{name}, one with --{conflict}"
                )


def run(options: Options) -> int:
    _check_conflicts(options)
    if options.image:
        return _explain_image(options)
    card = _load_card(options.model, options.weights)
    if options.toml:
        print(to_toml(card.spec), end="")
        return 0
    network_plan = plan(card.spec, _parse_size(options.size))
    if options.compare:
        return _compare(network_plan, card.name, options)
    if options.picture:
        _draw(network_plan, card.name, check_output_file(options.picture, ".svg"))
    if options.html:
        _write_page(network_plan, card.name, check_output_file(options.html, ".html"))
    if options.json:
        print_json("explain", **_build_record(network_plan, card.name, options))
    elif options.why:
        print_text("\n\n".join(_explain_paths(network_plan, options.why)))
    elif not options.picture and not options.html:
        _show(network_plan, options)
        suggest_next(
            "resnetkit explain", options.model, *options.weights.to_args(), "--why", _select_shortcut_path(network_plan)
        )
    return 0


def _load_card(model: str, weights: WeightsOptions) -> Card:
    """Of a weights file, or a folder of transformers, the card that reading it comes to."""
    if is_weights_file(model):
        return load_with_options(model, weights).card
    weights.check_unset(model)
    return resolve_card(model)


def _parse_size(size: tuple[int, ...]) -> tuple[int, int] | None:
    if len(size) > 2:
        raise UsageError(f"an image has a side, or height and width, not {len(size)} numbers", where="--size")
    return (size[0], size[-1]) if size else None


def _explain_image(options: Options) -> int:
    """A page of what a trained network sees."""
    if options.image.isdecimal() and not Path(options.image).exists():
        raise UsageError("--image names a picture", where=options.image, fix=f"--size {options.image}")
    out = check_output_file(options.html or f"{Path(options.image).stem}-seen.html", ".html")
    from resnetkit.explain.grad_cam import explain_image
    from resnetkit.explain.grad_cam_page import render_grad_cam_page

    model = load_with_options(options.model, options.weights)
    result = explain_image(model, Path(options.image))
    _write(out, render_grad_cam_page(result, model.card.name, Path(options.image).name))
    if options.json:
        predictions = [
            {"label": prediction.label, "share": prediction.probability} for prediction in result.predictions
        ]
        print_json("look", model=options.model, image=options.image, answers=predictions, page=str(out))
    else:
        print_table(
            ("answer", "share"),
            [(prediction.label, f"{prediction.probability:.1%}") for prediction in result.predictions],
        )
    suggest_next("resnetkit predict", options.image, "--model", options.model, *options.weights.to_args())
    return 0


def _compare(network_plan: Plan, name: str, options: Options) -> int:
    from resnetkit.explain import compare

    plans = {name: network_plan}
    for model in options.compare:
        card = _load_card(model, DEFAULT_WEIGHTS)
        plans[_make_unique_name(card.name, plans)] = plan(card.spec, _parse_size(options.size))
    comparison = compare.compare_plans(plans)
    if options.picture:
        from resnetkit.explain.drawings.side_by_side import draw_side_by_side

        _write(check_output_file(options.picture, ".svg"), draw_side_by_side(plans))
    if options.json:
        print_json("compare", **compare.serialize_comparison(comparison))
    elif not options.picture:
        print_table(*compare.build_totals_table(comparison), compare.TOTALS_TEXT_COLUMNS)
        print()
        print_table(*compare.build_rows_table(comparison), compare.ROWS_TEXT_COLUMNS)
        print()
        print_text("\n".join(compare.describe_differences(comparison)))
        suggest_next("resnetkit explain", options.model, "--compare", *options.compare, "--picture", "compared.svg")
    return 0


def _make_unique_name(name: str, existing: Container[str]) -> str:
    """The name, numbered where another network has it already."""
    return next(
        candidate for i in itertools.count(1) if (candidate := name if i == 1 else f"{name} ({i})") not in existing
    )


def _explain_paths(network_plan: Plan, queries: tuple[str, ...]) -> list[str]:
    """A path, or another library's name and the path that it means here; then the answer."""
    from resnetkit.explain.why import why
    from resnetkit.weights.layer_aliases import resolve_path

    paths = [(query, resolve_path(network_plan, query)) for query in queries]
    return [f"{query if query == path else f'{query}: {path}'}\n{why(network_plan, path)}" for query, path in paths]


def _show(network_plan: Plan, options: Options) -> None:
    lines = [
        (row.path, *_build_name_column(network_plan, row.path, options.names).values(), *format_summary_row(row)[1:])
        for row in list_summary_rows(network_plan, options.depth)
    ]
    headings = (HEADINGS[0], *([options.names] if options.names else []), *HEADINGS[1:])
    n_text_columns = N_TEXT_COLUMNS + bool(options.names)
    print_table(headings, lines, n_text_columns, drop=("stride", "field", "share"), drop_last=("output",))
    print_text(format_summary_total(network_plan))


def _build_name_column(network_plan: Plan, path: str, library: str) -> dict[str, str]:
    """What a library calls a part, if one was asked for."""
    from resnetkit.weights.layer_aliases import translate_path

    return {library: translate_path(network_plan, path, library)} if library else {}


def _select_shortcut_path(network_plan: Plan) -> str:
    """The shortcut that most people ask about: the first one with an adapter."""
    shortcuts = [part for part in network_plan.parts.values() if part.role == "shortcut"]
    shortcut = next((part for part in shortcuts if part.nodes), None) or next(
        iter(shortcuts), network_plan.root.children[0]
    )
    return shortcut.path


def _draw(network_plan: Plan, name: str, path: Path) -> None:
    from resnetkit.explain.drawings.overview import draw_overview

    _write(path, draw_overview(network_plan, name))


def _write_page(network_plan: Plan, name: str, path: Path) -> None:
    from resnetkit.explain.page import render_network_page

    _write(path, render_network_page(name, network_plan.spec))


def _write(path: Path, text: str) -> None:
    from resnetkit.files import write_text

    write_text(path, text)
    log(f"wrote {path}")


def _build_record(network_plan: Plan, name: str, options: Options) -> dict[str, object]:
    from resnetkit.explain.why import why
    from resnetkit.weights.layer_aliases import resolve_path

    paths = {path: resolve_path(network_plan, path) for path in options.why}
    return {
        "model": name,
        "spec": to_data(network_plan.spec),
        "input": network_plan.input,
        "params": network_plan.params,
        "macs": network_plan.macs,
        "activations": network_plan.activations,
        "depth": network_plan.depth,
        "receptive_field": network_plan.receptive_field,
        "rows": [
            asdict(row) | _build_name_column(network_plan, row.path, options.names)
            for row in list_summary_rows(network_plan, options.depth)
        ],
        "why": {
            query: {"path": path, "reason": network_plan[path].reason, "text": why(network_plan, path)}
            for query, path in paths.items()
        },
    }
