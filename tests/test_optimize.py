"""`optimize`: what is measured, skipped, chosen and saved, and what a failed search leaves."""

import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import resnetkit as rk
from resnetkit import files
from resnetkit.engines import base
from resnetkit.engines.accuracy_check import Fp32Reference
from resnetkit.engines.base import EngineConfig, EngineSpec, batch_calls
from resnetkit.engines.saved import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    REPORT_FILE,
    EngineComparison,
    Measurement,
    find_usable_engines,
    read_engines_file,
)
from resnetkit.errors import ResnetkitWarning, UsageError, VerificationError
from resnetkit.optimization.budget import Budget, SearchSettings
from resnetkit.optimization.choose import select_best_by_purpose, select_fastest, select_finalists
from resnetkit.optimization.client import BenchmarkError, open_benchmark_client
from resnetkit.optimization.search import EngineSearch
from resnetkit.optimization.worker import measure_speed

from helpers.fake_client import Behavior, FakeMachine, make_specs
from helpers.tiny import BASE
from helpers.trained import CLASSES, save_trained_model

MISBEHAVING_ENGINES = Path(__file__).parent / "helpers" / "misbehaving_engines"


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    return save_trained_model(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def folder(trained_folder, tmp_path):
    """A trained model folder for one test."""
    return Path(shutil.copytree(trained_folder, tmp_path / "model"))


@pytest.fixture
def machine():
    return FakeMachine()


@pytest.fixture
def fake_specs():
    """Entries of the table of engines that run in this process, through `FakeMachine`."""
    with pytest.MonkeyPatch.context() as patch:
        specs = {
            **make_specs("int8-engine", precisions=("int8", "int8-body", "fp32")),
            **make_specs("fast", "slow", "wrong", "broken"),
            **make_specs("gpu", devices=("cpu", "cuda")),
            "absent": EngineSpec("json", ("no_such_package",), ("fp32",), "openvino"),
        }
        for name in list(base.ENGINE_SPECS):
            patch.delitem(base.ENGINE_SPECS, name)
        for name, spec in specs.items():
            patch.setitem(base.ENGINE_SPECS, name, spec)
        yield


def list_names(path):
    return {entry.name for entry in path.iterdir()}


# ---------------------------------------------------------------------------------------------- a search with processes


@pytest.fixture
def misbehaving_specs():
    """The engines of tests/helpers/misbehaving_engines, in this process and in those that it starts."""
    spec = importlib.util.spec_from_file_location("misbehaving", MISBEHAVING_ENGINES / "sitecustomize.py")
    real_specs = dict(base.ENGINE_SPECS)
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(MISBEHAVING_ENGINES), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        yield
    base.ENGINE_SPECS.clear()
    base.ENGINE_SPECS.update(real_specs)


def test_search_in_processes_skips_misbehaving_engines(folder, pictures, misbehaving_specs):
    events = []
    result = rk.optimize(
        folder,
        data=pictures("data", CLASSES, count=20),
        minutes=0.5,
        engines=("loud", "dies", "raises", "absent"),
        on_event=events.append,
        settings=SearchSettings(final_rounds=1, min_timeout=300.0, clock=lambda: 0.0),
    )
    reasons = {row.config.name: row.reason for row in result.measurements}
    assert reasons.pop("dies-fp32").startswith("its process was killed by SIGABRT")
    assert reasons == {
        "loud-int8": "",
        "loud-int8-body": "not needed, because int8 matches fp32",
        "loud-fp32": "",
        "raises-fp32": "ValueError: no such operation: Snake",
        "absent-fp32": "no_such_package is not installed: pip install 'openvino>=2026.2' 'nncf>=3.2'",
    }
    assert {row.config.name for row in events} == {row.config.name for row in result.measurements}
    assert {row.config.name for row in events if row.is_finalist} == {"loud-int8", "loud-fp32"}
    assert {saved.purpose for saved in result.engines} == {"latency", "throughput", "startup"}
    for saved in result.engines:
        row = saved.measurement
        assert row.config.engine == "loud" and not row.reason and row.startup_seconds > 0
        assert row.throughput > 0 and row.latency_ms > 0
        assert row.comparison.logit_error < 1e-4 and row.comparison.match_rate == 1.0
        assert row.comparison.accuracy_change == 0.0
    (name,) = {saved.folder for saved in result.engines}
    assert list_names(folder / ENGINES_FOLDER) == {ENGINES_FILE, REPORT_FILE, name}
    assert list_names(folder / ENGINES_FOLDER / name) == {saved.config.name for saved in result.engines}
    report = (folder / ENGINES_FOLDER / REPORT_FILE).read_text()
    assert "ValueError: no such operation: Snake" in report and "<svg" in report
    assert read_engines_file(folder) == result


def wait_readable(fd):
    assert select.select([fd], [], [], 300)[0], "the engine's process did not start"


def test_a_stopped_or_killed_search_leaves_a_usable_folder(trained_folder, tmp_path, misbehaving_specs):
    """The signals go to three commands that run at once, as soon as their engine hangs."""
    runs = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        folder, fifo = Path(shutil.copytree(trained_folder, tmp_path / number.name)), tmp_path / f"{number.name}.fifo"
        os.mkfifo(fifo)
        process = subprocess.Popen(
            [sys.executable, "-m", "resnetkit", "optimize", str(folder), "--engines", "hangs"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"HANG_FIFO": str(fifo)},
        )
        runs.append((number, folder, os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), process))
    for number, folder, fd, process in runs:
        wait_readable(fd)
        assert os.read(fd, 100) == b"exporting\n"
        assert list(folder.glob(f"{ENGINES_FOLDER}/.*.part/hangs-fp32"))
        process.send_signal(number)
        wait_readable(fd)
        assert os.read(fd, 100) == b""  # the engine's process is gone
        os.close(fd)
        err = process.communicate()[1]
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        if number != signal.SIGKILL:
            assert "stopped" in err
            assert not list(folder.glob(f"{ENGINES_FOLDER}/.*.part"))
        assert rk.load(folder).card.labels == CLASSES and find_usable_engines(folder, 1)[:2] == ([], "")


