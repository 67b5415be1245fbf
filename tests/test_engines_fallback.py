"""Engines that fail in a call, or that came with a model folder from elsewhere: which engine answers, and what is said."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import resnetkit as rk
from resnetkit.engines import base, fallback, records
from resnetkit.engines import saved as saved_engines
from resnetkit.errors import MachineError, ResnetkitWarning
from resnetkit.weights.save import save

from helpers import fake_engine
from helpers.tiny import BASE

CLASSES = ("daisy", "rose", "tulip")
SECOND = base.EngineConfig("fake", "fp32", 2, 1)


@pytest.fixture(autouse=True)
def fake_spec(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "cache"))
    fake_engine.install_for_test(monkeypatch)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    torch.manual_seed(0)
    return save(rk.build(BASE, classes=CLASSES), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved_model, tmp_path):
    """A model folder that was optimized here."""
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    fake_engine.write_engines(folder)
    return folder


@pytest.fixture
def foreign_model(model, monkeypatch, tmp_path):
    """A model folder that was optimized elsewhere: this user's cache has no record of it."""
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "other-cache"))
    return model


@pytest.fixture
def images(pictures):
    return sorted(pictures("flowers", CLASSES[:2], count=6).rglob("*.png"))


@pytest.fixture
def behave(monkeypatch):
    """A function that replaces the calls of the fake engine; ``after`` calls are answered first."""

    def set_behavior(function, after=0):
        call, n_calls = fake_engine.FakeEngine.__call__, []

        def answer(self, pixels):
            n_calls.append(1)
            return call(self, pixels) if len(n_calls) <= after else function(self, pixels)

        monkeypatch.setattr(fake_engine.FakeEngine, "__call__", answer)

    return set_behavior


def shorten_timeouts(monkeypatch):
    for name, value in {"CALL_TIMEOUT": 0.05, "TIMEOUT_FACTOR": 0, "JOIN_TIMEOUT": 0.01}.items():
        monkeypatch.setattr(fallback, name, value)


def raise_error(self, pixels):
    raise RuntimeError("no such operation\nat C++")


def raise_memory_error(self, pixels):
    raise MemoryError


def hang(self, pixels):
    threading.Event().wait()


def return_shape(*shape):
    return lambda self, pixels: np.zeros(shape, np.float32)


def return_value(value):
    return lambda self, pixels: np.full((len(pixels), 3), value, np.float32)


FAILURES = {
    "raises": (raise_error, "failed: no such operation"),
    "memory": (raise_memory_error, "failed: MemoryError"),
    "hangs": (hang, "did not answer within 0.05 seconds"),
    "classes": (return_shape(4, 2), "returned logits of shape (4, 2), expected (4, 3)"),
    "rows": (return_shape(3, 3), "returned logits of shape (3, 3), expected (4, 3)"),
    "dimensions": (return_shape(4, 3, 1), "returned logits of shape (4, 3, 1), expected (4, 3)"),
    "scalar": (return_shape(), "returned logits of shape (), expected (4, 3)"),
    "nan": (return_value(np.nan), "returned logits that are NaN or infinite"),
    "infinite": (return_value(-np.inf), "returned logits that are NaN or infinite"),
}


# ------------------------------------------------------------------------------------------------- failures in a call


@pytest.mark.parametrize("failure", FAILURES)
def test_torch_computes_the_images_of_an_engine_that_fails(model, images, behave, cli, monkeypatch, failure):
    function, problem = FAILURES[failure]
    behave(function)
    if failure == "hangs":
        shorten_timeouts(monkeypatch)
    expected = rk.predict(images, model, engine="torch")
    code, out, err = cli("predict", *images, "--model", model, "--csv")
    assert code == 0 and len(out.splitlines()) == 1 + len(images)
    hint = saved_engines.format_optimize_command(model)
    assert f"warning: fake-int8 {problem}; torch fp32, batch 32 x 1 computed the images from there on; {hint}\n" in err
    with pytest.warns(ResnetkitWarning, match="fake-int8 "):
        predictions = rk.predict(images, model)
    assert [(p.file, p.label) for p in predictions] == [(p.file, p.label) for p in expected]
    with pytest.raises(MachineError) as caught:
        rk.predict(images, model, engine="fake-int8")
    assert str(caught.value) == f"error: fake-int8 {problem}\nfix: {hint}"


