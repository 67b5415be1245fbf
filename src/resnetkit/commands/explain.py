"""``resnetkit explain``.

This module imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from resnetkit.architecture import summary
from resnetkit.architecture.card import Card
from resnetkit.architecture.plan import Plan, plan
from resnetkit.commands.arguments import Argument
from resnetkit.commands.output import (
    check_output_file,
    fits_terminal,
    print_json,
    print_table,
    print_text,
    suggest_next,
    write_output,
)
from resnetkit.commands.records import build_plan_record
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.errors import UsageError
from resnetkit.explain import describe
from resnetkit.serialization import to_data, to_toml
from resnetkit.weights.model_source import HuggingFaceFolder, WeightsFile, load_card, resolve_model

if TYPE_CHECKING:
    from resnetkit.explain.why import Answer


@dataclass(frozen=True)
class Options:
    """Show a network as a table, and explain why each part is there.

    Examples: resnetkit explain resnet50; resnetkit explain resnet50 --why stage2.block1.shortcut; resnetkit explain
    resnet50 --why layer1.0.downsample --why conv2_block1_0_conv; resnetkit explain resnet50 --why "why no bias";
    resnetkit explain resnet50 --html resnet50.html;
    resnetkit explain vgg19 --compare plain34 resnet34 --picture fig3.svg; resnetkit explain my-model/ --image cat.jpg;
    resnetkit explain resnet18 --toml > mine.toml
    """

    model: Annotated[str, Argument("MODEL", is_positional=True)]
    """A name, a .toml or .json file, a model folder, a run folder, or a weights file of any library."""
    why: Annotated[tuple[str, ...], Argument("QUERY", is_repeatable=True)] = ()
    """What to explain: a path such as stage2.block1.shortcut, its name in another library, a word such as downsample,
    or a question in quotes."""
    questions: bool = False
    """List the words and questions that --why answers."""
    depth: int = 1
    """The detail of the table: 1 stages, 2 blocks, 3 branches and shortcuts, 4 operations."""
    size: Annotated[tuple[int, ...], Argument("SIZE")] = ()
    """Another image size in pixels: one side, or height and width."""
    names: Annotated[str, Argument("LIBRARY")] = ""
    """Add a column with the names of torchvision, timm, hf, keras, caffe or kuangliu."""
    compare: Annotated[tuple[str, ...], Argument("MODEL")] = ()
    """Other networks to compare with, block by block."""
    picture: Annotated[str, Argument("FILE")] = ""
    """An .svg file to write: a drawing of the network, or of the compared networks side by side."""
    html: Annotated[str, Argument("FILE")] = ""
    """An .html file to write: an interactive drawing to scale, for any image size."""
    image: Annotated[str, Argument("FILE")] = ""
    """An image to explain with Grad-CAM by a trained network; --html names the page."""
    toml: bool = False
    """Print the spec as TOML, to edit."""
    json: bool = False
    """Print one JSON document instead of a table."""
    weights: WeightsOptions = DEFAULT_WEIGHTS


_CONFLICTS = {  # option -> the options that have no meaning beside it
    "image": ("compare", "why", "questions", "names", "picture", "size", "toml"),
    "toml": ("compare", "why", "questions", "names", "picture", "size", "html", "json"),
    "compare": ("why", "questions", "names", "html"),
    "questions": ("why", "names", "picture", "size", "html", "json"),
}


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    _check_conflicts(options)
    if options.image:
        return _explain_image(options)
    card = _load_card(options.model, options.weights)
    if options.toml:
        print(to_toml(card.spec), end="")
        return 0
    network_plan = plan(card.spec, _parse_size(options.size))
    if options.questions:
        return _list_questions(options)
    if options.compare:
        return _compare(network_plan, card.name, options)
    if options.picture:
        from resnetkit.explain.drawings.overview import draw_overview

        write_output(check_output_file(options.picture, ".svg"), draw_overview(network_plan, card.name))
    if options.html:
        from resnetkit.explain.page import render_network_page

        write_output(check_output_file(options.html, ".html"), render_network_page(card.name, network_plan.spec))
    if options.json:
        print_json("explain", **_build_record(network_plan, card.name, options))
    elif options.why:
        print_text("\n\n".join(_explain_paths(network_plan, options.why)))
    elif not options.picture and not options.html:
        _show(network_plan, options)
        args = [*options.weights.to_args(), "--why", _select_shortcut_path(network_plan)]
        suggest_next("resnetkit explain", options.model, *args)
    return 0


def _check_conflicts(options: Options) -> None:
    for name, conflicts in _CONFLICTS.items():
        for conflict in conflicts:
            if getattr(options, name) and getattr(options, conflict):
                fix = f"one command with --{name}, one with --{conflict}"
                message = f"--{name} and --{conflict} cannot be combined"
                raise UsageError(message, where="resnetkit explain", fix=fix)


def _load_card(model: str, weights: WeightsOptions) -> Card:
    """Return the card of a model; for a weights file or a Hugging Face folder, read the weights."""
    source = resolve_model(model)
    if isinstance(source, WeightsFile | HuggingFaceFolder):
        return load_with_options(model, weights).card
    weights.check_unset(model)
    return load_card(source)


def _parse_size(size: tuple[int, ...]) -> tuple[int, int] | None:
    if len(size) > 2:
        message = f"--size takes one side, or height and width; got {len(size)} numbers"
        raise UsageError(message, where="--size", fix="--size 224, or --size 320 256")
    return (size[0], size[-1]) if size else None


def _explain_image(options: Options) -> int:
    """Write the Grad-CAM page of an image and print its top predictions."""
    if options.image.isdecimal() and not Path(options.image).exists():
        raise UsageError("--image takes an image file", where=options.image, fix=f"--size {options.image}")
    out = check_output_file(options.html or f"{Path(options.image).stem}-grad-cam.html", ".html")
    from resnetkit.explain.grad_cam import explain_image
    from resnetkit.explain.grad_cam_page import render_grad_cam_page

    model = load_with_options(options.model, options.weights)
    result = explain_image(model, Path(options.image))
    write_output(out, render_grad_cam_page(result, model.card.name, Path(options.image).name))
    predictions = [(prediction.label, prediction.probability) for prediction in result.predictions]
    if options.json:
        records = [{"label": label, "probability": probability} for label, probability in predictions]
        print_json("grad-cam", model=options.model, image=options.image, predictions=records, page=str(out))
    else:
        print_table(
            ("top prediction", "probability"), [(label, f"{probability:.1%}") for label, probability in predictions]
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

        write_output(check_output_file(options.picture, ".svg"), draw_side_by_side(plans))
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
    """Return the name, numbered if another network has it already."""
    candidates = itertools.chain([name], (f"{name} ({i})" for i in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in existing)


def _explain_paths(network_plan: Plan, queries: tuple[str, ...]) -> list[str]:
    """Explain each path; for another library's name, also give the path."""
    from resnetkit.explain.why import answer_query

    return [_format_answer(answer_query(network_plan, query)) for query in queries]


