"""``resnetkit check``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resnetkit.commands.output import counting, output_file, prose, results, say, table, then
from resnetkit.data.check import Checked, Twins, check
from resnetkit.errors import DataError
from resnetkit.files import write_text
from resnetkit.formatting import counted, printable


@dataclass(frozen=True)
class Options:
    """Look at every picture: which cannot be read, are there twice, or are in train and val as well. Changes nothing.

    The exit code is 3 where something was found. Examples: resnetkit check flowers/; resnetkit check flowers/ --page
    check.html; resnetkit check labels.csv --json
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder, a table (.csv), Parquet or an archive as train takes it, or digits."""
    page: str = ""
    """An .html file to write, with the pictures that are meant."""
    write_list: str = ""
    """A .txt file to write: the pictures that cannot be read, one a line."""
    json: bool = False
    """One JSON document instead of a table."""


def run(options: Options) -> int:
    if options.page:
        output_file(options.page, ".html")
    if options.write_list:
        output_file(options.write_list, ".txt")
    with counting("looking at pictures") as tell:
        found = check(options.data, tell=tell)
    if options.json:
        results("check", data=options.data, **_record(found))
    else:
        _show(found)
    _write(options, found)
    if not found.findings:
        then("resnetkit train", options.data, "--model", "resnet18")
    elif not options.page:
        then("resnetkit check", options.data, "--page", "check.html")
    return DataError.exit_code if found.findings else 0


def _show(found: Checked) -> None:
    counts = found.counts
    rows = [(name, *(str(n[label]) for n in counts.values())) for label, name in enumerate(found.data.classes)]
    if len(rows) <= _MOST_CLASSES:
        table(("class", *counts), rows)
    sizes = ", ".join(f"{name} {width}x{height}" for name, width, height in found.sizes())
    prose(f"{counted(len(found.looks), 'picture')} in {counted(len(rows), 'class')}; {sizes}")
    for note in found.notes:
        prose(f"note: {note}")
    for finding in found.findings:
        prose(f"\n{finding.kind}: {finding.count:,}")
        for example in finding.examples[:_SHOWN]:
            prose(f"  {printable(example)}")
        if finding.count > _SHOWN:
            prose(f"  ... and {finding.count - _SHOWN:,} more")
    if not found.findings:
        prose("nothing was found that is wrong")


_SHOWN = 5
_MOST_CLASSES = 40


def _write(options: Options, found: Checked) -> None:
    if options.page:
        from resnetkit.data.check_page import check_page

        write_text(Path(options.page), check_page(found))
        say(f"wrote {options.page}")
    if options.write_list:
        lines = [look.where.replace("\n", "\\n") for look in found.unreadable]
        write_text(Path(options.write_list), "".join(f"{line}\n" for line in lines))
        say(f"wrote {options.write_list}: {len(lines)} pictures")


def _record(found: Checked) -> dict[str, object]:
    return {
        "n": len(found.looks),
        "classes": found.data.classes,
        "counts": found.counts,
        "sizes": [{"which": name, "width": width, "height": height} for name, width, height in found.sizes()],
        "findings": [{"kind": f.kind, "count": f.count, "examples": f.examples} for f in found.findings],
        "unreadable": [{"file": look.where, "error": look.error} for look in found.unreadable],
        "twins": [_twins(found, twins) for twins in found.twins],
        "notes": found.notes,
    }


def _twins(found: Checked, twins: Twins) -> dict[str, object]:
    files = [{"file": look.where, "part": look.part, "class": found.data.classes[look.label]} for look in twins.looks]
    return {"leak": twins.leak, "contradiction": twins.contradiction, "same_bytes": twins.same_bytes, "files": files}
