"""`optimize`: what is tried, what is left out and why, what is kept, and that what is kept still holds."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import resnetkit as rk
from resnetkit import files
from resnetkit.engines import base as engine
from resnetkit.engines import saved as optimized
from resnetkit.engines.base import EngineConfig, EngineSpec
from resnetkit.engines.saved import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    REPORT_FILE,
    Measurement,
    OptimizeResult,
    SavedEngine,
    compute_weights_digest,
    find_usable_engines,
)
from resnetkit.errors import MachineError, ResnetkitWarning, UsageError, VerificationError, WeightsError
from resnetkit.optimization import search as optimizing
from resnetkit.optimization.accuracy_check import Fp32Reference
from resnetkit.optimization.client import BenchmarkError, open_benchmark_client
from resnetkit.optimization.samples import load_samples, make_synthetic_samples
from resnetkit.optimization.worker import measure_speed
from resnetkit.serialization import to_json

from helpers.tiny import BASE

HERE = Path(__file__).parent
NAMES = ("daisy", "rose", "tulip")


def trained(folder, seed=0):
    """A network that says of itself that it was trained, with norms that do something."""
    torch.manual_seed(seed)
    model = rk.build(BASE, classes=NAMES)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
    model.card = replace(model.card, origin="trained for this test")
    return rk.save(model, folder)


# ---------------------------------------------------------------------------------------------------------- agreement


def judge(**more):
    logits = np.array([[4.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 2.0], [1.0, 0.9, 0.0]], np.float32)
    return Fp32Reference(logits, ["a.png", "b.png", "c.png", "d.png"], **more)


def test_the_error_is_a_share_of_the_largest_logit():
    verdict = judge().compare(judge().logits + np.float32([[0], [0], [0.002], [0]]), "fp32")
    assert (
        verdict.logit_error == pytest.approx(0.0005, rel=1e-3)
        and verdict.match_rate == 1.0
        and verdict.accuracy_drop is None
        and not verdict.reason
    )


def test_a_difference_is_told_with_its_picture():
    verdict = judge().compare(judge().logits + np.float32([[0], [0], [0.4], [0]]), "bf16")
    assert verdict.reason == "logits differ by 0.1 of the largest (limit 0.05), most at c.png"


def test_int8_is_judged_by_answers():
    bent = judge().logits + np.float32([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0.5, 0]])
    assert judge().compare(bent, "int8").reason == "only 75.0% of the answers are the same (limit 98%)"
    right = judge(labels=np.array([0, 1, 2, 1]))
    verdict = right.compare(bent, "int8")
    assert verdict.accuracy_drop == -25.0 and not verdict.reason  # it is right where fp32 was wrong
    wrong = judge(labels=np.array([0, 1, 2, 0]))
    assert wrong.compare(bent, "int8").reason == "1 fewer of 4 pictures are right, 25.00 points (--max-loss 0.2)"
    assert not judge(labels=np.array([0, 1, 2, 0]), max_loss=25.0).compare(bent, "int8").reason


def test_where_logits_have_a_limit_one_answer_may_change():
    near = np.array([[1.0, 0.999], [1.0, 0.999], [0.0, 9.0]], np.float32)
    two = Fp32Reference(near, ["a", "b", "c"], np.array([0, 0, 1]))
    once, twice = near.copy(), near.copy()
    once[0] = twice[:2] = [0.999, 1.0]
    assert not two.compare(once, "bf16").reason and two.compare(once, "bf16").accuracy_drop == pytest.approx(100 / 3)
    assert two.compare(twice, "bf16").reason == "2 fewer of 3 pictures are right, 66.67 points (--max-loss 0.2)"
    assert two.take_first(1).compare(once[:1], "bf16").accuracy_drop == 100.0
    assert two.take_first(1).compare(once, "bf16").reason == "it gives 3 x 2 logits for 1 x 2"


def test_answers_that_mean_nothing_are_not_compared():
    verdict = judge(has_predictions=False).compare(judge().logits[:, ::-1], "int8")
    assert verdict.match_rate is None and verdict.reason.startswith(
        "logits differ by 1 of the largest (limit 0.2), most at"
    )


def test_what_is_not_finite_or_of_another_size_does_not_agree():
    logits = judge().logits.copy()
    logits[2, 1] = np.nan
    assert judge().compare(logits, "int8").reason == "its logits are not finite"
    assert judge().compare(logits[:, :2], "int8").reason == "it gives 4 x 2 logits for 4 x 3"


# ------------------------------------------------------------------------------------------------------------ samples


def card():
    return rk.build(BASE, classes=NAMES).card


def test_made_pictures_are_the_same_each_time_and_differ_from_each_other():
    first, again = make_synthetic_samples(card().preparation), make_synthetic_samples(card().preparation)
    assert (first.images == again.images).all() and first.images.shape == (16, 16, 16, 3)
    assert len({picture.tobytes() for picture in first.images}) == 16 and first.calibration_images is None
    assert first.images.std() > 20


def test_a_folder_of_classes_is_divided(pictures):
    found = load_samples(pictures("data", NAMES, count=10), card(), is_trained=True)
    assert len(found.images) == 15 and len(found.calibration_images) == 15
    assert not {p.tobytes() for p in found.images} & {p.tobytes() for p in found.calibration_images}
    assert found.labels.tolist() == [NAMES.index(name.split("/")[0]) for name in found.names]
    assert found.names != sorted(found.names)  # any first part of them has all classes
    assert found.describe(9).startswith("9 of 15 pictures of ")
    assert found.describe(9).endswith(", part all, with their classes (one is 11 points)")
    assert found.describe(15).startswith("15 pictures of ") and found.describe(15).endswith(" (one is 6.7 points)")


def test_ranges_come_from_train_where_there_is_one(pictures):
    pictures("data/train", NAMES, count=4)
    found = load_samples(pictures("data/test", NAMES, count=3).parent, card(), is_trained=True)
    assert len(found.calibration_images) == 12 and len(found.images) == 9


def test_a_picture_beside_the_folders_of_classes_is_passed_over(pictures):
    folder = pictures("data", NAMES, count=4)
    shutil.copy(folder / NAMES[0] / "0.png", folder / "cover.png")
    assert load_samples(folder, card(), is_trained=True).labels is not None


def test_pictures_without_classes_will_do(pictures):
    folder = pictures("data", ["daisy"], count=5) / "daisy"
    (folder / "bad.png").write_bytes(b"no picture")
    found = load_samples(folder, card(), is_trained=True)
    assert found.labels is None and len(found.images) + len(found.calibration_images) == 5


def test_classes_of_an_untrained_network_are_not_compared(pictures):
    found = load_samples(pictures("data", ("cat", "dog")), card(), is_trained=False)
    assert found.labels is None
    with pytest.raises(rk.ResnetkitError, match="classes of the dataset: cat, dog"):
        load_samples(pictures("data2", ("cat", "dog")), card(), is_trained=True)


# ---------------------------------------------------------------------------------------------------------- the trial


class Counting:
    def __init__(self, config):
        self.config, self.sizes = config, []

    def __call__(self, pixels):
        self.sizes.append(len(pixels))
        return pixels.reshape(len(pixels), -1)[:, :3].astype(np.float32)


def test_answers_come_in_order_and_in_batches():
    pixels = np.arange(7 * 4 * 4 * 3, dtype=np.uint8).reshape(7, 4, 4, 3)
    asked = Counting(EngineConfig("x", "fp32", 3, 2))
    with engine.batch_calls(asked) as logits:
        assert (logits(pixels) == pixels.reshape(7, -1)[:, :3]).all()
    assert sorted(asked.sizes) == [1, 3, 3]


def test_full_batches_are_timed_and_three_calls_at_least():
    asked = Counting(EngineConfig("x", "fp32", 4, 2))
    found = measure_speed(asked, np.zeros((3, 4, 4, 3), np.uint8), 0.0)
    assert set(asked.sizes) == {4} and len(asked.sizes) == 2 + 6  # each thread asks once before
    assert found["images_per_second"] > 0 and found["milliseconds"] > 0


# --------------------------------------------------------------------------------------------- engines that misbehave


@pytest.fixture
def fakes(monkeypatch):
    """The engines of tests/helpers/misbehaving_engines, in this process and in those that it starts."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(HERE / "helpers" / "misbehaving_engines"), os.environ.get("PYTHONPATH", "")])
    )
    found = importlib.util.spec_from_file_location(
        "fakes", HERE / "helpers" / "misbehaving_engines" / "sitecustomize.py"
    )
    real = dict(engine.ENGINE_SPECS)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    yield module.FAKES
    engine.ENGINE_SPECS.clear()
    engine.ENGINE_SPECS.update(real)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(optimizing, "_MIN_REQUEST_TIMEOUT", 100.0)
    monkeypatch.setattr(optimizing, "_FINAL_ROUNDS", 2)
    monkeypatch.setattr(optimizing.Budget, "measurement_seconds", 0.1)


