"""What `save` writes is what the network computes: hand-made changes, wrappers, and what is refused."""

import copy
import re
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import resnetkit
from resnetkit import surgery
from resnetkit.architecture import spec as s
from resnetkit.errors import ResnetkitWarning, UsageError, VerificationError
from resnetkit.network.build import build
from resnetkit.network.compare import measure_difference
from resnetkit.surgery.norms import fold_for_inference
from resnetkit.weights.convert import as_module, convert
from resnetkit.weights.save import save

from helpers.networks import make_images, randomize_norms
from helpers.tiny import BASE, TINY


def make_network(spec=BASE, classes=None):
    return randomize_norms(build(spec, classes=classes))


def change(path, new):
    """Return a function that replaces a module or an attribute of a network."""

    def apply(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)

    return apply


def change_all(kind, **settings):
    """Return a function that changes attributes of all layers of a kind."""

    def apply(model):
        for module in model.modules():
            for name, value in settings.items() if isinstance(module, kind) else ():
                setattr(module, name, value)

    return apply


def replace_all(kind, make):
    """Return a function that replaces all layers of a kind."""

    def apply(model):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, kind):
                    setattr(parent, name, make())

    return apply


def list_files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", TINY)
def test_every_kind_of_network_is_saved(tmp_path, name):
    model = make_network(TINY[name])
    saved = resnetkit.load(save(model, tmp_path / "model"))
    assert saved.card == model.card
    x = make_images(model)
    torch.testing.assert_close(saved(x), model(x))


# ------------------------------------------------------------------------------------------------------------ accepted


def wrap_ddp(model):
    return nn.parallel.DistributedDataParallel(model)


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled and parallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    "averaged of compiled": lambda model: AveragedModel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_removed(tmp_path, name):
    model = make_network()
    wrapped = WRAPPERS[name](copy.deepcopy(model))
    x = make_images(model)
    saved = resnetkit.load(save(wrapped, tmp_path / "model"))
    assert list(saved.state_dict()) == list(model.state_dict())
    assert torch.equal(saved(x), model(x))
    assert torch.equal(resnetkit.load(wrapped)(x), model(x))
    assert surgery.freeze(wrapped, 1)[1].kept


def test_distributed_data_parallel_is_removed(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = make_network()
        saved = resnetkit.load(save(nn.parallel.DistributedDataParallel(model), tmp_path / "model"))
    finally:
        torch.distributed.destroy_process_group()
    x = make_images(model)
    assert torch.equal(saved(x), model(x))


def compile_part(model):
    model.stage1 = torch.compile(model.stage1, backend="eager")
    model.stage2.compile(backend="eager")


def share_layers(model):
    model.stage1.block1.act = model.stage1.block2.act
    model.stage1.block1.branch.conv1.weight = model.stage1.block2.branch.conv1.weight


HARMLESS = {
    "compiled parts": compile_part,
    "compiled in place": lambda model: model.compile(backend="eager"),
    "activations in place": change_all(nn.ReLU, inplace=True),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "training": lambda model: model.train(),
    "shared layers": share_layers,
    "flat parameters": lambda model: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(model.parameters()), model.parameters()
    ),
    "temporary buffer": lambda model: model.register_buffer("mean", torch.zeros(3), persistent=False),
    "hook that reads": lambda model: model.stage1.register_forward_hook(lambda *arguments: None),
    "attribute": change("stage1.note", "mine"),
    "attribute of a tensor": lambda model: setattr(model.stem.conv1.weight, "no_decay", True),
    "pruned for good": lambda model: prune.remove(prune.l1_unstructured(model.stem.conv1, "weight", 0.5), "weight"),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "NaN": lambda model: nn.init.constant_(model.stem.conv1.weight, float("nan")),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.filterwarnings("ignore:NaN or infinite values")
def test_changes_that_the_outputs_do_not_show(tmp_path, name):
    model = make_network()
    HARMLESS[name](model)
    modes = [module.training for module in model.modules()]
    state, rng = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    saved = resnetkit.load(save(model, tmp_path / "model"))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value.nan_to_num(7), state[key].nan_to_num(7)) for key, value in model.state_dict().items())
    x = make_images(model).to(model.stem.conv1.weight.dtype)
    with torch.no_grad():
        actual, expected = saved.to(x.dtype)(x), model.eval()(x)
    torch.testing.assert_close(actual, expected, rtol=1e-2 if x.element_size() < 4 else 1e-4, atol=1e-3, equal_nan=True)


