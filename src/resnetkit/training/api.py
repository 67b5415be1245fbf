"""Training as a function: a new run, or one that goes on. The loop is in `loop`, what comes before it in `start`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnetkit.errors import ResnetkitInterrupt, suggest_fix
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, is_restarted
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.runtime.signals import StopSignal
from resnetkit.training.checkpoint import (
    LATEST_FILE,
    STATE_FOLDER,
)
from resnetkit.training.finish import finalize_run
from resnetkit.training.memory import build_out_of_memory_error, format_memory_line, is_out_of_memory
from resnetkit.training.overrides import TRAIN_OPTION_NAMES
from resnetkit.training.resume import check_no_changes, is_already_finished, resume_run
from resnetkit.training.run_folder import (
    EpochMetrics,
    EventCallback,
    Run,
    RunSetup,
    StepMetrics,
    check_new_or_resume,
    has_run,
    is_run_finished,
    read_run,
)
from resnetkit.training.setup import PreparedRun, prepare_run, remove_partial_run
from resnetkit.training.trackers.client import track
from resnetkit.training.trainer import DivergedError, Trainer


def train(
    data: str | Path | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    override: bool = False,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    on_event: EventCallback | None = None,
    on_progress: ProgressCallback | None = None,
    workers: int | None = None,
    stop: StopSignal | None = None,
    dist: ProcessGroup = SINGLE_PROCESS,
    **options: Any,
) -> Run:
    """Train ``model`` (resnet18 if none is named) on ``data`` and write a run folder, or go on with one.

    A model that has weights is fine-tuned. ``settings`` are nested changes to the `Recipe` that suits the data, such as
    ``{"schedule": {"warmup": 2}}``, and ``options`` those of the command line: recipe, epochs, batch_size, lr, seed,
    split_seed, patience, checkpoint_steps, accumulate, track, precision, network, dialect, reset_head, input_channels,
    bad_files, max_bad. ``watch`` is called with what happens, ``tell`` with (done, all) while pictures are read.
    Without ``out`` the folder is ``runs/DATA-MODEL-1``, or the next number that is free. ``workers`` threads read
    pictures (one on each core if left out; 0 is the loop itself), which changes the pace and nothing else. Raises
    before anything is written wherever the fault can be known by then.

    ``resume`` names an unfinished run, which needs no data and no model: it goes on after its newest checkpoint, and on
    the same CPU ends with the very weights it would have ended with. What is set otherwise than it was is refused where
    it makes the result that of neither, unless ``override``. A finished run is handed back as it is. ``stop`` is asked
    between two steps and two batches of an evaluation: where it says so, a checkpoint is written and
    `resnetkit.errors.Stopped`, a KeyboardInterrupt, is raised. ``ranks`` are the processes of the run: each is told the
    same, the first writes. Where torchrun has started them again, an unfinished ``out`` is resumed.
    """
    unknown = next((name for name in options if name not in TRAIN_OPTION_NAMES), None)
    if unknown:
        raise TypeError(f"train has no option called {unknown!r}; {suggest_fix(unknown, TRAIN_OPTION_NAMES)}")
    check_new_or_resume(data, out, resume)
    if resume is None and is_restarted() and dist.run_on_main(lambda: has_run(out)):
        out, resume = None, out
    if resume is not None and dist.run_on_main(lambda: is_already_finished(resume)):
        check_no_changes(resume, *(() if is_restarted() else (data, model, settings, *options.values())))
        return finalize_run(Path(resume)) if dist.is_main else read_run(resume)
    shared: dict[str, Any] = {"device": device, "on_progress": on_progress, "workers": workers, "dist": dist, **options}
    if resume is not None:
        run = resume_run(resume, data, model, settings or {}, override=override, **shared)
    else:
        run = prepare_run(data or "", model, settings or {}, out=out, **shared)
    try:
        run = replace(run, setup=replace(run.setup, memory_line=format_memory_line(run.setup)))
        if on_event:
            on_event(run.setup)
        with _track_run(run, dist) as log_event:
            return Trainer(run, _combine_callbacks(on_event, log_event), stop or (lambda: False), dist).run()
    except BaseException as error:
        can_resume = _clean_up_failed_run(run, error)
        if isinstance(error, ResnetkitInterrupt) and can_resume:
            raise ResnetkitInterrupt(str(error), str(run.setup.out), error.signal_number) from None
        if is_out_of_memory(error):
            raise build_out_of_memory_error(error, run.setup, run.model, can_resume) from None
        raise


@contextlib.contextmanager
def _track_run(run: PreparedRun, dist: ProcessGroup) -> Iterator[EventCallback]:
    """What trackers are told by, in the one process that writes."""
    if not dist.is_main:
        yield lambda event: None
        return
    with track(run.setup, run.checkpoint.state.global_step if run.checkpoint else 0) as log_event:
        yield log_event


def _combine_callbacks(on_event: EventCallback | None, log_event: EventCallback) -> EventCallback:
    def call_both(event: RunSetup | StepMetrics | EpochMetrics) -> None:
        if on_event:
            on_event(event)
        log_event(event)

    return call_both


def _clean_up_failed_run(run: PreparedRun, error: BaseException) -> bool:
    """Whether there is anything to go on with; a new run of which there is nothing leaves nothing."""
    folder = run.setup.out
    is_worthless = isinstance(error, DivergedError) or not (folder / STATE_FOLDER / LATEST_FILE).exists()
    if run.created_folders and is_worthless and not is_run_finished(folder):
        remove_partial_run(run.created_folders)
    return folder.exists()
