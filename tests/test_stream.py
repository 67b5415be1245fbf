"""`predict` by an engine: the pipeline, who is asked, and files that can be gone on with."""

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
from resnetkit.engines import base as engine
from resnetkit.engines import saved as optimized
from resnetkit.errors import DataError, ImageError, MachineError, ResnetkitError, UsageError, WeightsError
from resnetkit.evaluation import api as evaluating
from resnetkit.images.prepare import load_pixels
from resnetkit.prediction import pipeline as stream
from resnetkit.prediction.api import select_top_k
from resnetkit.prediction.inputs import ImageInput
from resnetkit.prediction.pipeline import run_pipeline
from resnetkit.prediction.resumable_output import CsvFormat, JsonLinesFormat, ResumableWriter
from resnetkit.runtime import threads as workers
from resnetkit.weights.save import save

from helpers import fake_engine
from helpers.tiny import BASE

NAMES = ("daisy", "rose, red", 'tu"lip')
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    monkeypatch.setattr(engine, "ENGINE_SPECS", engine.ENGINE_SPECS)
    monkeypatch.setitem(engine.ENGINE_SPECS, "fake", None)
    fake_engine.install()
    fake_engine.batch_sizes.clear()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    return save(rk.build(BASE, classes=NAMES), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved, tmp_path):
    """A model folder with an engine."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        os.link(path, folder / path.name)
    fake_engine.write_engines(folder)
    return folder


def picture(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8) // (seed % 5 + 1)).save(
        path
    )


@pytest.fixture
def inbox(tmp_path):
    """Pictures whose names are not made for computers, and some that are none."""
    folder = tmp_path / "in box"
    folder.mkdir()
    odd = ["line\nbreak.png", 'quote",.png', "\U0001f33c.png", os.fsdecode(b"caf\xe9.png"), "r\rn.png"]
    for i, name in enumerate([*odd, *(f"{i:02}.png" for i in range(18))]):
        picture(folder / name, i)
    for name in ("03b.png", "z.png"):
        (folder / name).write_bytes(b"no picture")
    return folder


def prepared(model, path):
    return load_pixels(path, read_card(model).preparation)


# ---------------------------------------------------------------------------------------------------------- the pipeline


def flow(model, inputs, ask, batch=4, streams=2):
    return run_pipeline([ImageInput(str(one)) for one in inputs], read_card(model).preparation, ask, batch, streams)


def test_rows_come_in_order_and_no_more_ask_at_once_than_may(model, inbox):
    files, made = sorted(inbox.iterdir()), fake_engine.FakeEngine(fake_engine.CONFIG, 3)
    chunks = list(flow(model, files, made))
    assert [one.name for chunk in chunks for one, _ in chunk] == [str(path) for path in files]
    assert [len(chunk) for chunk in chunks] == [4] * 6 + [1]
    for chunk in chunks:
        good = [prepared(model, one.name) for one, said in chunk if not isinstance(said, ImageError)]
        assert len(good) == sum(not isinstance(said, ImageError) for _, said in chunk)
        for (_, said), expected in zip(
            [pair for pair in chunk if not isinstance(pair[1], ImageError)],
            fake_engine.compute_logits(np.stack(good), 3) if good else (),
            strict=True,
        ):
            np.testing.assert_array_equal(said, expected)


def test_what_cannot_be_read_asks_nothing(model, inbox):
    found = list(flow(model, [inbox / "z.png"] * 5, lambda pixels: pytest.fail("asked"), 5))
    assert [said.what for _, said in found[0]] == ["not a supported image; allowed: JPEG, PNG, WEBP, BMP, GIF"] * 5


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("a bug")])
def test_an_error_of_a_worker_is_raised(model, inbox, error):
    def ask(pixels):
        raise error

    with pytest.raises(type(error)):
        list(flow(model, sorted(inbox.iterdir()), ask))


def test_only_a_few_chunks_are_on_their_way_and_who_leaves_ends_it(model, inbox, monkeypatch):
    monkeypatch.setattr(stream, "count_cores", lambda: 2)
    threads, answered = threading.active_count(), []
    chunks = flow(model, [inbox / "00.png"] * 4000, lambda pixels: answered.append(1) or pixels)
    for _ in range(10):
        next(chunks)
    time.sleep(0.2)
    assert len(answered) <= 10 + 4
    chunks.close()
    assert len(answered) <= 10 + 4
    assert threading.active_count() == threads


def test_pictures_are_decoded_while_the_network_computes(model, inbox, monkeypatch):
    """With one stream and two workers the second chunk is read before the first one is answered."""
    monkeypatch.setattr(stream, "count_cores", lambda: 2)
    read, seen, open_ = threading.Semaphore(0), [], stream._load_pixels
    monkeypatch.setattr(stream, "_load_pixels", lambda preparation, one: (open_(preparation, one), read.release())[0])

    def ask(pixels):
        if not seen:
            seen.append([read.acquire(timeout=10) for _ in range(4)])
        return pixels

    list(flow(model, [inbox / "00.png"] * 4, ask, 2, 1))
    assert seen == [[True] * 4]


def test_a_handful_of_pictures_is_read_on_all_cores(model, inbox, monkeypatch):
    monkeypatch.setattr(stream, "count_cores", lambda: 3)
    together, open_ = threading.Barrier(3), stream._load_pixels
    monkeypatch.setattr(stream, "_load_pixels", lambda *words: (together.wait(10), open_(*words))[1])
    (chunk,) = flow(model, [inbox / "00.png"] * 3, lambda pixels: pixels, 32, 1)
    assert [said.shape for _, said in chunk] == [(16, 16, 3)] * 3


def test_who_waits_for_a_turn_gives_it_up_where_nobody_waits_for_him(model, inbox, monkeypatch):
    monkeypatch.setattr(stream, "count_cores", lambda: 3)
    asked, first, held, leave = [], threading.Event(), threading.Event(), threading.Event()
    open_ = stream._load_pixels

    def ask(pixels):
        asked.append(len(pixels))
        first.set()
        if len(asked) == 2:
            held.set()
            assert leave.wait(10)
        return pixels

    def read(preparation, one):
        assert one.name.endswith("00.png") or first.wait(10)
        return open_(preparation, one)

    monkeypatch.setattr(stream, "_load_pixels", read)
    chunks = flow(model, [inbox / "00.png", *[inbox / "01.png"] * 39], ask, 1, 1)
    next(chunks)
    assert held.wait(10)
    threading.Timer(0.2, leave.set).start()
    chunks.close()
    assert len(asked) == 2


@pytest.mark.parametrize("streams", [1, 3])
def test_the_same_threads_ask_from_the_first_chunk_to_the_last(model, inbox, streams):
    """Torch keeps a team of threads for each that asks, OpenVINO a request."""
    who, all_ = [], threading.Barrier(streams)

    def ask(pixels):
        if len(who) < streams:
            who.append(threading.get_ident())
            all_.wait(10)
        who.append(threading.get_ident())
        return pixels

    assert len(list(flow(model, [inbox / "00.png"] * 30, ask, 1, streams))) == 30
    assert len(set(who)) == len(set(who[:streams])) == streams
    assert threading.get_ident() not in who


def test_where_no_thread_can_be_started_the_loop_does_all_itself(model, inbox, monkeypatch):
    expected = list(flow(model, sorted(inbox.iterdir()), lambda pixels: pixels))

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    found = list(flow(model, sorted(inbox.iterdir()), lambda pixels: pixels))
    assert [[one for one, _ in chunk] for chunk in found] == [[one for one, _ in chunk] for chunk in expected]
    for (_, ours), (_, theirs) in zip(*(itertools.chain(*chunks) for chunks in (found, expected)), strict=True):
        assert str(ours) == str(theirs) if isinstance(theirs, ImageError) else np.array_equal(ours, theirs)


def test_what_no_picture_should_cause_names_the_picture(model, inbox, monkeypatch):
    causes = [MemoryError(), ZeroDivisionError("a bug")]

    def fail(preparation, one):
        raise causes.pop()

    monkeypatch.setattr(stream, "_load_pixels", fail)
    with pytest.raises(ResnetkitError) as caught:
        list(flow(model, [inbox / "00.png"], lambda pixels: pixels))
    assert type(caught.value) is ResnetkitError
    assert str(caught.value) == (
        f"error: preparing an image failed: ZeroDivisionError: a bug\nwhere: {inbox / '00.png'}\n"
        "fix: please report this, with the image"
    )
    with pytest.raises(MemoryError):
        list(flow(model, [inbox / "00.png"], lambda pixels: pixels))


@pytest.fixture
def hanging(monkeypatch):
    """05.png is on a disk that does not answer; an event that is set as soon as it is asked for."""
    begun, never, open_ = threading.Event(), threading.Event(), stream._load_pixels

    def read(preparation, one):
        if one.name.endswith("05.png"):
            begun.set()
            never.wait(60)
        return open_(preparation, one)

    monkeypatch.setattr(stream, "_load_pixels", read)
    monkeypatch.setattr(stream, "_JOIN_TIMEOUT", 0.1)
    yield begun
    never.set()


def test_a_reading_that_does_not_end_is_an_error_that_names_the_picture(model, inbox, hanging, monkeypatch):
    monkeypatch.setattr(workers, "READ_TIMEOUT", 0.5)
    begun, rows = time.monotonic(), []
    with pytest.raises(MachineError) as caught:
        rows += (len(chunk) for chunk in flow(model, [inbox / f"{i:02}.png" for i in range(9)], lambda pixels: pixels))
    assert 0.5 <= time.monotonic() - begun < 10
    assert rows == [4]
    assert str(caught.value).startswith(
        f"error: the read did not finish within 0.5 seconds\nwhere: {inbox / '05.png'}\nfix: check"
    )


def test_pictures_that_take_long_together_are_waited_for(model, inbox, monkeypatch):
    open_ = stream._load_pixels
    monkeypatch.setattr(stream, "_load_pixels", lambda *words: (time.sleep(0.1), open_(*words))[1])
    monkeypatch.setattr(workers, "READ_TIMEOUT", 0.5)
    (chunk,) = flow(model, [inbox / "00.png"] * 12, lambda pixels: pixels, 12)
    assert len(chunk) == 12


def test_who_leaves_does_not_wait_for_a_reading_that_hangs(model, inbox, hanging):
    chunks = flow(model, [inbox / "00.png", inbox / "05.png"] * 8, lambda pixels: pixels, 1)
    next(chunks)
    assert hanging.wait(10)
    begun = time.monotonic()
    chunks.close()
    assert time.monotonic() - begun < 5


HANGING = """
import sys, threading, time
sys.path.insert(0, {here!r})
from helpers import fake_engine
fake_engine.install()
from resnetkit.cli import main
from resnetkit.prediction import pipeline as stream
def hang(preparation, one):
    print("hangs", flush=True)
    time.sleep(0.5)
    {then}
    threading.Event().wait(60)
