"""`predict` with an engine: the pipeline, the choice of the engine, and resumable output files."""

import csv
import io
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit as rk
from resnetkit.architecture.card import read_card
from resnetkit.engines import base
from resnetkit.engines import saved as saved_engines
from resnetkit.errors import (
    DataError,
    ImageError,
    MachineError,
    ResnetkitError,
    ResnetkitWarning,
    UsageError,
    WeightsError,
)
from resnetkit.evaluation import api as evaluating
from resnetkit.images.prepare import load_pixels
from resnetkit.prediction import formats, pipeline, resumable_output
from resnetkit.prediction.api import select_top_k
from resnetkit.prediction.formats import CsvFormat, JsonLinesFormat, Prediction, escape_surrogates
from resnetkit.prediction.inputs import ImageInput, expand_inputs
from resnetkit.prediction.pipeline import run_pipeline
from resnetkit.prediction.resumable_output import ResumableWriter
from resnetkit.runtime import threads
from resnetkit.weights.save import save

from helpers import fake_engine
from helpers.tiny import BASE, measure_cpu_budget

CLASSES = ("daisy", "rose, red", 'tu"lip')
TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def fake_spec(monkeypatch):
    fake_engine.install_for_test(monkeypatch)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    torch.manual_seed(0)
    return save(rk.build(BASE, classes=CLASSES), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved_model, tmp_path):
    """Return a model folder with a saved engine."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved_model.iterdir():
        os.link(path, folder / path.name)
    fake_engine.write_engines(folder)
    return folder


def write_image(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8) // (seed % 5 + 1)).save(
        path
    )


@pytest.fixture
def inbox(tmp_path):
    """Return a folder of images with difficult names, and two files that are not images."""
    folder = tmp_path / "in box"
    folder.mkdir()
    difficult_names = ["line\nbreak.png", 'quote",.png', "\U0001f33c.png", os.fsdecode(b"caf\xe9.png"), "r\rn.png"]
    for i, name in enumerate([*difficult_names, *(f"{i:02}.png" for i in range(18))]):
        write_image(folder / name, i)
    for name in ("03b.png", "z.png"):
        (folder / name).write_bytes(b"not an image")
    return folder


def load(model, path):
    return load_pixels(path, read_card(model).preparation)


# --------------------------------------------------------------------------------------------------------- the pipeline


class RecordingList(list):
    """A list that records its slices."""

    def __init__(self, items):
        super().__init__(items)
        self.slices = []

    def __getitem__(self, key):
        self.slices.append(key)
        return super().__getitem__(key)


def run(model, paths, infer, batch_size=4, streams=2):
    inputs = RecordingList(ImageInput(str(path)) for path in paths)
    return run_pipeline(inputs, read_card(model).preparation, infer, batch_size, streams)


def return_pixels(pixels):
    return pixels


@pytest.fixture
def set_cores(monkeypatch):
    return lambda n: monkeypatch.setattr(pipeline, "count_cores", lambda: n)


@pytest.fixture
def before_load(monkeypatch):
    """A function that sets what happens before an image is decoded."""
    load_image = pipeline.load_image

    def set_function(function):
        def load(preparation, item):
            function(item)
            return load_image(preparation, item)

        monkeypatch.setattr(pipeline, "load_image", load)

    return set_function


def test_results_are_in_order_and_calls_do_not_exceed_the_streams(model, inbox):
    paths, engine = sorted(inbox.iterdir()), fake_engine.FakeEngine(fake_engine.CONFIG, 3)
    batches = list(run(model, paths, engine))
    assert [item.name for batch in batches for item, _ in batch] == [str(path) for path in paths]
    assert [len(batch) for batch in batches] == [4] * 6 + [1]
    for batch in batches:
        readable = [(item, logits) for item, logits in batch if not isinstance(logits, ImageError)]
        pixels = [load(model, item.name) for item, _ in readable]
        expected = fake_engine.compute_logits(np.stack(pixels), 3) if pixels else ()
        for (_, logits), expected_logits in zip(readable, expected, strict=True):
            np.testing.assert_array_equal(logits, expected_logits)


def test_a_batch_of_unreadable_images_is_not_computed(model, inbox):
    (batch,) = run(model, [inbox / "z.png"] * 5, lambda pixels: pytest.fail("computed"), 5)
    assert all(isinstance(error, ImageError) and "JPEG, PNG" in error.what for _, error in batch)


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("a bug")])
def test_an_error_of_inference_is_raised(model, inbox, error):
    def fail(pixels):
        raise error

    with pytest.raises(type(error)):
        list(run(model, sorted(inbox.iterdir()), fail))


def test_few_batches_are_in_flight_and_closing_stops_them(model, inbox, set_cores):
    set_cores(2)
    n_threads, calls = threading.active_count(), []
    inputs = RecordingList([ImageInput(str(inbox / "00.png"))] * 4000)
    preparation = read_card(model).preparation
    batches = run_pipeline(inputs, preparation, lambda pixels: calls.append(1) or pixels, 4, 2)
    for _ in range(10):
        next(batches)
    assert len(inputs.slices) == 10 + 4
    batches.close()
    assert 10 <= len(calls) <= 10 + 4
    assert threading.active_count() == n_threads


def test_images_are_decoded_during_inference(model, inbox, set_cores, before_load):
    """With one stream and two readers the second batch is decoded before the first one is computed."""
    set_cores(2)
    loaded, results = threading.Semaphore(0), []
    before_load(lambda item: loaded.release())

    def infer(pixels):
        if not results:
            results.append([loaded.acquire(timeout=60) for _ in range(4)])
        return pixels

    list(run(model, [inbox / "00.png"] * 4, infer, 2, 1))
    assert results == [[True] * 4]


def test_the_images_of_one_batch_are_decoded_on_all_cores(model, inbox, set_cores, before_load):
    set_cores(3)
    barrier = threading.Barrier(3)
    before_load(lambda item: barrier.wait(60))
    (batch,) = run(model, [inbox / "00.png"] * 3, return_pixels, 32, 1)
    assert [pixels.shape for _, pixels in batch] == [(16, 16, 3)] * 3


def test_closing_cancels_queued_batches(model, inbox, set_cores, before_load, monkeypatch):
    set_cores(3)
    calls, first_call, second_call, release = [], threading.Event(), threading.Event(), threading.Event()

    def infer(pixels):
        calls.append(len(pixels))
        first_call.set()
        if len(calls) == 2:
            second_call.set()
            assert release.wait(60)
        return pixels

    before_load(lambda item: item.name.endswith("00.png") or first_call.wait(60))
    join = threads.WorkerPool.join  # it comes after the shutdown of all pools
    monkeypatch.setattr(threads.WorkerPool, "join", lambda pool, *timeout: (release.set(), join(pool, *timeout)))
    batches = run(model, [inbox / "00.png", *[inbox / "01.png"] * 39], infer, 1, 1)
    next(batches)
    assert second_call.wait(60)
    batches.close()
    assert len(calls) == 2


@pytest.mark.parametrize("streams", [1, 3])
def test_the_same_threads_compute_all_batches(model, inbox, streams):
    """Torch keeps a thread pool for each calling thread, OpenVINO a request."""
    thread_ids, barrier = [], threading.Barrier(streams)

    def infer(pixels):
        if len(thread_ids) < streams:
            thread_ids.append(threading.get_ident())
            barrier.wait(60)
        thread_ids.append(threading.get_ident())
        return pixels

    assert len(list(run(model, [inbox / "00.png"] * 30, infer, 1, streams))) == 30
    assert len(set(thread_ids)) == len(set(thread_ids[:streams])) == streams
    assert threading.get_ident() not in thread_ids


def test_without_threads_the_caller_does_the_work(model, inbox, monkeypatch):
    expected = list(run(model, sorted(inbox.iterdir()), return_pixels))

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    batches = list(run(model, sorted(inbox.iterdir()), return_pixels))
    assert [[item for item, _ in batch] for batch in batches] == [[item for item, _ in batch] for batch in expected]
    for (_, ours), (_, theirs) in zip(*(itertools.chain(*rows) for rows in (batches, expected)), strict=True):
        assert str(ours) == str(theirs) if isinstance(theirs, ImageError) else np.array_equal(ours, theirs)


def test_an_unexpected_error_names_the_image(model, inbox, before_load):
    errors = [MemoryError(), ZeroDivisionError("a bug")]

    def fail(item):
        raise errors.pop()

    before_load(fail)
    with pytest.raises(ResnetkitError) as caught:
        list(run(model, [inbox / "00.png"], return_pixels))
    assert type(caught.value) is ResnetkitError
    assert "ZeroDivisionError: a bug" in caught.value.what and caught.value.where == (str(inbox / "00.png"),)
    with pytest.raises(MemoryError):
        list(run(model, [inbox / "00.png"], return_pixels))


@pytest.fixture
def hanging_read(before_load, monkeypatch):
    """Let the disk of 05.png hang; return an event that is set when it is read."""
    is_reading, never = threading.Event(), threading.Event()

    def hang(item):
        if item.name.endswith("05.png"):
            is_reading.set()
            never.wait(120)

    before_load(hang)
    monkeypatch.setattr(pipeline, "JOIN_TIMEOUT", 0.1)
    yield is_reading
    never.set()


def list_readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader ")]


def test_a_read_that_hangs_is_an_error_that_names_the_image(model, inbox, hanging_read, monkeypatch):
    batches = run(model, [inbox / "00.png", inbox / "05.png"], return_pixels, 1)
    assert len(next(batches)) == 1
    assert hanging_read.wait(60)
    monkeypatch.setattr(threads, "READ_TIMEOUT", 0.0)
    with pytest.raises(MachineError, match="the read did not finish within 0 seconds") as caught:
        next(batches)
    assert caught.value.where == (str(inbox / "05.png"),)


def test_the_timeout_is_for_each_image(model, inbox, monkeypatch):
    waits, wait_for_read = [], pipeline.wait_for_read
    monkeypatch.setattr(pipeline, "wait_for_read", lambda *args: waits.append(args[1]) or wait_for_read(*args))
    (batch,) = run(model, [inbox / "00.png"] * 12, return_pixels, 12)
    assert waits == [item for item, _ in batch] and len(batch) == 12


def test_closing_does_not_wait_for_a_read_that_hangs(model, inbox, hanging_read):
    batches = run(model, [inbox / "00.png", inbox / "05.png"] * 8, return_pixels, 1)
    next(batches)
    assert hanging_read.wait(60)
    batches.close()
    assert list_readers()


HANGING_PROGRAM = """
import signal, sys, threading
sys.path.insert(0, {tests!r})
from helpers import fake_engine
fake_engine.install()
from resnetkit.cli import main
from resnetkit.prediction import pipeline
def hang(preparation, item):
    print("hangs", flush=True)
    {then}
    threading.Event().wait()
