"""Training as a function: a new run, or one that goes on. The loop is in `loop`, what comes before it in `start`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnetkit.data.loader import Tell
from resnetkit.errors import Stopped, suggestion
from resnetkit.runtime.distributed import ALONE, Ranks, restarted
from resnetkit.runtime.signals import Stop
from resnetkit.training.checkpoint import (
    LATEST,
    STATE_FOLDER,
)
from resnetkit.training.finish import tidied
from resnetkit.training.memory import advice, is_lack, too_little
from resnetkit.training.overrides import OPTIONS
from resnetkit.training.resume import is_finished, require_unchanged
from resnetkit.training.resume import resume as resumed
from resnetkit.training.run_folder import (
    Epoch,
    Prepared,
    Run,
    Step,
    Watch,
    begun_before,
    finished,
    read_run,
    require_one,
)
from resnetkit.training.setup import Start, leave, start
from resnetkit.training.trackers.client import tracking
from resnetkit.training.trainer import DivergedError, Training


def train(
    data: str | Path | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    override: bool = False,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    tell: Tell | None = None,
    workers: int | None = None,
    stop: Stop | None = None,
    ranks: Ranks = ALONE,
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
    unknown = next((name for name in options if name not in OPTIONS), None)
    if unknown:
        raise TypeError(f"train has no option called {unknown!r}; {suggestion(unknown, OPTIONS)}")
    require_one(data, out, resume)
    if resume is None and restarted() and ranks.first(lambda: begun_before(out)):
        out, resume = None, out
    if resume is not None and ranks.first(lambda: is_finished(resume)):
        require_unchanged(resume, *(() if restarted() else (data, model, settings, *options.values())))
        return tidied(Path(resume)) if ranks.writes else read_run(resume)
    how: dict[str, Any] = {"device": device, "tell": tell, "workers": workers, "ranks": ranks, **options}
    if resume is not None:
        begun = resumed(resume, data, model, settings or {}, override=override, **how)
    else:
        begun = start(data or "", model, settings or {}, out=out, **how)
    try:
        begun = replace(begun, prepared=replace(begun.prepared, memory=advice(begun.prepared)))
        if watch:
            watch(begun.prepared)
        with _tracked(begun, ranks) as track:
            return Training(begun, _both(watch, track), stop or (lambda: False), ranks).run()
    except BaseException as error:
        kept = _keep(begun, error)
        if isinstance(error, Stopped) and kept:
            raise Stopped(str(error), str(begun.prepared.out), error.number) from None
        if is_lack(error):
            raise too_little(error, begun.prepared, begun.model, kept) from None
        raise


@contextlib.contextmanager
def _tracked(begun: Start, ranks: Ranks) -> Iterator[Watch]:
    """What trackers are told by, in the one process that writes."""
    if not ranks.writes:
        yield lambda event: None
        return
    with tracking(begun.prepared, begun.checkpoint.state.steps if begun.checkpoint else 0) as track:
        yield track


def _both(watch: Watch | None, track: Watch) -> Watch:
    def told(event: Prepared | Step | Epoch) -> None:
        if watch:
            watch(event)
        track(event)

    return told


def _keep(begun: Start, error: BaseException) -> bool:
    """Whether there is anything to go on with; a new run of which there is nothing leaves nothing."""
    folder = begun.prepared.out
    hopeless = isinstance(error, DivergedError) or not (folder / STATE_FOLDER / LATEST).exists()
    if begun.made and hopeless and not finished(folder):
        leave(begun.made)
    return folder.exists()