stream._load_pixels = hang
sys.exit(main({words!r}))
"""


# a signal that a waiting thread does not see at once, as where it comes just before the wait begins
UNSEEN = "import signal; signal.pthread_kill(threading.get_ident(), signal.SIGINT)"


@pytest.mark.parametrize("unseen", [False, True])
def test_ctrl_c_ends_a_command_whose_reading_hangs(model, inbox, tmp_path, unseen):
    words = ["predict", str(inbox / "00.png"), "--model", str(model), "--out", str(tmp_path / "a.csv")]
    code = HANGING.format(here=str(HERE), words=words, then=UNSEEN if unseen else "pass")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "hangs\n"
    begun = time.monotonic()
    if not unseen:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130
    assert "stopped; to resume: resnetkit predict " in err


# ------------------------------------------------------------------------------------------------------- what is probable


def test_probabilities_are_those_of_torch():
    draw = torch.Generator().manual_seed(0)
    for row in torch.randn(50, 11, generator=draw) * 5:
        best = row.double().softmax(0).topk(4)
        found = select_top_k(row.numpy(), 4)
        assert [i for i, _ in found] == best.indices.tolist()
        np.testing.assert_allclose([share for _, share in found], best.values.numpy(), rtol=1e-12)


def test_of_equal_classes_the_lower_comes_first():
    assert [i for i, _ in select_top_k(np.array([1, 3, 3, 2, 3], np.float32), 2)] == [1, 2]
    assert [i for i, _ in select_top_k(np.zeros(9, np.float32), 20)] == list(range(9))
    assert select_top_k(np.array([-1e30, 1e30], np.float32), 2) == [(1, 1.0), (0, 0.0)]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_no_answer(model, inbox, cli, monkeypatch, number):
    call = fake_engine.FakeEngine.__call__

    def spoiled(self, pixels):
        said = call(self, pixels)
        said[1:, 1] = number
        return said

    monkeypatch.setattr(fake_engine.FakeEngine, "__call__", spoiled)
    words, why = ("predict", inbox / "00.png", inbox / "01.png", "--model", model), "its logits are not finite"
    one, two = rk.predict(list(words[1:3]), model)
    assert (bool(one.label), one.error, two.label, two.probability, two.top, two.error) == (True, "", "", None, (), why)
    for form in ("--json", "--jsonl", "--csv", "--top=1"):
        code, out, err = cli(*words, form)
        assert code == 3
        assert "error: 1 of 2 files have no prediction; their rows say why\n" in err
        assert out.count(why) == 1
        assert "nan" not in out.lower()
        if form == "--jsonl":
            assert json.loads(out.splitlines()[1]) == {
                "file": str(inbox / "01.png"), "label": None, "probability": None, "top": [], "error": why
            }  # fmt: skip


def test_weights_that_are_no_numbers_answer_nothing(inbox, tmp_path, cli):
    network = rk.build(BASE, classes=NAMES)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    folder = save(network, tmp_path / "diverged")
    code, out, _ = cli("predict", inbox / "00.png", "--model", folder, "--csv")
    assert (code, out.splitlines()[1]) == (3, f"{inbox / '00.png'},,,its logits are not finite".replace("\n", " "))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (np.zeros((9, 2), np.float32), "9 rows of 2 numbers"),
        (np.zeros((4, 2), np.float32), "4 rows of 2 numbers"),
        (np.zeros((3, 3), np.float32), "3 rows of 3 numbers"),
        (np.zeros((4, 3, 1), np.float32), "4 arrays of 3 x 1"),
        (np.zeros((), np.float32), "one number"),
    ],
)
def test_answers_of_another_shape_are_none(model, inbox, monkeypatch, said, told):
    monkeypatch.setattr(fake_engine.FakeEngine, "__call__", lambda self, pixels: said)
    with pytest.raises(MachineError) as caught:
        rk.predict([inbox / "00.png"] * 4, model)
    assert str(caught.value) == (
        f"error: fake-int8 gives {told} for 4 pictures and 3 classes\n"
        "fix: resnetkit optimize makes it again; or --engine torch"
    )


# ---------------------------------------------------------------------------------------------------------- who is asked


def by_hand(model, path):
    """What the fake engine says of a picture alone."""
    logits = fake_engine.compute_logits(prepared(model, path)[None], 3)[0].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    return NAMES[int(shares.argmax())], float(shares.max())


def test_an_engine_answers_where_there_is_one(model, inbox):
    (answer,) = rk.predict(inbox / "05.png", model)
    assert (answer.label, answer.probability) == (
        by_hand(model, inbox / "05.png")[0],
        pytest.approx(by_hand(model, inbox / "05.png")[1]),
    )
    assert fake_engine.batch_sizes == [1]
    assert rk.predict(inbox / "05.png", model, engine="fake-int8") == [answer]
    by_torch = rk.predict(inbox / "05.png", rk.load(model))
    fake_engine.batch_sizes.clear()
    for told in ({"engine": "torch"}, {"device": "cpu"}, {"precision": "fp32"}, {"engine": "torch", "device": "cpu"}):
        assert rk.predict(inbox / "05.png", model, **told) == by_torch
    assert rk.predict(inbox / "05.png", model / "model.safetensors") == [answer]
    assert fake_engine.batch_sizes == [1]


@pytest.mark.parametrize(
    ("of", "told", "what"),
    [
        ("model", {"engine": "fake-int8", "device": "cpu"}, "fake-int8 has a device and a precision of its own"),
        ("model", {"engine": "fake-int8", "precision": "bf16"}, "fake-int8 has a device and a precision of its own"),
        ("model", {"engine": "fake-int4"}, "there is no engine 'fake-int4' here"),
        ("network", {"engine": "fake-int8"}, "only a model folder has engines"),
        ("saved", {"engine": "fake-int8"}, "this model was never optimized"),
        ("model", {"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_an_engine_that_cannot_be_meant(model, saved, inbox, of, told, what):
    with pytest.raises(UsageError, match=what):
        rk.predict(inbox / "00.png", {"model": model, "saved": saved, "network": rk.load(saved)}[of], **told)
    assert fake_engine.batch_sizes == []


def test_the_engine_that_is_soonest_done_is_taken(model, inbox, cli):
    one = engine.EngineConfig("fake", "fp32", 2, 1)
    fake_engine.write_engines(model, fake_engine.CONFIG, one)
    assert "engine: fake-fp32, batch 2 x 1\n" in cli("predict", inbox, "--model", model)[2]
    assert set(fake_engine.batch_sizes) == {2, 1}
    err = cli("predict", inbox, "--model", model, "--engine", "fake-int8")[2]
    assert err.splitlines()[0] == "engine: fake-int8, batch 4 x 2"


def test_it_is_said_who_computes_and_why(model, saved, inbox, cli, monkeypatch):
    words = ("predict", inbox / "00.png", "--model")
    assert cli(*words, saved)[2].splitlines()[0] == "engine: torch fp32, batch 32 x 1"
    assert cli(*words, model, "--engine", "torch")[2].splitlines()[0] == "engine: torch fp32, batch 32 x 1"
    assert cli(*words, model, "--precision", "bf16")[2].splitlines()[0] == "engine: torch bf16, batch 32 x 1"
    code, _, err = cli(*words, model, "--network", "resnet18")
    assert (code, err.splitlines()[0]) == (2, "error: options about a weights file do not apply to a model folder")
    monkeypatch.setattr(engine.EngineSpec, "get_versions", lambda kind: ("numpy 9",))
    line = cli(*words, model)[2].splitlines()[0]
    assert line.startswith("engine: torch fp32, batch 32 x 1, as it was optimized with numpy ")
    assert line.endswith(f"; {optimized.format_optimize_command(model)}")
    code, out, err = cli(*words, model, "--engine", "fake-int8")
    assert (code, out) == (5, "")
    assert err.startswith("error: it was optimized with numpy ")
    assert fake_engine.batch_sizes == []


@pytest.mark.parametrize("content", ["{", '{"format": 2}'])
def test_a_list_of_engines_that_cannot_be_read_ends_nothing_but_what_names_one(model, inbox, cli, content):
    (model / "engines" / "engines.json").write_text(content)
    words = ("predict", inbox / "00.png", "--model", model)
    code, out, err = cli(*words, "--csv")
    assert (code, len(out.splitlines())) == (0, 2)
    line = err.splitlines()[0]
    assert line.startswith("engine: torch fp32, batch 32 x 1, as ")
    assert str(model / "engines" / "engines.json") in line
    assert line.endswith(f"; {optimized.format_optimize_command(model)}")
    assert rk.predict(inbox / "00.png", model) == rk.predict(inbox / "00.png", model, engine="torch")
    assert cli(*words, "--engine", "fake-int8")[0] == WeightsError.exit_code
    with pytest.raises(WeightsError):
        rk.predict(inbox / "00.png", model, engine="fake-int8")


def test_an_engine_that_cannot_be_opened_ends_nothing_but_what_names_it(model, inbox, pictures, cli, monkeypatch):
    def fail(folder, artefact, choice):
        raise MachineError("this processor does not multiply in bf16", fix="an engine in fp32 or int8")

    monkeypatch.setattr(fake_engine, "load_engine", fail)
    why = "as fake-int8 cannot be opened: this processor does not multiply in bf16"
    data = pictures("flowers", sorted(NAMES[:2]), 9)
    code, out, err = cli("predict", inbox / "00.png", "--model", model, "--csv")
    assert (code, len(out.splitlines())) == (0, 2)
    fix = "an engine in fp32 or int8"
    assert err.splitlines()[0] == f"engine: torch fp32, batch 32 x 1, {why}; {fix}"
    code, _, err = cli("evaluate", model, data, "--engine", "auto")
    assert (code, err.splitlines()[0]) == (0, f"engine: torch fp32, {why}; {fix}")
    told = f"error: fake-int8 cannot be opened: this processor does not multiply in bf16\nwhere: {model}\nfix: {fix}\n"
    for words in (("predict", inbox / "00.png", "--model", model), ("evaluate", model, data)):
        assert cli(*words, "--engine", "fake-int8")[::2] == (MachineError.exit_code, told)


def test_what_a_library_raises_as_it_opens_is_told_in_a_line(model, inbox, cli, monkeypatch):
    monkeypatch.setattr(
        fake_engine, "load_engine", lambda *_: (_ for _ in ()).throw(RuntimeError("no such file: a.onnx\nat C++"))
    )
    code, out, err = cli("predict", inbox / "00.png", "--model", model, "--csv")
    why = "fake-int8 cannot be opened: no such file: a.onnx"
    assert (code, len(out.splitlines())) == (0, 2)
    assert (
        err.splitlines()[0] == f"engine: torch fp32, batch 32 x 1, as {why}; {optimized.format_optimize_command(model)}"
    )
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--engine", "fake-int8")
    assert (code, err) == (5, f"error: {why}\nwhere: {model}\nfix: {optimized.format_optimize_command(model)}\n")


def test_where_one_cannot_be_opened_the_next_is_asked(model, inbox, cli, monkeypatch):
    open_ = fake_engine.load_engine
    fake_engine.write_engines(model, fake_engine.CONFIG, engine.EngineConfig("fake", "fp32", 2, 1))

    def fail(folder, artefact, choice):
        if choice.precision == "fp32":
            raise MachineError("its memory is gone")
        return open_(folder, artefact, choice)

    monkeypatch.setattr(fake_engine, "load_engine", fail)
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--csv")
    assert code == 0
    why = f"fake-fp32 cannot be opened: its memory is gone; {optimized.format_optimize_command(model)}"
    assert err.splitlines()[0] == f"engine: fake-int8, batch 4 x 2, as {why}"


def test_where_the_files_of_one_are_damaged_the_next_is_asked(model, inbox, cli):
    other = engine.EngineConfig("fake", "fp32", 2, 1)
    fake_engine.write_engines(model, fake_engine.CONFIG, other)
    (optimized.get_artifact_folder(model, "f1", other) / "model.bin").write_bytes(b"other ranges")
    why = f"a file of fake-fp32 is missing or damaged: model.bin; {optimized.format_optimize_command(model)}"
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--csv")
    assert (code, err.splitlines()[0]) == (0, f"engine: fake-int8, batch 4 x 2, as {why}")
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--engine", "fake-fp32")
    assert (code, err.splitlines()[0]) == (5, "error: a file of fake-fp32 is missing or damaged: model.bin")


def test_an_error_while_an_engine_answers_is_one(model, inbox, monkeypatch):
    """Not a reason to ask torch: rows of two engines would be mixed."""

    def fail(self, pixels):
        raise MachineError("out of memory")

    monkeypatch.setattr(fake_engine.FakeEngine, "__call__", fail)
    with pytest.raises(MachineError, match="out of memory"):
        rk.predict(inbox / "00.png", model)


def test_an_engine_is_of_a_model_as_it_stands(model, saved, inbox, pictures, cli):
    data, weights = pictures("flowers", sorted(NAMES[:2]), 9), saved / "model.safetensors"
    for words in (("predict", inbox / "00.png", "--model", weights), ("evaluate", weights, data)):
        code, out, err = cli(*words, "--engine", "fake-int8", "--network", "resnet20", "--input-channels", 1)
        assert (code, out) == (2, "")
        assert err == (
            "error: an engine is of a model folder as it stands\n"
            "where: --engine fake-int8\n       --network resnet20 --input-channels 1\n"
            "fix: leave --network resnet20 --input-channels 1 out, or --engine torch\n"
        )


@pytest.fixture
def switches():
    """What torch multiplies in, and with how many threads, set to what no engine sets them to."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(3)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield lambda: (torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    torch.set_num_threads(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.set_float32_matmul_precision("highest")


