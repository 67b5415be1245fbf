"""The search for the fastest engine: measure every configuration, then measure the finalists again.

Each engine runs in its own process. The finalists are measured in turns, so that other programs slow all of
them alike. Each is checked in the configuration that is saved.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from resnetkit.engines.accuracy_check import Fp32Reference
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig
from resnetkit.engines.calibration import ADD_CALIBRATION_IMAGES, NO_CALIBRATION_IMAGES
from resnetkit.engines.saved import EngineComparison, Measurement
from resnetkit.errors import MachineError
from resnetkit.optimization.budget import Budget
from resnetkit.optimization.choose import select_finalists
from resnetkit.optimization.client import BenchmarkClient, BenchmarkError

OnMeasurement = Callable[[Measurement], None]
COMPARISON_FILE, TIMING_FILE, CALIBRATION_FILE = "comparison.npy", "timing.npy", "calibration.npy"
_MIN_VARIANTS, _HOPELESS_SHARE = 3, 0.3  # after so many variants, stop an engine far below the highest throughput
_MIN_VARIANTS_OVERTIME = 2  # one for single images and one for batches, also if the engine's time is over


@dataclass
class EngineSearch:
    """The state of a search over engines.

    ``work_dir`` holds the images, saved by `numpy.save`, and the exported files. ``best_throughput`` is in images per
    second; ``matching_names`` are the engines whose predictions match fp32.
    """

    folder: Path
    work_dir: Path
    reference: Fp32Reference
    budget: Budget
    on_event: OnMeasurement = lambda row: None
    best_throughput: float = 0.0
    matching_names: set[str] = field(default_factory=set)

    def run(self, configs: Sequence[EngineConfig]) -> list[Measurement]:
        """Measure all variants of the configurations, then the finalists again."""
        rows = [row for i, config in enumerate(configs, 1) for row in self.measure(config, configs[i:])]
        return self.remeasure_finalists(rows)

    def measure(self, config: EngineConfig, waiting: Sequence[EngineConfig] = ()) -> list[Measurement]:
        """Measure the variants of an engine, precision and device.

        Args:
            config: the engine, precision and device.
            waiting: the configurations that are measured later; they keep their share of the time.

        Returns:
            A row for each variant, or a single row with the reason if the engine cannot be used.
        """
        error = self._find_skip_reason(config)
        seconds = self.budget.share(sum(not self._find_skip_reason(item) for item in waiting))
        try:
            rows = [Measurement(config, error=error)] if error else self._measure_in_process(config, seconds)
        except BenchmarkError as process_error:
            rows = [Measurement(config, error=str(process_error))]
        if rows[0].reason:  # rows that match fp32 were reported as they were measured
            self.on_event(rows[0])
        return rows

    def _find_skip_reason(self, config: EngineConfig) -> str:
        if config.precision == "int8-body" and replace(config, precision="int8").name in self.matching_names:
            return "not needed, because int8 matches fp32"
        if config.precision.startswith("int8") and not (self.work_dir / CALIBRATION_FILE).exists():
            return f"{NO_CALIBRATION_IMAGES}: {ADD_CALIBRATION_IMAGES}"
        try:
            ENGINE_SPECS[config.engine].check_packages(for_export=True)
        except MachineError as error:
            return f"{error.what}: {error.fix}"
        return "" if self.budget.search_remaining > 0 else "not measured, because the time was over (--minutes)"

    def _measure_in_process(self, config: EngineConfig, seconds: float) -> list[Measurement]:
        deadline = self.budget.remaining - seconds
        calibration = self.work_dir / CALIBRATION_FILE if config.precision.startswith("int8") else None
        with self.budget.settings.open_client(self.folder, self.work_dir) as client:
            client.export(config, calibration, self.budget.request_timeout)
            return list(self._measure_variants(client, ENGINE_SPECS[config.engine].list_variants(config), deadline))

    def _measure_variants(
        self, client: BenchmarkClient, variants: Iterable[EngineConfig], deadline: float
    ) -> Iterator[Measurement]:
        """Measure variants until one fails, the time is over, or none of them can be the fastest.

        ``deadline`` is the remaining time of the budget at which the engine's time is over. The first variant is
        compared with fp32 at once, so that an engine that does not match takes no more time.
        """
        comparison: EngineComparison | None = None
        for n_measured, config in enumerate(variants, 1):
            row = self._measure_variant(client, config)
            if not row.error:
                comparison = comparison or self._compare(client, row)
                row = replace(row, comparison=comparison)
            yield row
            if row.reason:
                return
            self.matching_names.add(config.name)
            self.best_throughput = max(self.best_throughput, row.throughput)
            self.on_event(row)
            is_hopeless = n_measured >= _MIN_VARIANTS and row.throughput < _HOPELESS_SHARE * self.best_throughput
            is_overtime = n_measured >= _MIN_VARIANTS_OVERTIME and self.budget.remaining < deadline
            if is_hopeless or is_overtime or self.budget.search_remaining <= 0:
                return

    def _measure_variant(self, client: BenchmarkClient, config: EngineConfig) -> Measurement:
        images, timeout = self.work_dir / TIMING_FILE, self.budget.request_timeout
        try:
            client.load(config, images, timeout)
            return Measurement(config, *client.measure(images, self.budget.measurement_seconds, timeout))
        except BenchmarkError as error:
            return Measurement(config, error=str(error))

    def _compare(self, client: BenchmarkClient, row: Measurement) -> EngineComparison:
        """Compare a loaded and measured engine with fp32."""
        throughput = row.throughput or 1.0
        n = min(len(self.reference.names), self.budget.count_compared_images(row.config.precision, throughput))
        try:
            timeout = self.budget.comparison_timeout(n, throughput)
            logits = client.infer(self.work_dir / COMPARISON_FILE, n, timeout)
        except BenchmarkError as error:
            return EngineComparison(reason=str(error))
        return self.reference.take_first(n).compare(logits, row.config.precision)

    def remeasure_finalists(self, rows: Sequence[Measurement]) -> list[Measurement]:
        """Load the finalists again, compare them with fp32 and measure them in turns; return all rows."""
        with contextlib.ExitStack() as stack:
            reopened = [self._reopen(stack, row) for row in select_finalists(rows)]
            measured = self._measure_in_turns([(client, row) for client, row in reopened if client and not row.reason])
        updated = {row.config: row for row in [*(row for _, row in reopened), *measured]}
        return [updated.get(row.config, row) for row in rows]

    def _reopen(self, stack: contextlib.ExitStack, row: Measurement) -> tuple[BenchmarkClient | None, Measurement]:
        """Load an engine in a new process; one after the other, so that nothing else slows its start-up."""
        try:
            client = stack.enter_context(self.budget.settings.open_client(self.folder, self.work_dir))
            startup_seconds = client.load(row.config, self.work_dir / TIMING_FILE, self.budget.request_timeout)
        except BenchmarkError as error:
            return None, replace(row, error=str(error))
        row = replace(row, startup_seconds=startup_seconds, comparison=self._compare(client, row))
        self.on_event(row)
        return client, row

    def _measure_in_turns(self, finalists: Sequence[tuple[BenchmarkClient, Measurement]]) -> list[Measurement]:
        """Measure every finalist in each round, starting with another one each time; return the medians."""
        images, seconds = self.work_dir / TIMING_FILE, self.budget.finals_seconds(len(finalists))
        timings: dict[EngineConfig, list[tuple[float, float]]] = {row.config: [] for _, row in finalists}
        errors: dict[EngineConfig, str] = {}
        for i in range(self.budget.settings.final_rounds):
            for client, row in (finalists[(i + k) % len(finalists)] for k in range(len(finalists))):
                try:
                    if row.config not in errors:
                        timings[row.config].append(client.measure(images, seconds, self.budget.request_timeout))
                except BenchmarkError as error:
                    errors[row.config] = str(error)
        return [
            replace(row, error=errors[row.config]) if row.config in errors else _apply_medians(row, timings[row.config])
            for _, row in finalists
        ]


def _apply_medians(row: Measurement, timings: Sequence[tuple[float, float]]) -> Measurement:
    throughputs, latencies = zip(*timings, strict=True)
    return replace(row, images_per_second=statistics.median(throughputs), latency_ms=statistics.median(latencies))
