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
    find_model_folder,
    is_hugging_face_folder,
    make_card,
    read_card,
    resolve_card,
)
from resnetkit.architecture.catalog import CATALOG, find_catalog_name, get_network_name
from resnetkit.architecture.catalog import spec as resolve_spec
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.spec import Pooled
from resnetkit.architecture.tensors import STEM_WEIGHT, TensorShapes, get_tensor_shapes
from resnetkit.errors import MachineError, ResnetkitWarning, UsageError, WeightsError, suggest_fix
from resnetkit.formatting import pluralize
from resnetkit.network.build import build_meta_network
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import TensorReport
from resnetkit.serialization import to_json
from resnetkit.surgery.head_and_input import classes as replace_classes
from resnetkit.surgery.head_and_input import input_channels as adapt_input_channels
from resnetkit.weights.dialects import ALIASES
from resnetkit.weights.fit import (
    BATCH_COUNT,
    Mismatch,
    find_mismatches,
    format_mismatches,
    sanitize_text,
    suggest_weights_fix,
)
from resnetkit.weights.hugging_face import HF_WEIGHTS_FILES, build_card_from_config, read_hugging_face_folder
from resnetkit.weights.infer import infer_preparation
from resnetkit.weights.read import is_plain_tensor, read_tensors
from resnetkit.weights.recognize import (
    KNOWN_DIALECTS,
    RecognizedWeights,
    guess_networks,
    iterate_mappings,
    make_identity_mapping,
    match_named,
    recognize_weights,
)
from resnetkit.weights.unwrap import unwrap_containers

_COPY_FOLDER_FIX = "copy the whole model folder again"
_NAME_NETWORK_FIX = "name the network that it was saved from, or describe it in a .toml file: --network"
_RESET_HEAD_FIX = "--reset-head CLASSES takes it and starts a new classifier"


def save(model: NetworkModule, folder: str | Path) -> Path:
    """Write a model folder (card and weights), whole or not at all; an existing folder is refused."""
    folder = Path(folder)
    if folder.exists():
        raise UsageError("this folder exists already", where=str(folder), fix="name another, or remove it")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        with files.atomic_write_folder(folder) as partial_folder:
            (partial_folder / CARD_FILE).write_text(to_json(model.card), encoding="utf-8", errors="backslashreplace")
            save_file(tensors, partial_folder / WEIGHTS_FILE, {"format": "pt"})
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
) -> NetworkModule:
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
    _check_source(source, network, dialect)
    options = LoadOptions(network, dialect, reset_head is not None, input_channels is not None)
    model = (
        _load_live_module(source, options) if isinstance(source, nn.Module | Mapping) else _load_stored(source, options)
    )
    if reset_head is not None:
        model = _chain_reports(model, replace_classes(model, reset_head)[0])
    if input_channels is not None:
        model = _chain_reports(model, adapt_input_channels(model, input_channels)[0])
    return model


def _chain_reports(old_model: NetworkModule, new_model: NetworkModule) -> NetworkModule:
    """The changed network with one report of both changes."""
    if new_model is not old_model:
        new_model.report = old_model.report.combine(new_model.report)
    return new_model


def _check_source(source: object, network: str | None, dialect: str | None) -> None:
    """Raise `UsageError` for what is none of the things that can be loaded, and for a dialect that is not known."""
    if not isinstance(source, str | os.PathLike | nn.Module | Mapping):
        raise UsageError(f"a {type(source).__name__} is no model", where="model", fix="name a file or folder")
    if dialect and dialect not in KNOWN_DIALECTS:
        raise UsageError(
            f"there is no dialect called {dialect!r}", where="dialect", fix=suggest_fix(str(dialect), KNOWN_DIALECTS)
        )
    if (network or dialect) and isinstance(source, NetworkModule):
        raise UsageError("this model knows what it is", where="network, dialect", fix="leave them out")


