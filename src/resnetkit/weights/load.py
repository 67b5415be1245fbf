"""Load weights into a network.

A state dict is compared with the plan before a tensor is copied: either all of it is loaded or nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from resnetkit.architecture.card import WEIGHTS_FILE, Card, Preparation, make_card, read_card
from resnetkit.architecture.catalog import find_catalog_name, get_network_name
from resnetkit.architecture.catalog import spec as resolve_spec
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.spec import Pooled
from resnetkit.architecture.tensors import STEM_WEIGHT, TensorShapes, get_tensor_shapes
from resnetkit.errors import ResnetkitWarning, UsageError, WeightsError, suggest_fix
from resnetkit.formatting import pluralize
from resnetkit.network.build import build_meta_network
from resnetkit.network.consistency import unwrap_module
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import TensorReport
from resnetkit.weights import hugging_face, mismatch, recognize
from resnetkit.weights import model_source as sources
from resnetkit.weights.dialects import ALIASES
from resnetkit.weights.infer import infer_preparation
from resnetkit.weights.mismatch import BATCH_COUNT, Mismatch, sanitize_text
from resnetkit.weights.read import is_plain_tensor, read_tensors
from resnetkit.weights.recognize import RecognizedWeights
from resnetkit.weights.unwrap import unwrap_containers

_COPY_FOLDER_FIX = "copy the whole model folder again"
_NAME_NETWORK_FIX = "name the network the file was saved from, or describe it in a .toml file: --network"
_RESET_HEAD_FIX = "--reset-head CLASSES loads the body and starts a new classifier"
_LOAD_STATE_DICT_FIX = "if it is one of these networks all the same, load its state_dict()"
_MAX_LISTED = 5


@dataclass(frozen=True)
class LoadOptions:
    """Facts that the caller knows about weights, and the parts of them to ignore."""

    network: str | None = None
    dialect: str | None = None
    body_only: bool = False
    """Ignore the classifier, if there is one."""
    any_channels: bool = False
    """Accept another number of input channels than the named network has."""


DEFAULT_OPTIONS = LoadOptions()


def load_network(source: object, options: LoadOptions = DEFAULT_OPTIONS) -> NetworkModule:
    """Return the network of a source, in evaluation mode; a network of resnetkit is returned unchanged.

    Args:
        source: Anything that `resolve_model` takes.
        options: Facts about the weights.

    Raises:
        UsageError: ``source`` names no weights, or an option does not apply to it.
        WeightsError: the weights are damaged, do not fit, or their network cannot be recognized.
    """
    options = replace(options, dialect=ALIASES.get(options.dialect or "", options.dialect))
    if options.dialect and options.dialect not in recognize.KNOWN_DIALECTS:
        fix = suggest_fix(options.dialect, recognize.KNOWN_DIALECTS)
        raise UsageError(f"unknown dialect {options.dialect!r}", where="dialect", fix=fix)
    match resolved := _resolve_source(source, options):
        case sources.LiveModule(module):
            inner = unwrap_module(module)
            if not isinstance(inner, NetworkModule):
                return _load_live_module(inner, options)
            _check_unset(options, "network, dialect", "this model already has a card that describes it")
            return inner
        case sources.StateDict(tensors):
            return _load_state_dict(tensors, options)
        case sources.ModelFolder() | sources.RunFolder():
            folder = sources.find_model_folder(resolved) or Path()
            _check_unset(options, str(folder), "the card of a model folder already describes its weights")
            path = folder / WEIGHTS_FILE
            return assemble_network(read_card(folder), read_tensors(path)[0], str(path), _COPY_FOLDER_FIX)
        case sources.HuggingFaceFolder(path):
            network_option = LoadOptions(options.network)
            _check_unset(network_option, str(path), "the config of this folder already describes its weights")
            card, weights_path = hugging_face.read_hugging_face_folder(path)
            return _load_with_config(card, weights_path, read_tensors(weights_path)[0], options)
        case sources.WeightsFile(path):
            return _load_tensors(path, *read_tensors(path), options)
    raise _no_weights_error(resolved)


def _resolve_source(source: object, options: LoadOptions) -> sources.ModelSource:
    """Return what a source is; if the caller names a network, any file is a plain weights file."""
    if options.network and isinstance(source, str | os.PathLike) and Path(source).is_file():
        return sources.WeightsFile(Path(source))
    return sources.resolve_model(source)


def _check_unset(options: LoadOptions, location: str, message: str) -> None:
    if options.network or options.dialect:
        raise UsageError(message, where=location, fix="omit --network and --dialect")


def _no_weights_error(source: sources.CatalogName | sources.SpecFile) -> UsageError:
    name = source.name if isinstance(source, sources.CatalogName) else str(source.path)
    message = f"{name} is a network without weights"
    is_catalog_name = isinstance(source, sources.CatalogName)
    if is_catalog_name and any(map(sources.is_model_folder, (Path(name), Path(name) / "model"))):
        return UsageError(message, where="model", fix=f"./{name}")
    sources.load_card(source)  # if the file is missing or damaged, this says so
    return UsageError(message, where="model", fix=f"resnetkit train DATA --model {name}")


def _load_with_config(card: Card, path: Path, tensors: Mapping[str, Tensor], options: LoadOptions) -> NetworkModule:
    """Load tensors of transformers, whose config describes the network."""
    recognized = recognize.match_named(card.spec, get_shapes(tensors), "hf", body_only=options.body_only)
    mapping = recognized.mapping if recognized else recognize.make_identity_mapping(tensors)
    if options.body_only:
        card = replace(card, spec=replace(card.spec, head=Pooled()), classes=())
    skipped = tuple(key for key in tensors if key not in mapping.names)
    ours = {our_key: tensors[key] for key, our_key in mapping.names.items()}
    return assemble_network(card, ours, str(path), names=mapping.names, skipped=skipped)


def _load_tensors(
    path: Path, tensors: Mapping[str, Tensor], containers: Sequence[str], options: LoadOptions
) -> NetworkModule:
    recognized = _recognize(path, get_shapes(tensors), options)
    names = recognized.mapping.names
    ours = {our_key: tensors[key] for key, our_key in names.items()}
    ours |= {key: ours[key].flatten(1) for key in recognized.mapping.table.conv_keys & ours.keys()}
    skipped = tuple(key for key in tensors if key not in names)
    prefixes = list(dict.fromkeys(sanitize_text(".".join(key.split(".")[:-1]), 60) for key in skipped))
    if len(prefixes) > _MAX_LISTED:
        prefixes = [*prefixes[: _MAX_LISTED - 1], "others"]
    card = _build_card(path, recognized, options.network, containers, prefixes)
    return assemble_network(card, ours, str(path), plan=recognized.plan, names=names, skipped=skipped)


def _load_live_module(module: nn.Module, options: LoadOptions) -> NetworkModule:
    """Load a live model of another library; its tensors are copied."""
    name, config = type(module).__name__, getattr(module, "config", None)
    if getattr(config, "model_type", "") == "resnet" and config is not None and not options.network:
        card = hugging_face.build_card_from_config(config.to_dict(), name)
        model = _load_with_config(card, Path(name), _copy_tensors(module.state_dict(), name), options)
    else:
        model = _load_tensors(Path(name), _copy_tensors(module.state_dict(), name), (), options)
    if not options.body_only:
        _compare_outputs(module, model)
    return model


def _load_state_dict(tensors: Mapping[str, Tensor], options: LoadOptions) -> NetworkModule:
    name = type(tensors).__name__
    table, _ = unwrap_containers(dict(tensors), lambda value: isinstance(value, Mapping))
    return _load_tensors(Path(name), _copy_tensors(table, name), (), options)


def _copy_tensors(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    if not all(isinstance(key, str) and is_plain_tensor(value, any_device=True) for key, value in state.items()):
        raise UsageError("not a state dict: it must hold names and plain tensors", where=name)
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}


_PROBE_SIZE, _TOLERANCE, _HALF_TOLERANCE = 65, 1e-3, 5e-2  # the last for weights of 16 bits


def _compare_outputs(theirs: nn.Module, ours: NetworkModule) -> None:
    """Check that a live model and ours give the same output: shapes tell neither strides nor activations."""
    expected, outputs = _run_both(theirs, ours)
    if not isinstance(outputs, Tensor) or outputs.numel() != expected.numel():
        message = "the output of this model has another form than ours, so it cannot be compared"
        raise WeightsError(message, fix=_LOAD_STATE_DICT_FIX)
    difference = float((outputs.reshape(expected.shape).float().cpu() - expected).abs().max() / expected.abs().max())
    is_half = next(theirs.parameters()).element_size() < 4
    if not difference <= (_HALF_TOLERANCE if is_half else _TOLERANCE):
        message = f"this model has the tensors of {ours.card.name}, but its outputs differ by {difference:.2g}"
        fix = "describe its strides, dilation, pools, activations and epsilon in a .toml file: network="
        raise WeightsError(message, where=type(theirs).__name__, fix=fix)


def _run_both(theirs: nn.Module, ours: NetworkModule) -> tuple[Tensor, object]:
    """Return (our output, their output) for one small image of noise; the modes of their modules are kept."""
    parameter, rng = next(theirs.parameters()), torch.Generator().manual_seed(0)
    image = torch.rand(1, ours.card.spec.input[0], _PROBE_SIZE, _PROBE_SIZE - 2, generator=rng, device="cpu")
    modes = [(module, module.training) for module in theirs.modules()]
    try:
        with torch.inference_mode():
            outputs = theirs.eval()(image.to(parameter.device, parameter.dtype))
            return ours(image), getattr(outputs, "logits", outputs)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        message = f"this model cannot be compared with ours: {sanitize_text(str(error), 200)}"
        raise WeightsError(message, fix=_LOAD_STATE_DICT_FIX) from None
    finally:
        for module, training in modes:
            module.training = training


def _recognize(path: Path, their_shapes: TensorShapes, options: LoadOptions) -> RecognizedWeights:
    if options.network:
        return _match_network(path, their_shapes, options, options.network)
    recognized = recognize.recognize_weights(their_shapes, options.dialect, body_only=options.body_only)
    if isinstance(recognized, RecognizedWeights):
        return recognized
    message = f"cannot recognize the network of these weights: {sanitize_text(recognized, 300)}"
    body = recognize.recognize_weights(their_shapes, options.dialect, body_only=True)
    fix = _NAME_NETWORK_FIX
    if isinstance(body, RecognizedWeights):
        fix = f"{_describe_body(body.spec)}; {_RESET_HEAD_FIX}"
    raise WeightsError(message, where=str(path), fix=fix)


def _describe_body(spec: Spec) -> str:
    name, blocks = find_catalog_name(spec), "-".join(str(stage.blocks) for stage in spec.stages)
    return f"the body has {blocks} blocks" if name == "custom" else f"the body is that of {name}"


def _match_network(path: Path, their_shapes: TensorShapes, options: LoadOptions, network: str) -> RecognizedWeights:
    spec = resolve_spec(network)
    if options.any_channels:
        spec = replace(spec, input=(_find_input_channels(their_shapes, options) or spec.input[0], *spec.input[1:]))
    recognized = recognize.match_named(spec, their_shapes, options.dialect, body_only=options.body_only)
    if recognized is None:
        where = [str(path), ", ".join(map(sanitize_text, list(their_shapes)[:3]))]
        fix = mismatch.add_lookalike(recognize.guess_networks(their_shapes), "name another --dialect, or none")
        raise WeightsError(f"the dialect {options.dialect} does not have these names", where=where, fix=fix)
    return recognized


def _find_input_channels(their_shapes: TensorShapes, options: LoadOptions) -> int:
    """Return the input channels of the first convolution of a file; 0 if it is unknown."""
    shapes = (
        mapping.translate_shapes(their_shapes).get(STEM_WEIGHT, ())
        for mapping in recognize.iterate_mappings(their_shapes, options.dialect, body_only=options.body_only)
    )
    return next((shape[1] for shape in shapes if len(shape) == 4), 0)


def _build_card(
    path: Path, recognized: RecognizedWeights, network: str | None, containers: Sequence[str], skipped: Sequence[str]
) -> Card:
    """Return the card of a file without one: what was recognized, unwrapped and assumed."""
    mapping, name = recognized.mapping, get_network_name(network) if network else find_catalog_name(recognized.spec)
    origins = [f"{path.name}, read as {name} in the dialect {mapping.dialect}"]
    origins += [f"from the table {container}" for container in containers]
    if mapping.prefix:
        origins.append(f"without the prefix {mapping.prefix}")
    card = make_card(name, recognized.spec)
    preparation = infer_preparation(recognized.spec, mapping.convention) or card.preparation
    notes = [f"tensors of {prefix} are skipped" for prefix in skipped]
    assumed = (*recognized.assumed, *notes, _describe_preparation(preparation))
    return replace(card, origin=", ".join(origins), preparation=preparation, assumed=assumed)


def _describe_preparation(preparation: Preparation) -> str:
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (preparation.mean, preparation.std))
    channels, size = len(preparation.mean), "x".join(map(str, preparation.crop))
    colors = {1: "grayscale", 3: "RGB"}.get(channels, f"{channels} channels")
    return f"images are {colors} / 255, resized to {preparation.resize}, center crop {size}, mean {mean}, std {std}"


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
    """Return the network of a card with these tensors in fp32, in evaluation mode.

    Warns with `ResnetkitWarning` if a tensor has NaN or infinite values or negative variances.

    Args:
        card: The description of the network.
        tensors: The tensors by our keys.
        location: The file, for errors and warnings.
        fix: The advice if the tensors do not fit.
        plan: The plan of the card's spec, if it exists already.
        names: Our key for each name in the file; None if they are equal.
        skipped: Names in the file that are not loaded.

    Raises:
        WeightsError: a tensor is missing, has no place, or has another shape or type.
    """
    model = build_meta_network(card, plan)
    expected = get_tensor_shapes(model.plan)
    missing = [key for key in expected if key.endswith(BATCH_COUNT) and key not in tensors]
    available = {**tensors, **{key: torch.zeros((), dtype=torch.long, device="cpu") for key in missing}}
    mismatches = _find_mismatches(expected, available)
    if mismatches:
        count = f"{len(mismatches)} of {len(expected.keys() | available.keys())}"
        message = f"these weights do not fit {card.name}: {count} tensors differ"
        where = [location, *mismatch.format_mismatches(mismatches)]
        raise WeightsError(message, where=where, fix=_select_fix(mismatches, get_shapes(tensors), fix))
    converted = _convert_tensors(expected, available, location)
    _warn_counts(count_nonfinite(converted), "NaN or infinite values", location)
    negative = {key: int((value < 0).sum()) for key, value in converted.items() if key.endswith("running_var")}
    _warn_counts({key: count for key, count in negative.items() if count}, "negative variances", location)
    assign_tensors(model, converted)
    model.report = replace(_build_load_report(converted, available, missing, names or {}), dropped=skipped)
    return model.eval()


def _find_mismatches(expected: TensorShapes, available: Mapping[str, Tensor]) -> list[Mismatch]:
    integers = {
        key: str(value.dtype)
        for key, value in available.items()
        if not (value.is_floating_point() or key.endswith(BATCH_COUNT))
    }
    return mismatch.find_mismatches(expected, get_shapes(available), integers)


def _convert_tensors(expected: TensorShapes, available: Mapping[str, Tensor], location: str) -> dict[str, Tensor]:
    try:
        return {key: available[key].long() if key.endswith(BATCH_COUNT) else available[key].float() for key in expected}
    except (RuntimeError, NotImplementedError) as error:
        message = f"these tensors cannot be converted to fp32: {sanitize_text(str(error), 100)}"
        raise WeightsError(message, where=location, fix=mismatch.FLOAT_FIX) from None


def _select_fix(mismatches: Sequence[Mismatch], their_shapes: TensorShapes, fix: str) -> str:
    """Return what to do about mismatches: the option that helps, or to copy a model folder again."""
    if fix != _COPY_FOLDER_FIX:
        if channels := _find_channel_mismatch(mismatches):
            return f"the file has {pluralize(channels, 'input channel')}: --input-channels {channels}"
        if mismatch.is_only_head(mismatches):
            fix = _RESET_HEAD_FIX
    return mismatch.suggest_weights_fix(mismatches, recognize.guess_networks(their_shapes), fix)


def _find_channel_mismatch(mismatches: Sequence[Mismatch]) -> int:
    """Return the input channels of a file, if nothing else differs; otherwise 0."""
    actual, expected = mismatches[0].actual, mismatches[0].expected
    if [item.key for item in mismatches] != [STEM_WEIGHT] or not isinstance(actual, tuple) or not actual:
        return 0
    is_compatible = isinstance(expected, tuple) and (actual[0], *actual[2:]) == (expected[0], *expected[2:])
    return actual[1] if is_compatible else 0


def _build_load_report(
    converted: Mapping[str, Tensor], available: Mapping[str, Tensor], missing: Sequence[str], names: Mapping[str, str]
) -> TensorReport:
    theirs = {ours: name for name, ours in names.items() if ours != name}
    dtypes = {key: available[key].dtype for key in converted if available[key].dtype != converted[key].dtype}
    unchanged = [key for key in converted if key not in dtypes and key not in missing]
    return TensorReport(
        tuple(key for key in unchanged if key not in theirs),
        {key: theirs[key] for key in unchanged if key in theirs},
        {key: f"cast from {str(dtype).removeprefix('torch.')}" for key, dtype in dtypes.items()},
        dict.fromkeys(missing, "batch counts that the file lacks"),
    )


def assign_tensors(model: NetworkModule, tensors: Mapping[str, Tensor]) -> None:
    """Assign every parameter and buffer, three times as fast as ``load_state_dict(assign=True)``.

    Args:
        model: A network, on the meta device for example.
        tensors: A tensor for each of its keys.
    """
    for path, module in model.named_modules():
        for name, _ in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(tensors[f"{path}.{name}"]))
        for name, _ in [*module.named_buffers(recurse=False)]:
            setattr(module, name, tensors[f"{path}.{name}"])


def count_nonfinite(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of NaN and infinite values of each tensor that has some."""
    # a sum is finite unless a value is not, or it overflows: this reads the memory once, and seldom twice
    sums = torch.stack([value.sum(dtype=torch.float32) for value in tensors.values()])
    if bool(sums.isfinite().all()):
        return {}
    suspect_keys = [key for key, is_finite in zip(tensors, sums.isfinite().tolist(), strict=True) if not is_finite]
    counts = {key: int((~tensors[key].isfinite()).sum()) for key in suspect_keys}
    return {key: count for key, count in counts.items() if count}


def _warn_counts(counts: Mapping[str, int], problem: str, location: str) -> None:
    if counts:
        details = [f"{key} ({count:,})" for key, count in counts.items()][:_MAX_LISTED]
        if len(counts) > _MAX_LISTED:
            details.append(f"{len(counts) - _MAX_LISTED} more tensors")
        warnings.warn(f"{problem} in {', '.join(details)}: {location}", ResnetkitWarning, stacklevel=4)


def get_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {key: tuple(value.shape) for key, value in tensors.items()}