def test_prediction_leaves_the_switches_of_torch_as_they_were(model, inbox, pictures, cli, monkeypatch, switches):
    from resnetkit.engines import torch_eager as eager

    eager_one = engine.EngineConfig("eager", "fp32", 2, 1)
    monkeypatch.setattr(engine.EngineConfig, "threads", 1)
    monkeypatch.setattr(optimized, "_find_unusable_reason", lambda *_: "")
    fake_engine.write_engines(model, eager_one)
    seen, call = [], eager.EagerEngine.__call__
    monkeypatch.setattr(
        eager.EagerEngine, "__call__", lambda self, pixels: (seen.append(switches()), call(self, pixels))[1]
    )
    before = switches()
    rk.predict(inbox / "00.png", model)
    assert cli("evaluate", model, pictures("flowers", sorted(NAMES[:2]), 9), "--engine", "eager-fp32")[0] == 0
    assert set(seen) == {(1, True, "high")}  # of the processor nothing but the threads
    assert switches() == before

    def fail(pixels):
        raise ZeroDivisionError

    monkeypatch.setattr(eager.EagerEngine, "__call__", lambda self, pixels: fail(pixels))
    with pytest.raises(ZeroDivisionError):
        rk.predict(inbox / "00.png", model)
    assert switches() == before


