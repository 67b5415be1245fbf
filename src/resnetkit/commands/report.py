"""``resnetkit report``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.commands.output import check_output_file, log, print_json, suggest_next
from resnetkit.errors import UsageError
from resnetkit.evaluation.result import format_accuracy
from resnetkit.files import write_text
from resnetkit.training.report import build_run_report
from resnetkit.training.run_folder import REPORT_FILE, read_run


@dataclass(frozen=True)
class Options:
    """A finished run as a page, or several runs laid over each other on one page.

    Examples: resnetkit report runs/flowers-resnet18-1; resnetkit report runs/first runs/second --out compared.html
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folders."""
    out: str = ""
    """The .html file to write; report.html in the run's folder, or ./report.html for several runs."""
    json: bool = False
    """One JSON document that says what was read and written."""


def run(options: Options) -> int:
    if not options.runs:
        raise UsageError("there is no run to report", where="resnetkit report", fix="name one or more run folders")
    runs = [read_run(folder) for folder in options.runs]
    out = check_output_file(options.out or str(runs[0].path / REPORT_FILE if len(runs) == 1 else REPORT_FILE), ".html")
    write_text(out, build_run_report(runs))
    if options.json:
        records = [
            {
                "run": str(run.path),
                "n": run.evaluation.n,
                "correct": run.evaluation.correct,
                "top1": run.evaluation.top1,
            }
            for run in runs
        ]
        print_json("report", page=str(out), runs=records)
        return 0
    for run in runs:
        print(f"{run.path}: {run.evaluation.split}: {format_accuracy(run.evaluation.correct, run.evaluation.n)}")
    log(f"wrote {out}")
    suggest_next("open", str(out))
    return 0