pipeline.load_image = hang
sys.exit(main({args!r}))
"""
# a signal that the waiting main thread does not see at once
SIGNAL_TO_ANOTHER_THREAD = "signal.pthread_kill(threading.get_ident(), signal.SIGINT)"


@pytest.mark.parametrize("then", ["pass", SIGNAL_TO_ANOTHER_THREAD])
def test_ctrl_c_ends_a_command_whose_read_hangs(model, inbox, tmp_path, then):
    args = ["predict", str(inbox / "00.png"), "--model", str(model), "--out", str(tmp_path / "a.csv")]
    code = HANGING_PROGRAM.format(tests=str(TESTS), args=args, then=then)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "hangs\n"
    if then == "pass":
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "resnetkit predict " in err and "--resume" in err


# -------------------------------------------------------------------------------------------------------- probabilities


def test_probabilities_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    for row in torch.randn(50, 11, generator=generator) * 5:
        best = row.double().softmax(0).topk(4)
        top = select_top_k(row.numpy(), 4)
        assert [i for i, _ in top] == best.indices.tolist()
        np.testing.assert_allclose([probability for _, probability in top], best.values.numpy(), rtol=1e-12)


def test_ties_are_broken_by_class_index():
    assert [i for i, _ in select_top_k(np.array([1, 3, 3, 2, 3], np.float32), 2)] == [1, 2]
    assert [i for i, _ in select_top_k(np.zeros(9, np.float32), 20)] == list(range(9))
    assert select_top_k(np.array([-1e30, 1e30], np.float32), 2) == [(1, 1.0), (0, 0.0)]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(saved_model, inbox, cli, monkeypatch, number):
    call = base.FunctionEngine.__call__

    def call_and_spoil(self, pixels):
        logits = call(self, pixels)
        logits[1:, 1] = number
        return logits

    monkeypatch.setattr(base.FunctionEngine, "__call__", call_and_spoil)
    args, reason = (
        ("predict", inbox / "00.png", inbox / "01.png", "--model", saved_model),
        "the logits are NaN or infinite",
    )
    good, bad = rk.predict(list(args[1:3]), saved_model)
    assert good.label and not good.error
    assert (bad.label, bad.probability, bad.top, bad.error) == ("", None, (), reason)
    for form in ("--json", "--jsonl", "--csv", "--top=1"):
        code, out, err = cli(*args, form)
        assert code == 3
        assert "error: 1 of 2 files have no prediction; the rows say why\n" in err
        assert out.count(reason) == 1
        assert "nan" not in out.replace(reason, "").lower()
        if form == "--jsonl":
            assert json.loads(out.splitlines()[1]) == {
                "file": str(inbox / "01.png"), "label": None, "probability": None, "top": [], "error": reason
            }  # fmt: skip


def test_nan_weights_give_an_error(inbox, tmp_path, cli):
    network = rk.build(BASE, classes=CLASSES)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    folder = save(network, tmp_path / "diverged")
    code, out, _ = cli("predict", inbox / "00.png", "--model", folder, "--csv")
    assert (code, out.splitlines()[1]) == (3, f"{inbox / '00.png'},,,the logits are NaN or infinite")


# --------------------------------------------------------------------------------------------- the choice of the engine


def predict_by_hand(model, path):
    """Return the prediction of the fake engine for a single image."""
    logits = fake_engine.compute_logits(load(model, path)[None], 3)[0].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    return CLASSES[int(probabilities.argmax())], float(probabilities.max())


def test_a_saved_engine_is_used_by_default(model, inbox):
    (prediction,) = rk.predict(inbox / "05.png", model)
    assert (prediction.label, prediction.probability) == (
        predict_by_hand(model, inbox / "05.png")[0],
        pytest.approx(predict_by_hand(model, inbox / "05.png")[1]),
    )
    assert fake_engine.batch_sizes == [1]
    assert rk.predict(inbox / "05.png", model, engine="fake-int8") == [prediction]
    torch_predictions = rk.predict(inbox / "05.png", rk.load(model))
    fake_engine.batch_sizes.clear()
    for options in (
        {"engine": "torch"},
        {"device": "cpu"},
        {"precision": "fp32"},
        {"engine": "torch", "device": "cpu"},
    ):
        assert rk.predict(inbox / "05.png", model, **options) == torch_predictions
    assert rk.predict(inbox / "05.png", model / "model.safetensors") == [prediction]
    assert fake_engine.batch_sizes == [1]


@pytest.mark.parametrize(
    ("source", "options", "what"),
    [
        ("model", {"engine": "fake-int8", "device": "cpu"}, "the device and precision of fake-int8 are fixed"),
        ("model", {"engine": "fake-int8", "precision": "bf16"}, "the device and precision of fake-int8 are fixed"),
        ("model", {"engine": "fake-int4"}, "the model has no engine 'fake-int4'"),
        ("network", {"engine": "fake-int8"}, "only a model folder has saved engines"),
        ("saved", {"engine": "fake-int8"}, "the model was never optimized"),
        ("model", {"precision": "fp8"}, "fp8"),
    ],
)
def test_invalid_engine_options(model, saved_model, inbox, source, options, what):
    with pytest.raises(UsageError, match=what):
        rk.predict(
            inbox / "00.png", {"model": model, "saved": saved_model, "network": rk.load(saved_model)}[source], **options
        )
    assert fake_engine.batch_sizes == []


def test_auto_uses_the_engine_that_finishes_soonest(model, inbox, cli):
    fake_engine.write_engines(model, fake_engine.CONFIG, base.EngineConfig("fake", "fp32", 2, 1))
    assert "engine: fake-fp32, batch 2 x 1\n" in cli("predict", inbox, "--model", model)[2]
    assert set(fake_engine.batch_sizes) == {2, 1}
    err = cli("predict", inbox, "--model", model, "--engine", "fake-int8")[2]
    assert err.splitlines()[0] == "engine: fake-int8, batch 4 x 2"


def test_the_engine_and_the_reason_are_printed(model, saved_model, inbox, cli, monkeypatch):
    args = ("predict", inbox / "00.png", "--model")
    assert cli(*args, saved_model)[2].splitlines()[0] == "engine: torch fp32, batch 32 x 1"
    assert cli(*args, model, "--engine", "torch")[2].splitlines()[0] == "engine: torch fp32, batch 32 x 1"
    assert cli(*args, model, "--precision", "bf16")[2].splitlines()[0] == "engine: torch bf16, batch 32 x 1"
    assert cli(*args, model, "--network", "resnet18")[0] == 2
    monkeypatch.setattr(base.EngineSpec, "get_versions", lambda spec: ("numpy 9",))
    line = cli(*args, model)[2].splitlines()[0]
    reason = f"it was optimized with numpy {np.__version__}, and numpy 9 is installed"
    command = saved_engines.format_optimize_command(model)
    assert line == f"engine: torch fp32, batch 32 x 1; {reason}; {command}"
    code, out, err = cli(*args, model, "--engine", "fake-int8")
    assert (code, out) == (5, "")
    assert err.startswith(f"error: {reason}\n")
    assert fake_engine.batch_sizes == []


@pytest.mark.parametrize("content", ["{", '{"format": 2}'])
def test_a_damaged_list_of_engines_is_an_error_only_if_an_engine_is_named(model, inbox, cli, content):
    (model / "engines" / "engines.json").write_text(content)
    args = ("predict", inbox / "00.png", "--model", model)
    code, out, err = cli(*args, "--csv")
    assert (code, len(out.splitlines())) == (0, 2)
    line = err.splitlines()[0]
    assert line.startswith("engine: torch fp32, batch 32 x 1; ")
    assert str(model / "engines" / "engines.json") in line
    assert line.endswith(f"; {saved_engines.format_optimize_command(model)}")
    assert rk.predict(inbox / "00.png", model) == rk.predict(inbox / "00.png", model, engine="torch")
    assert cli(*args, "--engine", "fake-int8")[0] == WeightsError.exit_code
    with pytest.raises(WeightsError):
        rk.predict(inbox / "00.png", model, engine="fake-int8")


def test_an_engine_that_cannot_be_loaded_is_an_error_only_if_it_is_named(model, inbox, pictures, cli, monkeypatch):
    def fail(folder, artifact, config):
        raise MachineError("this processor has no bf16 instructions", fix="use an engine in fp32 or int8")

    monkeypatch.setattr(fake_engine, "load_engine", fail)
    why = "cannot load fake-int8: this processor has no bf16 instructions"
    data = pictures("flowers", sorted(CLASSES[:2]), 9)
    code, out, err = cli("predict", inbox / "00.png", "--model", model, "--csv")
    assert (code, len(out.splitlines())) == (0, 2)
    fix = "use an engine in fp32 or int8"
    assert err.splitlines()[0] == f"engine: torch fp32, batch 32 x 1; {why}; {fix}"
    code, _, err = cli("evaluate", model, data, "--engine", "auto")
    assert (code, err.splitlines()[0]) == (0, f"engine: torch fp32; {why}; {fix}")
    message = f"error: cannot load fake-int8: this processor has no bf16 instructions\nwhere: {model}\nfix: {fix}\n"
    for args in (("predict", inbox / "00.png", "--model", model), ("evaluate", model, data)):
        assert cli(*args, "--engine", "fake-int8")[::2] == (MachineError.exit_code, message)


def test_the_error_of_a_library_is_one_line(model, inbox, cli, monkeypatch):
    monkeypatch.setattr(
        fake_engine, "load_engine", lambda *_: (_ for _ in ()).throw(RuntimeError("no such file: a.onnx\nat C++"))
    )
    code, out, err = cli("predict", inbox / "00.png", "--model", model, "--csv")
    why = "cannot load fake-int8: no such file: a.onnx"
    assert (code, len(out.splitlines())) == (0, 2)
    assert (
        err.splitlines()[0]
        == f"engine: torch fp32, batch 32 x 1; {why}; {saved_engines.format_optimize_command(model)}"
    )
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--engine", "fake-int8")
    assert (code, err) == (5, f"error: {why}\nwhere: {model}\nfix: {saved_engines.format_optimize_command(model)}\n")


def test_the_next_engine_is_used_if_one_cannot_be_loaded(model, inbox, cli, monkeypatch):
    load_engine = fake_engine.load_engine
    fake_engine.write_engines(model, fake_engine.CONFIG, base.EngineConfig("fake", "fp32", 2, 1))

    def fail(folder, artifact, config):
        if config.precision == "fp32":
            raise MachineError("its memory is gone")
        return load_engine(folder, artifact, config)

    monkeypatch.setattr(fake_engine, "load_engine", fail)
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--csv")
    assert code == 0
    why = f"cannot load fake-fp32: its memory is gone; {saved_engines.format_optimize_command(model)}"
    assert err.splitlines()[0] == f"engine: fake-int8, batch 4 x 2; {why}"


def test_the_next_engine_is_used_if_files_are_damaged(model, inbox, cli):
    damaged_config = base.EngineConfig("fake", "fp32", 2, 1)
    fake_engine.write_engines(model, fake_engine.CONFIG, damaged_config)
    (saved_engines.get_artifact_folder(model, "f1", damaged_config) / "model.bin").write_bytes(b"other ranges")
    why = f"a file of fake-fp32 is missing or damaged: model.bin; {saved_engines.format_optimize_command(model)}"
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--csv")
    assert (code, err.splitlines()[0]) == (0, f"engine: fake-int8, batch 4 x 2; {why}")
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--engine", "fake-fp32")
    assert (code, err.splitlines()[0]) == (5, "error: a file of fake-fp32 is missing or damaged: model.bin")


def test_a_saved_engine_cannot_be_combined_with_options_about_weights(model, saved_model, inbox, pictures, cli):
    data, weights = pictures("flowers", sorted(CLASSES[:2]), 9), saved_model / "model.safetensors"
    for args in (("predict", inbox / "00.png", "--model", weights), ("evaluate", weights, data)):
        code, out, err = cli(*args, "--engine", "fake-int8", "--network", "resnet20", "--input-channels", 1)
        assert (code, out) == (2, "")
        assert err == (
            "error: a saved engine cannot be combined with options about the weights\n"
            "where: --engine fake-int8\n       --network resnet20 --input-channels 1\n"
            "fix: omit --network resnet20 --input-channels 1, or use --engine torch\n"
        )


@pytest.fixture
def torch_settings():
    """Set torch's settings to values that no engine uses; return a function that reads them."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(3)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield lambda: (torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    torch.set_num_threads(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.set_float32_matmul_precision("highest")


