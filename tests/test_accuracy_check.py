"""The comparison of an engine with fp32, and the images it uses."""

import shutil

import numpy as np
import pytest

import resnetkit as rk
from resnetkit.engines.accuracy_check import Fp32Reference
from resnetkit.optimization.samples import compute_reference_logits, load_samples, make_synthetic_samples

from helpers.tiny import BASE
from helpers.trained import CLASSES, save_trained_model

LOGITS = np.array([[4.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 2.0], [1.0, 0.9, 0.0]], np.float32)


def make_reference(**options):
    return Fp32Reference(LOGITS, ["a.png", "b.png", "c.png", "d.png"], **options)


def test_logit_error_is_relative_to_the_largest_logit():
    comparison = make_reference().compare(LOGITS + np.float32([[0], [0], [0.002], [0]]), "fp32")
    assert comparison.logit_error == pytest.approx(0.0005, rel=1e-3)
    assert (comparison.match_rate, comparison.accuracy_change, comparison.reason) == (1.0, None, "")


def test_logit_error_above_the_limit_names_the_worst_image():
    comparison = make_reference().compare(LOGITS + np.float32([[0], [0], [0.4], [0]]), "bf16")
    assert comparison.reason == "logits differ by 0.1 of the largest (limit 0.05), most for c.png"


def test_int8_is_checked_by_predictions():
    changed = LOGITS + np.float32([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0.5, 0]])
    assert make_reference().compare(changed, "int8").reason == "only 75.0% of the predictions match fp32 (limit 98%)"
    comparison = make_reference(labels=np.array([0, 1, 2, 1])).compare(changed, "int8")
    assert comparison.accuracy_change == 25.0 and not comparison.reason  # correct where fp32 is not
    labels = np.array([0, 1, 2, 0])
    reason = make_reference(labels=labels).compare(changed, "int8").reason
    assert reason == "1 fewer of 4 correct, 25.00 points (--max-loss 0.2)"
    assert not make_reference(labels=labels, max_loss=25.0).compare(changed, "int8").reason


def test_one_prediction_may_change_if_logits_have_a_limit():
    logits = np.array([[1.0, 0.999], [1.0, 0.999], [0.0, 9.0]], np.float32)
    reference = Fp32Reference(logits, ["a", "b", "c"], np.array([0, 0, 1]))
    one_changed, two_changed = logits.copy(), logits.copy()
    one_changed[0] = two_changed[:2] = [0.999, 1.0]
    comparison = reference.compare(one_changed, "bf16")
    assert not comparison.reason and comparison.accuracy_change == pytest.approx(-100 / 3)
    reason = reference.compare(two_changed, "bf16").reason
    assert reason == "2 fewer of 3 correct, 66.67 points (--max-loss 0.2)"
    assert reference.take_first(1).compare(one_changed[:1], "bf16").accuracy_change == -100.0
    reason = reference.take_first(1).compare(one_changed, "bf16").reason
    assert reason == "it returns 3 x 2 logits instead of 1 x 2"


def test_without_predictions_only_logits_are_compared():
    comparison = make_reference(has_predictions=False).compare(LOGITS[:, ::-1], "int8")
    assert comparison.match_rate is None
    assert comparison.reason.startswith("logits differ by 1 of the largest (limit 0.2), most for")


def test_nan_logits_and_other_shapes_do_not_match():
    logits = LOGITS.copy()
    logits[2, 1] = np.nan
    assert make_reference().compare(logits, "int8").reason == "its logits are NaN or infinite"
    assert make_reference().compare(logits[:, :2], "int8").reason == "it returns 4 x 2 logits instead of 4 x 3"


# --------------------------------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def card():
    return rk.build(BASE, classes=CLASSES).card


def test_synthetic_images_are_deterministic_and_differ(card):
    first, second = make_synthetic_samples(card.preparation), make_synthetic_samples(card.preparation)
    assert (first.images == second.images).all() and first.images.shape == (16, 16, 16, 3)
    assert len({image.tobytes() for image in first.images}) == 16 and first.calibration_images is None
    assert first.images.std() > 20


def test_a_dataset_without_splits_is_divided(pictures, card):
    samples = load_samples(pictures("data", CLASSES, count=10), card, is_trained=True)
    assert len(samples.images) == 15 and len(samples.calibration_images) == 15
    assert not {p.tobytes() for p in samples.images} & {p.tobytes() for p in samples.calibration_images}
    assert samples.labels.tolist() == [CLASSES.index(name.split("/")[0]) for name in samples.names]
    assert samples.names != sorted(samples.names)  # the first n have images of all classes
    assert samples.describe(9).startswith("9 of 15 images of ")
    assert samples.describe(9).endswith(", split all, with labels (one image is 11 points)")
    assert samples.describe(15).startswith("15 images of ")
    assert samples.describe(15).endswith(" (one image is 6.7 points)")


def test_calibration_images_come_from_train(pictures, card):
    pictures("data/train", CLASSES, count=4)
    samples = load_samples(pictures("data/test", CLASSES, count=3).parent, card, is_trained=True)
    assert len(samples.calibration_images) == 12 and len(samples.images) == 9


def test_an_image_beside_the_class_folders_is_skipped(pictures, card):
    folder = pictures("data", CLASSES, count=4)
    shutil.copy(folder / CLASSES[0] / "0.png", folder / "cover.png")
    assert load_samples(folder, card, is_trained=True).labels is not None


def test_a_folder_of_images_without_classes(pictures, card):
    folder = pictures("data", ["daisy"], count=5) / "daisy"
    (folder / "bad.png").write_bytes(b"not an image")
    samples = load_samples(folder, card, is_trained=True)
    assert samples.labels is None and len(samples.images) + len(samples.calibration_images) == 5


def test_labels_of_an_untrained_network_are_not_used(pictures, card):
    assert load_samples(pictures("data", ("cat", "dog")), card, is_trained=False).labels is None
    with pytest.raises(rk.ResnetkitError, match="the model does not have 2 of 2 classes of the dataset: cat, dog"):
        load_samples(pictures("data2", ("cat", "dog")), card, is_trained=True)


@pytest.mark.parametrize(("seconds", "n_expected"), [(-1.0, 32), (0.5, 32), (2.5, 96), (100.0, 128)])
def test_reference_logits_of_as_many_images_as_the_time_allows(tmp_path, seconds, n_expected):
    network = rk.load(save_trained_model(tmp_path / "model"))
    images = np.concatenate([make_synthetic_samples(network.card.preparation).images] * 8)
    ticks = iter(range(100))  # a second passes with each batch
    assert len(compute_reference_logits(network, images, seconds, lambda: float(next(ticks)))) == n_expected