def test_whoever_asks_a_network_asks_it_in_fp32(model, switches, monkeypatch):
    """As if the processor rounded what it multiplies, like a GPU."""
    from resnetkit.network.inference import inference
    from resnetkit.runtime import torch_settings as turned

    monkeypatch.setattr(turned, "_can_use_tf32", lambda precision, device: precision == "fp32")
    before, network = switches(), rk.load(model)
    with inference(network, torch.device("cpu")):
        assert switches() == (3, False, "highest")
    assert switches() == before
    with inference(network, torch.device("cpu"), "bf16"):
        assert switches() == before
    with pytest.raises(ZeroDivisionError), inference(network, torch.device("cpu")):
        raise ZeroDivisionError
    assert switches() == before


def test_fp32_on_a_gpu_is_no_tf32(switches):
    from resnetkit.runtime.torch_settings import disable_tf32, restore_torch_settings

    before = switches()
    for precision, device in (("bf16", "cuda"), ("fp32", "cpu")):
        disable_tf32(precision, device)
        assert switches() == before
    with restore_torch_settings():
        disable_tf32("fp32", "cuda")
        assert switches() == (3, False, "highest")
    assert switches() == before


def command(*words):
    return [sys.executable, str(HERE / "helpers" / "fake_engine.py"), *map(str, words)]


