"""Reading and writing weights: safetensors always, a pickle only through torch's restricted reader.

A file is judged before it is read: what it is, and whether it holds as many bytes as it says. A state dict is compared
with the plan before a tensor is moved, and either all of it is taken or nothing.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resnetkit import files, kinds
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
from resnetkit.architecture.catalog import ROWS, name_of
from resnetkit.architecture.catalog import spec as spec_of
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.spec import Linear
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import MachineError, ResnetkitWarning, UsageError, WeightsError, suggestion
from resnetkit.network.build import shell
from resnetkit.network.layers import Network
from resnetkit.network.report import Report
from resnetkit.text import to_json
from resnetkit.weights.envelope import unpacked
from resnetkit.weights.fit import COUNT, Shapes, advice, listed, looks_like, misfits, short
from resnetkit.weights.hugging_face import read_folder
from resnetkit.weights.infer import preparation
from resnetkit.weights.pickles import objection, stranger
from resnetkit.weights.recognise import KNOWN, OWN, Reading, Recognised, complete, readings, recognise, row_of

_LONGEST_HEADER = 2 * 2**20  # reading one can take thirty times its length; a network of 10,000 tensors needs 1.2 MB
_WHOLE_FOLDER = "copy the whole model folder again"
_NAME_IT = "name the network that it was saved from, or describe it in a .toml file: --network"


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
) -> Network:
    """A model folder, a run folder, a weights file of any dialect, a state dict, or a live model; in evaluation mode.

    Whose file it is, and of which network, is told from names and shapes; what these cannot tell is in
    ``model.card.assumed``. ``network`` and ``dialect`` are stronger than what is told. Raises `UsageError` where
    ``source`` names no weights and `WeightsError` where they are damaged, do not fit, or cannot be recognised.
    """
    if dialect and dialect not in KNOWN:
        raise UsageError(f"there is no dialect called {dialect!r}", where="dialect", fix=suggestion(dialect, KNOWN))
    if isinstance(source, nn.Module | Mapping):
        return _live(source, network, dialect)
    source = source if isinstance(source, str) else Path(source)
    folder = None if network and Path(source).is_file() else model_folder(source)
    if folder:
        path = folder / WEIGHTS_FILE
        return assemble(read_card(folder), read_tensors(path)[0], str(path), _WHOLE_FOLDER)
    if is_hugging_face(Path(source)):
        return _hugging_face(Path(source))
    path = Path(source)
    if not path.is_file():
        raise _no_weights(source)
    tensors, around = read_tensors(path)
    return _from_tensors(path, tensors, around, network, dialect)


def _hugging_face(folder: Path) -> Network:
    card, path = read_folder(folder)
    tensors, _ = read_tensors(path)
    names = _as_named(path, _shapes(tensors), card.spec, "hf").reading.names
    return assemble(card, {names[key]: value for key, value in tensors.items()}, str(path), names=names)


def _from_tensors(
    path: Path, tensors: Mapping[str, Tensor], around: Sequence[str], network: str | None, dialect: str | None
) -> Network:
    found = _understood(path, _shapes(tensors), network, dialect)
    names = found.reading.names
    card, ours = _card(path, found, network, around), {names[key]: value for key, value in tensors.items()}
    return assemble(card, ours, str(path), worked_out=found.plan, names=names)


def _live(source: nn.Module | Mapping[str, Tensor], network: str | None, dialect: str | None) -> Network:
    """From a live model or a state dict; the tensors are copied."""
    if isinstance(source, Network):
        return source
    given = source.state_dict() if isinstance(source, nn.Module) else source
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in given.items()):
        raise UsageError("this is no state dict: names and tensors", where="model")
    tensors = {key: value.detach().cpu().clone() for key, value in given.items()}
    return _from_tensors(Path(type(source).__name__), tensors, (), network, dialect)


def _understood(path: Path, given: Shapes, network: str | None, dialect: str | None) -> Recognised:
    if network:
        return _as_named(path, given, network, dialect)
    found = recognise(given, dialect)
    if isinstance(found, str):
        what = f"it cannot be told which network these weights are of: {short(found, 300)}"
        raise WeightsError(what, where=str(path), fix=_NAME_IT)
    return found


def _as_named(path: Path, given: Shapes, network: str | Spec, dialect: str | None) -> Recognised:
    """The reading under which the tensors fit the network best; the classifier says how many classes there are."""
    named, best, fewest = spec_of(network), None, math.inf
    for reading in readings(given, dialect):
        spec, shapes = named, reading.shapes(given)
        last = shapes.get("head.linear.weight", ())
        if len(last) == 2 and last[0] and isinstance(spec.head, Linear):
            spec = replace(spec, head=Linear(last[0]))
        wrong = len(misfits(complete(tensors_of(plan(spec)), shapes), shapes, {}))
        if wrong < fewest:
            best, fewest = Recognised(reading, spec, ()), wrong
    if best is None and dialect:
        like = looks_like(given)
        fix = f"this file looks like {like}; " * bool(like) + "name another --dialect, or none"
        what, first = f"these names have no meaning in the dialect {dialect}", list(given)[:3]
        raise WeightsError(what, where=[str(path), ", ".join(map(short, first))], fix=fix)
    if best is None:  # to be compared as they are, so that the error shows them
        best = Recognised(Reading(OWN, "", {name: name for name in given}), named, ())
    return best


def _card(path: Path, found: Recognised, network: str | None, around: Sequence[str]) -> Card:
    """The card of a file without one: what was told, taken off and assumed."""
    reading, name = found.reading, name_of(network) if network else row_of(found.spec)
    taken = [f"in the table {table}" for table in around]
    taken += [f"behind the prefix {reading.prefix}"] * bool(reading.prefix)
    origin = ", ".join([f"{path.name}, read as {name} in the dialect {reading.dialect}", *taken])
    card = card_for(name, found.spec)
    prepared = preparation(found.spec, reading.convention) or card.preparation
    return replace(card, origin=origin, preparation=prepared, assumed=(*found.assumed, _said(prepared)))


def _said(how: Preparation) -> str:
    """How images are taken to be prepared, in a sentence."""
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (how.mean, how.std))
    size = "x".join(map(str, how.crop))
    return f"images are {how.colour} / 255, {size} from the middle of a side of {how.resize}, mean {mean}, std {std}"


def assemble(
    card: Card,
    tensors: Mapping[str, Tensor],
    where: str,
    fix: str = _NAME_IT,
    *,
    worked_out: Plan | None = None,
    names: Mapping[str, str] | None = None,
) -> Network:
    """The module of a card with these tensors, in fp32; all of them fit, or `WeightsError` is raised.

    Warns with `ResnetkitWarning` of numbers that are not finite.
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
        raise WeightsError(what, where=[where, *listed(found)], fix=advice(found, _shapes(tensors), fix))
    exact = {key: given[key].long() if key.endswith(COUNT) else given[key].float() for key in wanted}
    _warn_of(nonfinite(exact), where)
    _assign(model, exact)
    model.report = _report(exact, given, lacking, names or {})
    return model.eval()


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