def test_prediction_restores_torch_settings(model, inbox, pictures, cli, monkeypatch, torch_settings):
    config = base.EngineConfig("eager", "fp32", 2, 1)
    monkeypatch.setattr(base.EngineConfig, "threads", 1)
    monkeypatch.setattr(saved_engines, "find_unusable_reason", lambda *_: "")
    fake_engine.write_engines(model, config)
    seen, call = [], base.FunctionEngine.__call__
    monkeypatch.setattr(
        base.FunctionEngine, "__call__", lambda self, pixels: (seen.append(torch_settings()), call(self, pixels))[1]
    )
    before = torch_settings()
    rk.predict(inbox / "00.png", model)
    assert cli("evaluate", model, pictures("flowers", sorted(CLASSES[:2]), 9), "--engine", "eager-fp32")[0] == 0
    assert set(seen) == {(1, True, "high")}  # on a CPU only the number of threads changes
    assert torch_settings() == before

    def fail(pixels):
        raise ZeroDivisionError

    monkeypatch.setattr(base.FunctionEngine, "__call__", lambda self, pixels: fail(pixels))
    with (
        pytest.warns(ResnetkitWarning, match="eager-fp32 failed: ZeroDivisionError; torch fp32, batch 32 x 1 computed"),
        pytest.raises(ZeroDivisionError),
    ):
        rk.predict(inbox / "00.png", model)
    assert torch_settings() == before


