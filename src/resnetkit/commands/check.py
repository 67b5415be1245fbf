"""``resnetkit check``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from resnetkit.commands import output
from resnetkit.commands.arguments import Argument
from resnetkit.commands.data_options import DEFAULT_DATA_READING, DataReadingOptions
from resnetkit.commands.image_options import DEFAULT_IMAGE_OPTIONS, ImageOptions
from resnetkit.commands.records import build_file_errors
from resnetkit.data.check import CheckResult, DuplicateGroup, check
from resnetkit.errors import DataError
from resnetkit.formatting import escape_control, pluralize

_MAX_EXAMPLES = 5
_MAX_CLASSES = 40


@dataclass(frozen=True)
class Options:
    """Find unreadable, duplicate and leaking images in a dataset. Nothing is changed.

    If there are findings, the exit code is 3. Examples: resnetkit check flowers/; resnetkit check flowers/ --page
    check.html; resnetkit check labels.csv --json
    """

    data: Annotated[str, Argument("DATA", is_positional=True)]
    """A folder, a table (.csv), Parquet or an archive as train takes it, or digits."""
    reading: DataReadingOptions = DEFAULT_DATA_READING
    page: Annotated[str, Argument("FILE")] = ""
    """An .html file to write: the findings with their images."""
    write_list: Annotated[str, Argument("FILE")] = ""
    """A .txt file to write: the unreadable images, one per line."""
    json: bool = False
    """Print one JSON document instead of a table."""
    images: ImageOptions = DEFAULT_IMAGE_OPTIONS


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    options.images.apply()
    if options.page:
        output.check_output_file(options.page, ".html")
    if options.write_list:
        output.check_output_file(options.write_list, ".txt")
    with output.progress_bar("checking images") as on_progress:
        result = check(options.data, on_progress=on_progress, **asdict(options.reading))
    if options.json:
        output.print_json("check", data=options.data, **_build_record(result))
    else:
        _show(result)
    _write_files(options, result)
    data_args = [options.data, *options.reading.build().to_args()]
    if not result.findings:
        output.suggest_next("resnetkit train", *data_args, "--model", "resnet18")
    elif not options.page:
        output.suggest_next("resnetkit check", *data_args, "--page", "check.html")
    return DataError.exit_code if result.findings else 0


def _show(result: CheckResult) -> None:
    counts = result.counts
    rows = [(name, *(str(n[label]) for n in counts.values())) for label, name in enumerate(result.dataset.classes)]
    if len(rows) <= _MAX_CLASSES:
        output.print_table(("class", *counts), rows)
    sizes = ", ".join(f"{name} {width}x{height}" for name, width, height in result.summarize_sizes())
    output.print_text(f"{pluralize(len(result.images), 'image')} in {pluralize(len(rows), 'class')}; {sizes}")
    for note in result.notes:
        output.print_text(f"note: {note}")
    for finding in result.findings:
        output.print_text(f"\n{finding.kind}: {finding.count:,}")
        for example in finding.examples[:_MAX_EXAMPLES]:
            output.print_text(f"  {escape_control(example)}")
        if finding.count > _MAX_EXAMPLES:
            output.print_text(f"  ... and {finding.count - _MAX_EXAMPLES:,} more")
    if not result.findings:
        output.print_text("no problems found")


def _write_files(options: Options, result: CheckResult) -> None:
    if options.page:
        from resnetkit.data.check_page import build_check_page

        output.write_output(Path(options.page), build_check_page(result))
    if options.write_list:
        lines = [image.location.replace("\n", "\\n") + "\n" for image in result.unreadable]
        output.write_output(Path(options.write_list), "".join(lines), f": {pluralize(len(lines), 'image')}")


def _build_record(result: CheckResult) -> dict[str, object]:
    sizes = [{"name": name, "width": width, "height": height} for name, width, height in result.summarize_sizes()]
    return {
        "n": len(result.images),
        "classes": result.dataset.classes,
        "counts": result.counts,
        "sizes": sizes,
        "findings": [{"kind": f.kind, "count": f.count, "examples": f.examples} for f in result.findings],
        "unreadable": build_file_errors([(image.location, image.error) for image in result.unreadable]),
        "duplicates": [_build_duplicates_record(result, duplicates) for duplicates in result.duplicates],
        "near_duplicates": [_build_duplicates_record(result, duplicates) for duplicates in result.near_duplicates],
        "notes": result.notes,
    }


def _build_duplicates_record(result: CheckResult, duplicates: DuplicateGroup) -> dict[str, object]:
    files = [
        {"file": image.location, "split": image.split, "class": result.dataset.classes[image.label]}
        for image in duplicates.images
    ]
    return {
        "leak": duplicates.is_leak,
        "conflicting_labels": duplicates.has_conflicting_labels,
        "same_bytes": duplicates.same_bytes,
        "files": files,
    }