def _warn_of(counts: Mapping[str, int], where: str) -> None:
    if counts:
        shown = [f"{key} ({count:,})" for key, count in counts.items()][:5]
        more = [f"{len(counts) - 5} more tensors"] * (len(counts) > 5)
        told = f"NaN or infinite numbers in {', '.join(shown + more)}: {where}"
        warnings.warn(told, ResnetkitWarning, stacklevel=4)  # whoever called load


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _fractional(key: str, value: Tensor) -> bool:
    return value.is_floating_point() or key.endswith(COUNT)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every tensor of a ``.safetensors`` file or of a restricted pickle, by name, and the tables around them."""
    start, safe = _start(path), path.suffix == ".safetensors"
    kind = kinds.kind_of(start)
    if kind == kinds.SAFETENSORS or (safe and not kind):
        return _read_safetensors(path), ()
    if kind in _PICKLES and not safe:
        return _read_pickle(path)
    what, fix = kinds.mistaken(start, "a safetensors file" if safe else "a weights file")
    raise WeightsError(what, where=str(path), fix=_RESAVE if kind in _PICKLES else fix or _RESAVE)


_PICKLES = (kinds.PICKLE, kinds.ZIP, "")  # an old one begins with any letter


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(kinds.START)
    except OSError as error:
        raise WeightsError(f"cannot read the weights: {error.strerror}", where=str(path)) from None


def _no_weights(source: str | Path) -> UsageError:
    if isinstance(source, str) and source in ROWS:
        fix = f"./{source}" if model_folder(Path(source)) else f"resnetkit train DATA --model {source}"
        return UsageError(f"{source} is a name without weights", where="model", fix=fix)
    try:
        card_of(source)
    except UsageError as error:
        return error
    return UsageError("this file describes a network and holds no weights", where=str(source), fix="train it first")


# ---------------------------------------------------------------------------------------------------------- formats


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _measure(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        reason = short(str(error), 200)
        raise WeightsError(f"not a sound safetensors file: {reason}", where=str(path), fix=_AGAIN) from None


_AGAIN = "copy or download the file again"


def _measure(path: Path) -> None:
    """Compare what the header declares with what is there, before anything is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _LONGEST_HEADER:
            raise WeightsError("not a safetensors file: its header has no sound length", where=str(path), fix=_AGAIN)
        header = file.read(length)
    if length + 8 > size:
        raise _truncated(path, length + 8, size)
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_once)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
        if not all(type(end) is int and 0 <= end < 2**63 for end in ends):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise WeightsError("not a sound safetensors file: its header is garbled", where=str(path), fix=_AGAIN) from None
    if needed > size:
        raise _truncated(path, needed, size)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _truncated(path: Path, needed: int, size: int) -> WeightsError:
    return WeightsError(f"file is truncated: needs {needed:,} bytes, has {size:,}", where=str(path), fix=_AGAIN)


