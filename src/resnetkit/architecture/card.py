"""The card of a model: its spec, the preparation of images, its classes and its origin.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from resnetkit.architecture.rules import check_spec
from resnetkit.architecture.spec import Network, count_classes, replace_classes
from resnetkit.errors import Fault, TextError, UsageError, WeightsError
from resnetkit.serialization import RENAME_FIX, from_data, parse_json, read_text

_IMAGE_CHANNELS = (1, 3)
_MAX_CHARS = 64 * 2**20  # a card lists the images of its training, 8 characters for each


@dataclass(frozen=True, slots=True)
class Preparation:
    """How an image becomes the numbers that the network sees.

    1. Rotate the image upright (EXIF), put it on white if it is transparent, convert it to grayscale or RGB.
    2. Resize it with a bilinear filter so that its shorter side has ``resize`` pixels. Images of the right size are
       not resampled.
    3. Take the center crop of ``crop`` (height, width); the rest is never computed.
    4. Normalize each channel: (value / 255 - mean) / std.

    A JPEG whose shorter side has 1,500 pixels or more may be decoded at 1/2, 1/4 or 1/8 of its size, if 2.8 times
    ``resize`` pixels remain (6 times if ``resize`` is below 128).
    """

    resize: int
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def color_mode(self) -> Literal["L", "RGB"]:
        """Pillow's mode for the images.

        Raises:
            UsageError: no image has this number of channels.
        """
        if len(self.mean) not in _IMAGE_CHANNELS:
            what = f"this network takes {len(self.mean)} channels, but an image has 1 (grayscale) or 3 (RGB)"
            raise UsageError(what, fix="call the network from Python with tensors")
        return "L" if len(self.mean) == 1 else "RGB"


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def make_default_preparation(spec: Network) -> Preparation:
    """Return the usual preparation for the input of a network.

    Large images are resized to 256/224 of the crop, small ones to the crop itself. RGB is normalized with the
    statistics of ImageNet, any other number of channels with 0.5.
    """
    channels, height, width = spec.input
    side = max(height, width)
    resize = side * 256 // 224 if min(height, width) >= 128 else side
    if channels == 3:
        return Preparation(resize, (height, width), IMAGENET_MEAN, IMAGENET_STD)
    return Preparation(resize, (height, width), (0.5,) * channels, (0.5,) * channels)


@dataclass(frozen=True, slots=True)
class ReportedMetric:
    """A measured or published number, and its source."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"what": "name"}

    name: str
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class TrainingInfo:
    """The training of a model, its base model's included.

    Attributes:
        data: The name of the dataset.
        fingerprint: The digest of the dataset: classes and contents of its images.
        split_seed: The seed that drew the splits.
        seed: The seed of weights, order and augmentation.
        epochs: The number of epochs.
        train_images: The images that the model learned from, 48 bits of the digest of each, in base64.
        val_images: The images that chose the epoch.
    """

    data: str
    fingerprint: str
    split_seed: int
    seed: int
    epochs: int
    train_images: str = ""
    val_images: str = ""


_UNTRAINED = "not trained"


@dataclass(frozen=True, slots=True)
class Card:
    """Everything about a model that is not a tensor: the ``config.json`` of a model folder.

    ``assumed`` lists the settings that the file of the weights did not state.
    """

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"licence": "license", "figures": "metrics"}

    name: str
    spec: Network
    preparation: Preparation
    classes: tuple[str, ...] = ()
    origin: str = _UNTRAINED
    training: TrainingInfo | None = None
    license: str = ""
    metrics: tuple[ReportedMetric, ...] = ()
    assumed: tuple[str, ...] = ()
    format: Literal[1] = 1

    @property
    def is_trained(self) -> bool:
        """True if the weights come from a training, so that predictions mean something."""
        return self.origin != _UNTRAINED

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, ``class 3`` if they have none; empty without a classifier."""
        return self.classes or tuple(f"class {i}" for i in range(count_classes(self.spec.head)))


def get_labels(card: Card) -> tuple[str, ...]:
    """Return the class names of a classifier.

    Raises:
        UsageError: the network has no classifier.
    """
    if not card.labels:
        raise UsageError("this network has no classifier, so it has no classes", where=card.name)
    return card.labels


def make_card(name: str, spec: Network, classes: tuple[str, ...] = ()) -> Card:
    """Return the card of an untrained network.

    Args:
        name: the name of the network.
        spec: its spec.
        classes: the class names; they replace the number of classes in the spec.

    Raises:
        SpecError: with all faults of the spec.
    """
    check_spec(spec)
    if classes:
        spec = replace_classes(spec, len(classes))
    return Card(name, spec, make_default_preparation(spec), classes)


CARD_FORMAT = 1
CARD_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def find_preparation_faults(preparation: Preparation, channels: int) -> list[Fault]:
    """Return the faults that keep a preparation from feeding images to a network.

    Args:
        preparation: the preparation of images.
        channels: the input channels of the network.
    """
    if channels not in _IMAGE_CHANNELS:
        return [Fault("input", f"{channels} channels", "1 (grayscale) or 3 (RGB), as images have")]
    mean, std, crop = preparation.mean, preparation.std, preparation.crop
    n_channels = len(mean)
    limits = [
        ("mean", str(n_channels), n_channels == channels, f"{channels} numbers, one for each channel"),
        ("mean", str(list(mean)), all(0 <= m <= 1 for m in mean), "numbers from 0 to 1, as levels are divided by 255"),
        ("std", str(list(std)), len(std) == n_channels and all(s > 0 for s in std), f"{n_channels} numbers above 0"),
        ("crop", str(list(crop)), min(crop) > 0, "height and width of 1 or more"),
        ("resize", str(preparation.resize), max(crop) <= preparation.resize <= 4096, f"{max(crop)} to 4,096"),
    ]
    return [Fault(f"preparation.{path}", value, allowed) for path, value, is_valid, allowed in limits if not is_valid]


def _check_consistency(card: Card, path: Path) -> None:
    """Raise `TextError` if fields of a card contradict each other."""
    channels = card.spec.input[0]  # a network of other channels takes tensors, so its preparation is not used
    faults = find_preparation_faults(card.preparation, channels) if channels in _IMAGE_CHANNELS else []
    n_classes = count_classes(card.spec.head)
    if card.classes and len(card.classes) != n_classes:
        faults.append(Fault("classes", f"{len(card.classes)} names", f"{n_classes}, as spec.head has"))
    if faults:
        raise TextError(f"{path} does not describe a model", faults)


def read_card(folder: Path) -> Card:
    """Return the card in a model folder.

    Raises:
        WeightsError: with all faults of the card, because it belongs to weights.
    """
    path = folder / CARD_FILE
    try:
        data = parse_json(read_text(path, "this card", _MAX_CHARS), str(path), _MAX_CHARS)
        _check_format(data, path)
        card = from_data(Card, data, str(path))
        check_spec(card.spec)
        _check_consistency(card, path)
    except UsageError as error:
        fix = RENAME_FIX if error.fix == RENAME_FIX else "copy the whole model folder again"
        raise WeightsError(error.what, where=[str(path), *error.where], fix=fix) from None
    return card


def _check_format(data: Any, path: Path) -> None:
    """Refuse the card of a newer version in one sentence, instead of one fault for each new field."""
    version = data.get("format") if isinstance(data, dict) else None
    if type(version) is int and CARD_FORMAT < version < 10**6:  # a number of any length could fill the screen
        what = f"this card was written by a newer resnetkit (format {version}; this one reads {CARD_FORMAT})"
        raise WeightsError(what, where=str(path), fix="pip install --upgrade resnetkit")