@dataclass(frozen=True)
class LoadOptions:
    """What whoever loads knows of a file: its network, its dialect; and of what is in it no heed is to be taken."""

    network: str | None
    dialect: str | None
    body_only: bool
    any_channels: bool


def _load_stored(source: str | os.PathLike[str], options: LoadOptions) -> NetworkModule:
    source = source if isinstance(source, str) else Path(source)
    folder = None if options.network and Path(source).is_file() else find_model_folder(source)
    if folder and (options.network or options.dialect):
        raise UsageError("a model folder says itself what is in it", where=str(folder), fix="leave --network out")
    if folder:
        path = folder / WEIGHTS_FILE
        return assemble_network(read_card(folder), read_tensors(path)[0], str(path), _COPY_FOLDER_FIX)
    path = Path(source)
    hf_folder = path.parent if path.is_file() and path.name in HF_WEIGHTS_FILES else path  # its config says what it is
    if is_hugging_face_folder(hf_folder) and not options.network:
        return _load_hugging_face(hf_folder, options)
    if not path.is_file():
        raise _make_no_weights_error(source)
    tensors, containers = read_tensors(path)
    return _load_tensors(path, tensors, containers, options)


def _load_hugging_face(folder: Path, options: LoadOptions) -> NetworkModule:
    card, path = read_hugging_face_folder(folder)
    tensors, _ = read_tensors(path)
    return _load_with_config(card, path, tensors, options)


def _load_with_config(card: Card, path: Path, tensors: Mapping[str, Tensor], options: LoadOptions) -> NetworkModule:
    """Tensors of transformers, of which a config has told the network."""
    recognized = match_named(card.spec, _get_shapes(tensors), "hf", body_only=options.body_only)
    mapping = recognized.mapping if recognized else make_identity_mapping(tensors)
    card = replace(card, spec=replace(card.spec, head=Pooled()), classes=()) if options.body_only else card
    skipped = tuple(key for key in tensors if key not in mapping.names)
    ours = {our_key: tensors[key] for key, our_key in mapping.names.items()}
    return assemble_network(card, ours, str(path), names=mapping.names, skipped=skipped)


def _load_tensors(
    path: Path, tensors: Mapping[str, Tensor], containers: Sequence[str], options: LoadOptions
) -> NetworkModule:
    recognized = _recognize(path, _get_shapes(tensors), options)
    names = recognized.mapping.names
    ours = {our_key: tensors[key] for key, our_key in names.items()}
    ours |= {key: ours[key].flatten(1) for key in recognized.mapping.table.conv_keys & ours.keys()}
    skipped = tuple(key for key in tensors if key not in names)
    prefixes = list(dict.fromkeys(sanitize_text(".".join(key.split(".")[:-1]), 60) for key in skipped))
    card = _build_card(
        path, recognized, options.network, containers, prefixes if len(prefixes) <= 5 else [*prefixes[:4], "others"]
    )
    return assemble_network(card, ours, str(path), plan=recognized.plan, names=names, skipped=skipped)


def _load_live_module(source: nn.Module | Mapping[str, Tensor], options: LoadOptions) -> NetworkModule:
    """From a live model or a state dict; the tensors are copied."""
    if isinstance(source, NetworkModule):
        return source
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if not isinstance(source, nn.Module):
        state, _ = unwrap_containers(dict(state), lambda value: isinstance(value, Mapping))
    name = type(source).__name__
    if not all(isinstance(key, str) and is_plain_tensor(value, any_device=True) for key, value in state.items()):
        raise UsageError("this is no state dict: names and plain tensors", where=name)
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    config = getattr(source, "config", None)
    if config is not None and getattr(config, "model_type", "") == "resnet" and not options.network:
        model = _load_with_config(build_card_from_config(config.to_dict(), name), Path(name), tensors, options)
    else:
        model = _load_tensors(Path(name), tensors, (), options)
    if isinstance(source, nn.Module) and not options.body_only:
        _compare_outputs(source, model)
    return model


