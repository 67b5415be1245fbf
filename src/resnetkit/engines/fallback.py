"""Several engines used as one: if an engine fails, the next one computes the same images again.

An engine fails if it cannot be loaded, raises an error or does not answer in time. It also fails if its logits have
another shape, or are NaN or infinite. The last engine is torch, unless the user named an engine.

This module imports no torch.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import numpy as np

from resnetkit.engines.base import Engine, EngineConfig, EngineError, Logits
from resnetkit.engines.saved import SavedEngine, format_optimize_command, get_error_line, open_engine
from resnetkit.errors import ResnetkitWarning
from resnetkit.images.prepare import Pixels
from resnetkit.runtime.threads import WorkerPool, wait_for_result

LOAD_TIMEOUT, CALL_TIMEOUT = 120.0, 10.0  # seconds that an engine may always take
TIMEOUT_FACTOR = 100  # times the measured duration, for a machine with other work
JOIN_TIMEOUT = 1.0  # seconds that a cancelled call gets to end


class GuardedEngine:
    """An engine with threads of its own, a deadline for each call, and a check of its logits.

    Args:
        engine: the engine.
        pool: as many threads as the engine has streams.
        saved: the record of a saved engine; None for torch, whose errors are raised as they are.
        n_classes: the number of classes of the model.
        timeout: the seconds for a call; None for no limit.
    """

    def __init__(
        self,
        engine: Engine,
        pool: WorkerPool,
        saved: SavedEngine | None = None,
        n_classes: int = 0,
        timeout: float | None = None,
    ) -> None:
        self.config, self.saved = engine.config, saved
        self._engine, self._pool, self._n_classes, self._timeout = engine, pool, n_classes, timeout
        self._is_abandoned = False

    def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits of any number of images.

        Raises:
            EngineError: the engine fails; torch raises its own errors.
        """
        batch_size = self.config.batch_size
        batches = [np.ascontiguousarray(pixels[i : i + batch_size]) for i in range(0, len(pixels), batch_size)]
        return np.concatenate([self._compute(batch) for batch in batches])

    def _compute(self, batch: Pixels) -> Logits:
        future = self._pool.submit(partial(self._engine, batch))
        if self.saved is None:
            return future.result()
        try:
            logits = future.result(self._timeout)
        except CancelledError:
            raise EngineError(f"{self.config.name} was stopped") from None
        except Exception as error:  # libraries raise errors of any type
            if isinstance(error, TimeoutError) and not future.done():
                raise EngineError(f"{self.config.name} did not answer within {self._timeout:g} seconds") from None
            raise EngineError(f"{self.config.name} failed: {get_error_line(error)}") from error
        expected = (len(batch), self._n_classes)
        if logits.shape != expected:
            raise EngineError(f"{self.config.name} returned logits of shape {logits.shape}, expected {expected}")
        if not np.isfinite(logits).all():
            raise EngineError(f"{self.config.name} returned logits that are NaN or infinite")
        return logits

    def abandon(self) -> None:
        """Start no more calls, and cancel those that run, if the library can do that."""
        self._is_abandoned = True
        self._pool.shutdown()
        getattr(self._engine, "cancel", lambda: None)()

    def close(self) -> None:
        """End the threads; a process that ends earlier would unload the library during a call."""
        self._pool.shutdown()
        self._pool.join(JOIN_TIMEOUT if self._is_abandoned else math.inf)


def load_guarded_engine(folder: Path, saved: SavedEngine, n_classes: int, *, is_foreign: bool = False) -> GuardedEngine:
    """Load a saved engine in the threads that will call it.

    Args:
        folder: the model folder.
        saved: an engine of `saved.find_usable_engines`.
        n_classes: the number of classes of the model.
        is_foreign: whether its measured durations come from elsewhere, so that they set no deadline.

    Raises:
        EngineError: it cannot be loaded, or not in time.
    """
    row, factor = saved.measurement, 0 if is_foreign else TIMEOUT_FACTOR
    load_timeout = max(LOAD_TIMEOUT, factor * (row.startup_seconds or 0.0))
    call_timeout = max(CALL_TIMEOUT, factor * (row.latency_ms or 0.0) / 1000)
    pool = WorkerPool(row.config.streams)
    future = pool.submit(partial(open_engine, folder, saved))
    try:
        return GuardedEngine(wait_for_result(future, load_timeout), pool, saved, n_classes, call_timeout)
    except BaseException as error:
        pool.shutdown()
        if isinstance(error, TimeoutError) and not future.done():
            what = f"cannot load {row.config.name}: not done after {load_timeout:g} seconds"
            raise EngineError(what, where=str(folder), fix=format_optimize_command(folder)) from None
        raise


class FallbackEngine:
    """The first of several engines that works, with a next one for the case that it fails.

    ``config`` and ``saved`` are those of the first engine that was loaded. ``reason`` says why a better one was not.

    Args:
        loaders: a name and a function that loads the engine, the most preferred first. Engines of one name have the
            same files, so that all are skipped after one has failed in a call.
        fix: the fix of the error if no engine is left.
        reason: why better engines are not among them.
        on_failure: called with a line about each engine that fails after it was loaded; by default a warning.
        check_first: checks the first logits of the images before anything else uses them.

    Raises:
        EngineError: no engine can be loaded; the first reason.
    """

    def __init__(
        self,
        loaders: Sequence[tuple[str, Callable[[], GuardedEngine]]],
        fix: str,
        *,
        reason: str = "",
        on_failure: Callable[[str], None] | None = None,
        check_first: Callable[[Pixels, Logits], None] | None = None,
    ) -> None:
        self._loaders, self._fix, self.reason = iter(loaders), fix, reason
        self._on_failure, self._check_first = on_failure or _warn, check_first
        self._lock, self._check_lock = threading.Lock(), threading.Lock()
        self._loaded: list[GuardedEngine] = []
        self._error: EngineError | None = None
        self._load_next()
        self.config: EngineConfig = self._loaded[0].config
        self.saved = self._loaded[0].saved

    def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits of the images, from the first engine that works.

        Raises:
            EngineError: no engine is left.
        """
        while True:
            current = self._loaded[-1]
            try:
                logits = current(pixels)
            except EngineError as error:
                self._replace(current, error)
                continue
            if self._check_first is not None:
                with self._check_lock:
                    if self._check_first is not None:
                        self._check_first(pixels, logits)
                        self._check_first = None
            return logits

    def _replace(self, failed: GuardedEngine, error: EngineError) -> None:
        """Load the next engine, unless another thread has done so."""
        with self._lock:
            if self._loaded[-1] is not failed:
                return
            if self._error:
                raise self._error
            failed.abandon()
            error.fix = error.fix or self._fix
            self._error = error  # for the other threads, if no engine is left
            self._load_next(error, failed.config.name)
            self._error = None
            self._on_failure(f"{error.what}; {self._loaded[-1].config} computed the images from there on; {error.fix}")

    def _load_next(self, first_error: EngineError | None = None, failed_name: str = "") -> None:
        for name, load in self._loaders:
            if name == failed_name:
                continue
            try:
                self._loaded.append(load())
                return
            except EngineError as error:
                if not first_error and not self.reason:
                    self.reason = f"{error.what}; {error.fix}"
                first_error = first_error or error
        if first_error:
            raise first_error

    def close(self) -> None:
        """End the threads of all engines."""
        for engine in self._loaded:
            engine.close()


def _warn(message: str) -> None:
    warnings.warn(message, ResnetkitWarning, stacklevel=2)