def test_an_engine_that_fails_later_loses_no_row(model, images, behave):
    engine_rows, torch_rows = rk.predict(images, model), rk.predict(images, model, engine="torch")
    behave(raise_error, after=2)
    with pytest.warns(ResnetkitWarning, match="torch fp32"):
        predictions = rk.predict(images, model)
    assert [p.file for p in predictions] == list(map(str, images))
    labels = [p.label for p in predictions]
    assert all(label in {a.label, b.label} for label, a, b in zip(labels, engine_rows, torch_rows, strict=True))
    assert labels[-4:] == [p.label for p in torch_rows[-4:]]


def test_the_next_saved_engine_is_asked_before_torch(model, images, monkeypatch, cli):
    fake_engine.write_engines(model, fake_engine.CONFIG, SECOND, base.EngineConfig("fake", "fp32", 1, 1))
    call = fake_engine.FakeEngine.__call__
    monkeypatch.setattr(
        fake_engine.FakeEngine,
        "__call__",
        lambda self, pixels: raise_error(self, pixels) if self.config.precision == "fp32" else call(self, pixels),
    )
    _, out, err = cli("predict", *images, "--model", model, "--csv")
    assert err.splitlines()[0].startswith("engine: fake-fp32, batch ")
    assert "warning: fake-fp32 failed: no such operation; fake-int8, batch 4 x 2 computed the images" in err
    assert len(out.splitlines()) == 13 and "torch" not in err


def test_evaluate_notes_the_engine_that_fails(model, images, behave, cli):
    behave(raise_error, after=1)
    data = images[0].parent.parent
    evaluation = rk.evaluate(model, data, split="all", engine="auto")
    assert evaluation.n == 12
    assert evaluation.notes[-2] == "engine: fake-int8, batch 4 x 2"
    failure = "fake-int8 failed: no such operation; torch fp32, batch 32 x 1 computed the images from there on; "
    assert evaluation.notes[-1].startswith(failure)
    behave(raise_error)
    code, out, err = cli("evaluate", model, data, "--split", "all", "--engine", "auto", "--json")
    assert code == 0 and f"note: {failure}" in err
    document, torch_evaluation = json.loads(out), rk.evaluate(model, data, split="all")
    assert document["notes"][-1].startswith(failure)
    assert (document["n"], document["correct"]) == (torch_evaluation.n, torch_evaluation.correct)


def test_an_engine_that_does_not_load_in_time_is_skipped(model, images, monkeypatch, cli):
    monkeypatch.setattr(fallback, "LOAD_TIMEOUT", 0.05)
    monkeypatch.setattr(fake_engine, "load_engine", lambda *_: threading.Event().wait())
    code, out, err = cli("predict", *images, "--model", model, "--csv")
    assert code == 0 and len(out.splitlines()) == 13
    reason = "cannot load fake-int8: not done after 0.05 seconds"
    hint = saved_engines.format_optimize_command(model)
    assert err.splitlines()[0] == f"engine: torch fp32, batch 32 x 1; {reason}; {hint}"
    code, out, err = cli("predict", *images, "--model", model, "--engine", "fake-int8")
    assert (code, out, err) == (5, "", f"error: {reason}\nwhere: {model}\nfix: {hint}\n")


def test_a_hanging_call_is_cancelled(model, images, monkeypatch):
    cancelled = threading.Event()

    def wait_for_cancel(self, pixels):
        assert cancelled.wait(60)
        raise RuntimeError("cancelled")

    monkeypatch.setattr(fake_engine.FakeEngine, "__call__", wait_for_cancel)
    monkeypatch.setattr(fake_engine.FakeEngine, "cancel", lambda self: cancelled.set(), raising=False)
    shorten_timeouts(monkeypatch)
    with pytest.warns(ResnetkitWarning, match=r"did not answer within 0\.05 seconds"):
        assert len(rk.predict(images, model)) == 12
    assert cancelled.is_set()