def test_a_request_has_a_timeout(folder, tmp_path, misbehaving_specs, monkeypatch):
    monkeypatch.setenv("HANG_FIFO", str(tmp_path / "fifo"))
    os.mkfifo(tmp_path / "fifo")
    with (
        open_benchmark_client(folder, tmp_path) as client,
        pytest.raises(BenchmarkError, match=r"export did not finish within 0\.01 seconds"),
    ):
        client.export(EngineConfig("hangs", "fp32"), None, 0.01)


def test_a_process_that_dies_between_requests_gives_the_reason(folder, tmp_path, misbehaving_specs):
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    previous = set(children.read_text().split())
    with open_benchmark_client(folder, tmp_path) as client:
        (pid,) = map(int, set(children.read_text().split()) - previous)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(BenchmarkError, match="its process was killed by SIGKILL"):
            client.measure(tmp_path / "x.npy", 1.0, 300.0)


class CountingEngine:
    def __init__(self, config):
        self.config, self.batch_sizes = config, []

    def __call__(self, pixels):
        self.batch_sizes.append(len(pixels))
        return pixels.reshape(len(pixels), -1)[:, :3].astype(np.float32)


def test_batch_calls_keeps_the_order():
    pixels = np.arange(7 * 4 * 4 * 3, dtype=np.uint8).reshape(7, 4, 4, 3)
    engine = CountingEngine(EngineConfig("x", "fp32", 3, 2))
    with batch_calls(engine) as infer:
        assert (infer(pixels) == pixels.reshape(7, -1)[:, :3]).all()
    assert sorted(engine.batch_sizes) == [1, 3, 3]