def _list_questions(options: Options) -> int:
    """Print a word and the question of each topic."""
    from resnetkit.explain.topics import read_topics

    print_table(("word", "question"), [(topic.name, topic.question) for topic in read_topics()], 2)
    suggest_next("resnetkit explain", options.model, *options.weights.to_args(), "--why", read_topics()[0].name)
    return 0


def _format_answer(answer: Answer) -> str:
    """Format an answer below its query, the path that was understood, and the question of its topic."""
    understood = answer.topic.question if answer.topic else answer.path
    headings = dict.fromkeys(text for text in (answer.query, understood) if text is not None)
    separator = " " if answer.query.endswith("?") else ": "
    return f"{separator.join(headings)}\n{answer.text}"


def _show(network_plan: Plan, options: Options) -> None:
    columns = _build_columns(network_plan, options)
    lines = [describe.format_shortcut_counts(network_plan), summary.format_summary_total(network_plan)]
    if "shortcuts" in columns and not fits_terminal([list(columns), *zip(*columns.values(), strict=True)]):
        pairs = zip(columns["path"], columns.pop("shortcuts"), strict=True)
        lines = [*(f"{path}: {text}" for path, text in pairs if text), *lines]
    # a narrow terminal drops the last three columns, and the output only if nothing else helps
    drop, drop_last, n_text_columns = summary.HEADINGS[:4:-1], summary.HEADINGS[2:3], list(columns).index("params")
    print_table(list(columns), list(zip(*columns.values(), strict=True)), n_text_columns, drop, drop_last)
    print_text("\n".join(lines))


def _build_columns(network_plan: Plan, options: Options) -> dict[str, list[str]]:
    """Return the columns of the table by heading; the shortcuts of a stage stand beside its description."""
    rows = [summary.format_summary_row(row) for row in summary.list_summary_rows(network_plan, options.depth)]
    cells = dict(zip(summary.HEADINGS, map(list, zip(*rows, strict=True)), strict=True))
    columns = {"path": cells.pop("path")}
    if options.names:
        names = [_build_name_column(network_plan, path, options.names) for path in columns["path"]]
        columns[options.names] = [name[options.names] for name in names]
    columns["description"] = cells.pop("description")
    shortcuts = [describe.summarize_shortcuts(network_plan[path]) for path in columns["path"]]
    if any(shortcuts):
        columns["shortcuts"] = shortcuts
    return columns | cells


def _build_name_column(network_plan: Plan, path: str, library: str) -> dict[str, str]:
    """Return the library and its name for a part, if a library is given."""
    from resnetkit.weights.layer_aliases import translate_path

    return {library: translate_path(network_plan, path, library)} if library else {}


def _select_shortcut_path(network_plan: Plan) -> str:
    """Return the path for the ``next:`` line: the first shortcut with an adapter."""
    shortcuts = [part for part in network_plan.parts.values() if part.role == "shortcut"]
    candidates = [*(part for part in shortcuts if part.nodes), *shortcuts, network_plan.root.children[0]]
    return candidates[0].path


def _build_answer_record(network_plan: Plan, answer: Answer) -> dict[str, str | None]:
    reason = "" if answer.path is None else network_plan[answer.path].reason
    record = {"path": answer.path, "reason": reason, "text": answer.text}
    if answer.topic:
        record |= {"question": answer.topic.question, "source": answer.topic.source}
    return record


def _build_record(network_plan: Plan, name: str, options: Options) -> dict[str, object]:
    from resnetkit.explain.why import answer_query

    return {
        "model": name,
        "spec": to_data(network_plan.spec),
        **build_plan_record(network_plan),
        "activations": network_plan.activations,
        "shortcuts": describe.count_shortcuts(network_plan),
        "rows": [
            asdict(row)
            | {"shortcuts": describe.summarize_shortcuts(network_plan[row.path])}
            | _build_name_column(network_plan, row.path, options.names)
            for row in summary.list_summary_rows(network_plan, options.depth)
        ],
        "why": {query: _build_answer_record(network_plan, answer_query(network_plan, query)) for query in options.why},
    }