def test_an_engine_needs_no_torch(model, inbox):
    """fake_engine.py looks at the modules that are there when the command has ended."""
    for form in ("--csv", "--jsonl"):
        done = subprocess.run(
            command("predict", inbox / "00.png", "--model", model, form), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[0] == "engine: fake-int8, batch 4 x 2"
        found = (
            csv.DictReader(io.StringIO(done.stdout)) if form == "--csv" else map(json.loads, done.stdout.splitlines())
        )
        assert [row["label"] for row in found] == [by_hand(model, inbox / "00.png")[0]]
    code = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
from helpers import fake_engine
import resnetkit as rk
fake_engine.install()
print(rk.predict({str(inbox / "00.png")!r}, {str(model)!r})[0].label)
assert "torch" not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (by_hand(model, inbox / "00.png")[0] + "\n", "")


def test_evaluation_counts_what_an_engine_says(model, pictures, cli):
    data = pictures("flowers", sorted(NAMES[:2]), 9)
    code, out, err = cli("evaluate", model, data, "--engine", "fake-int8", "--json", "--split", "all")
    assert code == 0, err
    assert err.splitlines()[0] == "engine: fake-int8, batch 4 x 2"
    files = sorted(data.rglob("*.png"))  # eighteen at once, so batches of four and one of two
    found, pixels = json.loads(out), np.stack([prepared(model, path) for path in files])
    answers = [
        NAMES[i]
        for start in range(0, 18, 4)
        for i in fake_engine.compute_logits(pixels[start : start + 4], 3).argmax(1)
    ]
    assert found["n"] == 18
    assert found["correct"] == sum(path.parent.name == answer for path, answer in zip(files, answers, strict=True))
    assert sorted(fake_engine.batch_sizes) == [2, 4, 4, 4, 4]
    code, _, err = cli("evaluate", model, data, "--engine", "fake-int8", "--device", "cpu")
    assert (code, err.splitlines()[0]) == (2, "error: fake-int8 has a device and a precision of its own")
    answered = rk.evaluate(model, data, split="all", engine="fake-int8")
    assert (answered.correct, answered.notes) == (found["correct"], ("engine: fake-int8, batch 4 x 2",))
    with pytest.raises(UsageError, match="unknown precision 'int8'"):
        rk.evaluate(model, data, precision="int8")
    with pytest.raises(UsageError, match="only a model folder has engines"):
        rk.evaluate(rk.load(model), data, engine="fake-int8")
    fake_engine.batch_sizes.clear()
    assert cli("evaluate", model, data)[0] == 0
    assert rk.evaluate(rk.load(model), data, split="all").n == 18
    assert fake_engine.batch_sizes == []
    assert "engine: fake-int8" in cli("evaluate", model, data, "--engine", "auto")[2]


def test_what_is_asked_for_in_vain_is_told_before_anything_is_opened(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "open_inference", lambda *_: pytest.fail("an engine was opened"))
    data, other = pictures("flowers", sorted(NAMES[:2]), 3), pictures("other", ["ant", "bee"], 3)
    for given, what, error in (
        ({"data": tmp_path / "nowhere"}, "the folder does not exist", UsageError),
        ({"data": other}, "the data has 2 of 2 classes that the model has not", DataError),
        ({"data": data, "split": "val"}, "the data have no split 'val'", UsageError),
        (
            {"data": tmp_path / "nowhere", "bad_files": "never"},
            "unknown policy for unreadable images: never",
            UsageError,
        ),
    ):
        with pytest.raises(error, match=what):
            rk.evaluate(model, engine="fake-int8", **given)


# -------------------------------------------------------------------------------------------------------- files of rows


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_holds_what_is_printed(model, inbox, cli, tmp_path, ending):
    words = ("predict", inbox, "--model", model, "--top", 2)
    _, printed, told = cli(*words, f"--{ending}")
    code, out, err = cli(*words, "--out", tmp_path / f"a.{ending}")
    assert (code, out) == (3, f"wrote 25 rows to {tmp_path / 'a'}.{ending}\n")
    assert err == told
    assert (tmp_path / f"a.{ending}").read_bytes().decode() == printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{ending}", "in box", "model"]
    code, _, err = cli(*words, "--out", tmp_path / f"a.{ending}", "--resume")
    assert (code, err.splitlines()[0]) == (2, "error: this file exists already")


def test_parquet_is_written_as_answers_come(model, inbox, cli, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    from resnetkit.prediction import formats as rows

    monkeypatch.setattr(rows, "_ROW_GROUP_SIZE", 10)
    rows_ = [
        json.loads(line) for line in cli("predict", inbox, "--model", model, "--top", 2, "--jsonl")[1].splitlines()
    ]
    assert cli("predict", inbox, "--model", model, "--top", 2, "--out", tmp_path / "a.parquet")[0] == 3
    found = parquet.ParquetFile(tmp_path / "a.parquet")
    assert [found.metadata.row_group(i).num_rows for i in range(found.metadata.num_row_groups)] == [10, 10, 5]
    table = found.read().to_pylist()
    assert [row["label"] for row in table] == [row["label"] for row in rows_]
    assert [row["error"] for row in table] == [row["error"] for row in rows_]
    assert [[round(share, 6) for share in row["probabilities"]] for row in table] == [
        [best["probability"] for best in row["top"]] for row in rows_
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "in box", "model"]


def begun(path, cli, *words):
    """A part as a kill leaves it: what a whole run writes, and what it was made with."""
    from resnetkit.prediction import resumable_output as part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part.files, "publish", lambda *paths: True)
        cli(*words, "--out", path)
    assert not path.exists()
    return path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_wherever_a_file_is_cut_it_becomes_the_whole(model, inbox, cli, tmp_path, ending):
    words = ("predict", inbox / "*.png", inbox / "05.png", inbox / "05.png", "--model", model, "--top", 2)
    out = tmp_path / f"a.{ending}"
    part, record = begun(out, cli, *words)
    made, whole = record.read_bytes(), part.read_bytes()
    draw = random.Random(0)
    cuts = [0, 1, len(whole), len(whole) - 1, *draw.sample(range(len(whole)), 14)]
    for cut in cuts:
        part.write_bytes(whole[:cut])
        record.write_bytes(made)
        code, told, err = cli(*words, "--out", out, "--resume")
        assert (code, told) == (3, f"wrote 27 rows to {out}\n"), err
        assert out.read_bytes() == whole, cut
        assert "error: 2 of 27 files have no prediction; their rows say why\n" in err
        assert not part.exists()
        assert not record.exists()
        out.unlink()


def test_rows_after_pages_that_the_disk_lost_are_made_again(model, inbox, cli, tmp_path):
    words = ("predict", inbox, "--model", model)
    for ending in ("csv", "jsonl"):
        part, _ = begun(tmp_path / f"a.{ending}", cli, *words)
        whole = part.read_bytes()
        part.write_bytes(whole[:700] + b"\0" * 60 + whole[760:])
        assert cli(*words, "--out", tmp_path / f"a.{ending}", "--resume")[0] == 3
        assert (tmp_path / f"a.{ending}").read_bytes() == whole


def test_rows_that_stand_are_not_asked_again(model, inbox, cli, tmp_path):
    files = [inbox / f"{i:02}.png" for i in range(10)]
    part, _ = begun(tmp_path / "a.csv", cli, "predict", *files, "--model", model)
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:7]))  # the head and six rows
    fake_engine.batch_sizes.clear()
    err = cli("predict", *files, "--model", model, "--out", tmp_path / "a.csv", "--resume")[2]
    assert sorted(fake_engine.batch_sizes) == [2, 4]  # rows 5 to 8, as two of them are still to come, and 9 and 10
    assert f"resumed: 6 rows of 10 exist in {part}\n" in err


