"""Load weights into a network.

A state dict is compared with the plan before a tensor is copied: either all of it is loaded or nothing.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from resnetkit.architecture.card import WEIGHTS_FILE, Card, Preparation, make_card, read_card
from resnetkit.architecture.catalog import CATALOG, find_catalog_name, get_network_name
from resnetkit.architecture.catalog import spec as resolve_spec
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.spec import Pooled, count_classes
from resnetkit.architecture.tensors import STEM_WEIGHT, TensorShapes, get_tensor_shapes
from resnetkit.errors import ResnetkitWarning, UsageError, WeightsError, suggest_fix
from resnetkit.formatting import pluralize
from resnetkit.network.build import build_meta_network
from resnetkit.network.consistency import unwrap_module
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import TensorReport
from resnetkit.weights import hugging_face, mismatch, recognize
from resnetkit.weights import model_source as sources
from resnetkit.weights.constructor_args import build_timm_architecture
from resnetkit.weights.dialects import ALIASES
from resnetkit.weights.infer import infer_preparation
from resnetkit.weights.mismatch import BATCH_COUNT, Mismatch, sanitize_text
from resnetkit.weights.read import (
    WeightsContent,
    describe_several_tables,
    find_aliases,
    find_table,
    is_plain_tensor,
    read_tensors,
    select_prefix,
    separate_storage,
)
from resnetkit.weights.readings import READINGS_NOTE, adopt_conventions, describe_readings, list_readings
from resnetkit.weights.recognize import RecognizedWeights
from resnetkit.weights.unwrap import SeveralTablesError, find_class_names

_COPY_FOLDER_FIX = "copy the whole model folder again"
_NAME_NETWORK_FIX = "name the network the file was saved from, or describe it in a .toml file: --network"
_RESET_HEAD_FIX = "--reset-head CLASSES loads the body and starts a new classifier"
_LOAD_STATE_DICT_FIX = "if it is one of these networks all the same, load its state_dict()"
_MAX_LISTED = 5
_RESNET_NAME = re.compile(r"(se|eca|wide_)?(resne[tx]|senet)")


@dataclass(frozen=True)
class LoadOptions:
    """Facts that the caller knows about weights, and the parts of them to ignore."""

    network: str | None = None
    dialect: str | None = None
    body_only: bool = False
    """Ignore the classifier, if there is one."""
    any_channels: bool = False
    """Accept another number of input channels than the named network has."""
    state_dict: str | None = None
    """The table or the prefix of the tensors, if a file holds several networks."""


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
            return assemble_network(read_card(folder), read_tensors(path).tensors, str(path), _COPY_FOLDER_FIX)
        case sources.HuggingFaceFolder(path):
            network_option = LoadOptions(options.network, state_dict=options.state_dict)
            _check_unset(network_option, str(path), "the config of this folder already describes its weights")
            card, weights_path, dialect = hugging_face.read_hugging_face_folder(path)
            return _load_with_config(card, weights_path, read_tensors(weights_path), options, dialect)
        case sources.WeightsFile(path):
            return _load_tensors(path, read_tensors(path, options.state_dict or ""), options)
    raise _no_weights_error(resolved)


def _resolve_source(source: object, options: LoadOptions) -> sources.ModelSource:
    """Return what a source is; if the caller names a network, any file is a plain weights file."""
    if options.network and isinstance(source, str | os.PathLike) and Path(source).is_file():
        return sources.WeightsFile(Path(source))
    return sources.resolve_model(source)


def _check_unset(options: LoadOptions, location: str, message: str) -> None:
    if options.network or options.dialect:
        raise UsageError(message, where=location, fix="omit --network and --dialect")
    if options.state_dict:
        raise UsageError(message, where=location, fix="omit --state-dict")


def _no_weights_error(source: sources.CatalogName | sources.SpecFile) -> UsageError:
    name = source.name if isinstance(source, sources.CatalogName) else str(source.path)
    message = f"{name} is a network without weights"
    is_catalog_name = isinstance(source, sources.CatalogName)
    if is_catalog_name and any(map(sources.is_model_folder, (Path(name), Path(name) / "model"))):
        return UsageError(message, where="model", fix=f"./{name}")
    sources.load_card(source)  # if the file is missing or damaged, this says so
    return UsageError(message, where="model", fix=f"resnetkit train DATA --model {name}")


def _load_with_config(
    card: Card, path: Path, content: WeightsContent, options: LoadOptions, dialect: str = "hf"
) -> NetworkModule:
    """Load tensors of transformers or timm, whose config describes the network."""
    tensors = content.tensors
    recognized = recognize.match_named(card.spec, get_shapes(tensors), dialect, body_only=options.body_only)
    mapping = recognized.mapping if recognized else recognize.make_identity_mapping(tensors)
    if options.body_only:
        card = replace(card, spec=replace(card.spec, head=Pooled()), classes=())
    skipped = tuple(key for key in tensors if key not in mapping.names)
    return assemble_network(
        card, _rename_tensors(path, content, mapping), str(path), names=mapping.names, skipped=skipped
    )


def _load_tensors(path: Path, content: WeightsContent, options: LoadOptions) -> NetworkModule:
    tensors = content.tensors
    recognized = _recognize(path, content, options)
    names = recognized.mapping.names
    ours = _rename_tensors(path, content, recognized.mapping)
    skipped = tuple(key for key in tensors if key not in names)
    card = _build_card(path, recognized, options.network, content, skipped)
    return assemble_network(card, ours, str(path), plan=recognized.plan, names=names, skipped=skipped)


def _rename_tensors(path: Path, content: WeightsContent, mapping: recognize.KeyMapping) -> dict[str, Tensor]:
    """Return the tensors by our keys, each with its own storage.

    If they share storage so that they need more memory than their file has, they are refused.
    """
    ours = {our_key: content.tensors[key] for key, our_key in mapping.names.items()}
    needed = sum(value.numel() * value.element_size() for value in ours.values())
    if content.n_bytes and needed > content.n_bytes:
        message = f"these tensors share storage: they need {needed:,} bytes, and the file has {content.n_bytes:,}"
        raise WeightsError(message, where=str(path), fix="save a copy of each tensor: tensor.clone()")
    ours = separate_storage(ours)
    return ours | {key: ours[key].flatten(1) for key in {recognize.CLASSIFIER_WEIGHT} & ours.keys()}


def _load_live_module(module: nn.Module, options: LoadOptions) -> NetworkModule:
    """Load a live model of another library; its tensors are copied.

    If its outputs differ from ours, the other networks with these tensors are tried.
    """
    name, config = type(module).__name__, getattr(module, "config", None)
    tensors = _copy_tensors(module.state_dict(), name)
    if getattr(config, "model_type", "") == "resnet" and config is not None and not options.network:
        card = hugging_face.build_card_from_config(config.to_dict(), name)
        model = _load_with_config(card, Path(name), WeightsContent(tensors), options)
        _compare_outputs(module, model, options)
        return model
    model = _load_tensors(Path(name), WeightsContent(tensors), options)
    try:
        _compare_outputs(module, model, options)
    except WeightsError:
        for reading in () if options.network else list_readings(model.card.spec):
            named = _load_tensors(Path(name), WeightsContent(tensors), replace(options, network=reading))
            with suppress(WeightsError):
                _compare_outputs(module, named, options)
                return named
        raise
    return _confirm_reading(model)


def _confirm_reading(model: NetworkModule) -> NetworkModule:
    """Remove the other readings from the card of a network whose outputs were compared."""
    readings = [note for note in model.card.assumed if note.startswith(READINGS_NOTE)]
    for note in readings:
        assumed = tuple(kept for kept in model.card.assumed if kept != note)
        model.card = replace(model.card, origin=model.card.origin.replace(f", {note}", ""), assumed=assumed)
    return model


def _load_state_dict(state: Mapping[str, object], options: LoadOptions) -> NetworkModule:
    name, choice = type(state).__name__, options.state_dict or ""
    selected, prefix = find_table(state, lambda value: isinstance(value, Tensor), choice, name)
    table = select_prefix(state if selected is None else selected.table, prefix, name)
    containers = (*(selected.containers if selected else ()), *([prefix] if prefix else []))
    content = WeightsContent(
        _copy_tensors(table, name), containers, classes=find_class_names(state), aliases=find_aliases(table)
    )
    return _load_tensors(Path(name), content, options)


def _copy_tensors(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    if not all(isinstance(key, str) and is_plain_tensor(value, any_device=True) for key, value in state.items()):
        raise UsageError("not a state dict: it must hold names and plain tensors", where=name)
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}


_PROBE_SIZES, _TOLERANCE, _HALF_TOLERANCE = (65, 64), 1e-3, 5e-2  # the last for weights of 16 bits


def _compare_outputs(theirs: nn.Module, ours: NetworkModule, options: LoadOptions) -> None:
    """Check that a live model and ours compute the same: shapes tell neither strides nor activations.

    Without the classifier, one of its feature maps must be our last one.
    """
    expected, candidates = _run_both(theirs, ours, body_only=options.body_only)
    if not candidates and not options.body_only:
        message = "the output of this model has another form than ours, so it cannot be compared"
        raise WeightsError(message, fix=_LOAD_STATE_DICT_FIX)
    differences = [
        float((outputs.reshape(expected.shape).float().cpu() - expected).abs().max() / expected.abs().max())
        for outputs in candidates
    ]
    difference = min(differences, default=math.inf)
    is_half = next(theirs.parameters()).element_size() < 4
    if not difference <= (_HALF_TOLERANCE if is_half else _TOLERANCE):
        problem = "none of its maps is the last one" if options.body_only else f"its outputs differ by {difference:.2g}"
        message = f"this model has the tensors of {ours.card.name}, but {problem}"
        fix = "describe its strides, dilation, pools, activations and epsilon in a .toml file: network="
        raise WeightsError(message, where=type(theirs).__name__, fix=fix)


def _run_both(theirs: nn.Module, ours: NetworkModule, *, body_only: bool) -> tuple[Tensor, list[Tensor]]:
    """Return our output and theirs of its size, or feature maps, for a small image of noise."""
    problem: Exception | None = None
    modes = [(module, module.training) for module in theirs.modules()]
    try:
        theirs.eval()
        for size in _PROBE_SIZES:  # an odd side shows the edges of pools; average pools need an even one
            try:
                return _run_probe(theirs, ours, size, body_only=body_only)
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
                problem = problem or error
    finally:
        for module, training in modes:
            module.training = training
    message = f"this model cannot be compared with ours: {sanitize_text(str(problem), 200)}"
    raise WeightsError(message, fix=_LOAD_STATE_DICT_FIX)


@torch.inference_mode()
def _run_probe(theirs: nn.Module, ours: NetworkModule, size: int, *, body_only: bool) -> tuple[Tensor, list[Tensor]]:
    parameter, rng = next(theirs.parameters()), torch.Generator().manual_seed(0)
    image = torch.rand(1, ours.card.spec.input[0], size, size - size % 2 * 2, generator=rng, device="cpu")
    maps: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
        for module in (theirs.modules() if body_only else ())
    ]
    try:
        outputs = theirs(image.to(parameter.device, parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    expected = _compute_last_map(ours, image) if body_only else ours(image)
    values = (
        [value for value in maps if isinstance(value, Tensor)] if body_only else [getattr(outputs, "logits", outputs)]
    )
    candidates = [value for value in values if isinstance(value, Tensor) and value.numel() == expected.numel()]
    return expected, candidates


def _compute_last_map(model: NetworkModule, image: Tensor) -> Tensor:
    """Return the feature map that the head of a network averages."""
    maps: list[Tensor] = []
    handle = model.get_submodule("head.pool").register_forward_pre_hook(lambda _module, inputs: maps.append(inputs[0]))
    try:
        model(image)
    finally:
        handle.remove()
    return maps[0]


def _recognize(path: Path, content: WeightsContent, options: LoadOptions) -> RecognizedWeights:
    their_shapes = get_shapes(content.tensors)
    try:
        recognized = recognize.recognize_weights(
            their_shapes, options.dialect, body_only=options.body_only, aliases=content.aliases
        )
    except SeveralTablesError as error:
        raise describe_several_tables(str(path), error) from None
    if options.network:
        return _match_network(path, their_shapes, options, recognized)
    if isinstance(recognized, RecognizedWeights):
        return _adopt_architecture(recognized, content.architecture, str(path))
    message = f"cannot recognize the network of these weights: {sanitize_text(recognized, 300)}"
    body = recognize.recognize_weights(their_shapes, options.dialect, body_only=True)
    fix = _NAME_NETWORK_FIX
    if isinstance(body, RecognizedWeights):
        fix = f"{_describe_body(body.spec)}; {_RESET_HEAD_FIX}"
    raise WeightsError(message, where=str(path), fix=fix)


def _adopt_architecture(recognized: RecognizedWeights, architecture: str, location: str) -> RecognizedWeights:
    """Return recognized weights by the conventions of the network that the file names, if it names one."""
    if not architecture:
        return recognized
    try:
        named = CATALOG.get(architecture) or build_timm_architecture(architecture, {})
    except UsageError:
        if not _RESNET_NAME.match(architecture):
            return recognized
        message = f"the file says that its network is {sanitize_text(architecture, 60)!r}, which is not supported"
        raise WeightsError(message, where=location, fix="name the network that reads it: --network") from None
    spec = adopt_conventions(recognized.spec, named)
    if spec is None:
        note = f"the network {architecture} that the file names does not have these tensors"
        return replace(recognized, assumed=(note, *recognized.assumed))
    kept = tuple(note for note in recognized.assumed if note.startswith(recognize.CLASSIFIER_NOTE))
    notes = kept if spec != recognized.spec else recognized.assumed
    return replace(recognized, spec=spec, plan=None, assumed=notes, architecture=architecture)


def _describe_body(spec: Spec) -> str:
    name, blocks = find_catalog_name(spec), "-".join(str(stage.blocks) for stage in spec.stages)
    return f"the body has {blocks} blocks" if name == "custom" else f"the body is that of {name}"


def _match_network(
    path: Path, their_shapes: TensorShapes, options: LoadOptions, tolerant: RecognizedWeights | str
) -> RecognizedWeights:
    """Return how the tensors fit the named network; ``tolerant`` is what they tell by themselves."""
    spec = resolve_spec(options.network or "")
    if options.any_channels:
        spec = replace(spec, input=(_find_input_channels(their_shapes, options) or spec.input[0], *spec.input[1:]))
    recognized = recognize.match_named(spec, their_shapes, options.dialect, body_only=options.body_only)
    if isinstance(tolerant, RecognizedWeights) and (
        recognized is None or not recognize.is_exact(recognized, their_shapes)
    ):
        recognized = _adopt_named(tolerant, spec, options) or recognized
    if recognized is None:
        where = [str(path), ", ".join(map(sanitize_text, list(their_shapes)[:3]))]
        fix = mismatch.add_lookalike(recognize.guess_networks(their_shapes), "name another --dialect, or none")
        raise WeightsError(f"the dialect {options.dialect} does not have these names", where=where, fix=fix)
    return recognized


def _adopt_named(recognized: RecognizedWeights, named: Spec, options: LoadOptions) -> RecognizedWeights | None:
    """Return recognized weights by the conventions of a named network; None if they are of another.

    If the result has no name in the catalog, it keeps its own blocks and channels.
    """
    spec = adopt_conventions(recognized.spec, named)
    if spec is None or not (options.body_only or isinstance(spec.head, type(named.head))):
        return None
    is_named = replace(named, head=spec.head, input=(named.input[0], *spec.input[1:])) == spec
    if not is_named and find_catalog_name(spec) != "custom":
        return None
    notes = tuple(note for note in recognized.assumed if note.startswith(recognize.CLASSIFIER_NOTE))
    return RecognizedWeights(recognized.mapping, spec, notes, has_own_size=not is_named)


def _find_input_channels(their_shapes: TensorShapes, options: LoadOptions) -> int:
    """Return the input channels of the first convolution of a file; 0 if it is unknown."""
    shapes = (
        mapping.translate_shapes(their_shapes).get(STEM_WEIGHT, ())
        for mapping in recognize.iterate_mappings(their_shapes, options.dialect, body_only=options.body_only)
    )
    return next((shape[1] for shape in shapes if len(shape) == 4), 0)


def _build_card(
    path: Path, recognized: RecognizedWeights, network: str | None, content: WeightsContent, skipped: Sequence[str]
) -> Card:
    """Return the card of a file without one: what was recognized, unwrapped and assumed."""
    mapping, spec = recognized.mapping, recognized.spec
    name = get_network_name(network) if network and not recognized.has_own_size else find_catalog_name(spec)
    is_decided = bool(network or recognized.architecture) or mapping.convention.padding_adapter is not None
    readings = "" if is_decided else describe_readings(spec, mapping.dialect)
    origins = [
        f"{path.name}, read as {name} in the dialect {mapping.dialect}",
        f"by the conventions of {network}" if recognized.has_own_size else "",
        f"as its entry arch ({sanitize_text(recognized.architecture, 60)}) says" if recognized.architecture else "",
        *(f"from the table {sanitize_text(name)}" for name in content.containers),
        f"without the prefix {mapping.prefix}" if mapping.prefix else "",
        readings,
    ]
    card = make_card(name, spec, content.classes if len(content.classes) == count_classes(spec.head) else ())
    preparation = infer_preparation(spec, mapping.convention) or card.preparation
    prefixes = dict.fromkeys(sanitize_text(key.rpartition(".")[0] or key, 60) for key in skipped)
    notes = [f"tensors of {prefix} are skipped" for prefix in _shorten(tuple(prefixes))]
    if content.objects:
        notes.append(f"objects beside the tensors are dropped: {', '.join(_shorten(content.objects))}")
    if content.classes and not card.classes:
        notes.append(f"the {len(content.classes)} class names of the file do not fit the classifier and are skipped")
    assumed = (*filter(None, [readings]), *recognized.assumed, *notes, _describe_preparation(preparation))
    return replace(card, origin=", ".join(filter(None, origins)), preparation=preparation, assumed=assumed)


def _shorten(items: Sequence[str]) -> Sequence[str]:
    """Return the first items, with the last one replaced if there are more than `_MAX_LISTED`."""
    return items if len(items) <= _MAX_LISTED else (*items[: _MAX_LISTED - 1], "others")


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

    Warns with `ResnetkitWarning` if a tensor has NaN or infinite values, or variances that cannot be.

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
    missing = {key: "batch counts that the file lacks" for key in expected if key.endswith(BATCH_COUNT)}
    if fix != _COPY_FOLDER_FIX and recognize.CLASSIFIER_WEIGHT in tensors:
        missing[recognize.CLASSIFIER_BIAS] = "zeros, as the file has no bias"
    missing = {key: method for key, method in missing.items() if key in expected and key not in tensors}
    zeros = {
        key: torch.zeros(expected[key], dtype=torch.long if key.endswith(BATCH_COUNT) else torch.float, device="cpu")
        for key in missing
    }
    available = {**tensors, **zeros}
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
    zero = {key: converted[key].numel() for key in negative if not converted[key].any()}
    if len(zero) < len(negative):  # all are 0 in tensors that somebody made for a test
        _warn_counts(zero, "all variances are 0, as in an incomplete file,", location)
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
    converted: Mapping[str, Tensor],
    available: Mapping[str, Tensor],
    missing: Mapping[str, str],
    names: Mapping[str, str],
) -> TensorReport:
    theirs = {ours: name for name, ours in names.items() if ours != name}
    dtypes = {key: available[key].dtype for key in converted if available[key].dtype != converted[key].dtype}
    unchanged = [key for key in converted if key not in dtypes and key not in missing]
    return TensorReport(
        tuple(key for key in unchanged if key not in theirs),
        {key: theirs[key] for key in unchanged if key in theirs},
        {key: f"cast from {str(dtype).removeprefix('torch.')}" for key, dtype in dtypes.items()},
        dict(missing),
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