# ------------------------------------------------------------------------------------------- engines from elsewhere


DISTRUST = "the engines in the model folder were not optimized by this user on this machine"


def test_engines_from_elsewhere_are_not_used(foreign_model, images, cli):
    code, _, err = cli("predict", images[0], "--model", foreign_model, "--csv")
    hint = saved_engines.format_optimize_command(foreign_model)
    assert (code, err.splitlines()[0]) == (0, f"engine: torch fp32, batch 32 x 1; {DISTRUST}; {hint}")
    evaluation = rk.evaluate(foreign_model, images[0].parent.parent, split="all", engine="auto")
    assert evaluation.notes[-1] == f"engine: torch fp32; {DISTRUST}; {hint}"
    assert fake_engine.batch_sizes == []


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_named_engine_from_elsewhere_is_compared_with_torch_first(foreign_model, images, cli, command):
    data = images[0].parent.parent
    args = ("predict", data, "--model", foreign_model) if command == "predict" else ("evaluate", foreign_model, data)
    code, out, err = cli(*args, "--engine", "fake-int8")
    assert (code, out) == (6, "")
    assert err.splitlines()[0].startswith(f"engine: fake-int8, batch 4 x 2; {DISTRUST}, so its first predictions are")
    assert "\nerror: fake-int8 does not match torch on the first images: logits differ by " in err
    assert f"\nfix: {saved_engines.format_optimize_command(foreign_model)}, or use --engine torch\n" in err


def test_a_named_engine_from_elsewhere_that_matches_is_used(foreign_model, images, monkeypatch):
    expected = rk.predict(images, foreign_model, engine="torch")
    network = rk.load(foreign_model).eval()
    load = saved_engines.ENGINE_SPECS["eager"].import_backend().load_engine
    monkeypatch.setattr(fake_engine, "load_engine", lambda folder, contents, config: load(folder, {}, config))
    monkeypatch.setattr(base.EngineConfig, "threads", 1)
    assert network.card.labels == CLASSES
    predictions = rk.predict(images, foreign_model, engine="fake-int8")
    assert [p.label for p in predictions] == [p.label for p in expected]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux limits the memory of a process")
def test_an_engine_from_elsewhere_gets_limited_memory(foreign_model, images, behave):
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    behave(lambda self, pixels: np.empty(2**33, np.uint8))
    with pytest.raises(MachineError, match=r"fake-int8 failed: Unable to allocate 8\.00 GiB"):
        rk.predict(images, foreign_model, engine="fake-int8")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_an_engine_of_another_machine_is_compared_and_gets_no_more_streams_than_cores(model, monkeypatch):
    monkeypatch.setattr(saved_engines, "get_machine_id", lambda: "another machine")
    monkeypatch.setattr(saved_engines, "count_cores", lambda: 1)
    assert saved_engines.find_usable_engines(model, 1).engines == []
    usable = saved_engines.find_usable_engines(model, 1, "fake-int8")
    assert usable.is_foreign and usable.engines[0].config.streams == 1
    assert usable.reason.startswith("the engines were optimized on another machine (")


def test_a_copied_or_moved_model_folder_uses_its_engines(model, images, tmp_path):
    expected = rk.predict(images, model)
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    assert rk.predict(images, copy) == expected
    moved = model.rename(tmp_path / "moved")
    fake_engine.batch_sizes.clear()
    assert rk.predict(images, moved) == expected and fake_engine.batch_sizes


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"{"), "the record of the engines is damaged"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"1000.0", b"2000.0")),
            "the record of the engines is",
        ),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "cannot read the record of the engines: larger than"),
        (lambda path: path.unlink(), DISTRUST),
        (lambda path: (path.unlink(), path.mkdir()), "cannot read the record of the engines: not a regular file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "cannot read the record of the engines: not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "cannot read the record of the engines: not a"),
        (lambda path: shutil.rmtree(path.parent), DISTRUST),
    ],
)
def test_a_damaged_record_vouches_for_nothing(model, images, damage, reason):
    (path,) = (Path(os.environ["RESNETKIT_CACHE"]) / "engines").iterdir()
    damage(path)
    engines, text, _ = saved_engines.find_usable_engines(model, 1)
    assert engines == [] and text.startswith(reason)
    assert rk.predict(images[0], model) == rk.predict(images[0], model, engine="torch")


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("fake_int8", "fake-int8") + "\n",
        lambda text: text.replace('"latency_ms": 8.0', '"latency_ms": 0.001'),
        lambda text: text.replace(saved_engines.get_machine_id(), "this machine"),
    ],
)
def test_a_list_of_engines_that_was_edited_needs_a_new_search(model, edit):
    path = model / "engines" / "engines.json"
    assert edit(path.read_text()) != path.read_text()
    path.write_text(edit(path.read_text()))
    assert saved_engines.find_usable_engines(model, 1).reason.startswith(DISTRUST)