def test_measure_speed_makes_three_calls_of_full_batches_at_least():
    engine = CountingEngine(EngineConfig("x", "fp32", 4, 2))
    speed = measure_speed(engine, np.zeros((3, 4, 4, 3), np.uint8), 0.0)
    assert set(engine.batch_sizes) == {4} and len(engine.batch_sizes) == 2 + 6  # each thread warms up once
    assert speed["images_per_second"] > 0 and speed["milliseconds"] > 0


# ------------------------------------------------------------------------------------------------ the folder of engines


def test_a_later_search_replaces_the_first(folder, machine, fake_specs):
    first = rk.optimize(folder, engines="int8-engine", settings=machine.settings)
    assert first.comparison_data == "16 images (synthetic)"
    assert {row.reason for row in first.measurements if row.config.precision != "fp32"} == {
        "int8 needs images for calibration: --data DIR"
    }
    (folder / ENGINES_FOLDER / ".left.part").mkdir()
    second = rk.optimize(folder, engines="int8-engine", settings=machine.settings)
    assert list_names(folder / ENGINES_FOLDER) == {ENGINES_FILE, REPORT_FILE, second.engines[0].folder}
    assert read_engines_file(folder) == second != first


def test_a_cache_that_cannot_be_written_is_a_warning(folder, tmp_path, machine, fake_specs, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "file"))
    with pytest.warns(ResnetkitWarning) as caught:
        result = rk.optimize(folder, engines="fast", settings=machine.settings)
    message = str(caught[-1].message)
    assert message.startswith("predict will use torch for this model: cannot write: ")
    assert message.endswith("; set RESNETKIT_CACHE to a folder that can be written, and optimize again")
    assert read_engines_file(folder) == result
    engines, reason, _ = find_usable_engines(folder, 1)
    assert engines == [] and reason.startswith("cannot read the record of the engines: Not a directory")