def test_synchronized_norms_are_saved_as_batch_norms(tmp_path):
    model = make_network()
    x = make_images(model)
    expected = model(x)
    saved = resnetkit.load(save(nn.SyncBatchNorm.convert_sync_batchnorm(model), tmp_path / "model"))
    assert torch.equal(saved(x), expected)


@pytest.mark.parametrize("spec", [BASE, replace(BASE, head=s.MLP(5, (12,), 2, 0.1))], ids=["linear", "mlp"])
def test_another_classifier_changes_the_card(tmp_path, spec):
    model = make_network(spec, classes=["a", "b", "c"])
    model.head.linear = nn.Linear(model.head.linear.in_features, 7)
    with pytest.warns(ResnetkitWarning, match="classifier was replaced: saved with 7 classes without names, not 3"):
        saved = resnetkit.load(save(model, tmp_path / "model"))
    x = make_images(model)
    assert torch.equal(saved(x), model(x))
    assert s.count_classes(saved.card.spec.head) == 7
    assert saved.card.classes == saved.card.metrics == ()
    assert saved.card.origin.endswith(", with a new classifier")
    assert model.card.classes == ("a", "b", "c")


# ------------------------------------------------------------------------------------------------------------- refused

EDIT = "make this change with resnetkit.surgery."
SPEC = "build the network from a spec with {} and load model.state_dict() into it"
UNDO = "undo the change, describe it in a spec, or keep the tensors with torch.save(model.state_dict(), FILE)"
LINEAR = "Linear(in_features=16, out_features=5, bias=True)"


def dilate_by_hand(model):
    model.stage2.block2.branch.conv1.dilation = model.stage2.block2.branch.conv1.padding = (2, 2)


def freeze_norm(model):
    model.stem.norm1 = torchvision.ops.FrozenBatchNorm2d(8)


class Quantized(nn.Module):
    """A quantized layer of torch; a real one needs a backend."""

    __module__ = "torch.ao.nn.quantized.dynamic"


