"""The function `train`: new runs, resumed ones, those that torchrun restarted, and finished ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnetkit.errors import ResnetkitInterrupt, suggest_fix
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, is_restarted
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.runtime.signals import StopSignal
from resnetkit.training.checkpoint import LATEST_FILE
from resnetkit.training.events import EpochMetrics, EventCallback, PreparedRun, StepMetrics
from resnetkit.training.finish import finalize_run
from resnetkit.training.memory import build_out_of_memory_error, format_memory_line, is_out_of_memory
from resnetkit.training.overrides import TRAIN_OPTION_NAMES
from resnetkit.training.resume import check_no_changes, is_already_finished, resume_run
from resnetkit.training.run_folder import (
    REPORT_FILE,
    STATE_FOLDER,
    Run,
    check_new_or_resume,
    has_run,
    is_run_finished,
    read_run,
    remove_partial_run,
)
from resnetkit.training.run_lock import RunLock
from resnetkit.training.session import DivergedError
from resnetkit.training.setup import prepare_run
from resnetkit.training.trackers.client import track
from resnetkit.training.trainer import Trainer


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
    """Train a model on data and write a run folder, or resume a run.

    A model with weights is fine-tuned. A resumed run continues from its newest checkpoint, and on the same CPU ends
    with the weights of an uninterrupted run. If torchrun restarted the processes, ``out`` is resumed.

    Args:
        data: A folder of images or another dataset; not needed to resume.
        model: A name, a file or a trained model; resnet18 if neither this nor the settings name one.
        out: The run folder; by default ``runs/DATA-MODEL-1``, or the next free number.
        resume: The folder of an unfinished run.
        override: Resume although a changed setting makes the result differ from both configurations.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
        settings: Nested changes to the recipe, such as ``{"schedule": {"warmup": 2}}``.
        on_event: Called with a `PreparedRun`, then with `StepMetrics` and `EpochMetrics`.
        on_progress: Called with (done, all) while images are read.
        workers: Threads that read images; None for one on each core, 0 for the training loop itself.
        stop: Called between steps; if it returns a true value, a checkpoint is written and training stops.
        dist: The processes of the run; each is called with the same arguments, the first one writes.
        **options: The options of the command line that `resnetkit.training.overrides.TRAIN_OPTION_NAMES` lists, such
            as ``epochs``, ``batch_size``, ``lr``, ``recipe`` and ``merge_classes``.

    Returns:
        The finished run; one that had finished before is unchanged.

    Raises:
        TypeError: an option is unknown.
        ResnetkitInterrupt: training was stopped; a KeyboardInterrupt.
        UsageError: the arguments do not fit together, or to the run that is resumed.
        DataError: the data cannot be trained on.
        MachineError: memory, disk or device are missing.
    """
    _check_option_names(options)
    check_new_or_resume(data, out, resume)
    if resume is None and _is_restarted_run(out, dist):
        out, resume = None, out
    shared: dict[str, Any] = {"device": device, "on_progress": on_progress, "workers": workers, "dist": dist, **options}
    with RunLock() as lock:
        if resume is None:
            run = prepare_run(data or "", model, settings or {}, out=out, lock=lock, **shared)
        elif dist.run_on_main(lambda: is_already_finished(resume)):
            return _return_finished_run(Path(resume), (data, model, settings, *options.values()), dist, lock)
        else:
            dist.run_on_main(lambda: lock.acquire(Path(resume)))
            run = resume_run(resume, data, model, settings or {}, override=override, **shared)
        return _train_run(run, on_event, stop, dist, lock)


def _check_option_names(options: Mapping[str, Any]) -> None:
    unknown = next((name for name in options if name not in TRAIN_OPTION_NAMES), None)
    if unknown:
        raise TypeError(f"train has no option called {unknown!r}; {suggest_fix(unknown, TRAIN_OPTION_NAMES)}")


def _is_restarted_run(out: str | Path | None, dist: ProcessGroup) -> bool:
    """Return whether torchrun restarted these processes and their run has begun."""
    return is_restarted() and bool(dist.run_on_main(lambda: has_run(out)))


def _return_finished_run(folder: Path, given: tuple[object, ...], dist: ProcessGroup, lock: RunLock) -> Run:
    """Return a finished run; restarted processes may still name the settings that they began with."""
    if not is_restarted():
        check_no_changes(folder, *given)
    if dist.is_main and ((folder / STATE_FOLDER).exists() or not (folder / REPORT_FILE).exists()):
        lock.acquire(folder)
        return finalize_run(folder)
    return read_run(folder)


def _train_run(
    run: PreparedRun, on_event: EventCallback | None, stop: StopSignal | None, dist: ProcessGroup, lock: RunLock
) -> Run:
    """Train a prepared run; if that fails, remove a run folder that holds nothing to resume."""
    try:
        run = replace(run, memory_line=format_memory_line(run))
        if on_event:
            on_event(run)
        with track(run, run.recipe.trackers if dist.is_main else ()) as log_event:
            return Trainer(run, _combine_callbacks(on_event, log_event), stop or (lambda: False), dist).fit()
    except BaseException as error:
        lock.release()  # its file may be in a new parent of the folder
        can_resume = _clean_up_failed_run(run, error)
        if isinstance(error, ResnetkitInterrupt) and can_resume:
            raise ResnetkitInterrupt(str(error), str(run.out), error.signal_number) from None
        if is_out_of_memory(error):
            raise build_out_of_memory_error(error, run, can_resume) from None
        raise


def _combine_callbacks(*callbacks: EventCallback | None) -> EventCallback:
    def call_all(event: PreparedRun | StepMetrics | EpochMetrics) -> None:
        for callback in filter(None, callbacks):
            callback(event)

    return call_all


def _clean_up_failed_run(run: PreparedRun, error: BaseException) -> bool:
    """Remove the folder of a new run that cannot be resumed; return whether the folder is left."""
    is_worthless = isinstance(error, DivergedError) or not (run.out / STATE_FOLDER / LATEST_FILE).exists()
    if run.created_folders and is_worthless and not is_run_finished(run.out):
        remove_partial_run(run.created_folders)
    return run.out.exists()