def test_other_files_than_before(model, inbox, cli, tmp_path):
    """Each row that stands takes one input of its name away, wherever that is now."""
    one, two, three = (inbox / f"{i:02}.png" for i in (1, 2, 3))
    begun(tmp_path / "a.csv", cli, "predict", one, two, two, inbox / "z.png", "--model", model)
    now = (inbox / "z.png", three, two, one, two, two, one)
    code, out, _ = cli("predict", *now, "--model", model, "--out", tmp_path / "a.csv", "--resume")
    assert (code, out) == (3, f"wrote 7 rows to {tmp_path / 'a.csv'}\n")
    rows = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == list(map(str, (one, two, two, inbox / "z.png", three, two, one)))


def test_nothing_to_go_on_with_is_a_beginning(model, inbox, cli, tmp_path):
    assert cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv", "--resume")[0] == 0
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 2


def test_rows_that_were_made_otherwise_are_refused(model, inbox, cli, tmp_path, saved):
    out = tmp_path / "a.jsonl"
    part, record = begun(out, cli, "predict", inbox / "00.png", "--model", model)
    remove = "remove a.jsonl.part and a.jsonl.part.json"
    words = ("predict", inbox / "00.png", "--out", out)
    code, _, err = cli(*words, "--model", model)
    assert (code, err) == (
        2,
        f"error: an earlier command left this unfinished\nwhere: {part}\nfix: --resume goes on with it; or {remove}\n",
    )
    for told, (where, fix) in {
        ("--model", model, "--top", 2): ("top: 1 then, 2 now", "--top 1"),
        ("--model", model, "--engine", "torch"): ("engine: fake-int8 then, torch-fp32 now", "--engine fake-int8"),
        ("--model", model, "--precision", "bf16"): ("engine: fake-int8 then, torch-bf16 now", "--engine fake-int8"),
    }.items():
        code, printed, err = cli(*words, *told, "--resume")
        assert (code, printed) == (2, "")
        assert f"error: the rows of {part} were made otherwise\nwhere: {where}\nfix: {fix}; or {remove}\n" in err
    other = save(rk.build(BASE, classes=[*NAMES[:2], "lily"]), tmp_path / "other")
    for _ in range(2):  # without an engine of that name, and with it
        code, _, err = cli(*words, "--model", other, "--resume")
        assert code == 2
        assert re.search(r"where: model: \w+\.\.\. then, \w+\.\.\. now\nfix: name the model that made them; or ", err)
        fake_engine.write_engines(other)
    record.write_text(record.read_text().replace('"error"', '"reason"'))
    assert (
        "where: columns: file, label, probability, top, reason then, " in cli(*words, "--model", model, "--resume")[2]
    )
    record.unlink()
    code, _, err = cli(*words, "--model", model, "--resume")
    assert (code, err) == (
        2,
        f"error: nothing says what these rows were made with\nwhere: {record} is missing\nfix: {remove}\n",
    )
    assert part.exists()


def test_how_torch_was_asked_is_said(model, inbox, cli, tmp_path):
    words = ("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")
    begun(tmp_path / "a.csv", cli, *words[:-2], "--precision", "bf16")
    err = cli(*words, "--resume")[2]
    assert (
        "where: engine: torch-bf16 then, torch-fp32 now\nfix: --engine torch --precision bf16 --device cpu; or " in err
    )


def test_an_engine_that_is_gone_is_said_to_have_made_the_rows(model, saved, inbox, cli, tmp_path):
    words = ("predict", inbox / "00.png", "--out", tmp_path / "a.csv", "--model")
    begun(tmp_path / "a.csv", cli, "predict", inbox / "00.png", "--model", model)
    err = cli(*words, saved, "--resume")[2]
    assert "where: engine: fake-int8 then, torch-fp32 now\nfix: --engine fake-int8; or " in err


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "what these rows were made with cannot be read: 1 fault"),
        (b"{", "what these rows were made with cannot be read: 1 fault"),
        (b"[" * 100_000, "what these rows were made with cannot be read: 1 fault"),
        (b"[]", "what these rows were made with does not describe a provenance: 1 fault"),
        ("{}".encode("utf-16"), "what these rows were made with is not UTF-8 text"),
    ],
)
def test_a_record_that_cannot_be_read(model, inbox, cli, tmp_path, content, what):
    part, record = begun(tmp_path / "a.csv", cli, "predict", inbox / "00.png", "--model", model)
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
    "again", [{"content": b"other ranges"}, {"configs": [replace(fake_engine.CONFIG, batch_size=2)]}]
)
def test_rows_of_an_engine_that_was_made_again_are_not_mixed(model, inbox, cli, tmp_path, again):
    """It has the same name, for the same weights."""
    words = ("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")
    part, record = begun(tmp_path / "a.csv", cli, *words[:-2])
    assert json.loads(record.read_text())["engine"] == "fake-int8"
    fake_engine.write_engines(model, *again.pop("configs", ()), **again)
    code, out, err = cli(*words, "--resume")
    assert (code, out) == (2, "")
    assert re.search(
        rf"error: the rows of {re.escape(str(part))} were made otherwise\n"
        r"where: artifact: [0-9a-f]{37}\.\.\. then, [0-9a-f]{37}\.\.\. now\nfix: ",
        err,
    )
    fake_engine.write_engines(model)
    assert cli(*words, "--resume")[0] == 0


def test_rows_of_torch_know_no_artefact(model, saved, inbox, cli, tmp_path):
    words = ("predict", inbox / "00.png", "--model", model, "--engine", "torch", "--out", tmp_path / "a.csv")
    _, record = begun(tmp_path / "a.csv", cli, *words[:-2])
    fake_engine.write_engines(model, content=b"other ranges")
    made = json.loads(record.read_text())
    assert made.pop("artifact") == ""
    record.write_text(json.dumps(made))
    assert cli(*words, "--resume")[0] == 0


def test_a_command_that_was_killed_before_its_first_row(model, inbox, cli, tmp_path):
    (tmp_path / "a.csv.part").touch()
    assert cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")[0] == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.csv", "in box", "model"]


def test_a_head_that_was_changed_is_refused(model, inbox, cli, tmp_path):
    part, _ = begun(tmp_path / "a.csv", cli, "predict", inbox / "00.png", "--model", model)
    part.write_text(part.read_text().replace("file,", "name,"))
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv", "--resume")
    assert code == 2
    assert f"error: this does not begin as it was begun\nwhere: {part}\n" in err


def test_who_answered_before_answers_again(model, inbox, cli, tmp_path):
    """What was begun by torch goes on by torch, though an engine was made meanwhile; and the other way round."""
    words = ("predict", inbox, "--model", model, "--out", tmp_path / "a.csv")
    begun(tmp_path / "a.csv", cli, *words[:-2], "--engine", "torch")
    code, _, err = cli(*words, "--resume")
    assert (code, err.splitlines()[0]) == (3, "engine: torch fp32, batch 32 x 1")
    begun(tmp_path / "b.csv", cli, *words[:-2])
    fake_engine.write_engines(model, fake_engine.CONFIG, engine.EngineConfig("fake", "fp32", 1, 1))
    assert "engine: fake-int8," in cli(*words[:-1], tmp_path / "b.csv", "--resume")[2]


