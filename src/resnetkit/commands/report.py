"""``resnetkit report``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from resnetkit.commands.arguments import Argument
from resnetkit.commands.output import check_output_file, print_json, suggest_next, write_output
from resnetkit.commands.records import build_accuracy_record, format_accuracy_line
from resnetkit.errors import UsageError
from resnetkit.training.report import build_run_report
from resnetkit.training.run_folder import REPORT_FILE, read_run


@dataclass(frozen=True)
class Options:
    """Write the report of a finished run as a page, or compare several runs on one page.

    Examples: resnetkit report runs/flowers-resnet18-1; resnetkit report runs/first runs/second --out compared.html
    """

    runs: Annotated[tuple[str, ...], Argument("RUNS", is_positional=True)] = ()
    """Run folders, separated by spaces."""
    out: Annotated[str, Argument("FILE")] = ""
    """The .html file to write; by default report.html in the run's folder, or ./report.html for several runs."""
    json: bool = False
    """Print one JSON document about the runs and the written page."""


def run(options: Options) -> int:
    """Run the command and return its exit code.

    Raises:
        UsageError: No run is given.
    """
    if not options.runs:
        raise UsageError("no run is given", where="resnetkit report", fix="name one or more run folders")
    runs = [read_run(folder) for folder in options.runs]
    default_out = runs[0].path / REPORT_FILE if len(runs) == 1 else REPORT_FILE
    out = check_output_file(options.out or str(default_out), ".html")
    write_output(out, build_run_report(runs))
    if options.json:
        records = [{"run": str(run.path), **build_accuracy_record(run.evaluation)} for run in runs]
        print_json("report", page=str(out), runs=records)
        return 0
    for run in runs:
        print(f"{run.path}: {format_accuracy_line(run.evaluation)}")
    suggest_next("open", str(out))
    return 0
