"""From weights to a network, and into a model folder.

A state dict is compared with the plan before a tensor is moved, and either all of it is taken or nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from resnetkit import files
from resnetkit.architecture.card import (
    CARD_FILE,
    WEIGHTS_FILE,
    Card,
    Preparation,
    card_for,
    card_of,
    is_hugging_face,
    model_folder,
    read_card,
)
from resnetkit.architecture.catalog import ROWS, name_of, row_of
from resnetkit.architecture.catalog import spec as spec_of
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.spec import Pooled
from resnetkit.architecture.tensors import STEM, Shapes, tensors_of
from resnetkit.errors import MachineError, ResnetkitWarning, UsageError, WeightsError, suggestion
from resnetkit.formatting import counted
from resnetkit.network.build import shell
from resnetkit.network.layers import Network
from resnetkit.network.report import Report
from resnetkit.serialization import to_json
from resnetkit.surgery.head_and_input import classes as with_classes
from resnetkit.surgery.head_and_input import input_channels as with_input_channels
from resnetkit.weights.dialects import ALIASES
from resnetkit.weights.fit import COUNT, Misfit, advice, listed, misfits, short
from resnetkit.weights.hugging_face import WEIGHTS as FOLDER_WEIGHTS
from resnetkit.weights.hugging_face import card_of_config, read_folder
from resnetkit.weights.infer import preparation
from resnetkit.weights.read import is_plain, read_tensors
from resnetkit.weights.recognize import (
    KNOWN,
    Recognised,
    as_named,
    as_they_are,
    looks_like,
    readings,
    recognise,
)
from resnetkit.weights.unwrap import unpacked

_WHOLE_FOLDER = "copy the whole model folder again"
_NAME_IT = "name the network that it was saved from, or describe it in a .toml file: --network"
_RESET_HEAD = "--reset-head CLASSES takes it and starts a new classifier"


def save(model: Network, folder: str | Path) -> Path:
    """Write a model folder (card and weights), whole or not at all; an existing folder is refused."""
    folder = Path(folder)
    if folder.exists():
        raise UsageError("this folder exists already", where=str(folder), fix="name another, or remove it")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        with files.new_folder(folder) as part:
            (part / CARD_FILE).write_text(to_json(model.card), encoding="utf-8", errors="backslashreplace")
            save_file(tensors, part / WEIGHTS_FILE, {"format": "pt"})
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise MachineError(f"cannot write the weights: {error}", where=str(folder)) from None
    return folder


def load(
    source: str | os.PathLike[str] | nn.Module | Mapping[str, Tensor],
    network: str | None = None,
    dialect: str | None = None,
    *,
    reset_head: int | Sequence[str] | None = None,
    input_channels: int | None = None,
) -> Network:
    """A model folder, a run folder, a weights file of any dialect, a state dict, or a live model; in evaluation mode.

    A network of ours is handed back as it is. A live model of another library is run beside ours on one small image,
    and refused where the answers differ (a body alone, with ``reset_head``, is not). Whose file it is, and of which
    network, is told from names and shapes; what these cannot tell is in
    ``model.card.assumed``. ``network`` and ``dialect`` are stronger than what is told. ``reset_head`` (classes, or
    their names) takes the body alone, whatever the file has behind it, and starts a new linear classifier;
    ``input_channels`` adapts the first convolution. Raises `UsageError` where ``source`` names no weights and
    `WeightsError` where they are damaged, do not fit, or cannot be recognised.
    """
    dialect = ALIASES.get(dialect, dialect) if isinstance(dialect, str) else dialect
    _require(source, network, dialect)
    told = Told(network, dialect, reset_head is not None, input_channels is not None)
    found = _live(source, told) if isinstance(source, nn.Module | Mapping) else _stored(source, told)
    if reset_head is not None:
        found = _after(found, with_classes(found, reset_head)[0])
    if input_channels is not None:
        found = _after(found, with_input_channels(found, input_channels)[0])
    return found


def _after(before: Network, changed: Network) -> Network:
    """The changed network with one report of both changes."""
    if changed is not before:
        changed.report = before.report.then(changed.report)
    return changed


def _require(source: object, network: str | None, dialect: str | None) -> None:
    """Raise `UsageError` for what is none of the things that can be loaded, and for a dialect that is not known."""
    if not isinstance(source, str | os.PathLike | nn.Module | Mapping):
        raise UsageError(f"a {type(source).__name__} is no model", where="model", fix="name a file or folder")
    if dialect and dialect not in KNOWN:
        raise UsageError(
            f"there is no dialect called {dialect!r}", where="dialect", fix=suggestion(str(dialect), KNOWN)
        )
    if (network or dialect) and isinstance(source, Network):
        raise UsageError("this model knows what it is", where="network, dialect", fix="leave them out")


@dataclass(frozen=True)
class Told:
    """What whoever loads knows of a file: its network, its dialect; and of what is in it no heed is to be taken."""

    network: str | None
    dialect: str | None
    body: bool
    any_channels: bool


def _stored(source: str | os.PathLike[str], told: Told) -> Network:
    source = source if isinstance(source, str) else Path(source)
    folder = None if told.network and Path(source).is_file() else model_folder(source)
    if folder and (told.network or told.dialect):
        raise UsageError("a model folder says itself what is in it", where=str(folder), fix="leave --network out")
    if folder:
        path = folder / WEIGHTS_FILE
        return assemble(read_card(folder), read_tensors(path)[0], str(path), _WHOLE_FOLDER)
    path = Path(source)
    beside = path.parent if path.is_file() and path.name in FOLDER_WEIGHTS else path  # its config says what it is
    if is_hugging_face(beside) and not told.network:
        return _hugging_face(beside, told)
    if not path.is_file():
        raise _no_weights(source)
    tensors, around = read_tensors(path)
    return _from_tensors(path, tensors, around, told)


def _hugging_face(folder: Path, told: Told) -> Network:
    card, path = read_folder(folder)
    tensors, _ = read_tensors(path)
    return _as_config(card, path, tensors, told)


def _as_config(card: Card, path: Path, tensors: Mapping[str, Tensor], told: Told) -> Network:
    """Tensors of transformers, of which a config has told the network."""
    found = as_named(card.spec, _shapes(tensors), "hf", body=told.body)
    reading = found.reading if found else as_they_are(tensors)
    card = replace(card, spec=replace(card.spec, head=Pooled()), classes=()) if told.body else card
    left = tuple(key for key in tensors if key not in reading.names)
    ours = {own: tensors[key] for key, own in reading.names.items()}
    return assemble(card, ours, str(path), names=reading.names, left=left)


def _from_tensors(path: Path, tensors: Mapping[str, Tensor], around: Sequence[str], told: Told) -> Network:
    found = _understood(path, _shapes(tensors), told)
    names = found.reading.names
    ours = {own: tensors[key] for key, own in names.items()}
    ours |= {key: ours[key].flatten(1) for key in found.reading.table.as_conv & ours.keys()}
    left = tuple(key for key in tensors if key not in names)
    words = list(dict.fromkeys(short(".".join(key.split(".")[:-1]), 60) for key in left))
    card = _card(path, found, told.network, around, words if len(words) <= 5 else [*words[:4], "others"])
    return assemble(card, ours, str(path), worked_out=found.plan, names=names, left=left)


def _live(source: nn.Module | Mapping[str, Tensor], told: Told) -> Network:
    """From a live model or a state dict; the tensors are copied."""
    if isinstance(source, Network):
        return source
    given = source.state_dict() if isinstance(source, nn.Module) else source
    if not isinstance(source, nn.Module):
        given, _ = unpacked(dict(given), lambda value: isinstance(value, Mapping))
    name = type(source).__name__
    if not all(isinstance(key, str) and is_plain(value, anywhere=True) for key, value in given.items()):
        raise UsageError("this is no state dict: names and plain tensors", where=name)
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in given.items()}
    config = getattr(source, "config", None)
    if config is not None and getattr(config, "model_type", "") == "resnet" and not told.network:
        found = _as_config(card_of_config(config.to_dict(), name), Path(name), tensors, told)
    else:
        found = _from_tensors(Path(name), tensors, (), told)
    if isinstance(source, nn.Module) and not told.body:
        _agree(source, found)
    return found


_PROBE, _NEARLY, _COARSELY = 65, 1e-3, 5e-2  # the last for numbers of 16 bits


def _agree(theirs: nn.Module, ours: Network) -> None:
    """Raise `WeightsError` where a live model answers otherwise than ours: shapes tell no stride and no activation."""
    first = next(theirs.parameters())
    image = torch.rand(1, ours.card.spec.input[0], _PROBE, _PROBE - 2, generator=torch.Generator().manual_seed(0))
    modes = [(module, module.training) for module in theirs.modules()]
    try:
        with torch.inference_mode():
            found = theirs.eval()(image.to(first.device, first.dtype))
            expected = ours(image)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise WeightsError(f"this model cannot be run beside ours: {short(str(error), 200)}", fix=_BY_FILE) from None
    finally:
        for module, training in modes:
            module.training = training
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor) or found.numel() != expected.numel():
        raise WeightsError("this model hands on something else than ours, so it is not compared", fix=_BY_FILE)
    apart = float((found.reshape(expected.shape).float().cpu() - expected).abs().max() / expected.abs().max())
    if not apart <= (_NEARLY if first.element_size() >= 4 else _COARSELY):
        what = f"this model has the tensors of {ours.card.name}, and answers otherwise: they differ by {apart:.2g}"
        fix = "strides, dilation, pools, activations or epsilon are its own: describe it in a .toml file, network="
        raise WeightsError(what, where=type(theirs).__name__, fix=fix)


_BY_FILE = "load its state_dict(), if it is one of ours all the same"


def _understood(path: Path, given: Shapes, told: Told) -> Recognised:
    if told.network:
        return _fitting(path, given, told, told.network)
    found = recognise(given, told.dialect, body=told.body)
    if isinstance(found, str):
        what = f"it cannot be told which network these weights are of: {short(found, 300)}"
        body = None if told.body else recognise(given, told.dialect, body=True)
        fix = f"{_body_of(body.spec)}; {_RESET_HEAD}" if isinstance(body, Recognised) else _NAME_IT
        raise WeightsError(what, where=str(path), fix=fix)
    return found


def _body_of(spec: Spec) -> str:
    name = row_of(spec)
    blocks = "-".join(str(stage.blocks) for stage in spec.stages)
    return f"the body is that of {name}" if name != "custom" else f"the body is one of {blocks} blocks"


def _fitting(path: Path, given: Shapes, told: Told, network: str) -> Recognised:
    named = spec_of(network)
    if told.any_channels:
        named = replace(named, input=(_channels(given, told) or named.input[0], *named.input[1:]))
    found = as_named(named, given, told.dialect, body=told.body)
    if found is None:
        like = looks_like(given)
        fix = f"this file looks like {like}; " * bool(like) + "name another --dialect, or none"
        what, first = f"these names have no meaning in the dialect {told.dialect}", list(given)[:3]
        raise WeightsError(what, where=[str(path), ", ".join(map(short, first))], fix=fix)
    return found


def _channels(given: Shapes, told: Told) -> int:
    """How many the first convolution of a file sees; 0 where that cannot be told."""
    shapes = (reading.shapes(given).get(STEM, ()) for reading in readings(given, told.dialect, body=told.body))
    return next((shape[1] for shape in shapes if len(shape) == 4), 0)


def _card(path: Path, found: Recognised, network: str | None, around: Sequence[str], left: Sequence[str] = ()) -> Card:
    """The card of a file without one: what was told, taken off and assumed."""
    reading, name = found.reading, name_of(network) if network else row_of(found.spec)
    taken = [f"in the table {table}" for table in around]
    taken += [f"behind the prefix {reading.prefix}"] * bool(reading.prefix)
    origin = ", ".join([f"{path.name}, read as {name} in the dialect {reading.dialect}", *taken])
    card = card_for(name, found.spec)
    prepared = preparation(found.spec, reading.convention) or card.preparation
    said = [f"what begins with {word} is left out" for word in left]
    return replace(card, origin=origin, preparation=prepared, assumed=(*found.assumed, *said, _said(prepared)))


def _said(how: Preparation) -> str:
    """How images are taken to be prepared, in a sentence."""
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (how.mean, how.std))
    size = "x".join(map(str, how.crop))
    colours = {1: "grey", 3: "RGB"}.get(len(how.mean), f"{len(how.mean)} channels")
    return f"images are {colours} / 255, {size} from the middle of a side of {how.resize}, mean {mean}, std {std}"


def assemble(
    card: Card,
    tensors: Mapping[str, Tensor],
    where: str,
    fix: str = _NAME_IT,
    *,
    worked_out: Plan | None = None,
    names: Mapping[str, str] | None = None,
    left: tuple[str, ...] = (),
) -> Network:
    """The module of a card with these tensors, in fp32; all of them fit, or `WeightsError` is raised.

    ``names`` has ours for theirs, ``left`` those that are not taken. Warns with `ResnetkitWarning` of numbers that
    are not finite.
    """
    model = shell(card, worked_out)
    wanted = tensors_of(model.plan)
    lacking = [key for key in wanted if key.endswith(COUNT) and key not in tensors]
    given = {**tensors, **{key: torch.zeros((), dtype=torch.long) for key in lacking}}
    whole = {key: str(value.dtype) for key, value in given.items() if not _fractional(key, value)}
    found = misfits(wanted, _shapes(given), whole)
    if found:
        count = f"{len(found)} of {len(wanted.keys() | given.keys())}"
        what = f"these weights do not fit {card.name}: {count} tensors differ"
        raise WeightsError(what, where=[where, *listed(found)], fix=_advice(found, _shapes(tensors), fix))
    try:
        exact = {key: given[key].long() if key.endswith(COUNT) else given[key].float() for key in wanted}
    except (RuntimeError, NotImplementedError) as error:
        what = f"these numbers cannot be read as fp32: {short(str(error), 100)}"
        raise WeightsError(what, where=where, fix="save the tensors as fp32, fp16 or bf16") from None
    _warn_of(nonfinite(exact), "NaN or infinite numbers", where)
    _warn_of({key: n for key in exact if key.endswith("running_var") and (n := int((exact[key] < 0).sum()))},
             "negative variances", where)  # fmt: skip
    _assign(model, exact)
    model.report = replace(_report(exact, given, lacking, names or {}), dropped=left)
    return model.eval()


def _advice(found: Sequence[Misfit], given: Shapes, fix: str) -> str:
    """What to do about misfits. Of a weights file, the options that help; a model folder is whole or it is not."""
    channels = _other_channels(found)
    if fix != _WHOLE_FOLDER and channels:
        return f"the file is for {counted(channels, 'input channel')}: --input-channels {channels}"
    if fix != _WHOLE_FOLDER and all(misfit.key.startswith("head.") for misfit in found):
        fix = _RESET_HEAD
    return advice(found, looks_like(given), fix)


def _other_channels(found: Sequence[Misfit]) -> int:
    """How many input channels a file is for, where that is all that differs."""
    if [misfit.key for misfit in found] != [STEM]:
        return 0
    came, expected = found[0].came, found[0].expected
    alike = (
        isinstance(came, tuple)
        and isinstance(expected, tuple)
        and (*came[:1], *came[2:]) == (*expected[:1], *expected[2:])
    )
    return int(came[1]) if alike and came else 0


def _report(
    exact: Mapping[str, Tensor], given: Mapping[str, Tensor], lacking: Sequence[str], names: Mapping[str, str]
) -> Report:
    """``names`` has ours for theirs."""
    theirs = {ours: name for name, ours in names.items() if ours != name}
    adapted = {key: f"cast from {_plain_type(given[key])}" for key in exact if given[key].dtype != exact[key].dtype}
    others = [key for key in exact if key not in adapted and key not in lacking]
    return Report(
        tuple(key for key in others if key not in theirs),
        {key: theirs[key] for key in others if key in theirs},
        adapted,
        dict.fromkeys(lacking, "counts of batches, which the file lacks"),
    )


def _plain_type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _assign(model: Network, tensors: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer its tensor, as ``load_state_dict(assign=True)`` does at three times the cost."""
    for path, part in model.named_modules():
        for name, _ in [*part.named_parameters(recurse=False)]:
            setattr(part, name, nn.Parameter(tensors[f"{path}.{name}"]))
        for name, _ in [*part.named_buffers(recurse=False)]:
            setattr(part, name, tensors[f"{path}.{name}"])