_PROBE_SIZE, _TOLERANCE, _HALF_TOLERANCE = 65, 1e-3, 5e-2  # the last for numbers of 16 bits


def _compare_outputs(theirs: nn.Module, ours: NetworkModule) -> None:
    """Raise `WeightsError` where a live model answers otherwise than ours: shapes tell no stride and no activation."""
    parameter = next(theirs.parameters())
    image = torch.rand(
        1, ours.card.spec.input[0], _PROBE_SIZE, _PROBE_SIZE - 2, generator=torch.Generator().manual_seed(0)
    )
    modes = [(module, module.training) for module in theirs.modules()]
    try:
        with torch.inference_mode():
            outputs = theirs.eval()(image.to(parameter.device, parameter.dtype))
            expected = ours(image)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise WeightsError(
            f"this model cannot be run beside ours: {sanitize_text(str(error), 200)}", fix=_LOAD_STATE_DICT_FIX
        ) from None
    finally:
        for module, training in modes:
            module.training = training
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor) or outputs.numel() != expected.numel():
        raise WeightsError(
            "this model hands on something else than ours, so it is not compared", fix=_LOAD_STATE_DICT_FIX
        )
    difference = float((outputs.reshape(expected.shape).float().cpu() - expected).abs().max() / expected.abs().max())
    if not difference <= (_TOLERANCE if parameter.element_size() >= 4 else _HALF_TOLERANCE):
        message = (
            f"this model has the tensors of {ours.card.name}, and answers otherwise: they differ by {difference:.2g}"
        )
        fix = "strides, dilation, pools, activations or epsilon are its own: describe it in a .toml file, network="
        raise WeightsError(message, where=type(theirs).__name__, fix=fix)


_LOAD_STATE_DICT_FIX = "load its state_dict(), if it is one of ours all the same"


def _recognize(path: Path, their_shapes: TensorShapes, options: LoadOptions) -> RecognizedWeights:
    if options.network:
        return _match_network(path, their_shapes, options, options.network)
    recognized = recognize_weights(their_shapes, options.dialect, body_only=options.body_only)
    if isinstance(recognized, str):
        message = f"it cannot be told which network these weights are of: {sanitize_text(recognized, 300)}"
        body = None if options.body_only else recognize_weights(their_shapes, options.dialect, body_only=True)
        fix = (
            f"{_describe_body(body.spec)}; {_RESET_HEAD_FIX}"
            if isinstance(body, RecognizedWeights)
            else _NAME_NETWORK_FIX
        )
        raise WeightsError(message, where=str(path), fix=fix)
    return recognized


def _describe_body(spec: Spec) -> str:
    name = find_catalog_name(spec)
    blocks = "-".join(str(stage.blocks) for stage in spec.stages)
    return f"the body is that of {name}" if name != "custom" else f"the body is one of {blocks} blocks"


def _match_network(path: Path, their_shapes: TensorShapes, options: LoadOptions, network: str) -> RecognizedWeights:
    spec = resolve_spec(network)
    if options.any_channels:
        spec = replace(spec, input=(_find_input_channels(their_shapes, options) or spec.input[0], *spec.input[1:]))
    recognized = match_named(spec, their_shapes, options.dialect, body_only=options.body_only)
    if recognized is None:
        lookalike = guess_networks(their_shapes)
        fix = f"this file looks like {lookalike}; " * bool(lookalike) + "name another --dialect, or none"
        message, first_names = f"these names have no meaning in the dialect {options.dialect}", list(their_shapes)[:3]
        raise WeightsError(message, where=[str(path), ", ".join(map(sanitize_text, first_names))], fix=fix)
    return recognized