REFUSED = {
    "activations": (replace_all(nn.ReLU, nn.SiLU), "stem.act1: SiLU(), the card has ReLU()",
                    SPEC.format('activation = "silu"')),
    "unknown activation": (change("stem.act1", nn.Tanh()), "stem.act1: Tanh(), the card has ReLU()", UNDO),
    "epsilon": (change_all(nn.BatchNorm2d, eps=1e-3), "stem.norm1: eps = 0.001, the card has 1e-05",
                SPEC.format("norm.eps = 0.001")),
    "momentum": (change_all(nn.BatchNorm2d, momentum=0.01), "stem.norm1: momentum = 0.01, the card has 0.1",
                 SPEC.format("norm.momentum = 0.01")),
    "pruned": (lambda m: prune.random_unstructured(m.stage2.block1.branch.conv2, "weight", 0.5),
               "stage2.block1.branch.conv2: weight is missing, the card has (16, 16, 3, 3)",
               "make it permanent: torch.nn.utils.prune.remove(model.stage2.block1.branch.conv2, 'weight')"),
    "weight norm": (lambda m: parametrizations.weight_norm(m.head.linear),
                    "head.linear: weight is missing, the card has (5, 16)",
                    "make it permanent: torch.nn.utils.parametrize.remove_parametrizations(model.head.linear, 'weight')"),
    "pruned bias": (lambda m: prune.l1_unstructured(m.head.linear, "bias", 0.4), "head.linear: bias is missing, the card has (5,)",
                    "make it permanent: torch.nn.utils.prune.remove(model.head.linear, 'bias')"),
    "old weight norm": (lambda m: nn.utils.weight_norm(m.head.linear), "head.linear: weight is missing, the card has (5, 16)",
                        "make it permanent: torch.nn.utils.remove_weight_norm(model.head.linear, 'weight')"),
    "quantized": (change("head.linear", Quantized()),
                  "head.linear: Quantized()", "save the network before quantization; resnetkit optimize makes int8 engines"),
    "spectral norm": (lambda m: nn.utils.spectral_norm(m.stem.conv1), "stem.conv1: weight is missing, the card has (8, 3, 3, 3)",
                      "make it permanent: torch.nn.utils.remove_spectral_norm(model.stem.conv1, 'weight')"),
    "no classifier": (change("head.linear", nn.Identity()), f"head.linear: Identity(), the card has {LINEAR}",
                      f"{EDIT}classes or head"),
    "classifier without bias": (change("head.linear", nn.Linear(16, 5, bias=False)),
                                "head.linear: bias is missing, the card has (5,)", f"{EDIT}classes or head"),
    "classifier with dropout": (change("head.linear", nn.Sequential(nn.Dropout(), nn.Linear(16, 5))),
                                f"head.linear: Sequential(), the card has {LINEAR}", f"{EDIT}classes or head"),
    "head": (change("head", nn.Identity()), "head: Identity(), the card has PartSequence()", f"{EDIT}classes or head"),
    "one channel": (change("stem.conv1", nn.Conv2d(1, 8, 3, padding=1, bias=False)),
                    "stem.conv1: in_channels = 1, the card has 3", f"{EDIT}input_channels(model, 1)"),
    "bias": (change("stem.conv1", nn.Conv2d(3, 8, 3, padding=1)), "stem.conv1: bias was added",
             SPEC.format('bias = "always"')),
    "stride": (change("stem.conv1.stride", (2, 2)), "stem.conv1: stride = (2, 2), the card has (1, 1)",
               f"{EDIT}restride"),
    "padding mode": (change("stem.conv1.padding_mode", "reflect"),
                     "stem.conv1: padding_mode = reflect, the card has zeros", f"{EDIT}stem"),
    "dilation": (dilate_by_hand, "stage2.block2.branch.conv1: padding = (2, 2), dilation = (2, 2), the card has (1, 1), (1, 1)",
                 f"{EDIT}dilate"),
    "group norm": (change("stem.norm1", nn.GroupNorm(2, 8)), "stem.norm1: GroupNorm(2, 8", f"{EDIT}group_norm"),
    "fused norm": (change("stem.norm1", nn.Identity()), "stem.norm1: Identity(), the card has BatchNorm2d(8",
                   f"{EDIT}fold_norms"),
    "frozen norm": (freeze_norm, "stem.norm1: FrozenBatchNorm2d(", UNDO),
    "removed block": (change("stage1.block2", nn.Identity()), "stage1.block2: Identity(), the card has Block()",
                      f"{EDIT}remove"),
    "removed stage": (lambda m: delattr(m, "stage2"), "stage2: missing", f"{EDIT}cut or remove"),
    "another shortcut": (change("stage1.block1.shortcut", nn.Sequential()),
                         "stage1.block1.shortcut: Sequential(), the card has PartSequence()", f"{EDIT}shortcuts"),
    "criterion": (change("criterion", nn.CrossEntropyLoss()), "criterion: CrossEntropyLoss was added",
                  "remove it: del model.criterion"),
    "auxiliary head": (change("stage1.block1.auxiliary", nn.Linear(8, 5)),
                       "stage1.block1.auxiliary: Linear was added", "remove it: del model.stage1.block1.auxiliary"),
    "buffer": (lambda m: m.stem.register_buffer("mean", torch.zeros(3)), "stem.mean: Tensor was added",
               "remove it: del model.stem.mean"),
    "parameter": (change("scale", nn.Parameter(torch.ones(1))), "scale: Tensor was added", "remove it: del model.scale"),
    "forward": (change("stage1.forward", lambda x: 2 * x), "stage1: its forward was replaced", UNDO),
    "order": (change("part_names", ("stem", "stage2", "head")), "network: part_names = ('stem', 'stage2', 'head')", UNDO),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_changes_by_hand_are_refused_with_the_edit_that_says_the_same(tmp_path, name):
    apply, line, fix = REFUSED[name]
    model = make_network()
    apply(model)
    for write in (lambda: save(model, tmp_path / "model"), lambda: convert(model, "resnetkit", tmp_path / "other")):
        with pytest.raises(UsageError) as caught:
            write()
        assert caught.value.what == "this network was changed by hand: it differs from its card"
        assert line in caught.value.where[0], caught.value.where
        assert caught.value.fix == fix
    assert list_files(tmp_path) == []
    if not {"criterion", "auxiliary head", "buffer", "parameter"} & {name}:
        with pytest.raises(UsageError, match="changed by hand"):
            surgery.restride(model, "stage2", 1)


def scale_weights(module):
    for parameter in module.parameters():
        parameter.data.mul_(1.25)


def swap_blocks(module):
    if hasattr(module, "block1") and hasattr(module, "block2"):
        module.block1, module.block2 = module.block2, module.block1


def change_number(module):
    """Change the first number that a layer was made with."""
    for name, value in vars(module).items():
        if not name.startswith("_") and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(module, name, value * 2)
            return


def replace_children(module):
    for name, child in list(module.named_children()):
        setattr(module, name, nn.Sequential(child, nn.Tanh()))


MUTATIONS = {
    "scaled": scale_weights,
    "swapped": swap_blocks,
    "number": change_number,
    "followed": replace_children,
    "hook": lambda module: module.register_forward_hook(lambda module, inputs, output: output + 0.1),
    "added": lambda module: module.register_module("added", nn.Linear(2, 2)),
    "lost": lambda module: [delattr(module, name) for name, _ in list(module.named_children())[-1:]],
    "wrapped": lambda module: [
        setattr(module, name, nn.DataParallel(child)) for name, child in list(module.named_children())
    ],
    "frozen": lambda module: module.requires_grad_(False),
    "double": lambda module: module.double(),
}


@settings(max_examples=25)
@given(st.sampled_from(sorted(TINY)), st.sampled_from(sorted(MUTATIONS)), st.data())
def test_what_is_saved_computes_what_the_network_computes_or_is_refused(name, mutation, data):
    model = make_network(TINY[name])
    module = data.draw(st.sampled_from(list(model.modules())))
    MUTATIONS[mutation](module)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            saved = resnetkit.load(save(model, Path(folder, "model")))
        except (UsageError, VerificationError) as error:
            assert error.where and error.what, error
            assert list_files(Path(folder)) == []
            assert mutation not in ("scaled", "frozen", "wrapped")
            return
        x = make_images(model)
        torch.testing.assert_close(saved(x), model.eval()(x), rtol=1e-3, atol=1e-4)


def test_many_differences_are_counted(tmp_path):
    model = make_network()
    replace_all(nn.ReLU, nn.ELU)(model)
    with pytest.raises(UsageError) as caught:
        save(model, tmp_path / "model")
    n = sum(isinstance(module, nn.ELU) for module in model.modules())
    assert len(caught.value.where) == 6
    assert caught.value.where[-1] == f"{n - 5} more layers"


@pytest.mark.parametrize("undo", ["prune", "parametrize", "criterion"])
def test_the_fix_helps(tmp_path, undo):
    model = make_network()
    namespace = {"model": model, "torch": torch, "resnetkit": resnetkit}
    apply = {
        "prune": REFUSED["pruned"][0],
        "parametrize": REFUSED["weight norm"][0],
        "criterion": REFUSED["criterion"][0],
    }
    apply[undo](model)
    with pytest.raises(UsageError) as caught:
        save(model, tmp_path / "model")
    exec(re.sub("^[a-z ]*: ", "", caught.value.fix), namespace)
    x = make_images(model)
    assert torch.equal(resnetkit.load(save(model, tmp_path / "model"))(x), model(x))


def test_hooks_that_change_outputs_are_refused(tmp_path):
    model = make_network()
    model.stage1.register_forward_hook(lambda module, inputs, output: output * 1.1)
    with pytest.raises(VerificationError) as caught:
        save(model, tmp_path / "model")
    assert caught.value.what.startswith(
        "the outputs of this network differ from those of its card by 0.1 (limit 0.001)"
    )
    assert caught.value.fix == "remove hooks and replaced functions, or describe what they do in a spec"
    assert caught.value.exit_code == 6
    assert list_files(tmp_path) == []


def test_a_network_that_cannot_run_is_refused(tmp_path):
    model = make_network()

    def fail(*arguments):
        raise ValueError("only images of 224 pixels")

    model.register_forward_pre_hook(fail)
    with pytest.raises(
        VerificationError, match="cannot run on 2x3x16x17 random values, so it cannot be verified"
    ) as caught:
        save(model, tmp_path / "model")
    assert caught.value.where == ("ValueError: only images of 224 pixels",)
    assert list_files(tmp_path) == []


def test_a_card_that_cannot_be_read_is_refused(tmp_path):
    model = make_network()
    model.card = replace(model.card, classes=("a", "b"))
    with pytest.raises(VerificationError, match="the folder could not be read back") as caught:
        save(model, tmp_path / "model")
    assert ".part" not in str(caught.value)
    assert "classes: got 2 names; allowed: 5, as spec.head has" in str(caught.value)
    assert list_files(tmp_path) == []


def test_a_damaged_file_is_not_published(tmp_path, monkeypatch):
    from resnetkit.weights import save as module

    def write_other_values(tensors, path, metadata):
        original({key: value + (value.ndim == 4) for key, value in tensors.items()}, path, metadata)

    original = module.save_file
    monkeypatch.setattr(module, "save_file", write_other_values)
    with pytest.raises(VerificationError, match="the folder differs from the network"):
        save(make_network(), tmp_path / "model")
    assert list_files(tmp_path) == []


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
def test_networks_of_other_libraries_and_wrappers_are_named(tmp_path):
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.criterion = make_network(), nn.CrossEntropyLoss()

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = make_network()

        def forward(self, x):
            return 2 * self.module(x)

    traced = torch.jit.trace(make_network(), torch.zeros(1, 3, 32, 32))
    for model, name, fix in [
        (torchvision.models.resnet18(), "ResNet", "convert it with resnetkit.load(model)"),
        (traced, "TopLevelTracedModule", "convert it with resnetkit.load(model)"),
        (Task(), "Task", "pass the network inside: model.network"),
        (Doubled(), "Doubled", "pass the network inside: model.module"),
        (None, "NoneType", "convert it with resnetkit.load(model)"),
    ]:
        with pytest.raises(UsageError, match=f"a {name} is not a network of resnetkit") as caught:
            save(model, tmp_path / "model")
        assert caught.value.fix == fix


def test_a_network_without_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a network on the meta device has no weights"):
        save(build(BASE, device="meta"), tmp_path / "model")
    assert list_files(tmp_path) == []


def test_weights_of_another_kind_are_refused(tmp_path):
    class Scaled(torch.Tensor):
        pass

    model = make_network()
    model.stem.conv1.weight = nn.Parameter(model.stem.conv1.weight.detach().as_subclass(Scaled))
    with pytest.raises(UsageError, match="these weights are not plain tensors") as caught:
        save(model, tmp_path / "model")
    assert caught.value.where == ("stem.conv1.weight: Scaled",)


def test_a_network_with_wrapped_parts_is_not_edited():
    model = make_network()
    model.stage1.block2 = torch.compile(model.stage1.block2, backend="eager")
    for edit in (lambda: surgery.restride(model, "stage2", 1), lambda: fold_for_inference(model)):
        with pytest.raises(UsageError, match="parts of this network are wrapped") as caught:
            edit()
        assert caught.value.where == ("stage1.block2",)
        assert caught.value.fix == "edit the network first, then compile or wrap its parts"


# ----------------------------------------------------------------------------------------------------------- as_module


def test_live_models_of_libraries_are_compared(monkeypatch):
    torch.manual_seed(0)
    theirs = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    model = resnetkit.load(theirs)
    assert measure_difference(as_module(model, "torchvision"), copy.deepcopy(model)) < 1e-5
    hooked = copy.deepcopy(model)
    hooked.stage1.register_forward_hook(lambda module, inputs, output: output * 1.1)
    with pytest.raises(VerificationError, match="the outputs of the torchvision model differ by"):
        as_module(hooked, "torchvision")
    changed = copy.deepcopy(model)
    replace_all(nn.ReLU, nn.SiLU)(changed)
    with pytest.raises(UsageError, match="changed by hand"):
        as_module(changed, "torchvision")


def test_a_silent_save_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(make_network(), tmp_path / "model")


def test_a_replaced_classifier_does_not_get_the_labels_of_the_old_one(pictures):
    model = make_network(classes=["a", "b", "c"])
    model.head.linear = nn.Linear(16, 2)
    with pytest.raises(UsageError) as caught:
        list(resnetkit.predict(pictures("images", ["x"]), model))
    assert caught.value.what == "the classifier was replaced: it has 2 classes, and the card has 3"
    assert caught.value.fix == "make this change with resnetkit.surgery.classes(model, names)"