def found_of(folder):
    return json.loads((folder / ENGINES_FOLDER / ENGINES_FILE).read_text())


def test_what_misbehaves_is_left_out_with_its_reason(tmp_path, pictures, fakes, quick):
    folder = trained(tmp_path / "model")
    heard = []
    names = ("loud", "wrong", "dies", "raises", "absent")
    found = rk.optimize(folder, data=pictures("data", NAMES, count=20), minutes=1, engines=names, on_event=heard.append)
    why = {}
    for row in found.measurements:
        why.setdefault(row.config.name, row.reason)
    assert {name for name, reason in why.items() if not reason} == {"loud-int8", "loud-fp32"}
    assert why["loud-int8-body"] == "not needed, as int8 agrees"
    assert why["wrong-fp32"].startswith("logits differ by 0.5 of the largest (limit 0.001), most at ")
    assert why["dies-fp32"].startswith("its process was killed by SIGABRT")
    assert why["raises-fp32"] == "ValueError: no such operation: Snake"
    assert why["absent-fp32"] == "no_such_package is not installed: pip install 'resnetkit[openvino]'"
    assert {row.config.name for row in heard} == set(why)
    first = [row for row in heard if row.seconds_to_start is None]
    assert [row.config.name for row in first].count("loud-int8") == 2  # as each is measured
    assert {row.config.engine for row in heard if row.seconds_to_start} == {"loud"}  # once more
    assert {kept.purpose for kept in found.engines} == {"latency", "throughput", "start"}
    for kept in found.engines:
        assert (
            kept.measurement.config.engine == "loud"
            and not kept.measurement.reason
            and kept.measurement.logit_error is not None
        )
        assert kept.measurement.accuracy_drop is not None and kept.measurement.seconds_to_start > 0
    folders = {path.name for path in (folder / ENGINES_FOLDER).iterdir()}
    name = found.engines[0].folder
    assert folders == {ENGINES_FILE, REPORT_FILE, name}
    assert {path.name for path in (folder / ENGINES_FOLDER / name).iterdir()} == {
        k.measurement.config.name for k in found.engines
    }
    page = (folder / ENGINES_FOLDER / REPORT_FILE).read_text()
    assert "ValueError: no such operation: Snake" in page and "<svg" in page


