"""``resnetkit report``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.commands.output import output_file, results, say, then
from resnetkit.errors import UsageError
from resnetkit.evaluation.result import told
from resnetkit.files import write_text
from resnetkit.training.report import report
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
    out = output_file(options.out or str(runs[0].path / REPORT_FILE if len(runs) == 1 else REPORT_FILE), ".html")
    write_text(out, report(runs))
    if options.json:
        found = [
            {
                "run": str(run.path),
                "n": run.evaluation.n,
                "correct": run.evaluation.correct,
                "top1": run.evaluation.top1,
            }
            for run in runs
        ]
        results("report", page=str(out), runs=found)
        return 0
    for run in runs:
        print(f"{run.path}: {run.evaluation.part}: {told(run.evaluation.correct, run.evaluation.n)}")
    say(f"wrote {out}")
    then("open", str(out))
    return 0