def test_inference_disables_tf32(model, torch_settings, monkeypatch):
    """The CPU stands in for a GPU, which uses TF32."""
    from resnetkit.network import inference as inference_module
    from resnetkit.runtime.torch_settings import strict_fp32

    inference = inference_module.inference
    monkeypatch.setattr(inference_module, "strict_fp32", lambda precision, device: strict_fp32(precision, "cuda"))
    before, network = torch_settings(), rk.load(model)
    with inference(network, torch.device("cpu")):
        assert torch_settings() == (3, False, "highest")
    assert torch_settings() == before
    with inference(network, torch.device("cpu"), "bf16"):
        assert torch_settings() == before
    with pytest.raises(ZeroDivisionError), inference(network, torch.device("cpu")):
        raise ZeroDivisionError
    assert torch_settings() == before


def test_disable_tf32_only_for_fp32_on_a_gpu(torch_settings):
    from resnetkit.runtime.torch_settings import disable_tf32, restore_torch_settings

    before = torch_settings()
    for precision, device in (("bf16", "cuda"), ("fp32", "cpu")):
        disable_tf32(precision, device)
        assert torch_settings() == before
    with restore_torch_settings():
        disable_tf32("fp32", "cuda")
        assert torch_settings() == (3, False, "highest")
    assert torch_settings() == before


def make_command(*args):
    return [sys.executable, str(TESTS / "helpers" / "fake_engine.py"), *map(str, args)]


def test_an_engine_needs_no_torch(model, inbox):
    """fake_engine.py checks the imported modules at the end of the command."""
    for form in ("--csv", "--jsonl"):
        done = subprocess.run(
            make_command("predict", inbox / "00.png", "--model", model, form),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[0] == "engine: fake-int8, batch 4 x 2"
        rows = (
            csv.DictReader(io.StringIO(done.stdout)) if form == "--csv" else map(json.loads, done.stdout.splitlines())
        )
        assert [row["label"] for row in rows] == [predict_by_hand(model, inbox / "00.png")[0]]
    code = f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from helpers import fake_engine
import resnetkit as rk
fake_engine.install()
print(rk.predict({str(inbox / "00.png")!r}, {str(model)!r})[0].label)
assert "torch" not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (predict_by_hand(model, inbox / "00.png")[0] + "\n", "")


def test_evaluation_with_a_saved_engine(model, pictures, cli):
    data = pictures("flowers", sorted(CLASSES[:2]), 9)
    code, out, err = cli("evaluate", model, data, "--engine", "fake-int8", "--json", "--split", "all")
    assert code == 0, err
    assert err.splitlines()[0] == "engine: fake-int8, batch 4 x 2"
    files = sorted(data.rglob("*.png"))  # eighteen at once, so batches of four and one of two
    document, pixels = json.loads(out), np.stack([load(model, path) for path in files])
    predictions = [
        CLASSES[i]
        for start in range(0, 18, 4)
        for i in fake_engine.compute_logits(pixels[start : start + 4], 3).argmax(1)
    ]
    assert document["n"] == 18
    assert document["correct"] == sum(path.parent.name == label for path, label in zip(files, predictions, strict=True))
    assert sorted(fake_engine.batch_sizes) == [2, 4, 4, 4, 4]
    code, _, err = cli("evaluate", model, data, "--engine", "fake-int8", "--device", "cpu")
    assert (code, err.splitlines()[0]) == (2, "error: the device and precision of fake-int8 are fixed")
    evaluation = rk.evaluate(model, data, split="all", engine="fake-int8")
    notes = ("the model only ever predicts daisy", "engine: fake-int8, batch 4 x 2")
    assert (set(predictions), evaluation.correct, evaluation.notes) == ({"daisy"}, document["correct"], notes)
    with pytest.raises(UsageError, match="int8"):
        rk.evaluate(model, data, precision="int8")
    with pytest.raises(UsageError, match="only a model folder has saved engines"):
        rk.evaluate(rk.load(model), data, engine="fake-int8")
    fake_engine.batch_sizes.clear()
    assert cli("evaluate", model, data)[0] == 0
    assert rk.evaluate(rk.load(model), data, split="all").n == 18
    assert fake_engine.batch_sizes == []
    assert "engine: fake-int8" in cli("evaluate", model, data, "--engine", "auto")[2]


def test_evaluate_checks_its_arguments_before_it_opens_an_engine(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "open_inference", lambda *_: pytest.fail("an engine was opened"))
    data, other_data = pictures("flowers", sorted(CLASSES[:2]), 3), pictures("other", ["ant", "bee"], 3)
    for options, what, error in (
        ({"data": tmp_path / "nowhere"}, "the folder does not exist", UsageError),
        ({"data": other_data}, "the model does not have 2 of 2 classes of the dataset: ant, bee", DataError),
        ({"data": data, "split": "val"}, "the data has no split 'val'", UsageError),
        (
            {"data": tmp_path / "nowhere", "bad_files": "never"},
            "unknown policy for unreadable images: never",
            UsageError,
        ),
    ):
        with pytest.raises(error, match=what):
            rk.evaluate(model, engine="fake-int8", **options)


# --------------------------------------------------------------------------------------------------------- output files


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_output_file_has_the_printed_rows(model, inbox, cli, tmp_path, ending):
    args = ("predict", inbox, "--model", model, "--top", 2)
    _, printed, expected_err = cli(*args, f"--{ending}")
    code, out, err = cli(*args, "--out", tmp_path / f"a.{ending}")
    assert (code, out) == (3, f"wrote 25 rows to {tmp_path / 'a'}.{ending}\n")
    assert err == expected_err
    assert (tmp_path / f"a.{ending}").read_bytes().decode() == printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{ending}", "in box", "model"]
    code, _, err = cli(*args, "--out", tmp_path / f"a.{ending}", "--resume")
    assert (code, err.splitlines()[0]) == (2, "error: this file already exists")


def test_parquet_is_written_in_groups(model, inbox, cli, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(formats, "ROW_GROUP_SIZE", 10)
    rows = [json.loads(line) for line in cli("predict", inbox, "--model", model, "--top", 2, "--jsonl")[1].splitlines()]
    assert cli("predict", inbox, "--model", model, "--top", 2, "--out", tmp_path / "a.parquet")[0] == 3
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)] == [10, 10, 5]
    table = file.read().to_pylist()
    assert [row["label"] for row in table] == [row["label"] for row in rows]
    assert [row["error"] for row in table] == [row["error"] for row in rows]
    assert [[round(probability, 6) for probability in row["probabilities"]] for row in table] == [
        [best["probability"] for best in row["top"]] for row in rows
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "in box", "model"]


