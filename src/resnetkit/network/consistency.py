"""Compare a live network with its card: users change layers, wrap modules and add others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from resnetkit.architecture.card import Card
from resnetkit.architecture.spec import count_classes, replace_classes
from resnetkit.errors import UsageError
from resnetkit.network.build import build_meta_network
from resnetkit.network.layers import ACTIVATIONS, NetworkModule

# the inner module of torch.compile; of DataParallel, DistributedDataParallel and AveragedModel; of checkpoint_wrapper
_INNER_NAMES = ("_orig_mod", "module", "_checkpoint_wrapped_module")
_IGNORED_SETTINGS = {"training", "inplace", "plan", "card", "report", "frozen_paths"}
_MAX_LINES, _MAX_TEXT = 5, 90
_CLASSIFIER = "head.linear"


def unwrap_module(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch, such as those of ``torch.compile`` and DDP."""
    names = list(module._modules.keys())  # a traced module gives no iterator
    is_wrapper = any(base.__module__.startswith("torch.") for base in type(module).__mro__ if base is not nn.Module)
    if len(names) == 1 and names[0] in _INNER_NAMES and is_wrapper:
        return unwrap_module(module.get_submodule(names[0]))
    return module


def unwrap_network(module: object) -> NetworkModule:
    """Return the network of resnetkit in a module.

    Args:
        module: A network, or one inside the wrappers of torch.

    Raises:
        UsageError: there is none.
    """
    network = unwrap_module(module) if isinstance(module, nn.Module) else module
    if isinstance(network, NetworkModule):
        return network
    children = network.named_modules() if isinstance(network, nn.Module) else ()
    path = next((path for path, child in children if isinstance(child, NetworkModule)), None)
    fix = f"pass the network inside: model.{path}" if path else "convert it with resnetkit.load(model)"
    raise UsageError(f"a {type(network).__name__} is not a network of resnetkit", where="model", fix=fix)