def foreign(path, content="mine"):
    path.write_text(content)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_appears_while_the_engine_is_opened_stays(model, inbox, cli, tmp_path, monkeypatch, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    out, open_ = tmp_path / f"a.{ending}", fake_engine.load_engine
    monkeypatch.setattr(fake_engine, "load_engine", lambda *words: (foreign(out), open_(*words))[1])
    code, printed, err = cli("predict", inbox / "00.png", "--model", model, "--out", out)
    assert (code, printed) == (2, "")
    assert err.endswith(f"error: this file exists already\nwhere: {out}\nfix: name another, or remove it\n")
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "in box", "model"}
    assert out.read_text() == "mine"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_what_appears_while_rows_are_made_stays_and_so_do_they(model, inbox, cli, tmp_path, monkeypatch, ending):
    words = ("predict", inbox / "00.png", "--model", model)
    cli(*words, "--out", tmp_path / f"whole.{ending}")
    out, call = tmp_path / f"a.{ending}", fake_engine.FakeEngine.__call__
    with monkeypatch.context() as patch:
        patch.setattr(fake_engine.FakeEngine, "__call__", lambda self, pixels: (foreign(out), call(self, pixels))[1])
        code, _, err = cli(*words, "--out", out)
    part = f"{out}.part"
    assert (code, out.read_text()) == (2, "mine")
    assert err.endswith(
        f"error: this file exists already\nwhere: {out}\n       all rows stand in {part}\n"
        "fix: move it away; then the same command with --resume\n"
    )
    out.unlink()
    assert cli(*words, "--out", out, "--resume")[0] == 0
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()


def test_rows_that_were_begun_while_the_engine_is_opened_stay(model, inbox, cli, tmp_path, monkeypatch):
    part, open_ = tmp_path / "a.csv.part", fake_engine.load_engine
    monkeypatch.setattr(fake_engine, "load_engine", lambda *words: (foreign(part), open_(*words))[1])
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")
    assert (code, part.read_text()) == (2, "mine")
    assert f"error: an earlier command left this unfinished\nwhere: {part}\nfix: --resume" in err


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("content", ["user notes\n", "user notes", '{"file": "a"}\n', "\n\n"])
def test_a_part_of_somebody_else_stays(model, inbox, cli, tmp_path, ending, content):
    out = tmp_path / f"a.{ending}"
    part, _ = begun(out, cli, "predict", inbox / "00.png", "--model", model)
    part.write_text(content)
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", out, "--resume")
    assert (code, part.read_text()) == (2, content)
    assert f"error: this does not begin as it was begun\nwhere: {part}\nfix: remove {part.name} and " in err


@pytest.mark.parametrize("resume", [(), ("--resume",)])
@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "folder"])
def test_a_part_that_is_no_file_of_ours_is_not_written_through(model, inbox, cli, tmp_path, kind, resume):
    part, other = tmp_path / "a.csv.part", tmp_path / "other.txt"
    if kind != "dangling":
        other.write_text("mine")
    {
        "link": part.symlink_to, "dangling": part.symlink_to, "hard link": part.hardlink_to,
        "pipe": lambda _: os.mkfifo(part), "folder": lambda _: part.mkdir(),
    }[kind](other)  # fmt: skip
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv", *resume)
    assert (code, err) == (
        2,
        "error: this is no ordinary file of one name, so no rows are written into it\n"
        f"where: {part}\nfix: remove a.csv.part\n",
    )
    assert other.exists() == (kind != "dangling")
    assert kind == "dangling" or other.read_text() == "mine"


def test_weights_that_are_a_pipe(model, saved, inbox, cli, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    os.link(saved / "config.json", bare / "config.json")
    (model / "model.safetensors").unlink()
    for folder, code in ((model, 5), (bare, 4)):
        os.mkfifo(folder / "model.safetensors")
        assert cli("predict", inbox / "00.png", "--model", folder)[::2] == (
            code,
            f"error: this is no ordinary file\nwhere: {folder / 'model.safetensors'}\n"
            "fix: put a copy of the file itself there\n",
        )


def test_nothing_is_left_where_nothing_was_begun(model, inbox, cli, tmp_path, monkeypatch):
    from resnetkit.prediction import resumable_output as part

    def fail(path, text):
        raise MachineError("cannot write: No space left on device", where=str(path))

    monkeypatch.setattr(part.files, "write_text", fail)
    words = ("predict", inbox / "00.png", "--model", model, "--out")
    code, _, err = cli(*words, tmp_path / "a.csv")
    assert code == 5
    assert "to resume" not in err
    monkeypatch.undo()
    code, _, err = cli(*words, tmp_path / f"{'n' * 245}.csv")  # the name of the record is too long for a disk
    assert code != 0
    assert "File name too long\n" in err
    assert "to resume" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in box", "model"]


def test_a_record_that_was_half_written_is_swept(model, inbox, cli, tmp_path):
    (tmp_path / ".a.csv.part.json.abcd_fgh.part").touch()
    (tmp_path / ".b.csv.part.json.abcd_fgh.part").touch()
    assert cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")[0] == 0
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [".b.csv.part.json.abcd_fgh.part", "a.csv", "in box", "model"]


def test_a_name_of_any_length_is_gone_on_with(model, inbox, cli, tmp_path, monkeypatch):
    names = f"{'n' * 200_000}\n{inbox / '00.png'}\n{inbox / '01.png'}\n".encode()
    words = ("predict", "-", "--model", model, "--out", tmp_path / "a.csv")

    def run(*more):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
        return cli(*words, *more)

    assert run()[0] == 3
    whole = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "a.csv").unlink()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
    part, _ = begun(tmp_path / "a.csv", cli, *words[:-2])
    part.write_bytes(whole[:-3])
    limit = csv.field_size_limit()
    code, _, err = run("--resume")
    assert (code, csv.field_size_limit()) == (3, limit)
    assert f"resumed: 2 rows of 3 exist in {part}\n" in err
    assert (tmp_path / "a.csv").read_bytes() == whole


def test_a_quote_that_nobody_closed_costs_no_more_than_the_rows(tmp_path):
    rows, begun_ = io.BytesIO(b'"' + b"a,b,1,\n" * 400_000), time.monotonic()
    assert list(CsvFormat(1).read_rows(rows)) == []
    assert time.monotonic() - begun_ < 5


def test_what_files_say_stays_on_its_line(model, inbox, cli, monkeypatch):
    import resnetkit.commands.predict as verb

    why = "it is old\nerror: forged\nfix: rm -r \x1b[2J" + "x" * 9000
    found = verb.select_engine
    monkeypatch.setattr(verb, "select_engine", lambda *words: replace(found(*words), saved_engines=(), reason=why))
    monkeypatch.setattr(verb, "describe_skipped_files", lambda files: ["one\nfix: forged"])
    lines = cli("predict", inbox / "00.png", "--model", model)[2].splitlines()
    assert [line.split(":")[0] for line in lines] == ["engine", "note", "next"]
    assert "it is old\\nerror: forged\\nfix: rm -r \\x1b[2Jxxx" in lines[0]
    assert lines[0].endswith("xxx...")
    assert len(lines[0]) < 1000
    assert lines[1] == "note: one\\nfix: forged"