def nonfinite(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers are NaN or infinite, for each tensor that holds some."""
    # a sum is finite unless a number is not, or it overflows: one pass over the memory, and a second one rarely
    sums = torch.stack([value.sum(dtype=torch.float32) for value in tensors.values()])
    if bool(sums.isfinite().all()):
        return {}
    doubtful = [key for key, sound in zip(tensors, sums.isfinite().tolist(), strict=True) if not sound]
    counted = {key: int((~tensors[key].isfinite()).sum()) for key in doubtful}
    return {key: count for key, count in counted.items() if count}


def _warn_of(counts: Mapping[str, int], what: str, where: str) -> None:
    if counts:
        shown = [f"{key} ({count:,})" for key, count in counts.items()][:5]
        more = [f"{len(counts) - 5} more tensors"] * (len(counts) > 5)
        told = f"{what} in {', '.join(shown + more)}: {where}"
        warnings.warn(told, ResnetkitWarning, stacklevel=4)  # whoever called load


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _fractional(key: str, value: Tensor) -> bool:
    return value.is_floating_point() or key.endswith(COUNT)


def _no_weights(source: str | Path) -> UsageError:
    if isinstance(source, str) and source in ROWS:
        fix = f"./{source}" if model_folder(Path(source)) else f"resnetkit train DATA --model {source}"
        return UsageError(f"{source} is a name without weights", where="model", fix=fix)
    try:
        card_of(source)
    except UsageError as error:
        return error
    return UsageError("this file describes a network and holds no weights", where=str(source), fix="train it first")