def _find_input_channels(their_shapes: TensorShapes, options: LoadOptions) -> int:
    """How many the first convolution of a file sees; 0 where that cannot be told."""
    shapes = (
        mapping.translate_shapes(their_shapes).get(STEM_WEIGHT, ())
        for mapping in iterate_mappings(their_shapes, options.dialect, body_only=options.body_only)
    )
    return next((shape[1] for shape in shapes if len(shape) == 4), 0)


def _build_card(
    path: Path,
    recognized: RecognizedWeights,
    network: str | None,
    containers: Sequence[str],
    skipped: Sequence[str] = (),
) -> Card:
    """The card of a file without one: what was told, taken off and assumed."""
    mapping, name = recognized.mapping, get_network_name(network) if network else find_catalog_name(recognized.spec)
    origins = [f"in the table {container}" for container in containers]
    origins += [f"behind the prefix {mapping.prefix}"] * bool(mapping.prefix)
    origin = ", ".join([f"{path.name}, read as {name} in the dialect {mapping.dialect}", *origins])
    card = make_card(name, recognized.spec)
    image_preparation = infer_preparation(recognized.spec, mapping.convention) or card.preparation
    notes = [f"what begins with {prefix} is left out" for prefix in skipped]
    return replace(
        card,
        origin=origin,
        preparation=image_preparation,
        assumed=(*recognized.assumed, *notes, _describe_preparation(image_preparation)),
    )


def _describe_preparation(preparation: Preparation) -> str:
    """How images are taken to be prepared, in a sentence."""
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (preparation.mean, preparation.std))
    size = "x".join(map(str, preparation.crop))
    colors = {1: "grey", 3: "RGB"}.get(len(preparation.mean), f"{len(preparation.mean)} channels")
    return (
        f"images are {colors} / 255, {size} from the middle of a side of {preparation.resize}, mean {mean}, std {std}"
    )


def assemble_network(
    card: Card,
    tensors: Mapping[str, Tensor],
    location: str,
    fix: str = _NAME_NETWORK_FIX,
    *,
    plan: Plan | None = None,
    names: Mapping[str, str] | None = None,
    skipped: tuple[str, ...] = (),
) -> NetworkModule:
    """The module of a card with these tensors, in fp32; all of them fit, or `WeightsError` is raised.

    ``names`` has ours for theirs, ``left`` those that are not taken. Warns with `ResnetkitWarning` of numbers that
    are not finite.
    """
    model = build_meta_network(card, plan)
    expected = get_tensor_shapes(model.plan)
    missing = [key for key in expected if key.endswith(BATCH_COUNT) and key not in tensors]
    available = {**tensors, **{key: torch.zeros((), dtype=torch.long) for key in missing}}
    integer_types = {key: str(value.dtype) for key, value in available.items() if not _is_float_or_count(key, value)}
    mismatches = find_mismatches(expected, _get_shapes(available), integer_types)
    if mismatches:
        count = f"{len(mismatches)} of {len(expected.keys() | available.keys())}"
        message = f"these weights do not fit {card.name}: {count} tensors differ"
        raise WeightsError(
            message,
            where=[location, *format_mismatches(mismatches)],
            fix=_select_fix(mismatches, _get_shapes(tensors), fix),
        )
    try:
        converted = {
            key: available[key].long() if key.endswith(BATCH_COUNT) else available[key].float() for key in expected
        }
    except (RuntimeError, NotImplementedError) as error:
        message = f"these numbers cannot be read as fp32: {sanitize_text(str(error), 100)}"
        raise WeightsError(message, where=location, fix="save the tensors as fp32, fp16 or bf16") from None
    _warn_counts(count_nonfinite(converted), "NaN or infinite numbers", location)
    _warn_counts({key: n for key in converted if key.endswith("running_var") and (n := int((converted[key] < 0).sum()))},
             "negative variances", location)  # fmt: skip
    _assign_tensors(model, converted)
    model.report = replace(_build_load_report(converted, available, missing, names or {}), dropped=skipped)
    return model.eval()