def list_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a network by path, without wrappers; a shared module has several paths."""
    return dict(_iterate_layers(network, ""))


def _iterate_layers(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _iterate_layers(unwrap_module(child), _join(path, name))


def get_current_card(network: NetworkModule) -> Card:
    """Return the card with the number of classes of a replaced classifier; they have no names."""
    card, classifier = network.card, list_layers(network).get(_CLASSIFIER)
    n_classes = count_classes(card.spec.head)
    if not isinstance(classifier, nn.Linear) or not n_classes or classifier.out_features == n_classes:
        return card
    spec = replace_classes(card.spec, classifier.out_features)
    return replace(card, spec=spec, classes=(), metrics=(), origin=f"{card.origin}, with a new classifier")


def check_class_count(network: NetworkModule) -> None:
    """Check that the classifier of a network has as many classes as the card.

    Raises:
        UsageError: it was replaced by one of another size.
    """
    n_card, n_network = (count_classes(card.spec.head) for card in (network.card, get_current_card(network)))
    if n_card != n_network:
        message = f"the classifier was replaced: it has {n_network} classes, and the card has {n_card}"
        raise UsageError(message, where=_CLASSIFIER, fix=_BY_EDIT.format("classes(model, names)"))


def check_editable(network: NetworkModule) -> None:
    """Check that the layers of a network are those of its card, each at its path; others may be added.

    Raises:
        UsageError: a layer differs, or a part is wrapped.
    """
    wrapped = [path for path, module in network.named_modules() if unwrap_module(module) is not module]
    if wrapped:
        fix = "edit the network first, then compile or wrap its parts"
        raise UsageError("parts of this network are wrapped", where=wrapped[:_MAX_LINES], fix=fix)
    check_layers(network, network.card, allow_added=True)


@dataclass(frozen=True)
class LayerDifference:
    """A layer that is not as the card says; ``is_added`` if the card has nothing in its place."""

    text: str
    fix: str
    is_added: bool = False


def check_layers(network: NetworkModule, card: Card, *, allow_added: bool = False) -> None:
    """Check that the layers of a network are those of a card.

    Args:
        network: The network.
        card: The card.
        allow_added: Accept modules and tensors that were added to the network.

    Raises:
        UsageError: a layer differs; the fix names the edit or the spec that says the same.
    """
    expected = build_meta_network(card)
    roles = {path: part.role for path, part in expected.plan.parts.items()}
    differences = list(_iterate_differences("", expected, network, roles))
    if allow_added:
        differences = [difference for difference in differences if not difference.is_added]
    if differences:
        where = [difference.text for difference in differences[:_MAX_LINES]]
        if len(differences) > _MAX_LINES:
            where.append(f"{len(differences) - _MAX_LINES} more layers")
        message = "this network was changed by hand: it differs from its card"
        raise UsageError(message, where=where, fix=differences[0].fix)


def _iterate_differences(
    path: str, expected: nn.Module, actual: nn.Module, roles: Mapping[str, str]
) -> Iterator[LayerDifference]:
    """Yield the differences of a layer, or else those inside it."""
    text = _compare_layer(expected, actual)
    if text:
        fix = next(_iterate_fixes(path, roles.get(path, ""), expected, actual))
        yield LayerDifference(f"{path or 'network'}: {text}", fix)
        return
    for name in sorted(_get_shapes(actual).keys() - _get_shapes(expected)):
        yield _describe_added(_join(path, name), "Tensor")
    for name, child in expected._modules.items():
        child_path, actual_child = _join(path, name), actual._modules.get(name)
        if actual_child is None:
            fix = _EDIT_FIXES.get(roles.get(child_path, ""), _DEFAULT_FIX)
            yield LayerDifference(f"{child_path}: missing", fix)
        elif child is not None:
            yield from _iterate_differences(child_path, child, unwrap_module(actual_child), roles)
    for name in [name for name in actual._modules if name not in expected._modules]:
        yield _describe_added(_join(path, name), type(actual._modules[name]).__name__)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _describe_added(path: str, kind: str) -> LayerDifference:
    return LayerDifference(f"{path}: {kind} was added", f"remove it: del model.{path}", is_added=True)


def _compare_layer(expected: nn.Module, actual: nn.Module) -> str:
    """Return how a layer differs, without its children; empty if it does not."""
    is_synchronized = isinstance(actual, nn.SyncBatchNorm) and isinstance(expected, nn.BatchNorm2d)
    if not isinstance(actual, type(expected)) and not is_synchronized:
        return f"{_describe(actual)}, the card has {_describe(expected)}"
    changed = _find_changed_settings(expected, actual)
    if changed:
        values = ", ".join(f"{name} = {getattr(actual, name, None)}" for name in changed)
        return f"{values}, the card has " + ", ".join(str(getattr(expected, name)) for name in changed)
    if "forward" in vars(actual):
        return "its forward was replaced"
    actual_shapes, expected_shapes = _get_shapes(actual), _get_shapes(expected)
    for name, shape in expected_shapes.items():
        if actual_shapes.get(name) != shape:
            return f"{name} is {actual_shapes.get(name, 'missing')}, the card has {shape}"
    unknown = [name for name in actual_shapes if name not in expected_shapes and name in _TENSOR_FIXES]
    return f"{unknown[0]} was added" if unknown else ""


def _find_changed_settings(expected: nn.Module, actual: nn.Module) -> list[str]:
    names = [name for name in vars(expected) if not name.startswith("_") and name not in _IGNORED_SETTINGS]
    return [name for name in names if getattr(actual, name, None) != getattr(expected, name)]


def _describe(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"[:_MAX_TEXT]


def _get_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a layer that its state dict holds, without those of its children."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tuple(tensor.shape) for name, tensor in tensors if name not in module._non_persistent_buffers_set}


# -------------------------------------------------------------------------------------------------------------- fixes

_BY_EDIT = "make this change with resnetkit.surgery.{}"
_BY_SPEC = "build the network from a spec with {} and load model.state_dict() into it"
_DEFAULT_FIX = "undo the change, describe it in a spec, or keep the tensors with torch.save(model.state_dict(), FILE)"
_TENSOR_FIXES = {  # the end of the name of a tensor or module that a layer has besides its own
    "bias": _BY_SPEC.format('bias = "always"'),
    "_mask": "make it permanent: torch.nn.utils.prune.remove(model.{path}, '{name}')",
    "_g": "make it permanent: torch.nn.utils.remove_weight_norm(model.{path}, '{name}')",
    "_u": "make it permanent: torch.nn.utils.remove_spectral_norm(model.{path}, '{name}')",
    "parametrizations": "make it permanent: "
    "torch.nn.utils.parametrize.remove_parametrizations(model.{path}, '{parametrized}')",
}
_QUANTIZED_FIX = "save the network before quantization; resnetkit optimize makes int8 engines"
_SETTING_FIXES = {  # a setting that differs
    "dilation": _BY_EDIT.format("dilate"),
    "stride": _BY_EDIT.format("restride"),
    "kernel_size": _BY_EDIT.format("stem"),
    "out_channels": _BY_EDIT.format("prune or widen"),
    "in_channels": _BY_EDIT.format("prune or widen"),
    "num_features": _BY_EDIT.format("prune or widen"),
    "eps": _BY_SPEC.format("norm.eps = {value}"),
    "momentum": _BY_SPEC.format("norm.momentum = {value}"),
    "p": _BY_SPEC.format("head.dropout = {value}"),
    "rate": _BY_SPEC.format("another stochastic_depth"),
}
_NORM_FIXES = {nn.Identity: _BY_EDIT.format("fold_norms"), nn.GroupNorm: _BY_EDIT.format("group_norm")}
_EDIT_FIXES = {  # the role of a part that was replaced or removed
    "classifier": _BY_EDIT.format("classes or head"),
    "head": _BY_EDIT.format("classes or head"),
    "global-average": _BY_EDIT.format("head"),
    "stem": _BY_EDIT.format("stem"),
    "stem-conv": _BY_EDIT.format("stem"),
    "stem-pool": _BY_EDIT.format("stem"),
    "stage": _BY_EDIT.format("cut or remove"),
    "block": _BY_EDIT.format("remove"),
    "shortcut": _BY_EDIT.format("shortcuts"),
}


def _iterate_fixes(path: str, role: str, expected: nn.Module, actual: nn.Module) -> Iterator[str]:
    """Yield what to do about a changed layer, the most specific first."""
    added = {*_get_shapes(actual), *actual._modules} - {*_get_shapes(expected), *expected._modules}
    parametrized = next(iter(getattr(actual, "parametrizations", ())), "")
    for end, fix in _TENSOR_FIXES.items():
        names = sorted(name.removesuffix(end) for name in added if name.endswith(end))
        yield from (fix.format(path=path, name=name, parametrized=parametrized) for name in names)
    if type(actual).__module__.startswith("torch.ao."):
        yield _QUANTIZED_FIX
    activations = {kind: name for name, kind in ACTIVATIONS.items()}
    if {type(expected), type(actual)} <= activations.keys():
        yield _BY_SPEC.format(f'activation = "{activations[type(actual)]}"')
    if isinstance(expected, nn.BatchNorm2d) and type(actual) in _NORM_FIXES:
        yield _NORM_FIXES[type(actual)]
    is_same_kind = isinstance(actual, type(expected))
    changed = _find_changed_settings(expected, actual) if is_same_kind else []
    if role == "stem-conv" and "in_channels" in changed:
        yield _BY_EDIT.format(f"input_channels(model, {actual.in_channels})")
    yield from (fix.format(value=getattr(actual, name)) for name, fix in _SETTING_FIXES.items() if name in changed)
    if "forward" not in vars(actual):
        yield _EDIT_FIXES.get(role, _DEFAULT_FIX)
    yield _DEFAULT_FIX
