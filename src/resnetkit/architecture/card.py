"""What belongs to a model beside its tensors: its spec, how images are prepared, what its classes are called.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnetkit.architecture.rules import check_spec
from resnetkit.architecture.spec import Network, count_classes, replace_classes
from resnetkit.errors import Fault, TextError, UsageError, WeightsError
from resnetkit.serialization import from_data, parse_json, read_text

_IMAGE_CHANNELS = (1, 3)


@dataclass(frozen=True, slots=True)
class Preparation:
    """From a picture to the numbers that the network sees.

    The picture is made upright, put on white where it is transparent, and turned grey or RGB; it is resized with a
    bilinear filter as if its shorter side became ``resize`` pixels, of which only the centre of ``crop`` (height,
    width) is made; each channel becomes (value / 255 - mean) / std. A picture that already has the right size is not
    resampled. A JPEG may be decoded at 1/2, 1/4 or 1/8 where its shorter side keeps twice ``resize`` pixels (1.4
    times, if it has 2,000 or more).
    """

    resize: int
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def color_mode(self) -> Literal["L", "RGB"]:
        """Pillow's mode; raises `UsageError` where no picture has so many channels."""
        if len(self.mean) not in _IMAGE_CHANNELS:
            what = f"this network sees {len(self.mean)} channels, and a picture has 1 (grey) or 3 (RGB)"
            raise UsageError(what, fix="from Python, give it tensors")
        return "L" if len(self.mean) == 1 else "RGB"


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def make_default_preparation(spec: Network) -> Preparation:
    """The usual one: 224 is cut out of 256, small images are taken whole; RGB by ImageNet's statistics, grey by 0.5."""
    channels, height, width = spec.input
    side = max(height, width)
    resize = side * 256 // 224 if min(height, width) >= 128 else side
    if channels == 3:
        return Preparation(resize, (height, width), IMAGENET_MEAN, IMAGENET_STD)
    return Preparation(resize, (height, width), (0.5,) * channels, (0.5,) * channels)


@dataclass(frozen=True, slots=True)
class ReportedMetric:
    """A measured or published number, and where it comes from."""

    name: str
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class TrainingInfo:
    """What a model was trained on. ``fingerprint`` hashes the names of the pictures, ``split_seed`` drew the parts."""

    data: str
    fingerprint: str
    split_seed: int
    seed: int
    epochs: int


_UNTRAINED = "not trained"


@dataclass(frozen=True, slots=True)
class Card:
    """Everything about a model that is not a tensor; ``config.json`` of a model folder.

    ``assumed`` holds what could not be told from the file that the weights came in.
    """

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
        """Whether its weights come from anywhere, so that its answers mean something."""
        return self.origin != _UNTRAINED

    @property
    def labels(self) -> tuple[str, ...]:
        """What its classes are called, ``class 3`` where they have no names; empty without a classifier."""
        return self.classes or tuple(f"class {i}" for i in range(count_classes(self.spec.head)))


def get_labels(card: Card) -> tuple[str, ...]:
    """What the classes are called; raises `UsageError` where there is no classifier."""
    if not card.labels:
        raise UsageError("this network has no classifier, so it names no class", where=card.name)
    return card.labels


def make_card(name: str, spec: Network, classes: tuple[str, ...] = ()) -> Card:
    """The card of a network that has not been trained; class names set the number of classes."""
    check_spec(spec)
    if classes:
        spec = replace_classes(spec, len(classes))
    return Card(name, spec, make_default_preparation(spec), classes)


CARD_FORMAT = 1
CARD_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def find_preparation_faults(preparation: Preparation, channels: int) -> list[Fault]:
    """What keeps a preparation from feeding a network of so many input channels with pictures."""
    if channels not in _IMAGE_CHANNELS:
        return [Fault("input", f"{channels} channels", "1 (grey) or 3 (RGB), as pictures have")]
    n_channels, std, crop = len(preparation.mean), preparation.std, preparation.crop
    limits = [
        ("mean", str(n_channels), n_channels == channels, f"{channels} numbers, one for each channel"),
        ("std", str(list(std)), len(std) == n_channels and all(s > 0 for s in std), f"{n_channels} numbers above 0"),
        ("crop", str(list(crop)), min(crop) > 0, "height and width of 1 or more"),
        ("resize", str(preparation.resize), max(crop) <= preparation.resize <= 4096, f"{max(crop)} to 4,096"),
    ]
    return [Fault(f"preparation.{path}", value, allowed) for path, value, is_valid, allowed in limits if not is_valid]


def _find_card_faults(card: Card) -> list[Fault]:
    """What contradicts itself in a card."""
    channels = card.spec.input[0]  # of more than pictures have, tensors are made elsewhere
    faults = find_preparation_faults(card.preparation, channels) if channels in _IMAGE_CHANNELS else []
    n_classes = count_classes(card.spec.head)
    if card.classes and len(card.classes) != n_classes:
        faults.append(Fault("classes", f"{len(card.classes)} names", f"{n_classes}, as spec.head"))
    return faults


def read_card(folder: Path) -> Card:
    """The card in a model folder; it came with weights, so a fault is a `WeightsError`."""
    path = folder / CARD_FILE
    try:
        data = parse_json(read_text(path, "this card"), str(path))
        _check_format(data, path)
        card = from_data(Card, data, str(path))
        check_spec(card.spec)
        contradictions = _find_card_faults(card)
        if contradictions:
            raise TextError(f"{path} does not describe a model", contradictions)
    except UsageError as error:
        raise WeightsError(
            error.what, where=[str(path), *error.where], fix="copy the whole model folder again"
        ) from None
    return card


def _check_format(data: Any, path: Path) -> None:
    """One sentence instead of a fault for every field that is not known yet."""
    version = data.get("format") if isinstance(data, dict) else None
    if type(version) is int and CARD_FORMAT < version < 10**6:  # no number to fill a screen with
        what = f"this card was made by a newer resnetkit (format {version}; this one reads {CARD_FORMAT})"
        raise WeightsError(what, where=str(path), fix="pip install --upgrade resnetkit")