def _select_fix(mismatches: Sequence[Mismatch], their_shapes: TensorShapes, fix: str) -> str:
    """What to do about misfits. Of a weights file, the options that help; a model folder is whole or it is not."""
    channels = _find_channel_mismatch(mismatches)
    if fix != _COPY_FOLDER_FIX and channels:
        return f"the file is for {pluralize(channels, 'input channel')}: --input-channels {channels}"
    if fix != _COPY_FOLDER_FIX and all(mismatch.key.startswith("head.") for mismatch in mismatches):
        fix = _RESET_HEAD_FIX
    return suggest_weights_fix(mismatches, guess_networks(their_shapes), fix)


def _find_channel_mismatch(mismatches: Sequence[Mismatch]) -> int:
    """How many input channels a file is for, where that is all that differs."""
    if [mismatch.key for mismatch in mismatches] != [STEM_WEIGHT]:
        return 0
    actual, expected = mismatches[0].actual, mismatches[0].expected
    is_compatible = (
        isinstance(actual, tuple)
        and isinstance(expected, tuple)
        and (*actual[:1], *actual[2:]) == (*expected[:1], *expected[2:])
    )
    return int(actual[1]) if is_compatible and actual else 0


def _build_load_report(
    converted: Mapping[str, Tensor], available: Mapping[str, Tensor], missing: Sequence[str], names: Mapping[str, str]
) -> TensorReport:
    """``names`` has ours for theirs."""
    theirs = {ours: name for name, ours in names.items() if ours != name}
    adapted = {
        key: f"cast from {_format_dtype(available[key])}"
        for key in converted
        if available[key].dtype != converted[key].dtype
    }
    unchanged = [key for key in converted if key not in adapted and key not in missing]
    return TensorReport(
        tuple(key for key in unchanged if key not in theirs),
        {key: theirs[key] for key in unchanged if key in theirs},
        adapted,
        dict.fromkeys(missing, "counts of batches, which the file lacks"),
    )


def _format_dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _assign_tensors(model: NetworkModule, tensors: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer its tensor, as ``load_state_dict(assign=True)`` does at three times the cost."""
    for path, module in model.named_modules():
        for name, _ in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(tensors[f"{path}.{name}"]))
        for name, _ in [*module.named_buffers(recurse=False)]:
            setattr(module, name, tensors[f"{path}.{name}"])


def count_nonfinite(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers are NaN or infinite, for each tensor that holds some."""
    # a sum is finite unless a number is not, or it overflows: one pass over the memory, and a second one rarely
    sums = torch.stack([value.sum(dtype=torch.float32) for value in tensors.values()])
    if bool(sums.isfinite().all()):
        return {}
    suspect_keys = [key for key, is_finite in zip(tensors, sums.isfinite().tolist(), strict=True) if not is_finite]
    counts = {key: int((~tensors[key].isfinite()).sum()) for key in suspect_keys}
    return {key: count for key, count in counts.items() if count}


def _warn_counts(counts: Mapping[str, int], problem: str, location: str) -> None:
    if counts:
        details = [f"{key} ({count:,})" for key, count in counts.items()][:5]
        remainder = [f"{len(counts) - 5} more tensors"] * (len(counts) > 5)
        message = f"{problem} in {', '.join(details + remainder)}: {location}"
        warnings.warn(message, ResnetkitWarning, stacklevel=4)  # whoever called load


def _get_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _is_float_or_count(key: str, value: Tensor) -> bool:
    return value.is_floating_point() or key.endswith(BATCH_COUNT)


def _make_no_weights_error(source: str | Path) -> UsageError:
    if isinstance(source, str) and source in CATALOG:
        fix = f"./{source}" if find_model_folder(Path(source)) else f"resnetkit train DATA --model {source}"
        return UsageError(f"{source} is a name without weights", where="model", fix=fix)
    try:
        resolve_card(source)
    except UsageError as error:
        return error
    return UsageError("this file describes a network and holds no weights", where=str(source), fix="train it first")