def test_a_cache_that_cannot_be_written_gives_a_reason(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "file"))
    reason = records.write_record(b"{}")
    assert reason.startswith("cannot write: ") and reason.endswith(f", in the cache folder {tmp_path / 'file'}/engines")


# --------------------------------------------------------------------------------------------------- files of engines


def damage_file(path, change):
    if change == "link":
        path.rename(path.with_name("other"))
        path.symlink_to("other")
    elif change == "linked folder":
        path.parent.rename(path.parent.with_name("other"))
        path.parent.symlink_to("other")
    elif change == "linked parent":
        folder = path.parent.parent
        folder.rename(folder.with_name("other"))
        folder.symlink_to("other")
    else:
        path.unlink()
        make = {"pipe": os.mkfifo, "folder": Path.mkdir, "nothing": lambda path: None, "huge": make_huge}
        make.get(change, lambda path: path.symlink_to(change))(path)


def make_huge(path):
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("link", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("/dev/stdin", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("folder", "is not a regular file"),
        ("linked folder", "is behind a link"),
        ("linked parent", "is behind a link"),
        ("huge", "is larger than "),
        ("nothing", "is missing or damaged"),
    ],
)
def test_only_regular_files_of_the_folder_are_opened(model, images, cli, change, problem):
    artifact = saved_engines.get_artifact_folder(model, "f1", fake_engine.CONFIG)
    damage_file(artifact / "model.bin", change)
    code, _, err = cli("predict", images[0], "--model", model, "--csv")
    assert (code, err.splitlines()[0].partition("a file of fake-int8 ")[2].startswith(problem)) == (0, True), err
    assert cli("predict", images[0], "--model", model, "--engine", "fake-int8")[0] == 5


def test_the_library_gets_the_bytes_that_were_checked(model, images, monkeypatch):
    """The file is replaced after it was read; no backend gets a path to open."""
    artifact, contents = saved_engines.get_artifact_folder(model, "f1", fake_engine.CONFIG), []
    load = fake_engine.load_engine

    def replace_and_load(folder, given, config):
        (artifact / "model.bin").write_bytes(b"another engine")
        contents.append(given)
        return load(folder, given, config)

    monkeypatch.setattr(fake_engine, "load_engine", replace_and_load)
    rk.predict(images[0], model)
    assert contents == [{"model.bin": b"ranges"}]


@pytest.mark.parametrize(
    "files", [[], [["model.bin", "0"], ["model.bin", "0"]], [["model.bin", "0"], ["more.bin", "0"]], [["other", "0"]]]
)
def test_the_list_of_files_must_be_that_of_the_engine(model, images, files):
    path = model / "engines" / "engines.json"
    data = json.loads(path.read_text())
    data["engines"][0]["files"] = files
    content = json.dumps(data).encode()
    path.write_bytes(content)
    assert not records.write_record(content)
    engines, reason, _ = saved_engines.find_usable_engines(model, 1)
    names = [name for name, _ in files]
    assert engines == [] and reason.startswith(f"fake-int8 lists the files {names}; allowed: model.bin; ")
    with pytest.raises(MachineError, match="lists the files"):
        rk.predict(images[0], model, engine="fake-int8")