def test_a_later_search_takes_the_place_of_the_first(tmp_path, fakes, quick):
    folder = trained(tmp_path / "model")
    first = rk.optimize(folder, minutes=0.1, engines=("loud",))
    assert first.comparison_data == "16 pictures that are made here"
    assert {row.reason for row in first.measurements if row.config.precision != "fp32"} == {
        "int8 needs pictures to measure ranges with: --data DIR"
    }
    (folder / ENGINES_FOLDER / ".left.part").mkdir()
    second = rk.optimize(folder, minutes=0.1, engines=("loud",))
    assert {path.name for path in (folder / ENGINES_FOLDER).iterdir()} == {
        ENGINES_FILE,
        REPORT_FILE,
        second.engines[0].folder,
    }
    assert optimized.read_engines_file(folder) == second


def test_a_search_that_keeps_nothing_leaves_what_was_kept(tmp_path, fakes, quick, monkeypatch):
    folder = trained(tmp_path / "model")
    found = rk.optimize(folder, minutes=0.1, engines=("loud",))
    before = (folder / ENGINES_FOLDER / ENGINES_FILE).read_bytes()
    with pytest.raises(VerificationError) as caught:
        rk.optimize(folder, minutes=1, engines=("wrong", "absent"))
    told = str(caught.value)
    assert "no engine works here and agrees with fp32; what was kept before stays" in told
    assert "wrong-fp32: logits differ by 0.5" in told and "absent-fp32: no_such_package is not installed" in told
    monkeypatch.setattr(optimizing.Search, "remeasure_finalists", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rk.optimize(folder, minutes=0.1, engines=("raises",))
    assert (folder / ENGINES_FOLDER / ENGINES_FILE).read_bytes() == before
    assert {path.name for path in (folder / ENGINES_FOLDER).iterdir()} == {
        ENGINES_FILE,
        REPORT_FILE,
        found.engines[0].folder,
    }


def test_weights_that_change_meanwhile_are_refused(tmp_path, fakes, quick, monkeypatch):
    folder = trained(tmp_path / "model")
    other = trained(tmp_path / "other", seed=1)
    again = optimizing.Search.remeasure_finalists

    def changed(self, rows):
        shutil.copy(other / "model.safetensors", folder / "model.safetensors")
        return again(self, rows)

    monkeypatch.setattr(optimizing.Search, "remeasure_finalists", changed)
    with pytest.raises(UsageError, match="the weights changed while engines were tried"):
        rk.optimize(folder, minutes=0.1, engines=("loud",))
    assert optimized.read_engines_file(folder) is None


def test_only_what_was_made_here_is_removed(tmp_path, fakes, quick):
    folder = trained(tmp_path / "model")
    (folder / ENGINES_FOLDER / "notes").mkdir(parents=True)
    (folder / ENGINES_FOLDER / "0123abcd").mkdir()
    found = rk.optimize(folder, minutes=0.1, engines="loud")
    assert {path.name for path in (folder / ENGINES_FOLDER).iterdir()} == {
        ENGINES_FILE,
        REPORT_FILE,
        "notes",
        found.engines[0].folder,
    }


def test_engines_behind_a_link_are_not_touched(tmp_path, fakes):
    folder, shared = trained(tmp_path / "model"), tmp_path / "shared"
    (shared / "0123abcd").mkdir(parents=True)
    (shared / ".draft.part").write_text("mine")
    (folder / ENGINES_FOLDER).symlink_to(shared)
    with pytest.raises(UsageError) as caught:
        rk.optimize(folder, engines="loud")
    assert caught.value.what == "engines cannot be kept here, as a link stands there"
    assert (caught.value.where, caught.value.fix) == (
        (str(folder / ENGINES_FOLDER),),
        "remove the link; a new folder takes its place",
    )
    assert {path.name for path in shared.iterdir()} == {"0123abcd", ".draft.part"}
    (folder / ENGINES_FOLDER).unlink()
    (folder / ENGINES_FOLDER / ENGINES_FILE).mkdir(parents=True)
    with pytest.raises(UsageError, match="engines cannot be kept here, as something else stands there"):
        rk.optimize(folder, engines="loud")


def test_a_search_that_cannot_begin_leaves_nothing(tmp_path, fakes):
    folder = trained(tmp_path / "model")
    with pytest.raises(rk.ResnetkitError):
        rk.optimize(folder, data=tmp_path / "nowhere", engines="loud")
    assert not (folder / ENGINES_FOLDER).exists()


def test_one_search_at_a_time(tmp_path):
    folder = trained(tmp_path / "model")
    with files.lock_file(folder / "config.json"), pytest.raises(UsageError, match="another optimize is at work"):
        rk.optimize(folder)


def test_each_device_has_its_own(tmp_path, fakes, quick, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = rk.optimize(trained(tmp_path / "model"), minutes=1, engines=("devices",))
    assert {row.config.name: row.reason for row in found.measurements} == {"devices-fp32": "", "devices-fp32-cuda": ""}
    assert {row.config.batch_size for row in found.measurements if row.config.device == "cuda"} >= {1, 32}


def search(folder, work, judge):
    return optimizing.Search(folder, work, judge, optimizing.Budget(200.0), lambda row: None)


def prepared(folder, work):
    """A search over made pictures."""
    network = rk.load(folder)
    samples = make_synthetic_samples(network.card.preparation)
    np.save(work / "checked.npy", samples.images)
    np.save(work / "timed.npy", samples.images)
    logits = optimizing._compute_reference_logits(network, samples, time.monotonic() + 100)
    return search(folder, work, Fp32Reference(logits, samples.names, has_predictions=False))


def test_ways_that_worked_stay_where_a_later_one_hangs(tmp_path, fakes, monkeypatch):
    began, heard = prepared(trained(tmp_path / "model"), tmp_path), []
    began.on_event = heard.append
    monkeypatch.setattr(optimizing.Budget, "request_timeout", property(lambda self: 2.0 if heard else 100.0))
    first, second = began.measure(EngineConfig("sleeps", "fp32"))
    assert not first.reason and first.logit_error < 1e-4 and first.images_per_second > 0
    assert second.reason == "load did not finish within 2 seconds"


def test_each_of_the_last_round_starts_alone(tmp_path, fakes, quick):
    """What an engine is charged with for its start is not what those before it took."""
    began = prepared(trained(tmp_path / "model"), tmp_path)
    rows = [*began.measure(EngineConfig("slow", "fp32")), *began.measure(EngineConfig("loud", "fp32"))]
    measured = {row.config: row for row in began.remeasure_finalists(rows) if row.seconds_to_start}
    slow = [row for row in measured.values() if row.config.engine == "slow"]
    others = [row for row in measured.values() if row.config.engine == "loud"]
    assert slow and max(row.seconds_to_start for row in others) < 3 * min(row.seconds_to_start for row in slow)
    died = [optimizing.Measurement(EngineConfig("dies", "fp32"), 1e9, 1.0)]
    assert began.remeasure_finalists(died)[0].reason


def test_an_engine_that_takes_its_time_leaves_the_others_theirs(tmp_path, fakes, quick):
    """Two ways are looked at while the first round lasts: one for a single picture, one for many."""
    began = prepared(trained(tmp_path / "model"), tmp_path)
    with open_benchmark_client(began.folder, tmp_path) as trial:
        ways = [EngineConfig("loud", "fp32", batch) for batch in (1, 4, 8)]
        trial.export(ways[0], None, 100.0)
        assert len(list(began._measure_variants(trial, ways, time.monotonic() - 1))) == 2
        assert len(list(began._measure_variants(trial, ways, time.monotonic() + 100))) == 3
        began.budget = optimizing.Budget(1.0, time.monotonic() - 1)
        assert len(list(began._measure_variants(trial, ways, time.monotonic() + 100))) == 1


def test_the_slower_of_two_checks_is_of_fewer_pictures(tmp_path):
    """What has a limit for its logits as well need not be compared on all."""
    judge = Fp32Reference(np.zeros((5000, 2), np.float32), ["a"] * 5000)
    began = search(tmp_path, tmp_path, judge)  # of 200 seconds, 4 for bf16
    found = {name: began._count_compared_images(name, 50.0) for name in ("fp32", "bf16", "int8", "int8-body")}
    assert found == {"fp32": 100, "bf16": 200, "int8": 1000, "int8-body": 1000}
    assert [began._count_compared_images(name, pace) for name in ("bf16", "int8") for pace in (1.0, 9e9)] == [
        100,
        5000,
    ] * 2
    assert began._count_compared_images("fp32", 9e9) == 100


def test_each_that_waits_has_a_share_of_the_time():
    clock = optimizing.Budget(1000.0)
    assert clock.search_remaining == pytest.approx(700, abs=1)
    assert [clock.share(n) for n in (0, 1, 3, 8)] == pytest.approx([700, 350, 175, 175], abs=1)


def test_what_cannot_be_tried_has_no_share(tmp_path, fakes, monkeypatch):
    began, asked = search(tmp_path, tmp_path, Fp32Reference(np.zeros((1, 2), np.float32), ["a"])), []
    monkeypatch.setattr(optimizing.Budget, "share", lambda self, others: asked.append(others) or 0.0)
    monkeypatch.setattr(optimizing.Search, "_measure_in_worker", lambda self, choice, until: [Measurement(choice)])
    others = [
        EngineConfig("absent", "fp32"),
        EngineConfig("loud", "int8"),
        EngineConfig("loud", "fp32"),
    ]  # no package; no pictures
    began.measure(EngineConfig("loud", "fp32"), others)
    assert asked == [1]


def test_who_is_measured_once_more():
    """Whatever came near the fastest, as the machine may have done something else meanwhile, and what is compared."""

    def row(name, speed, batch=1, streams=1, **more):
        return Measurement(EngineConfig(*name.split(), batch, streams), speed, 1000 * batch / speed, **more)

    near = [row("openvino int8", speed, batch, 2) for batch, speed in ((4, 100.0), (8, 90.0), (16, 76.0))]
    alone = [row("openvino int8", 50.0), row("openvino bf16", 40.0), row("openvino fp32", 20.0)]
    others = [row("eager fp32", 8.0, 16), row("eager fp32", 9.0), row("compiled bf16", 70.0, 16)]
    lost = [row("openvino int8", 74.0, 32, 2), row("onnxruntime int8", 99.0, reason="it raises")]
    found = optimizing.select_finalists([*lost, *others, *alone, *near])
    assert set(found) == {*near, *alone[:2], *others[1:]}
    assert len(optimizing.select_finalists([row("openvino int8", 100.0, batch, 2) for batch in range(1, 12)])) == 6
    assert optimizing.select_finalists(lost[1:]) == []


@pytest.mark.parametrize(
    ("speeds", "streams"),
    [({(1, 1): 100.0, (4, 2): 91.0, (16, 1): 99.0}, 2), ({(1, 1): 100.0, (4, 2): 89.0}, 1), ({(4, 2): 9.0}, 2)],
)
def test_of_ways_that_are_about_as_fast_one_is_kept_that_does_not_wait_for_decoding(speeds, streams):
    rows = [
        Measurement(EngineConfig("openvino", "int8", *way), speed, seconds_to_start=1.0)
        for way, speed in speeds.items()
    ]
    assert optimizing.select_best_by_purpose(rows)["throughput"].config.streams == streams
    assert optimizing.select_fastest(rows[::-1]) == optimizing.select_fastest(rows)


def test_only_as_many_are_compared_as_there_is_time_for(tmp_path):
    network = rk.load(trained(tmp_path / "model"))
    samples = make_synthetic_samples(network.card.preparation)
    many = replace(samples, images=np.concatenate([samples.images] * 8))
    assert len(optimizing._compute_reference_logits(network, many, time.monotonic() - 1)) == 32
    assert len(optimizing._compute_reference_logits(network, many, time.monotonic() + 100)) == 128


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_search_that_is_stopped_or_killed_leaves_a_usable_folder(tmp_path, fakes, number):
    folder = trained(tmp_path / "model")
    words = [sys.executable, "-m", "resnetkit", "optimize", str(folder), "--engines", "hangs"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(folder.glob(f"{ENGINES_FOLDER}/.*.part/hangs-fp32")):
        time.sleep(0.05)
    trial = children(process.pid)
    process.send_signal(number)
    told = process.communicate()[1]
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert number == signal.SIGKILL or "stopped; engines that were saved before are unchanged" in told
    assert number == signal.SIGKILL or not list(folder.glob(f"{ENGINES_FOLDER}/.*.part"))
    while any(Path(f"/proc/{child}").exists() for child in trial) and time.monotonic() < until:
        time.sleep(0.05)
    assert trial and not any(Path(f"/proc/{child}").exists() for child in trial)
    assert rk.load(folder).card.labels == NAMES and find_usable_engines(folder, 1) == ([], "")


def test_a_process_that_does_not_answer_is_not_waited_for(tmp_path, fakes):
    folder = trained(tmp_path / "model")
    np.save(tmp_path / "pixels.npy", np.zeros((1, 16, 16, 3), np.uint8))
    with (
        open_benchmark_client(folder, tmp_path) as trial,
        pytest.raises(BenchmarkError, match="load did not finish within 1 seconds"),
    ):
        trial.load(EngineConfig("sleeps", "fp32", 4), tmp_path / "pixels.npy", 1.0)


def test_a_process_that_dies_between_requests_says_how(tmp_path, fakes):
    with open_benchmark_client(trained(tmp_path / "model"), tmp_path) as trial:
        os.kill(trial.process.pid, signal.SIGKILL)
        with pytest.raises(BenchmarkError, match="its process was killed by SIGKILL"):
            trial.measure(tmp_path / "x.npy", 1.0, 5.0)


# ------------------------------------------------------------------------------------------- with an engine that works


def test_eager_alone_by_the_command_line(tmp_path, cli):
    folder = trained(tmp_path / "model")
    code, out, err = cli("optimize", folder, "--engines", "eager", "--precisions", "fp32", "--minutes", "0.02")
    assert (
        code == 0
        and " times eager-fp32, batch " in out
        and "predictions compared on 16 pictures that are made here" in out
    )
    assert f"wrote {folder}/engines/report.html" in err and f"next: resnetkit predict IMAGES --model {folder}" in err
    found = optimized.read_engines_file(folder)
    assert {row.config.name for row in found.measurements} == {"eager-fp32"}
    assert {kept.purpose for kept in found.engines} == {"latency", "throughput", "start"}


def test_json(tmp_path, cli, monkeypatch):
    row = Measurement(EngineConfig("eager", "fp32"), 10.0, 100.0, 2.0, 1e-6, 1.0, 0.0)
    monkeypatch.setattr(optimizing.Search, "measure", lambda self, choice, *_: [replace(row, config=choice)])
    monkeypatch.setattr(optimizing.Search, "remeasure_finalists", lambda self, rows: rows)
    code, out, _ = cli("optimize", trained(tmp_path / "model"), "--engines", "eager", "--json")
    found = json.loads(out)
    assert code == 0 and found["schema"] == "resnetkit.optimize/1"
    assert [row["config"]["precision"] for row in found["measurements"]] == ["fp32", "bf16"]
    assert {kept["purpose"] for kept in found["engines"]} == {"latency", "throughput", "start"}


def test_other_weights_become_a_folder(tmp_path, cli, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    path, out = tmp_path / "weights.pth", tmp_path / "out"
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    code, _, err = cli("optimize", path)
    assert code == 2 and "engines are kept in a model folder, and this is none" in err and "--out NAME makes one" in err
    monkeypatch.setattr(
        optimizing.Search, "measure", lambda self, choice, *_: [Measurement(choice, reason="not today")]
    )
    code, _, err = cli("optimize", path, "--out", out, "--network", "resnet18")
    assert code == 6 and "eager-fp32: not today" in err and (out / "model.safetensors").is_file()
    code, _, err = cli("optimize", path, "--out", out)
    assert code == 2 and "this path exists already" in err and f"resnetkit optimize {out}, if that is the model" in err
    code, _, err = cli("optimize", out, "--network", "resnet18")
    assert code == 2 and "options about a weights file do not apply to a model folder" in err


# ------------------------------------------------------------------------------------------------------- what is wrong


def test_what_cannot_be_optimized(tmp_path, cli):
    folder = trained(tmp_path / "model")
    for words, told in (
        ((folder, "--engines", "openvin"), "there is no engine called 'openvin'"),
        ((folder, "--precisions", "fp16"), "there is no precision called 'fp16'"),
        ((folder, "--engines", "eager,openvino"), "fix: divide them by spaces: eager openvino"),
        ((folder, "--engines", "eager", "--precisions", "int8"), "no engine computes in int8\nwhere: --precisions"),
        (
            (folder, "--precisions", "int8"),
            "int8 needs pictures to measure ranges with\nwhere: --precisions\nfix: --data",
        ),
        ((folder, "--minutes", "0"), "0 minutes cannot be kept to"),
        ((folder, "--minutes", "nan"), "nan minutes cannot be kept to"),
        ((folder, "--max-loss", "nan"), "nan points cannot be lost"),
        (("resnet18",), "resnet18 is a network without weights"),
        ((tmp_path / "nowhere",), "there is no"),
    ):
        code, _, err = cli("optimize", *words)
        assert code == 2 and told in err, err


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = rk.build(BASE, classes=NAMES)
    with torch.no_grad():
        model.stage1.block1.branch.conv1.weight[0, 0, 0, 0] = float("nan")
    folder = rk.save(model, tmp_path / "model")
    with pytest.warns(ResnetkitWarning, match="NaN"), pytest.raises(VerificationError) as caught:
        rk.optimize(folder)
    assert "so no answer could be compared" in str(caught.value) and "stage1.block1.branch.conv1.weight (1)" in str(
        caught.value
    )
    assert not (folder / ENGINES_FOLDER).exists()


# ---------------------------------------------------------------------------------------------------- what still holds


def kept_in(folder, *rows, processor=None, weights=None):
    """An ``engines.json`` as optimize writes it."""
    kept = tuple(SavedEngine("latency", row, ("numpy " + np.__version__,), "abc") for row in rows)
    found = OptimizeResult(
        weights or compute_weights_digest(folder), processor or optimized.get_machine_id(), "a test", rows, kept
    )
    (folder / ENGINES_FOLDER).mkdir(exist_ok=True)
    (folder / ENGINES_FOLDER / ENGINES_FILE).write_text(to_json(found))
    return found


@pytest.fixture
def known(monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setitem(engine.ENGINE_SPECS, name, EngineSpec("json", ("numpy",), ("fp32",), "one"))


ONE = Measurement(EngineConfig("one", "fp32"), images_per_second=10.0, latency_ms=100.0, seconds_to_start=0.5)
TWO = Measurement(EngineConfig("two", "fp32", 4, 2), images_per_second=100.0, latency_ms=80.0, seconds_to_start=20.0)


def test_what_is_soonest_done_depends_on_how_much_there_is(tmp_path, known):
    folder = trained(tmp_path / "model")
    kept_in(folder, ONE, TWO)
    assert [find_usable_engines(folder, n)[0][0].measurement.config.engine for n in (1, 100, 300, 10_000)] == [
        "one",
        "one",
        "two",
        "two",
    ]
    assert find_usable_engines(folder, 1, "two-fp32")[0][0].measurement == TWO
    assert optimized.estimate_seconds(TWO, 9) == pytest.approx(
        20.16
    )  # two calls on each stream, as the last one is padded


def test_what_does_not_hold_any_more_is_not_used(tmp_path, known, monkeypatch):
    folder = trained(tmp_path / "model")
    kept_in(folder, ONE, processor="another one")
    assert find_usable_engines(folder, 1)[1].startswith("it was optimized for another machine (another one; this is ")
    kept_in(folder, ONE, weights="0" * 80)
    assert find_usable_engines(folder, 1) == (
        [],
        f"its weights have changed since it was optimized; {optimized.format_optimize_command(folder)}",
    )
    with pytest.raises(MachineError, match="its weights have changed"):
        find_usable_engines(folder, 1, "one-fp32")
    found = kept_in(folder, ONE)
    changed = replace(found, engines=(replace(found.engines[0], versions=("numpy 1.0",)),))
    (folder / ENGINES_FOLDER / ENGINES_FILE).write_text(to_json(changed))
    assert find_usable_engines(folder, 1)[1].startswith(
        f"it was optimized with numpy 1.0, and there is numpy {np.__version__}"
    )
    lacking = replace(found, engines=(replace(found.engines[0], files=(("model.xml", "0" * 64),)),))
    (folder / ENGINES_FOLDER / ENGINES_FILE).write_text(to_json(lacking))
    with pytest.raises(MachineError, match=r"a file of one-fp32 is missing or damaged: model\.xml"):
        optimized.open_engine(folder, find_usable_engines(folder, 1)[0][0])
    kept_in(folder, replace(ONE, config=EngineConfig("one", "../fp32")))
    assert find_usable_engines(folder, 1)[1].startswith("'one-../fp32' is no engine that is known here")
    monkeypatch.setitem(engine.ENGINE_SPECS, "one", EngineSpec("json", ("no_such_package",), ("fp32",), "one"))
    kept_in(folder, ONE)
    assert find_usable_engines(folder, 1)[1].startswith(
        "no_such_package is not installed: pip install 'resnetkit[one]'"
    )


def test_what_an_engine_lacks_has_a_fix_of_its_own(tmp_path, known, monkeypatch):
    folder = trained(tmp_path / "model")
    kept_in(folder, ONE)
    monkeypatch.setitem(engine.ENGINE_SPECS, "one", EngineSpec("json", ("no_such_package",), ("fp32",), "one"))
    with pytest.raises(MachineError) as caught:
        find_usable_engines(folder, 1, "one-fp32")
    assert (caught.value.what, caught.value.fix) == (
        "no_such_package is not installed",
        "pip install 'resnetkit[one]'",
    )


def test_who_was_tried_and_not_kept_is_told_so(tmp_path, known):
    folder = trained(tmp_path / "model")
    found = kept_in(folder, ONE)
    rows = (ONE, TWO, Measurement(EngineConfig("two", "int8"), reason="it is wrong"))
    (folder / ENGINES_FOLDER / ENGINES_FILE).write_text(to_json(replace(found, measurements=rows)))
    for name, what, fix in (
        ("two-fp32", "two-fp32 agrees, but others that were kept are faster", "--engine one-fp32, torch or auto"),
        ("two-int8", "two-int8 was left out: it is wrong", "--engine one-fp32, torch or auto"),
        ("one-fp", "there is no engine 'one-fp' here", "did you mean one-fp32?"),
    ):
        with pytest.raises(UsageError) as caught:
            find_usable_engines(folder, 1, name)
        assert (caught.value.what, caught.value.fix) == (what, fix)


def test_a_list_without_anything_kept_asks_torch(tmp_path):
    folder = trained(tmp_path / "model")
    kept_in(folder)
    assert find_usable_engines(folder, 1) == ([], f"nothing was kept; {optimized.format_optimize_command(folder)}")
    with pytest.raises(UsageError, match="this model was never optimized"):
        find_usable_engines(folder, 1, "one-fp32")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("batch_size", -1, "engines.0.measurement.config.batch_size: came -1; allowed: 1 to 1024"),
        ("batch_size", 0, "engines.0.measurement.config.batch_size: came 0; allowed: 1 to 1024"),
        ("streams", 10**6, "engines.0.measurement.config.streams: came 1000000; allowed: 1 to 1024"),
        ("latency_ms", -2.0, "engines.0.measurement.latency_ms: came -2.0; allowed: 0 or more"),
        ("folder", "../abc", "engines.0: came '../abc'; allowed: plain names of folder and files"),
        ("folder", "a" * 101, f"engines.0: came '{'a' * 101}'; allowed: plain names of folder and files"),
    ],
)
def test_what_optimize_would_not_have_written_is_damaged(tmp_path, known, field, value, told):
    folder = trained(tmp_path / "model")
    kept_in(folder, ONE)
    data = json.loads((folder / ENGINES_FOLDER / ENGINES_FILE).read_text())
    (kept,) = data["engines"]
    place = next(part for part in (kept, kept["measurement"], kept["measurement"]["config"]) if field in part)
    place[field] = value
    (folder / ENGINES_FOLDER / ENGINES_FILE).write_text(json.dumps(data))
    with pytest.raises(WeightsError) as caught:
        find_usable_engines(folder, 1)
    assert caught.value.where[1:] == (told,) and caught.value.fix == optimized.format_optimize_command(folder)


def test_what_is_no_list_of_engines_is_told(tmp_path):
    folder = trained(tmp_path / "model")
    for make in (
        lambda: (folder / ENGINES_FOLDER).write_text("a file"),
        lambda: (folder / ENGINES_FOLDER / ENGINES_FILE).mkdir(parents=True),
        lambda: os.mkfifo(folder / ENGINES_FOLDER / ENGINES_FILE),
        lambda: (folder / ENGINES_FOLDER / ENGINES_FILE).symlink_to(ENGINES_FILE),
    ):
        make()
        with pytest.raises(WeightsError, match="this is no file that can be read"):
            find_usable_engines(folder, 1)
        if (folder / ENGINES_FOLDER).is_dir():
            shutil.rmtree(folder / ENGINES_FOLDER)
            (folder / ENGINES_FOLDER).mkdir()
        else:
            (folder / ENGINES_FOLDER).unlink()
    (folder / ENGINES_FOLDER).rmdir()
    assert find_usable_engines(folder, 1) == ([], "")


def test_weights_that_are_gone_are_told(tmp_path, known):
    folder = trained(tmp_path / "model")
    kept_in(folder, ONE)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="the weights cannot be read: No such file or directory"):
        find_usable_engines(folder, 1)


def test_the_table_has_what_was_kept_what_it_is_compared_with_and_the_best_of_each():
    compared = Measurement(EngineConfig("eager", "fp32", 16), images_per_second=5.0, seconds_to_start=1.0)
    lucky = Measurement(EngineConfig("eager", "fp32", 4, 2), images_per_second=9.0)
    slower = replace(TWO, config=EngineConfig("two", "fp32", 8), images_per_second=70.0)
    faster = replace(TWO, config=EngineConfig("two", "fp32", 32), images_per_second=200.0)
    out = [Measurement(EngineConfig(name, "int8"), reason="it was late") for name in ("one", "two")]
    rows = (lucky, compared, ONE, slower, TWO, *out)
    found = OptimizeResult("", "", "", rows, (SavedEngine("latency", TWO, (), "a"), SavedEngine("start", TWO, (), "a")))
    assert optimized.select_best_per_engine(found) == [TWO, ONE, compared, *out]
    assert optimized.select_best_per_engine(replace(found, measurements=(faster, *rows))) == [
        faster,
        TWO,
        ONE,
        compared,
        *out,
    ]
    assert optimized.group_skip_reasons(rows) == ["one-int8, two-int8: it was late"]
    assert optimized.format_table_row(TWO, found.engines) == (
        "two-fp32", "100.0", "4 x 2", "80.00", "20.00", "", "", "", "latency, start",
    )  # fmt: skip
    assert optimized.format_table_row(ONE, found.engines)[-1] == ""


def test_a_search_that_found_less_says_what_was_there(tmp_path, cli, known, monkeypatch):
    folder = trained(tmp_path / "model")
    found = kept_in(folder, TWO)
    (folder / ENGINES_FOLDER / ENGINES_FILE).write_text(
        to_json(replace(found, engines=(replace(found.engines[0], purpose="throughput"),)))
    )
    row = Measurement(EngineConfig("eager", "fp32"), 10.0, 100.0, 2.0, 1e-6)
    monkeypatch.setattr(optimizing.Search, "measure", lambda self, choice, *_: [replace(row, config=choice)])
    monkeypatch.setattr(optimizing.Search, "remeasure_finalists", lambda self, rows: rows)
    code, _, err = cli("optimize", folder, "--engines", "eager")
    assert code == 0
    assert "note: the previous search saved two-fp32 at 100.0 images/s; this one is slower\n" in err
    assert "note:" not in cli("optimize", folder, "--engines", "eager")[2]


def test_other_weights_of_the_same_size_are_others(tmp_path, known):
    folder = trained(tmp_path / "model")
    kept_in(folder, ONE)
    assert find_usable_engines(folder, 1)[0]
    other = trained(tmp_path / "other", seed=1)
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    assert "its weights have changed" in find_usable_engines(folder, 1)[1]


def test_other_means_of_the_preparation_are_others(tmp_path, known):
    folder = trained(tmp_path / "model")
    kept_in(folder, ONE)
    text = (folder / "config.json").read_text()
    data = json.loads(text)
    data["preparation"]["mean"] = [0.5, 0.5, 0.5]
    (folder / "config.json").write_text(json.dumps(data))
    assert "its weights have changed" in find_usable_engines(folder, 1)[1]


def test_a_damaged_file_is_told(tmp_path, known):
    folder = trained(tmp_path / "model")
    found = kept_in(folder, ONE)
    path = folder / ENGINES_FOLDER / ENGINES_FILE
    for change in ({"folder": "../.."}, {"folder": ""}, {"files": (("../x", "0"),)}):
        damaged = replace(found, engines=(replace(found.engines[0], **change),))
        path.write_text(to_json(damaged))
        with pytest.raises(WeightsError, match="is damaged"):
            find_usable_engines(folder, 1)
    path.write_text("{")
    with pytest.raises(WeightsError) as caught:
        find_usable_engines(folder, 1)
    assert f"fix: {optimized.format_optimize_command(folder)}" in str(caught.value)


def test_names_of_engines_are_suggested(tmp_path, known):
    folder = trained(tmp_path / "model")
    with pytest.raises(UsageError, match="this model was never optimized"):
        find_usable_engines(folder, 1, "one-fp32")
    kept_in(folder, ONE)
    with pytest.raises(UsageError) as caught:
        find_usable_engines(folder, 1, "one-fp23")
    assert "there is no engine 'one-fp23' here" in str(caught.value) and "did you mean one-fp32?" in str(caught.value)


def test_the_page_in_a_browser(tmp_path, browser):
    from resnetkit.optimization.report import render_optimize_report

    rows = (replace(ONE, logit_error=1e-4), replace(TWO, logit_error=0.3, reason="<script>alert(1)</script>"))
    found = OptimizeResult("", "a <b>processor</b>", "</style>", rows, (SavedEngine("latency", rows[0], (), "abc"),))
    path = tmp_path / "page.html"
    path.write_text(render_optimize_report("<i>net</i>", found))
    said = []
    page = browser.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    assert page.title() == "engines of <i>net</i>" and not said
    assert page.locator("circle[fill=none]").count() == 1 and page.locator("svg title").count() == 3
    page.close()