_RESAVE = "save the tensors as safetensors with the program that wrote the file"


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    reason = objection(path)
    if reason:
        raise WeightsError(f"this pickle is not read: {reason}", where=str(path), fix=_RESAVE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol; the reader decides what it accepts
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(str(error), path), where=str(path), fix=_RESAVE) from None
    except Exception as error:  # a damaged archive makes torch raise almost anything
        reason = short(str(error).splitlines()[0], 200) if str(error) else type(error).__name__
        raise WeightsError(f"this file cannot be read as weights: {reason}", where=str(path), fix=_AGAIN) from None
    tensors, around = _inside(found, path.stat().st_size)
    if not tensors:
        raise WeightsError("this file holds no table of tensors", where=str(path), fix=_RESAVE)
    return tensors, around


def _inside(found: Any, size: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict, and the names of the tables around it: nothing but plain tensors that the file had room for."""
    if type(found) not in _TABLES:
        return {}, ()
    inner, around = unpacked(dict(dict.items(found)), lambda value: type(value) in _TABLES)
    if not all(type(key) is str for key in inner):
        return {}, around
    return (inner if all(_is_plain(value, size) for value in inner.values()) else {}), around


_TABLES = (dict, OrderedDict)


def _is_plain(value: Any, size: int) -> bool:
    """A tensor on the CPU, without attributes of its own, whose numbers are all stored, once each."""
    if type(value) not in (Tensor, torch.nn.Parameter) or vars(value):
        return False
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    stored = value.untyped_storage().nbytes()
    return bool(value.numel() * value.element_size() <= stored <= size)


def _refused(message: str, path: Path) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    name = stranger(path) or (named[1] if named else "")
    asks = f"asks to run code ({name})" if name else "holds instructions that the restricted reader does not know"
    return f"this pickle {asks}; nothing was run"
