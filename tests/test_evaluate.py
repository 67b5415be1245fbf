"""Evaluation: what is skipped, baselines for uneven classes, NaN."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

import resnetkit as rk
from resnetkit.data.bad_files import Skip
from resnetkit.evaluation.metrics import count_predictions, prepare_evaluation
from resnetkit.evaluation.result import NO_PREDICTION, Evaluation, Predictions
from resnetkit.training.report import build_run_report

from helpers.runs import SETTINGS
from helpers.tiny import BASE


def make_evaluation(labels, predicted, n_classes=4):
    names, classes = tuple(map(str, range(len(labels)))), tuple("abcdefgh"[:n_classes])
    predictions = Predictions(names, tuple(labels), tuple(predicted), (0.5,) * len(labels))
    return Evaluation("m", "d", "test", classes, predictions, 0, 1.0)


PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=40)


@given(PAIRS)
def test_balanced_accuracy_is_that_of_scikit_learn(pairs):
    labels, predicted = zip(*pairs, strict=True)
    evaluation = make_evaluation(labels, predicted)
    present = sorted(set(labels))
    recalls = [np.mean([p == label for truth, p in pairs if truth == label]) for label in present]
    assert evaluation.balanced_accuracy == pytest.approx(np.mean(recalls))
    if set(predicted) <= set(labels) and len(present) > 1:
        assert evaluation.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert evaluation.majority[1] == max(Counter(labels).values())
    counts = Counter(labels).values()
    assert evaluation.is_uneven == (max(counts) > 3 * min(counts))
    assert sum(n for _, n, _ in evaluation.count_per_class()) == evaluation.n
    assert evaluation.find_faults() == []


def test_notes_say_if_one_class_is_predicted_and_what_is_nan():
    assert make_evaluation([0, 1], [0, 1]).describe_predictions() == ()
    assert make_evaluation([0, 1], [0, 0]).describe_predictions() == ("the model only ever predicts a",)
    assert make_evaluation([0, 0], [0, 0]).describe_predictions() == ()  # all images are of that class
    assert make_evaluation([0, 1, 2], [1, NO_PREDICTION, 1]).describe_predictions() == (
        "1 of 3 images count as wrong: their logits are NaN or infinite",
        "the model only ever predicts b",
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_count_as_wrong(bad):
    logits = torch.eye(4).repeat(2, 1)
    logits[2, 0], logits[5, 1] = bad, bad
    labels = torch.arange(4).repeat(2)
    counts = count_predictions(lambda pixels: logits, [(torch.zeros(8), labels, np.arange(8))], 4)
    assert counts.predicted == (0, 1, NO_PREDICTION, 3, 0, NO_PREDICTION, 2, 3)
    assert counts.correct == 6
    assert (counts.in_top5[2], counts.in_top5[5]) == (False, False)
    assert (counts.confidence[2], counts.confidence[5]) == (0.0, 0.0)


@pytest.fixture
def broken(tmp_path):
    """A model folder whose logits are NaN."""
    model = rk.build(BASE, classes=["ant", "bee"])
    with torch.no_grad():
        model.head.linear.bias.copy_(torch.tensor([float("nan"), 0.0]))
    model.eval()
    return model


def test_evaluate_says_how_many_logits_are_nan(broken, pictures):
    data = pictures("d", ["ant", "bee"], 4)
    evaluation = rk.evaluate(broken, data)
    assert (evaluation.n, evaluation.correct, evaluation.n_nonfinite) == (8, 0, 8)
    assert evaluation.notes == ("8 of 8 images count as wrong: their logits are NaN or infinite",)
    assert [row[1:] for row in evaluation.count_per_class()] == [(4, 0), (4, 0)]


def test_every_engine_is_counted_alike(broken, pictures):
    """Engines give logits to the same counting."""
    prepared = prepare_evaluation(broken, pictures("d", ["ant", "bee"], 4), None, Skip())
    evaluation = prepared.run(lambda pixels: torch.full((len(pixels), 2), float("inf")))
    assert (evaluation.correct, evaluation.n_nonfinite) == (0, 8)


@pytest.fixture
def uneven(pictures, network, tmp_path):
    """A run on classes of 40 and 8 images."""
    root = pictures("uneven", ["ant", "bee"], 40)
    for path in sorted((root / "bee").iterdir())[8:]:
        path.unlink()
    settings = SETTINGS | {"epochs": 1, "optimizer": {"lr": 1e-9}}
    return root, rk.train(root, network, out=tmp_path / "run", settings=settings)


def test_uneven_classes_have_a_baseline(uneven, cli):
    data, run = uneven
    code, out, err = cli("evaluate", run.path, data)
    assert code == 0
    n_ants = 8
    accuracy = f"always ant: {n_ants / 10:.2%}; balanced accuracy {run.evaluation.balanced_accuracy:.2%}"
    assert out.splitlines()[-1].endswith(accuracy)
    (note,) = [line for line in err.splitlines() if line.startswith("note: the model only ever predicts ")]
    code, out, _ = cli("evaluate", run.path, data, "--json")
    record = json.loads(out)
    assert (record["majority_class"], record["majority_accuracy"]) == ("ant", 0.8)
    assert record["balanced_accuracy"] == run.evaluation.balanced_accuracy == 0.5
    assert record["nonfinite"] == 0
    assert note.removeprefix("note: ") in record["notes"]
    code, out, err = cli("train", "--resume", run.path)
    assert out.splitlines()[0].endswith(accuracy)
    assert note in err
    assert "always ant" in build_run_report([run])


def test_even_classes_have_none(pictures, cli, tmp_path):
    rk.save(rk.build(BASE, classes=["ant", "bee"]), tmp_path / "model")
    _, out, _ = cli("evaluate", tmp_path / "model", pictures("d", ["ant", "bee"], 4))
    assert "always" not in out


def test_evaluate_says_what_it_skipped(pictures, cli, tmp_path):
    root = pictures("d", ["ant", "bee"], 4)
    for name in ("x.heic", "y.heic", "notes.txt"):
        (root / "ant" / name).write_bytes(b"x")
    model = rk.build(BASE, classes=["ant", "bee"])
    (note,) = [note for note in rk.evaluate(model, root).notes if "skipped" in note]
    assert "2 .heic" in note
    assert "1 .txt" in note
    rk.save(model, tmp_path / "model")
    _, _, err = cli("evaluate", tmp_path / "model", root)
    assert f"note: {note}" in err.splitlines()