def test_a_search_that_saves_nothing_keeps_the_saved_engines(folder, machine, fake_specs):
    result = rk.optimize(folder, engines="fast", settings=machine.settings)
    content = (folder / ENGINES_FOLDER / ENGINES_FILE).read_bytes()
    machine.behaviors["wrong"] = Behavior(scale=1.5)
    with pytest.raises(VerificationError) as caught:
        rk.optimize(folder, engines=("wrong", "absent"), settings=machine.settings)
    assert "no engine works here and matches fp32; engines saved before stay" in str(caught.value)
    assert "wrong-fp32: logits differ by 0.5 of the largest (limit 0.001), most for " in str(caught.value)
    assert "absent-fp32: no_such_package is not installed" in str(caught.value)

    def interrupt(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rk.optimize(folder, engines="fast", settings=machine.settings, on_event=interrupt)
    assert (folder / ENGINES_FOLDER / ENGINES_FILE).read_bytes() == content
    assert list_names(folder / ENGINES_FOLDER) == {ENGINES_FILE, REPORT_FILE, result.engines[0].folder}


def test_weights_that_change_during_the_search_are_refused(folder, tmp_path, machine, fake_specs):
    other_folder = save_trained_model(tmp_path / "other", seed=1)

    def change_weights(row):
        if row.is_finalist:
            shutil.copy(other_folder / "model.safetensors", folder / "model.safetensors")

    with pytest.raises(UsageError, match="the weights changed during the search"):
        rk.optimize(folder, engines="fast", settings=machine.settings, on_event=change_weights)
    assert read_engines_file(folder) is None


def test_only_folders_of_earlier_searches_are_removed(folder, machine, fake_specs):
    (folder / ENGINES_FOLDER / "notes").mkdir(parents=True)
    (folder / ENGINES_FOLDER / "0123abcd").mkdir()
    result = rk.optimize(folder, engines="fast", settings=machine.settings)
    expected = {ENGINES_FILE, REPORT_FILE, "notes", result.engines[0].folder}
    assert list_names(folder / ENGINES_FOLDER) == expected


def test_nothing_is_written_through_a_link_or_over_other_files(folder, tmp_path, machine, fake_specs):
    shared, engines_folder = tmp_path / "shared", folder / ENGINES_FOLDER
    (shared / "0123abcd").mkdir(parents=True)
    (shared / ".draft.part").write_text("mine")
    engines_folder.symlink_to(shared)
    errors = []

    def try_optimize():
        with pytest.raises(UsageError) as caught:
            rk.optimize(folder, engines="fast", settings=machine.settings)
        errors.append((caught.value.what, *caught.value.where, caught.value.fix))

    try_optimize()
    assert list_names(shared) == {"0123abcd", ".draft.part"}
    engines_folder.unlink()
    engines_folder.write_text("mine")
    try_optimize()
    engines_folder.unlink()
    (engines_folder / ENGINES_FILE).mkdir(parents=True)
    try_optimize()
    prefix, list_file = "cannot save engines: a", str(engines_folder / ENGINES_FILE)
    assert errors == [
        (f"{prefix} link has the name engines", str(engines_folder), "remove the link; a new folder takes its place"),
        (f"{prefix} file has the name engines", str(engines_folder), "remove it"),
        (f"{prefix} folder has the name engines.json", list_file, "remove it"),
    ]


def test_a_search_that_fails_at_the_start_leaves_nothing(folder, tmp_path, fake_specs):
    with pytest.raises(rk.ResnetkitError):
        rk.optimize(folder, data=tmp_path / "nowhere", engines="fast")
    assert not (folder / ENGINES_FOLDER).exists()


def test_only_one_search_at_a_time(folder):
    with (
        files.lock_file(folder / "config.json"),
        pytest.raises(UsageError, match="another optimize command is working on this model"),
    ):
        rk.optimize(folder)


def test_weights_with_nan_are_refused(tmp_path):
    model = rk.build(BASE, classes=CLASSES)
    with torch.no_grad():
        model.stage1.block1.branch.conv1.weight[0, 0, 0, 0] = float("nan")
    folder = rk.save(model, tmp_path / "model")
    with pytest.warns(ResnetkitWarning, match="NaN"), pytest.raises(VerificationError) as caught:
        rk.optimize(folder)
    assert "so predictions cannot be compared" in str(caught.value)
    assert "stage1.block1.branch.conv1.weight (1)" in str(caught.value)
    assert not (folder / ENGINES_FOLDER).exists()


# ----------------------------------------------------------------------------------------------------------- the search


@pytest.fixture
def make_search(folder, tmp_path, machine):
    """A function that makes a search over synthetic images with a budget of so many seconds."""

    def make(seconds=1000.0, n_images=8):
        images = np.random.default_rng(0).integers(0, 256, (n_images, 16, 16, 3), dtype=np.uint8)
        for name in ("comparison.npy", "timing.npy"):
            np.save(tmp_path / name, images)
        with machine.open_client(folder, tmp_path) as client:
            client.config = EngineConfig("fast", "fp32")
            logits = client.infer(tmp_path / "comparison.npy", n_images, 0)
        machine.log.clear()
        reference = Fp32Reference(logits, [str(i) for i in range(n_images)], has_predictions=False)
        return EngineSearch(folder, tmp_path, reference, Budget(seconds, machine.settings))

    return make


def test_every_device_is_measured(folder, machine, fake_specs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    result = rk.optimize(folder, engines="gpu", settings=machine.settings)
    assert {row.config.name: row.reason for row in result.measurements} == {"gpu-fp32": "", "gpu-fp32-cuda": ""}
    assert {row.config.batch_size for row in result.measurements if row.config.device == "cuda"} == {1, 32, 256}


def test_earlier_variants_stay_if_a_later_one_fails(make_search, machine, fake_specs):
    search, events = make_search(), []
    search.on_event = events.append
    machine.behaviors["fast"] = Behavior(errors={("load", 8): "it took more than 30 seconds to load"})
    *measured, failed = search.measure(EngineConfig("fast", "fp32"))
    assert [row.config.batch_size for row in measured] == [1, 4] and events == measured
    assert all(not row.reason and row.comparison.logit_error < 1e-4 for row in measured)
    assert (failed.config.batch_size, failed.reason) == (8, "it took more than 30 seconds to load")


@pytest.mark.parametrize("request_name", ["export", "load", "infer", "measure"])
def test_an_engine_that_fails_is_one_row_with_the_reason(make_search, machine, fake_specs, request_name):
    search, events = make_search(), []
    search.on_event = events.append
    machine.behaviors["broken"] = Behavior(errors={(request_name, 1): "its process ended with 1"})
    (row,) = search.measure(EngineConfig("broken", "fp32"))
    assert row.reason == "its process ended with 1" and events == [row]


def test_an_engine_that_does_not_match_is_measured_once(make_search, machine, fake_specs):
    machine.behaviors["wrong"] = Behavior(scale=1.5)
    (row,) = make_search().measure(EngineConfig("wrong", "fp32"))
    assert row.reason.startswith("logits differ by 0.5 of the largest (limit 0.001), most for ")
    assert row.throughput == 100.0


def test_finalists_are_loaded_one_after_the_other_and_measured_in_turns(make_search, machine, fake_specs):
    search = make_search()
    rows = [row for name in ("fast", "slow") for row in search.measure(EngineConfig(name, "fp32"))]
    machine.log.clear()
    machine.behaviors["slow"].startup_seconds = 7.0
    measured = [row for row in search.remeasure_finalists(rows) if row.is_finalist]
    requests = [request for request, _ in machine.log]
    n = len(measured)
    assert requests == ["open", "load", "infer"] * n + ["measure"] * 2 * n
    order = [config for request, config in machine.log if request == "measure"]
    assert order[n:] == [*order[1:n], order[0]]  # the second round starts with another engine
    assert {row.startup_seconds for row in measured if row.config.engine == "slow"} == {7.0}
    assert {row.startup_seconds for row in measured if row.config.engine == "fast"} == {1.0}


def test_a_finalist_that_fails_later_is_skipped(make_search, machine, fake_specs):
    search = make_search()
    rows = search.measure(EngineConfig("fast", "fp32"))
    machine.behaviors["fast"].errors = {
        ("load", 1): "cannot load",
        ("infer", 4): "cannot infer",
        ("measure", 8): "cannot measure",
    }
    reasons = {row.config.batch_size: row.reason for row in search.remeasure_finalists(rows)}
    assert reasons == {1: "cannot load", 4: "cannot infer", 8: "cannot measure", 16: "", 32: ""}


def test_an_engine_gets_its_share_of_the_time(make_search, machine, fake_specs):
    """After its share it is measured with one image and with a batch; after the search time, not any more."""
    config, seconds = EngineConfig("fast", "fp32"), []
    for measure_seconds, waiting in ((100.0, []), (100.0, [config] * 9), (100.0, [config]), (800.0, [])):
        search = make_search(1000.0)
        machine.behaviors["fast"] = Behavior(measure_seconds=measure_seconds, startup_seconds=0.0)
        seconds.append(100 * len(search.measure(config, waiting)))
        shutil.rmtree(search.work_dir / config.name)
    assert seconds == [500, 200, 400, 100]
    machine.now += 1000.0
    (row,) = search.measure(config)
    assert row.reason == "not measured, because the time was over (--minutes)"


def test_engines_that_cannot_be_measured_have_no_share(make_search, machine, fake_specs):
    search, config = make_search(1000.0), EngineConfig("fast", "fp32")
    machine.behaviors["fast"] = Behavior(measure_seconds=120.0, startup_seconds=0.0)
    waiting = [EngineConfig("absent", "fp32"), EngineConfig("int8-engine", "int8"), EngineConfig("slow", "fp32")]
    assert len(search.measure(config, waiting)) == 3  # 350 s for each of two; 175 s would be 2 measurements


def test_a_hopeless_engine_is_given_up_after_three_variants(make_search, machine, fake_specs):
    search = make_search()
    machine.behaviors["slow"] = Behavior(images_per_second=29.0)
    assert len(search.measure(EngineConfig("fast", "fp32"))) == 5
    assert len(search.measure(EngineConfig("slow", "fp32"))) == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int8-body"])
def test_slow_engines_and_precisions_with_a_logit_limit_are_compared_on_fewer_images(precision):
    budget = Budget(200.0, SearchSettings(clock=lambda: 0.0))
    counts = [budget.count_compared_images(precision, throughput) for throughput in (1.0, 50.0, 200.0)]
    assert counts == {"fp32": [100, 100, 100], "bf16": [100, 200, 800]}.get(precision, [100, 1000, 4000])


def test_the_budget_divides_its_time():
    now = 0.0
    budget = Budget(1000.0, SearchSettings(clock=lambda: now))
    assert (budget.remaining, budget.search_remaining, budget.reference_seconds) == (1000.0, 700.0, 100.0)
    assert [budget.share(n) for n in (0, 1, 3, 8)] == [700, 350, 175, 175]
    assert budget.request_timeout == 350.0 and budget.comparison_timeout(1000, 2.0) == 1500.0
    assert budget.measurement_seconds == 1.0 and budget.finals_seconds(2) == 2.0
    now = 990.0
    assert budget.request_timeout == 30.0 and budget.comparison_timeout(10, 2.0) == 30.0
    assert budget.finals_seconds(2) == 1.0 and budget.finals_seconds(100) == 0.2
    assert Budget(6.0, SearchSettings(clock=lambda: now)).measurement_seconds == 0.2


# ----------------------------------------------------------------------------------------------------------- the choice


def make_row(name, speed, batch_size=1, streams=1, **fields):
    engine, precision = name.split()
    config = EngineConfig(engine, precision, batch_size, streams)
    return Measurement(config, speed, 1000 * batch_size / speed, **fields)


def test_finalists_are_near_the_fastest_have_low_latency_or_are_the_best_of_an_engine():
    near = [make_row("openvino int8", speed, batch, 2) for batch, speed in ((4, 100.0), (8, 90.0), (16, 76.0))]
    single = [make_row("openvino int8", 50.0), make_row("openvino bf16", 40.0), make_row("openvino fp32", 20.0)]
    others = [make_row("eager fp32", 8.0, 16), make_row("eager fp32", 9.0), make_row("compiled bf16", 70.0, 16)]
    lost = [make_row("openvino int8", 74.0, 32, 2), make_row("onnxruntime int8", 99.0, error="it raises")]
    assert set(select_finalists([*lost, *others, *single, *near])) == {*near, *single[:2], *others[1:]}
    assert len(select_finalists([make_row("openvino int8", 100.0, batch, 2) for batch in range(1, 12)])) == 6
    assert select_finalists(lost[1:]) == []


@pytest.mark.parametrize(
    ("speeds", "streams"),
    [({(1, 1): 100.0, (4, 2): 91.0, (16, 1): 99.0}, 2), ({(1, 1): 100.0, (4, 2): 89.0}, 1), ({(4, 2): 9.0}, 2)],
)
def test_more_streams_are_preferred_among_near_equal_engines(speeds, streams):
    rows = [make_row("openvino int8", speed, *layout, startup_seconds=1.0) for layout, speed in speeds.items()]
    assert select_best_by_purpose(rows)["throughput"].config.streams == streams
    assert select_fastest(rows[::-1]) == select_fastest(rows)


def test_the_best_engine_for_each_purpose():
    single, batch = (make_row("openvino int8", 10.0, n, startup_seconds=s) for n, s in ((1, 3.0), (4, 2.0)))
    not_finalist = make_row("eager fp32", 99.0)
    best = select_best_by_purpose([single, batch, not_finalist])
    assert best == {"latency": single, "throughput": single, "startup": batch}
    assert set(select_best_by_purpose([batch])) == {"throughput", "startup"}
    assert select_best_by_purpose([not_finalist, replace(single, error="it fails")]) == {}


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def measured(monkeypatch):
    """Replace the search: every configuration is a finalist with the same measurement."""

    def run(search, configs):
        comparison = EngineComparison(1e-6, 1.0, 0.0)
        rows = [Measurement(config, 10.0, 100.0, 2.0, comparison) for config in configs]
        for row in rows:
            search.on_event(row)
        return rows

    monkeypatch.setattr(EngineSearch, "run", run)


def test_optimize_prints_a_table(folder, cli, measured):
    code, out, err = cli("optimize", folder, "--engines", "eager", "--precisions", "fp32")
    assert code == 0
    headings, cells = (line.split("  ") for line in out.splitlines()[:2])
    assert [cell for cell in map(str.strip, headings) if cell][:2] == ["engine", "throughput (images/s)"]
    values = ["eager-fp32", "10.0", "1 x 1", "100.00", "2.00", "1.0e-06", "100.00", "+0.00"]
    assert [cell for cell in map(str.strip, cells) if cell] == [*values, "latency, throughput, startup"]
    assert " times eager-fp32, batch 1 x 1" in out and "compared on 16 images (synthetic)" in out
    assert f"wrote {folder}/engines/report.html" in err and f"--model {folder}" in err
    assert {row.config.name for row in read_engines_file(folder).measurements} == {"eager-fp32"}


def test_optimize_prints_json(folder, cli, measured):
    code, out, _ = cli("optimize", folder, "--engines", "eager", "--json")
    document = json.loads(out)
    assert code == 0 and document["schema"] == "resnetkit.optimize/1"
    assert [row["config"]["precision"] for row in document["measurements"]] == ["fp32", "bf16"]
    assert document["measurements"][0]["comparison"]["logit_error"] == 1e-6
    assert {saved["purpose"] for saved in document["engines"]} == {"latency", "throughput", "startup"}


def test_a_weights_file_becomes_a_model_folder(tmp_path, cli, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    path, out = tmp_path / "weights.pth", tmp_path / "out"
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    code, _, err = cli("optimize", path)
    assert code == 2 and "not a model folder; engines are saved in one" in err and "--out NAME writes one" in err
    monkeypatch.setattr(EngineSearch, "measure", lambda self, config, *_: [Measurement(config, error="not today")])
    code, _, err = cli("optimize", path, "--out", out, "--network", "resnet18")
    assert code == 6 and "eager-fp32: not today" in err and (out / "model.safetensors").is_file()
    code, _, err = cli("optimize", path, "--out", out)
    assert code == 2 and "this folder already exists" in err
    assert f"resnetkit optimize {out} if that is the model" in err
    assert cli("optimize", out, "--network", "resnet18")[0] == 2


def test_invalid_options(folder, tmp_path, cli):
    for args, message in (
        ((folder, "--engines", "openvin"), "unknown engine 'openvin'\nwhere: --engines\nfix: did you mean openvino?"),
        ((folder, "--precisions", "fp16"), "unknown precision 'fp16'\nwhere: --precisions"),
        ((folder, "--engines", "eager,openvino"), "fix: separate them by spaces: eager openvino"),
        ((folder, "--engines", "eager", "--precisions", "int8"), "no engine supports int8\nwhere: --precisions"),
        ((folder, "--precisions", "int8"), "int8 needs images for calibration\nwhere: --precisions\nfix: --data"),
        ((folder, "--minutes", "0"), "got 0 minutes; allowed: more than 0, at most 1440\nwhere: --minutes"),
        ((folder, "--minutes", "nan"), "got nan minutes; allowed: "),
        ((folder, "--max-loss", "nan"), "got nan points; allowed: 0 to 100\nwhere: --max-loss"),
        (
            ("resnet18",),
            "error: resnet18 is a network without weights\nwhere: model\nfix: resnetkit train DATA --model resnet18\n",
        ),
        (
            (tmp_path / "nowhere",),
            f"error: no such file or folder\nwhere: {tmp_path / 'nowhere'}\n"
            "fix: use a name of the catalog, a .toml or .json file, a model folder or a run folder\n",
        ),
    ):
        code, _, err = cli("optimize", *args)
        assert code == 2 and message in err, err
    assert not (folder / ENGINES_FOLDER).exists()
