"""Saved engines: which are usable here, errors about damaged files, the table and the report."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resnetkit.engines import records
from resnetkit.engines import saved as saved_engines
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig, EngineSpec
from resnetkit.engines.saved import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    HEADINGS,
    EngineComparison,
    Measurement,
    OptimizeResult,
    SavedEngine,
    compute_weights_digest,
    find_usable_engines,
    format_optimize_command,
)
from resnetkit.errors import Fault, MachineError, UsageError, WeightsError
from resnetkit.optimization.report import render_optimize_report
from resnetkit.optimization.search import EngineSearch
from resnetkit.serialization import to_json

from helpers.fake_client import make_specs
from helpers.trained import save_trained_model

FIRST = Measurement(EngineConfig("first", "fp32"), 10.0, 100.0, 0.5)
SECOND = Measurement(EngineConfig("second", "fp32", 4, 2), 100.0, 80.0, 20.0)
NOT_INSTALLED = EngineSpec("json", ("no_such_package",), ("fp32",), "first", files=("model.bin",))


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    return save_trained_model(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def folder(trained_folder, tmp_path):
    return Path(shutil.copytree(trained_folder, tmp_path / "model"))


@pytest.fixture(autouse=True)
def specs(monkeypatch):
    for name, spec in make_specs("first", "second").items():
        monkeypatch.setitem(ENGINE_SPECS, name, spec)


def write_result(folder, result):
    (folder / ENGINES_FOLDER).mkdir(exist_ok=True)
    content = to_json(result).encode()
    (folder / ENGINES_FOLDER / ENGINES_FILE).write_bytes(content)
    assert not records.write_record(content)


def save_rows(folder, *rows, machine=None, weights=None):
    """Write ``engines.json`` as `optimize` does, with every row saved for latency."""
    engines = tuple(
        SavedEngine("latency", row, (f"numpy {np.__version__}",), "abc", (("model.bin", "0" * 64),)) for row in rows
    )
    machine = machine or saved_engines.get_machine_id()
    result = OptimizeResult(weights or compute_weights_digest(folder), machine, "a test", rows, engines)
    write_result(folder, result)
    return result


def change_engine(result, **fields):
    return replace(result, engines=(replace(result.engines[0], **fields),))


def catch_usage_error(folder, name):
    with pytest.raises(UsageError) as caught:
        find_usable_engines(folder, 1, name)
    return caught.value.what, caught.value.fix


# ------------------------------------------------------------------------------------------------------- usable engines


def test_the_engine_that_finishes_soonest_depends_on_the_number_of_images(folder):
    save_rows(folder, FIRST, SECOND)
    best = [find_usable_engines(folder, n)[0][0].config.engine for n in (1, 100, 300, 10_000)]
    assert best == ["first", "first", "second", "second"]
    assert find_usable_engines(folder, 1, "second-fp32")[0][0].measurement == SECOND
    assert saved_engines.estimate_seconds(SECOND, 9) == pytest.approx(20.16)  # two calls per stream, the last padded


def test_engines_of_another_machine_or_of_other_weights_are_not_used(folder, tmp_path):
    command = format_optimize_command(folder)
    save_rows(folder, FIRST, machine="another one")
    reason = f"the engines were optimized on another machine (another one; this is {saved_engines.get_machine_id()})"
    assert find_usable_engines(folder, 1)[:2] == ([], f"{reason}; {command}")
    save_rows(folder, FIRST, weights="0" * 80)
    reason = "the weights have changed since they were optimized"
    assert find_usable_engines(folder, 1)[:2] == ([], f"{reason}; {command}")
    with pytest.raises(MachineError, match=reason):
        find_usable_engines(folder, 1, "first-fp32")
    save_rows(folder, FIRST)
    assert find_usable_engines(folder, 1)[0]
    card, weights = folder / "config.json", folder / "model.safetensors"
    text, content = card.read_text(), weights.read_bytes()
    data = json.loads(text)
    data["preparation"]["mean"] = [0.5, 0.5, 0.5]
    card.write_text(json.dumps(data))
    assert reason in find_usable_engines(folder, 1)[1]
    card.write_text(text)
    other_folder = save_trained_model(tmp_path / "other", seed=1)
    assert (other_folder / "model.safetensors").stat().st_size == len(content)
    shutil.copy(other_folder / "model.safetensors", weights)
    assert reason in find_usable_engines(folder, 1)[1]


def test_engines_of_other_versions_or_without_packages_are_not_used(folder, monkeypatch):
    result = save_rows(folder, FIRST)
    write_result(folder, change_engine(result, versions=("numpy 1.0",)))
    reason = f"it was optimized with numpy 1.0, and numpy {np.__version__} is installed"
    assert find_usable_engines(folder, 1)[1].startswith(reason)
    save_rows(folder, replace(FIRST, config=EngineConfig("first", "../fp32")))
    assert find_usable_engines(folder, 1)[1].startswith("'first-../fp32' is not a known engine")
    monkeypatch.setitem(ENGINE_SPECS, "first", NOT_INSTALLED)
    save_rows(folder, FIRST)
    reason = "no_such_package is not installed: pip install '.[first]'"
    assert find_usable_engines(folder, 1)[1].startswith(reason)
    with pytest.raises(MachineError) as caught:
        find_usable_engines(folder, 1, "first-fp32")
    expected = ("no_such_package is not installed", "pip install '.[first]'")
    assert (caught.value.what, caught.value.fix) == expected


def test_an_engine_with_a_missing_file_is_not_opened(folder):
    save_rows(folder, FIRST)
    with pytest.raises(MachineError, match=r"a file of first-fp32 is missing or damaged: model\.bin"):
        saved_engines.open_engine(folder, find_usable_engines(folder, 1)[0][0])


def test_an_engine_that_was_not_saved_gives_the_reason(folder):
    skipped = Measurement(EngineConfig("second", "int8"), comparison=EngineComparison(reason="it is wrong"))
    write_result(folder, replace(save_rows(folder, FIRST), measurements=(FIRST, SECOND, skipped)))
    fix = "--engine first-fp32, torch or auto"
    for name, what, expected_fix in (
        ("second-fp32", "second-fp32 matches fp32, but the saved engines are faster", fix),
        ("second-int8", "second-int8 was skipped: it is wrong", fix),
        ("first-fp", "the model has no engine 'first-fp'", "did you mean first-fp32?"),
    ):
        assert catch_usage_error(folder, name) == (what, expected_fix)


def test_a_model_without_saved_engines_uses_torch(folder):
    never_optimized = ("the model was never optimized", format_optimize_command(folder))
    assert find_usable_engines(folder, 1)[:2] == ([], "")
    assert catch_usage_error(folder, "first-fp32") == never_optimized
    save_rows(folder)
    assert find_usable_engines(folder, 1)[:2] == ([], f"no engine was saved; {format_optimize_command(folder)}")
    assert catch_usage_error(folder, "first-fp32") == never_optimized


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("batch_size", -1, Fault("engines.0.measurement.config.batch_size", "-1", "1 to 1024")),
        ("batch_size", 0, Fault("engines.0.measurement.config.batch_size", "0", "1 to 1024")),
        ("streams", 10**6, Fault("engines.0.measurement.config.streams", "1000000", "1 to 1024")),
        ("latency_ms", -2.0, Fault("engines.0.measurement.latency_ms", "-2.0", "0 or more")),
        ("folder", "../abc", Fault("engines.0", "'../abc'", "plain names of folder and files")),
        ("folder", "a" * 101, Fault("engines.0", repr("a" * 101), "plain names of folder and files")),
        ("folder", "", Fault("engines.0", "''", "plain names of folder and files")),
        ("files", [["../x", "0"]], Fault("engines.0", "'../x'", "plain names of folder and files")),
    ],
)
def test_values_that_optimize_does_not_write_are_refused(folder, field, value, fault):
    path = folder / ENGINES_FOLDER / ENGINES_FILE
    save_rows(folder, FIRST)
    data = json.loads(path.read_text())
    (saved,) = data["engines"]
    owners = (saved, saved["measurement"], saved["measurement"]["config"])
    next(owner for owner in owners if field in owner)[field] = value
    path.write_text(json.dumps(data))
    with pytest.raises(WeightsError, match="is damaged") as caught:
        find_usable_engines(folder, 1)
    assert caught.value.where[1:] == (str(fault),) and caught.value.fix == format_optimize_command(folder)


def test_a_list_of_engines_that_is_not_json_is_refused(folder):
    save_rows(folder, FIRST)
    (folder / ENGINES_FOLDER / ENGINES_FILE).write_text("{")
    with pytest.raises(WeightsError) as caught:
        find_usable_engines(folder, 1)
    assert caught.value.fix == format_optimize_command(folder)


def test_a_list_of_engines_that_is_not_a_regular_file_is_refused(folder):
    engines_folder = folder / ENGINES_FOLDER
    path = engines_folder / ENGINES_FILE
    engines_folder.write_text("a file")
    for make in (None, path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(ENGINES_FILE)):
        if make:
            make()
        with pytest.raises(WeightsError, match=r"cannot read the list of engines: [Nn]ot a (directory|regular file)"):
            find_usable_engines(folder, 1)
        (shutil.rmtree if engines_folder.is_dir() else os.unlink)(engines_folder)
        engines_folder.mkdir()
    assert find_usable_engines(folder, 1)[:2] == ([], "")


def test_missing_weights_are_an_error(folder):
    save_rows(folder, FIRST)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot read the weights: No such file or directory"):
        find_usable_engines(folder, 1)


# ------------------------------------------------------------------------------------------------- the table and report


def test_the_table_shows_saved_engines_the_baseline_and_the_best_of_each_engine():
    baseline = Measurement(EngineConfig("eager", "fp32", 16), images_per_second=5.0, startup_seconds=1.0)
    lucky = Measurement(EngineConfig("eager", "fp32", 4, 2), images_per_second=9.0)
    slower = replace(SECOND, config=EngineConfig("second", "fp32", 8), images_per_second=70.0)
    faster = replace(SECOND, config=EngineConfig("second", "fp32", 32), images_per_second=200.0)
    skipped = [Measurement(EngineConfig(name, "int8"), error="it was late") for name in ("first", "second")]
    rows = (lucky, baseline, FIRST, slower, SECOND, *skipped)
    engines = (SavedEngine("latency", SECOND, (), "a"), SavedEngine("startup", SECOND, (), "a"))
    result = OptimizeResult("", "", "", rows, engines)
    assert saved_engines.select_best_per_engine(result) == [SECOND, FIRST, baseline, *skipped]
    result = replace(result, measurements=(faster, *rows))
    assert saved_engines.select_best_per_engine(result) == [faster, SECOND, FIRST, baseline, *skipped]
    assert saved_engines.group_skip_reasons(rows) == ["first-int8, second-int8: it was late"]
    cells = ("second-fp32", "100.0", "4 x 2", "80.00", "20.00", "", "", "", "latency, startup")
    assert saved_engines.format_table_row(SECOND, result) == cells
    assert saved_engines.format_table_row(FIRST, result)[-1] == ""


def test_the_headings_have_units():
    row = replace(FIRST, comparison=EngineComparison(1.5e-3, 0.995, -0.1))
    cells = saved_engines.format_table_row(row, OptimizeResult("", "", "", (), ()))
    assert dict(zip(HEADINGS, cells, strict=True)) == {
        "engine": "first-fp32", "throughput (images/s)": "10.0", "batch x streams": "1 x 1", "latency (ms)": "100.00",
        "start-up (s)": "0.50", "logit error": "1.5e-03", "matches fp32 (%)": "99.50",
        "accuracy change (points)": "-0.10", "chosen for": "",
    }  # fmt: skip


def test_a_slower_result_than_before_is_noted(folder, cli, monkeypatch):
    write_result(folder, change_engine(save_rows(folder, SECOND), purpose="throughput"))
    row = Measurement(EngineConfig("eager", "fp32"), 10.0, 100.0, 2.0, EngineComparison(1e-6))
    monkeypatch.setattr(
        EngineSearch, "run", lambda search, configs: [replace(row, config=config) for config in configs]
    )
    code, _, err = cli("optimize", folder, "--engines", "eager")
    assert code == 0
    (note,) = [line for line in err.splitlines() if line.startswith("note: ")]
    assert "second-fp32" in note and "100.0 images/s" in note
    assert "note:" not in cli("optimize", folder, "--engines", "eager")[2]


@pytest.mark.browser
def test_the_report_in_a_browser_escapes_names(tmp_path, browser):
    rows = (
        replace(FIRST, comparison=EngineComparison(1e-4)),
        replace(SECOND, comparison=EngineComparison(0.3, reason="<script>alert(1)</script>")),
    )
    engines = (SavedEngine("latency", rows[0], (), "abc"),)
    result = OptimizeResult("", "a <b>processor</b>", "</style>", rows, engines)
    path = tmp_path / "page.html"
    path.write_text(render_optimize_report("<i>net</i>", result))
    events = []
    page = browser.new_page()
    page.on("console", lambda message: events.append(message.text))
    page.on("request", lambda request: events.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    assert page.title() == "engines of <i>net</i>" and not events
    assert page.locator("circle[fill=none]").count() == 1 and page.locator("svg title").count() == 3
    page.close()