def test_no_name_of_a_file_makes_a_line_of_an_error(cli):
    code, _, err = cli("predict", "a.png", "--model", "b\nfix: rm -r")
    lines = err.splitlines()
    assert (code, [line for line in lines if line.startswith("fix: rm")]) == (2, [])
    assert any("b\\nfix: rm -r" in line for line in lines)
    told = str(UsageError("a\nerror: b", where=["c\nd", "e"], fix="f\ng"))
    assert told == "error: a\\nerror: b\nwhere: c\\nd\n       e\nfix: f\\ng"


def test_a_bug_is_no_reason_to_go_on(model, inbox, cli, tmp_path, monkeypatch):
    def fail(self, pixels):
        raise ZeroDivisionError

    monkeypatch.setattr(fake_engine.FakeEngine, "__call__", fail)
    code, _, err = cli("predict", inbox / "00.png", "--model", model, "--out", tmp_path / "a.csv")
    assert code == 1
    assert "to resume" not in err


WRONG = {
    "--csv --json": "error: more than one output format is given\nwhere: --csv --json\nfix: use only --csv\n",
    "--out a.csv --csv": "error: more than one output format is given\nwhere: --csv --out\nfix: remove --csv\n",
    "--out a.csv --jsonl": "error: more than one output format is given\nwhere: --jsonl --out\nfix: remove --jsonl, or --out a.jsonl\n",
    "--parquet a.parquet --json": "error: more than one output format is given\nwhere: --json --parquet\nfix: remove --json\n",
    "--out a.txt": "error: the output file must end in .csv or .jsonl or .parquet\nwhere: a.txt\nfix: call it a.csv\n",
    "--resume": "error: --resume needs an --out file that ends in .csv or .jsonl\nwhere: --resume with --out\n",
    "--resume --out a.parquet": "error: --resume needs an --out file that ends in .csv or .jsonl\nwhere: --resume with --out a.parquet\nfix: --out labels.csv --resume\n",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, model, inbox, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("predict", inbox, "--model", model, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith(WRONG[words])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in box", "model"]


def test_one_picture_from_standard_input_cannot_be_gone_on_with(model, inbox, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((inbox / "00.png").read_bytes())))
    code, _, err = cli("predict", "-", "--model", model, "--out", tmp_path / "a.csv", "--resume")
    assert (code, err.splitlines()[0]) == (2, "error: --resume needs files, and standard input holds an image")


def test_names_of_any_letters_come_back(tmp_path):
    from resnetkit.prediction.formats import Prediction, escape_surrogates

    names = ['"', '""', "\n", "\r\n", '\n"\n', "a,b", os.fsdecode(b"\xff"), "\\udcff", " ", "\u2028", "'"]
    told = [Prediction(name, (("x", 1 / 3),)) for name in names] + [Prediction("bad", error='no "\n')]
    for form in (CsvFormat(1), JsonLinesFormat()):
        text = "".join(escape_surrogates(form.format_line(answer)) + "\n" for answer in told).encode()
        assert [(name, bad) for _, name, bad in form.read_rows(io.BytesIO(text))] == [
            *((escape_surrogates(name), False) for name in names), ("bad", True)
        ]  # fmt: skip
        for cut in range(len(text)):
            found = list(form.read_rows(io.BytesIO(text[:cut])))
            assert sum(size for size, *_ in found) <= cut
            assert text[: sum(size for size, *_ in found)].decode().endswith(("\n", ""))
            assert [name for _, name, _ in found] == [escape_surrogates(answer.file) for answer in told[: len(found)]]


def test_an_error_names_the_command_that_goes_on(model, inbox, cli, tmp_path, monkeypatch):
    def fail(self, pixels):
        raise MemoryError

    monkeypatch.setattr(fake_engine.FakeEngine, "__call__", fail)
    code, _, err = cli("predict", inbox, "--model", model, "--out", tmp_path / "a.csv")
    assert code == 5
    last = f"to resume: resnetkit predict {shlex.quote(str(inbox))} --model {model} --out {tmp_path / 'a.csv'} --resume"
    assert err.splitlines()[-1] == last


# ------------------------------------------------------------------------------------------------------------------ kills


SLOW = os.environ | {"FAKE_SECONDS": "0.02"}


def rows_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def waited(path, rows, process):
    """Until so many lines stand."""
    while rows_of(path) < rows and process.poll() is None:
        time.sleep(0.002)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_killed_anywhere_it_becomes_the_whole(model, inbox, cli, tmp_path, ending):
    files = [*sorted(inbox.iterdir()) * 3, inbox / "00.png"]
    words = ("predict", *files, "--model", model, "--top", 3)
    assert cli(*words, "--out", tmp_path / f"whole.{ending}")[0] == 3
    out = tmp_path / f"a.{ending}"
    part, draw = out.with_name(out.name + ".part"), random.Random(ending)
    kills = 0
    for _ in range(6):
        process = subprocess.Popen(command(*words, "--out", out, "--resume"), env=SLOW, stdout=-3, stderr=-3)
        waited(part, rows_of(part) + draw.randrange(1, 20), process)
        time.sleep(draw.random() * 0.03)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if out.exists():
            break
    assert kills >= 2
    if not out.exists():
        done = subprocess.run(command(*words, "--out", out, "--resume"), check=False, capture_output=True)
        assert done.returncode == 3, done.stderr
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not part.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_the_command_that_goes_on(model, inbox, cli, tmp_path, number, code):
    files = [*sorted(inbox.iterdir()) * 4]
    words = ("predict", *files, "--model", model)
    cli(*words, "--out", tmp_path / "whole.csv")
    out, part = tmp_path / "a.csv", tmp_path / "a.csv.part"
    process = subprocess.Popen(command(*words, "--out", out), env=SLOW, stdout=-1, stderr=-1, text=True)
    waited(part, 9, process)
    process.send_signal(number)
    told, err = process.communicate(timeout=20)
    assert (process.returncode, told) == (code, ""), err
    assert part.exists()
    first, last = err.splitlines()[0], err[err.index("stopped; ") :]
    assert first == "engine: fake-int8, batch 4 x 2"
    assert len(last.splitlines()) == 1
    shell = f'resnetkit() {{ {shlex.join(command())} "$@"; }}; {last.removeprefix("stopped; to resume: ")}'
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, f"wrote 100 rows to {out}\n"), done.stderr
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_rows_stand_while_others_are_made_by_one_command_alone(model, inbox, cli, tmp_path):
    out = tmp_path / "a.csv"
    process = subprocess.Popen(
        command("predict", *[inbox / "00.png"] * 400, "--model", model, "--out", out), env=SLOW, stdout=-3, stderr=-3
    )
    part = ResumableWriter(out, True).part_path
    waited(part, 20, process)
    assert process.poll() is None
    assert 20 <= rows_of(part) < 400
    assert not out.exists()
    code, told, err = cli("predict", inbox / "00.png", "--model", model, "--out", out, "--resume")
    assert (code, told) == (2, "")
    assert err.endswith(f"error: another command is writing this\nwhere: {part}\nfix: wait for it, or stop it\n")
    process.kill()
    process.wait()