def write_partial(path, cli, *args):
    """Write partial output as a kill leaves it; return the paths of the rows and of their record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumable_output.files, "publish", lambda *paths: True)
        cli(*args, "--out", path)
    assert not path.exists()
    return path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_resume_after_a_cut_at_any_byte(model, inbox, cli, tmp_path, ending):
    args = ("predict", inbox / "*.png", inbox / "05.png", inbox / "05.png", "--model", model, "--top", 2)
    out = tmp_path / f"a.{ending}"
    part, record = write_partial(out, cli, *args)
    record_bytes, whole = record.read_bytes(), part.read_bytes()
    rng = random.Random(0)
    cuts = [0, 1, len(whole), len(whole) - 1, *rng.sample(range(len(whole)), 14)]
    for cut in cuts:
        part.write_bytes(whole[:cut])
        record.write_bytes(record_bytes)
        code, printed, err = cli(*args, "--out", out, "--resume")
        assert (code, printed) == (3, f"wrote 27 rows to {out}\n"), err
        assert out.read_bytes() == whole, cut
        assert "error: 2 of 27 files have no prediction; the rows say why\n" in err
        assert not part.exists()
        assert not record.exists()
        out.unlink()


def test_rows_after_zeroed_pages_are_computed_again(model, inbox, cli, tmp_path):
    args = ("predict", inbox, "--model", model)
    for ending in ("csv", "jsonl"):
        part, _ = write_partial(tmp_path / f"a.{ending}", cli, *args)
        whole = part.read_bytes()
        part.write_bytes(whole[:700] + b"\0" * 60 + whole[760:])
        assert cli(*args, "--out", tmp_path / f"a.{ending}", "--resume")[0] == 3
        assert (tmp_path / f"a.{ending}").read_bytes() == whole


def test_existing_rows_are_not_computed_again(model, inbox, cli, tmp_path):
    files = [inbox / f"{i:02}.png" for i in range(10)]
    part, _ = write_partial(tmp_path / "a.csv", cli, "predict", *files, "--model", model)
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:7]))  # the header and six rows
    fake_engine.batch_sizes.clear()
    err = cli("predict", *files, "--model", model, "--out", tmp_path / "a.csv", "--resume")[2]
    assert sorted(fake_engine.batch_sizes) == [2, 4]  # rows 5 to 8, because two of them are missing, and 9 to 10
    assert "resumed: 6 rows of 10 " in err and str(part) in err


def test_resume_with_other_files(model, inbox, cli, tmp_path):
    """Each existing row removes one input of its name, wherever that is."""
    first, second, third = (inbox / f"{i:02}.png" for i in (1, 2, 3))
    write_partial(tmp_path / "a.csv", cli, "predict", first, second, second, inbox / "z.png", "--model", model)
    inputs = (inbox / "z.png", third, second, first, second, second, first)
    code, out, _ = cli("predict", *inputs, "--model", model, "--out", tmp_path / "a.csv", "--resume")
    assert (code, out) == (3, f"wrote 7 rows to {tmp_path / 'a.csv'}\n")
    rows = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == list(
        map(str, (first, second, second, inbox / "z.png", third, second, first))
    )


def test_resume_without_partial_output_starts(model, inbox, cli, tmp_path):
    assert cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv", "--resume")[0] == 0
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 2


def test_rows_of_other_settings_are_refused(model, inbox, cli, tmp_path, saved_model):
    out = tmp_path / "a.jsonl"
    part, record = write_partial(out, cli, "predict", inbox / "00.png", "--model", model)
    remove = "remove a.jsonl.part and a.jsonl.part.json"
    args = ("predict", inbox / "00.png", "--out", out)
    code, _, err = cli(*args, "--model", model)
    assert (code, err) == (
        2,
        f"error: an earlier command left partial output\nwhere: {part}\n"
        f"fix: use --resume to continue it, or {remove}\n",
    )
    for options, (where, fix) in {
        ("--model", model, "--top", 2): ("top: 1 -> 2", "--top 1"),
        ("--model", model, "--engine", "torch"): ("engine: fake-int8 -> torch-fp32", "--engine fake-int8"),
        ("--model", model, "--precision", "bf16"): ("engine: fake-int8 -> torch-bf16", "--engine fake-int8"),
    }.items():
        code, printed, err = cli(*args, *options, "--resume")
        assert (code, printed) == (2, "")
        assert (
            f"error: the rows in {part} were made with other settings\nwhere: {where}\nfix: {fix}, or {remove}\n" in err
        )
    other_model = save(rk.build(BASE, classes=[*CLASSES[:2], "lily"]), tmp_path / "other")
    for _ in range(2):  # without an engine of that name, and with it
        code, _, err = cli(*args, "--model", other_model, "--resume")
        assert code == 2
        assert re.search(r"where: model: \w+\.\.\. -> \w+\.\.\.\nfix: use the model that made them, or ", err)
        fake_engine.write_engines(other_model)
    record.write_text(record.read_text().replace('"error"', '"reason"'))
    assert "where: columns: file, label, probability, top, reason -> " in cli(*args, "--model", model, "--resume")[2]
    record.unlink()
    code, _, err = cli(*args, "--model", model, "--resume")
    assert (code, err) == (
        2,
        f"error: the record of the partial output is missing\nwhere: {record}\nfix: {remove}\n",
    )
    assert part.exists()


def test_the_options_of_torch_are_suggested(model, inbox, cli, tmp_path):
    args = ("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")
    write_partial(tmp_path / "a.csv", cli, *args[:-2], "--precision", "bf16")
    err = cli(*args, "--resume")[2]
    assert "where: engine: torch-bf16 -> torch-fp32\nfix: --engine torch --precision bf16 --device cpu, or " in err


def test_rows_of_an_engine_that_was_removed(model, saved_model, inbox, cli, tmp_path):
    args = ("predict", inbox / "00.png", "--out", tmp_path / "a.csv", "--model")
    write_partial(tmp_path / "a.csv", cli, "predict", inbox / "00.png", "--model", model)
    err = cli(*args, saved_model, "--resume")[2]
    assert "where: engine: fake-int8 -> torch-fp32\nfix: --engine fake-int8, or " in err


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the record of the partial output cannot be read: 1 fault"),
        (b"{", "the record of the partial output cannot be read: 1 fault"),
        (b"[" * 100_000, "the record of the partial output cannot be read: 1 fault"),
        (b"[]", "the record of the partial output does not describe a provenance: 1 fault"),
        ("{}".encode("utf-16"), "the record of the partial output is not UTF-8 text"),
    ],
)
def test_a_damaged_record(model, inbox, cli, tmp_path, content, what):
    part, record = write_partial(tmp_path / "a.csv", cli, "predict", inbox / "00.png", "--model", model)
    record.write_bytes(content)
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv", "--resume")
    lines = err.splitlines()
    assert (code, lines[:2], lines[-1]) == (
        2,
        [f"error: {what}", f"where: {record}"],
        f"fix: remove {part.name} and {record.name}",
    )
    assert len(lines) in (3, 4)


@pytest.mark.parametrize(
    "change", [{"content": b"other ranges"}, {"configs": [replace(fake_engine.CONFIG, batch_size=2)]}]
)
def test_rows_of_two_engines_of_one_name_are_not_mixed(model, inbox, cli, tmp_path, change):
    """An engine that was optimized again has the same name and the same weights."""
    args = ("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")
    part, record = write_partial(tmp_path / "a.csv", cli, *args[:-2])
    assert json.loads(record.read_text())["engine"] == "fake-int8"
    fake_engine.write_engines(model, *change.get("configs", ()), content=change.get("content", b"ranges"))
    code, out, err = cli(*args, "--resume")
    assert (code, out) == (2, "")
    assert re.search(
        rf"error: the rows in {re.escape(str(part))} were made with other settings\n"
        r"where: artifact: [0-9a-f]{37}\.\.\. -> [0-9a-f]{37}\.\.\.\nfix: ",
        err,
    )
    fake_engine.write_engines(model)
    assert cli(*args, "--resume")[0] == 0


def test_rows_of_torch_do_not_depend_on_saved_engines(model, saved_model, inbox, cli, tmp_path):
    args = ("predict", inbox / "00.png", "--model", model, "--engine", "torch", "--out", tmp_path / "a.csv")
    _, record = write_partial(tmp_path / "a.csv", cli, *args[:-2])
    fake_engine.write_engines(model, content=b"other ranges")
    data = json.loads(record.read_text())
    assert data.pop("artifact") == ""
    record.write_text(json.dumps(data))
    assert cli(*args, "--resume")[0] == 0


def test_an_empty_partial_file_is_replaced(model, inbox, cli, tmp_path):
    (tmp_path / "a.csv.part").touch()
    assert cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")[0] == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.csv", "in box", "model"]


def test_a_changed_header_is_refused(model, inbox, cli, tmp_path):
    part, _ = write_partial(tmp_path / "a.csv", cli, "predict", inbox / "00.png", "--model", model)
    part.write_text(part.read_text().replace("file,", "name,"))
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv", "--resume")
    assert code == 2
    assert f"error: the partial output is not from this command\nwhere: {part}\n" in err


def test_resume_uses_the_engine_of_the_existing_rows(model, inbox, cli, tmp_path):
    """Torch continues its rows although a saved engine exists, and the other way round."""
    args = ("predict", inbox, "--model", model, "--out", tmp_path / "a.csv")
    write_partial(tmp_path / "a.csv", cli, *args[:-2], "--engine", "torch")
    code, _, err = cli(*args, "--resume")
    assert (code, err.splitlines()[0]) == (3, "engine: torch fp32, batch 32 x 1")
    write_partial(tmp_path / "b.csv", cli, *args[:-2])
    fake_engine.write_engines(model, fake_engine.CONFIG, base.EngineConfig("fake", "fp32", 1, 1))
    assert "engine: fake-int8," in cli(*args[:-1], tmp_path / "b.csv", "--resume")[2]


def write_foreign(path, content="mine"):
    path.write_text(content)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_file_created_while_the_engine_loads_stays(model, inbox, cli, tmp_path, monkeypatch, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    out, load_engine = tmp_path / f"a.{ending}", fake_engine.load_engine
    monkeypatch.setattr(fake_engine, "load_engine", lambda *args: (write_foreign(out), load_engine(*args))[1])
    code, printed, err = cli("predict", inbox / "00.png", "--model", model, "--out", out)
    assert (code, printed) == (2, "")
    assert err.endswith(f"error: this file already exists\nwhere: {out}\nfix: name another, or remove it\n")
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "in box", "model"}
    assert out.read_text() == "mine"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_created_meanwhile_stays_and_so_do_the_rows(model, inbox, cli, tmp_path, monkeypatch, ending):
    args = ("predict", inbox / "00.png", "--model", model)
    cli(*args, "--out", tmp_path / f"whole.{ending}")
    out, call = tmp_path / f"a.{ending}", fake_engine.FakeEngine.__call__
    with monkeypatch.context() as patch:
        patch.setattr(
            fake_engine.FakeEngine, "__call__", lambda self, pixels: (write_foreign(out), call(self, pixels))[1]
        )
        code, _, err = cli(*args, "--out", out)
    part = f"{out}.part"
    assert (code, out.read_text()) == (2, "mine")
    assert err.endswith(
        f"error: this file already exists\nwhere: {out}\n       all rows are in {part}\n"
        "fix: move it away, then repeat the command with --resume\n"
    )
    out.unlink()
    assert cli(*args, "--out", out, "--resume")[0] == 0
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()


def test_partial_output_created_while_the_engine_loads_stays(model, inbox, cli, tmp_path, monkeypatch):
    part, load_engine = tmp_path / "a.csv.part", fake_engine.load_engine
    monkeypatch.setattr(fake_engine, "load_engine", lambda *args: (write_foreign(part), load_engine(*args))[1])
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")
    assert (code, part.read_text()) == (2, "mine")
    assert f"error: an earlier command left partial output\nwhere: {part}\nfix: use --resume" in err


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("content", ["user notes\n", "user notes", '{"file": "a"}\n', "\n\n"])
def test_partial_output_of_another_program_stays(model, inbox, cli, tmp_path, ending, content):
    out = tmp_path / f"a.{ending}"
    part, _ = write_partial(out, cli, "predict", inbox / "00.png", "--model", model)
    part.write_text(content)
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", out, "--resume")
    assert (code, part.read_text()) == (2, content)
    assert f"error: the partial output is not from this command\nwhere: {part}\nfix: remove {part.name} and " in err


@pytest.mark.parametrize("resume", [(), ("--resume",)])
@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "folder"])
def test_links_and_special_files_are_not_written_through(model, inbox, cli, tmp_path, kind, resume):
    part, target = tmp_path / "a.csv.part", tmp_path / "other.txt"
    if kind != "dangling":
        target.write_text("mine")
    {
        "link": part.symlink_to, "dangling": part.symlink_to, "hard link": part.hardlink_to,
        "pipe": lambda _: os.mkfifo(part), "folder": lambda _: part.mkdir(),
    }[kind](target)  # fmt: skip
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv", *resume)
    assert (code, err) == (
        2,
        f"error: the partial output is a link, or not a regular file\nwhere: {part}\nfix: remove a.csv.part\n",
    )
    assert target.exists() == (kind != "dangling")
    assert kind == "dangling" or target.read_text() == "mine"


def test_weights_that_are_a_pipe(model, saved_model, inbox, cli, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    os.link(saved_model / "config.json", bare / "config.json")
    (model / "model.safetensors").unlink()
    cases = (
        (model, 5),
        (bare, 4),
    )
    for folder, code in cases:
        os.mkfifo(folder / "model.safetensors")
        assert cli("predict", inbox / "00.png", "--model", folder)[::2] == (
            code,
            f"error: not a regular file\nwhere: {folder / 'model.safetensors'}\nfix: put a copy of the file itself there\n",
        )


def test_a_failure_before_the_first_row_leaves_nothing(model, inbox, cli, tmp_path, monkeypatch):
    def fail(path, text):
        raise MachineError("cannot write: No space left on device", where=str(path))

    monkeypatch.setattr(resumable_output.files, "write_text", fail)
    args = ("predict", inbox / "00.png", "--model", model, "--out")
    code, _, err = cli(*args, tmp_path / "a.csv")
    assert code == 5
    assert "to resume" not in err
    monkeypatch.undo()
    code, _, err = cli(*args, tmp_path / f"{'n' * 245}.csv")  # the name of the record is too long for a disk
    assert code != 0
    assert "File name too long\n" in err
    assert "to resume" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in box", "model"]


def test_a_partial_record_is_removed(model, inbox, cli, tmp_path):
    (tmp_path / ".a.csv.part.json.abcd_fgh.part").touch()
    (tmp_path / ".b.csv.part.json.abcd_fgh.part").touch()
    assert cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")[0] == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".b.csv.part.json.abcd_fgh.part", "a.csv", "in box", "model"]


def test_resume_with_a_very_long_name(model, inbox, cli, tmp_path, monkeypatch):
    names = f"{'n' * 200_000}\n{inbox / '00.png'}\n{inbox / '01.png'}\n".encode()
    args = ("predict", "-", "--model", model, "--out", tmp_path / "a.csv")

    def run(*options):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
        return cli(*args, *options)

    assert run()[0] == 3
    whole = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "a.csv").unlink()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
    part, _ = write_partial(tmp_path / "a.csv", cli, *args[:-2])
    part.write_bytes(whole[:-3])
    limit = csv.field_size_limit()
    code, _, err = run("--resume")
    assert (code, csv.field_size_limit()) == (3, limit)
    assert "resumed: 2 rows of 3 " in err and str(part) in err
    assert (tmp_path / "a.csv").read_bytes() == whole


def test_an_unclosed_quote_takes_linear_time(tmp_path):
    rows, started = io.BytesIO(b'"' + b"a,b,1,\n" * 400_000), time.process_time()
    assert list(CsvFormat(1).read_rows(rows)) == []
    assert time.process_time() - started < measure_cpu_budget()


def test_texts_from_files_stay_on_one_line(model, inbox, cli, monkeypatch):
    import resnetkit.commands.predict as command

    why = "it is old\nerror: forged\nfix: rm -r \x1b[2J" + "x" * 9000
    select_engine = command.select_engine
    monkeypatch.setattr(
        command, "select_engine", lambda *args: replace(select_engine(*args), saved_engines=(), reason=why)
    )
    monkeypatch.setattr(command, "describe_skipped_files", lambda files: ["one\nfix: forged"])
    lines = cli("predict", inbox / "00.png", "--model", model)[2].splitlines()
    assert [line.split(":")[0] for line in lines] == ["engine", "note", "next"]
    assert "it is old\\nerror: forged\\nfix: rm -r \\x1b[2Jxxx" in lines[0]
    assert lines[0].endswith("xxx...")
    assert len(lines[0]) < 1000
    assert lines[1] == "note: one\\nfix: forged"


def test_file_names_cannot_add_lines_to_an_error(cli):
    code, _, err = cli("predict", "a.png", "--model", "b\nfix: rm -r")
    lines = err.splitlines()
    assert (code, [line for line in lines if line.startswith("fix: rm")]) == (2, [])
    assert any("b\\nfix: rm -r" in line for line in lines)
    text = str(UsageError("a\nerror: b", where=["c\nd", "e"], fix="f\ng"))
    assert text == "error: a\\nerror: b\nwhere: c\\nd\n       e\nfix: f\\ng"


def test_a_bug_suggests_no_resume(saved_model, inbox, cli, tmp_path, monkeypatch):
    def fail(self, pixels):
        raise ZeroDivisionError

    monkeypatch.setattr(base.FunctionEngine, "__call__", fail)
    code, _, err = cli("predict", inbox / "00.png", "--model", saved_model, "--out", tmp_path / "a.csv")
    assert code == 1
    assert "to resume" not in err


WRONG_ARGS = {
    "--csv --json": "error: more than one output format is given\nwhere: --csv --json\nfix: use only --csv\n",
    "--out a.csv --csv": "error: more than one output format is given\nwhere: --csv --out\nfix: remove --csv\n",
    "--out a.csv --jsonl": (
        "error: more than one output format is given\nwhere: --jsonl --out\nfix: remove --jsonl, or --out a.jsonl\n"
    ),
    "--parquet a.parquet --json": "error: more than one output format is given\nwhere: --json --parquet\nfix: remove --json\n",
    "--out a.txt": "error: the output file must end in .csv or .jsonl or .parquet\nwhere: a.txt\nfix: call it a.csv\n",
    "--resume": "error: --resume needs an --out file that ends in .csv or .jsonl\nwhere: --resume with --out\n",
    "--resume --out a.parquet": (
        "error: --resume needs an --out file that ends in .csv or .jsonl\n"
        "where: --resume with --out a.parquet\nfix: --out labels.csv --resume\n"
    ),
}


@pytest.mark.parametrize("args", WRONG_ARGS)
def test_wrong_arguments(args, model, inbox, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("predict", inbox, "--model", model, *args.split())
    assert (code, out) == (2, "")
    assert err.startswith(WRONG_ARGS[args])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in box", "model"]


def test_an_image_from_standard_input_cannot_be_resumed(model, inbox, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((inbox / "00.png").read_bytes())))
    code, _, err = cli("predict", "-", "--model", model, "--out", tmp_path / "a.csv", "--resume")
    assert (code, err.splitlines()[0]) == (2, "error: --resume needs files, and standard input holds an image")


def test_names_of_any_characters_are_read_back(tmp_path):
    names = ['"', '""', "\n", "\r\n", '\n"\n', "a,b", os.fsdecode(b"\xff"), "\\udcff", " ", "\u2028", "'"]
    predictions = [Prediction(name, (("x", 1 / 3),)) for name in names] + [Prediction("bad", error='no "\n')]
    for form in (CsvFormat(1), JsonLinesFormat()):
        text = "".join(escape_surrogates(form.format_line(prediction)) + "\n" for prediction in predictions).encode()
        assert [(name, bad) for _, name, bad in form.read_rows(io.BytesIO(text))] == [
            *((escape_surrogates(name), False) for name in names), ("bad", True)
        ]  # fmt: skip
        for cut in range(len(text)):
            rows = list(form.read_rows(io.BytesIO(text[:cut])))
            assert sum(size for size, *_ in rows) <= cut
            expected = [escape_surrogates(prediction.file) for prediction in predictions[: len(rows)]]
            assert [name for _, name, _ in rows] == expected


def test_an_error_prints_the_resume_command(saved_model, inbox, cli, tmp_path, monkeypatch):
    def fail(self, pixels):
        raise MemoryError

    monkeypatch.setattr(base.FunctionEngine, "__call__", fail)
    code, _, err = cli("predict", inbox, "--model", saved_model, "--out", tmp_path / "a.csv")
    assert code == 5
    args = f"{shlex.quote(str(inbox))} --model {saved_model} --out {tmp_path / 'a.csv'} --resume"
    assert err.splitlines()[-1].endswith(f": resnetkit predict {args}")


# ---------------------------------------------------------------------------------------------------- kills and signals


def make_env(action, **variables):
    return os.environ | {"FAKE_ACTION": action} | variables


def count_rows(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_resume_after_sigkill(model, inbox, cli, tmp_path, ending):
    paths = [*sorted(inbox.iterdir()) * 3, inbox / "00.png"]
    args = ("predict", *paths, "--model", model, "--top", 3)
    assert cli(*args, "--out", tmp_path / f"whole.{ending}")[0] == 3
    out = tmp_path / f"a.{ending}"
    part = out.with_name(out.name + ".part")
    for n_calls in (9, 7):
        done = subprocess.run(
            make_command(*args, "--out", out, "--resume"),
            check=False, env=make_env(f"kill:{n_calls}"), stdout=-3, stderr=-3,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL
        assert part.exists() and not out.exists()
    assert count_rows(part) > 4
    assert cli(*args, "--out", out, "--resume")[0] == 3
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not part.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_predict_and_prints_the_resume_command(model, inbox, cli, tmp_path, number, code):
    args = ("predict", *sorted(inbox.iterdir()) * 4, "--model", model)
    cli(*args, "--out", tmp_path / "whole.csv")
    out, part = tmp_path / "a.csv", tmp_path / "a.csv.part"
    done = subprocess.run(
        make_command(*args, "--out", out), check=False, env=make_env(f"{number:d}:10"), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert part.exists()
    first, last = done.stderr.splitlines()[0], done.stderr[done.stderr.index("stopped; ") :]
    assert first == "engine: fake-int8, batch 4 x 2"
    assert len(last.splitlines()) == 1
    shell = f'resnetkit() {{ {shlex.join(make_command())} "$@"; }}; {last[last.index("resnetkit predict") :]}'
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, f"wrote 100 rows to {out}\n"), done.stderr
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_rows_are_written_as_they_come_and_by_one_command_alone(model, inbox, cli, tmp_path):
    out, fifo = tmp_path / "a.csv", tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        make_command("predict", *[inbox / "00.png"] * 400, "--model", model, "--out", out),
        env=make_env("hang:40", FAKE_FIFO=str(fifo)), stdout=-3, stderr=-3,
    )  # fmt: skip
    assert fifo.read_text() == "hangs\n"
    part = ResumableWriter(out, True).part_path
    assert process.poll() is None
    assert 20 <= count_rows(part) < 400
    assert not out.exists()
    code, printed, err = cli("predict", inbox / "00.png", "--model", model, "--out", out, "--resume")
    assert (code, printed) == (2, "")
    message = f"error: another command is writing this file\nwhere: {part}\nfix: wait for it, or stop it\n"
    assert err.endswith(message)
    process.kill()
    process.wait()


# ---------------------------------------------------------------------------------- folders, patterns and spreadsheets


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Return a tree with loops of links and hidden files, and a function that locks a folder."""
    locked, scandir = set(), os.scandir

    def scan(path="."):
        if os.path.realpath(path) in locked:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    folder = tmp_path / "tree"
    for name in ("a/1.png", "a/b/2.PNG", "a/b/3.heic", "c/4.jpg", "c/notes.txt", ".hidden/5.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, 1) if name.endswith("1.png") else (folder / name).write_bytes(b"")
    for link, target in (("a/up", ".."), ("a/b/self", "."), ("c/up", "../a"), ("c/gone", "nowhere")):
        (folder / link).symlink_to(target)
    return folder, lambda name: locked.add(os.path.realpath(folder / name))


def expand(pattern, root):
    return [(os.path.relpath(item.name, root), item.error) for item in expand_inputs([pattern])]


@pytest.mark.parametrize("form", ["", "**", "**/*", "**/**", "**/**/*.*"])
def test_every_form_enters_each_folder_once_and_names_locked_ones(tree, form):
    folder, lock = tree
    files = [Path(name).name for name, _ in expand(folder / form, folder)]
    assert sorted(files) == ["1.png", "2.PNG", "3.heic", "4.jpg"]
    lock("a/b")
    errors = [error for _, error in expand(folder / form, folder)]
    assert sorted(errors) == ["", "", "cannot read the folder: Permission denied"]


def test_patterns_match_like_glob(tree, monkeypatch):
    folder, lock = tree
    cases = {
        "*/1.png": ["a/1.png"], "a/?.png": ["a/1.png"], "a/b/*": ["a/b/2.PNG", "a/b/3.heic"],
        "[ac]/[14]*": ["a/1.png", "c/4.jpg"], "**/b/*.PNG": ["a/b/2.PNG"],
    }  # fmt: skip
    for pattern, expected in cases.items():
        assert [name for name, error in expand(folder / pattern, folder) if not error] == expected
    monkeypatch.chdir(folder)
    assert [item.name for item in expand_inputs(["a/*.png"])] == ["a/1.png"]
    lock("a/b")
    assert expand(folder / "a" / "*.png", folder) == [("a/1.png", "")]  # the pattern does not reach into it
    assert ("a/b", "cannot read the folder: Permission denied") in expand(folder / "a" / "*" / "*.png", folder)
    for pattern in ("none/*.png", "4.jpg/*", "*.gif", "u*/x/*"):
        with pytest.raises(DataError, match="no image matches this pattern"):
            expand_inputs([folder / "c" / pattern])


def test_locked_folder_and_unsupported_image_are_rows(tree, model, cli):
    folder, lock = tree
    lock("c")
    for form in (folder, folder / "**" / "*"):
        code, out, err = cli("predict", form, "--model", model, "--csv")
        rows = {Path(row["file"]).name: row for row in csv.DictReader(io.StringIO(out))}
        assert code == 3
        assert rows["c"]["error"] == "cannot read the folder: Permission denied"
        assert rows["1.png"]["label"] and not rows["1.png"]["error"]
        assert rows["3.heic"]["error"] == "the file is empty"
        assert "error: 3 of 4 files have no prediction; the rows say why" in err
    assert cli("predict", folder / "c", "--model", model, "--csv")[0] == 3


def test_names_from_standard_input_may_begin_with_a_mark(model, inbox, cli, monkeypatch):
    names = [str(inbox / "00.png"), str(inbox / "01.png")]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        content = "".join(f"{name}\n" for name in names).encode(encoding)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        code, out, _ = cli("predict", "-", "--model", model, "--csv")
        assert (code, [row["file"] for row in csv.DictReader(io.StringIO(out))]) == (0, names)


def test_cells_that_a_spreadsheet_would_run_are_neutralized():
    escaped = {
        "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@a": "'@a", "\ta": "'\ta", "\r=": "'\r=",
        "'=1": "''=1", "'a": "'a", "a=1": "a=1", "'": "'",
    }  # fmt: skip
    safe, plain = CsvFormat(1), CsvFormat(1, has_formulas=True)
    for name, cell in escaped.items():
        line = safe.format_line(Prediction(name, (("=cmd()", 0.5),), "-x"))
        assert next(csv.reader(io.StringIO(line, newline=""))) == [cell, "'=cmd()", "0.500000", "'-x"]
    for row_format in (safe, plain):
        text = "".join(row_format.format_line(Prediction(name, (("a", 0.5),))) + "\n" for name in escaped).encode()
        assert [name for _, name, _ in row_format.read_rows(io.BytesIO(text))] == list(escaped)
    assert plain.format_line(Prediction("=1", (("@b", 0.5),))) == "=1,@b,0.500000,"


def test_resume_needs_the_same_rule_for_formulas(model, inbox, cli, tmp_path):
    out, args = tmp_path / "a.csv", ("predict", inbox / "00.png", "--model", model)
    write_partial(out, cli, *args)
    code, _, err = cli(*args, "--out", out, "--resume", "--csv-formulas")
    assert code == 2
    assert "where: csv_formulas: False -> True\nfix: use the options of that command, or remove" in err
