"""A network among the tools of torch: compile, script, fx, export, meta, copies, hooks and wrappers."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

import resnetkit
from resnetkit import surgery
from resnetkit.network.build import build
from resnetkit.network.layers import NetworkModule, PartSequence
from resnetkit.weights.dialects import TORCHVISION

from helpers.networks import make_images, randomize_norms
from helpers.tiny import BASE, TINY, make_atrous

# one network for each kind of layer and block
KINDS = {name: TINY[name] for name in (
    "basic-a", "basic-d", "plain", "subsampled", "group-norm", "pre-last-block", "pre-d", "attention",
    "channel-attention", "blurred", "vgg", "ceil-pool", "stochastic", "chain", "headless", "pooled", "no-stem")}  # fmt: skip
KINDS |= {f"dilated-{name}": make_atrous(TINY[name], 2) for name in ("basic-d", "blurred", "subsampled-3", "ceil-pool")}


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # deprecated, and still in use


@pytest.fixture(autouse=True)
def reset_compiler():
    yield
    torch.compiler.reset()


def make_network(spec=BASE):
    return randomize_norms(build(spec))


def make_backbone():
    return surgery.features(make_network(TINY["three-stages"]), (1, 3))[0]


def run_sections(model, x, last):
    """Run stem and stages in order, up to one."""
    for child in model.plan.root.children:
        x = model.get_submodule(child.path)(x)
        if child.path == last:
            return x
    raise AssertionError(last)


class Metric(nn.Module):
    """A metric in the manner of torchmetrics: a module with state and two inputs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))

    def forward(self, outputs, labels):
        self.total += 1
        return self.total


ADDED = {
    "activation": lambda: nn.Softmax(1),
    "criterion": nn.CrossEntropyLoss,
    "metric": Metric,
    "auxiliary head": lambda: nn.Linear(3, 7),
    "holder": lambda: nn.ModuleDict({"hook": nn.Identity()}),
    "observer": lambda: nn.ModuleList([Metric()]),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("basic-b", kind) for kind in ADDED), ("plain", "metric"), ("pre-d", "holder"), ("vgg", "metric")],
)
def test_modules_that_are_set_later_do_not_run(name, kind):
    model = make_network(TINY[name])
    x = make_images(model)
    expected = model(x)
    for part in [part for part in model.modules() if not isinstance(part, nn.Conv2d)]:
        part.added = ADDED[kind]()
    assert torch.equal(model(x), expected)
    assert torch.equal(model.extract_features(x, ["stage2"])["stage2"], run_sections(model, x, "stage2"))
    assert "added" not in {path.rpartition(".")[2] for path in model.list_feature_paths()}
    for copied in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)


@pytest.mark.parametrize("make_module", [make_network, make_backbone])
def test_a_replaced_part_runs_in_its_place(make_module):
    model = make_module()
    x = make_images(model)
    stem = model.stem
    del model.stem
    with pytest.raises(AttributeError, match="has no attribute 'stem'"):
        model(x)
    model.stem = nn.Sequential(stem, nn.Identity())  # the last child by order, the first by place
    outputs = model(x)
    model.stem = stem
    torch.testing.assert_close(outputs, model(x), rtol=0, atol=0)


def test_the_parts_of_a_section_are_counted_and_iterated():
    model = make_network()
    model.stage1.criterion = nn.CrossEntropyLoss()
    assert list(model.stage1) == [model.stage1.block1, model.stage1.block2]
    assert (len(model.stage1), model.stage1[-1], len(model)) == (2, model.stage1.block2, 4)
    with pytest.raises(IndexError):
        _ = model.stage1[2]


def test_hooks_run_and_may_change_what_they_see():
    model, calls = make_network(), []
    x = make_images(model)
    expected = model(x)
    handle = model.stage1.block1.register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    assert torch.equal(model(x), expected)
    assert len(calls) == 1
    handle.remove()
    model.stage1.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    assert not torch.equal(model(x), expected)


# --------------------------------------------------------------------------------------------- script, fx, compile


@pytest.mark.parametrize("name", KINDS)
def test_scripted_and_traced_networks_compute_the_same(name):
    model = make_network(KINDS[name])
    types = [type(module) for module in model.modules()]
    x = make_images(model)
    for scripted in (torch.jit.script(model), torch.fx.symbolic_trace(model)):
        assert list(scripted.state_dict()) == list(model.state_dict())
        for images in (x, torch.cat([x, x[..., :3, :]], 2)):
            torch.testing.assert_close(scripted(images), model(images), rtol=0, atol=0)
    assert [type(module) for module in model.modules()] == types


def test_a_scripted_network_is_saved_and_keeps_its_mode(tmp_path):
    model = make_network(TINY["stochastic"]).train()
    torch.jit.script(model).save(tmp_path / "scripted.pt")
    scripted = torch.jit.load(tmp_path / "scripted.pt")
    x = make_images(model)
    assert scripted.training
    torch.manual_seed(0)
    expected = copy.deepcopy(model)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(scripted(x), expected)


def test_scripted_and_traced_backbones_return_the_same_maps():
    backbone = make_backbone()
    x = make_images(backbone)
    for scripted in (torch.jit.script(backbone), torch.fx.symbolic_trace(backbone)):
        assert list(scripted.state_dict()) == list(backbone.state_dict())
        assert list(scripted(x)) == ["stage1", "stage3"]
        torch.testing.assert_close(scripted(x), backbone(x), rtol=0, atol=0)


def test_added_modules_stay_out_of_scripted_and_traced_networks():
    model = make_network()
    x = make_images(model)
    model.softmax, model.stage1.criterion = nn.Softmax(1), nn.CrossEntropyLoss()
    for scripted in (torch.jit.script(model), torch.fx.symbolic_trace(model)):
        assert torch.equal(scripted(x), model(x))


def test_torchvision_extracts_features_by_fx():
    model = make_network()
    extractor = create_feature_extractor(model, {"stage1.block2.act": "map"})
    x = make_images(model)
    assert torch.equal(extractor(x)["map"], model.extract_features(x, ["stage1"])["stage1"])


@pytest.mark.parametrize("name", ["basic-a", "dilated-blurred", "attention"])
def test_networks_compile_to_one_graph(name):
    model = make_network(KINDS[name])
    x = make_images(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_backbones_compile_to_one_graph():
    backbone = make_backbone()
    x = make_images(backbone)
    maps = torch.compile(backbone, fullgraph=True, backend="eager")(x)
    assert list(maps) == ["stage1", "stage3"]
    torch.testing.assert_close(maps, backbone(x))
    exported = torch.export.export(backbone, (x,)).module()
    torch.testing.assert_close(exported(x), backbone(x))


def run_with_checkpoints(network, x):
    """Run torchvision's network; a stage recomputes its activations by torch's own checkpoint."""
    x = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
    x = torch_checkpoint(network.layer3, network.layer2(x), use_reentrant=False)
    return network.fc(network.avgpool(network.layer4(x)).flatten(1))


def test_recomputed_stages_train_equally_if_compiled():
    theirs = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    ours, _ = surgery.checkpoint(resnetkit.load(theirs), 3)
    eager, x = copy.deepcopy(ours).train(), torch.randn(4, 3, 33, 32, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(ours.train(), fullgraph=True, backend="aot_eager")
    for outputs in (compiled(x), eager(x), run_with_checkpoints(theirs.train(), x)):
        outputs.square().mean().backward()
    for key, foreign in TORCHVISION.map_tensors(ours.plan).items():
        if foreign in dict(theirs.named_parameters()):
            gradient = ours.get_parameter(key).grad
            torch.testing.assert_close(gradient, eager.get_parameter(key).grad)
            torch.testing.assert_close(gradient, theirs.get_parameter(foreign).grad, rtol=1e-3, atol=1e-5)
        else:  # statistics; torchvision's change twice, as nothing keeps its second run from it
            torch.testing.assert_close(ours.get_buffer(key), eager.get_buffer(key))


def test_recomputed_stages_are_scripted_traced_and_exported():
    model = surgery.checkpoint(make_network(), (1, 2))[0]
    x = make_images(model)
    for converted in (
        torch.jit.script(model),
        torch.jit.trace(model, x),
        torch.fx.symbolic_trace(model),
        torch.export.export(model, (x,)).module(),
    ):
        torch.testing.assert_close(converted(x), model(x))


# --------------------------------------------------------------------------------------------- devices and defaults


def test_the_default_device_of_torch_holds():
    with torch.device("meta"):
        assert build(BASE).stem.conv1.weight.is_meta
        assert torchvision.models.resnet18().conv1.weight.is_meta  # as there
        on_cpu = build(BASE, device="cpu")
    assert not on_cpu.stem.conv1.weight.is_meta
    for key, tensor in build(BASE).state_dict().items():
        assert torch.equal(tensor, on_cpu.state_dict()[key]), key


def test_the_default_type_of_torch_changes_no_weights():
    expected = build(BASE).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        actual = build(BASE).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(
        torch.equal(actual[key], tensor) and actual[key].dtype == tensor.dtype for key, tensor in expected.items()
    )


EDITS = {
    "dilate": lambda model: surgery.dilate(model, stages=2),
    "widen": lambda model: surgery.widen(model, 1, 12),
    "channels": lambda model: surgery.input_channels(model, 5, method="cyclic"),
    "insert": lambda model: surgery.insert(model, "stage1.block1"),
    "fold": surgery.fold_norms,
    "classes": lambda model: surgery.classes(model, 3),
    "checkpoint": lambda model: surgery.checkpoint(model, 1),
    "shortcuts": lambda model: surgery.shortcuts(model, "C"),
    "stem": lambda model: surgery.stem(model, "imagenet"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_do_not_depend_on_the_default_device(name):
    model = make_network()
    expected = EDITS[name](model)[0].state_dict()
    with torch.device("meta"):
        actual = EDITS[name](model)[0].state_dict()
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())


def test_sections_keep_the_order_of_the_plan():
    for spec in TINY.values():
        model = build(spec, device="meta")
        assert isinstance(model, NetworkModule)
        sections = {"": model, **{path: part for path, part in model.named_modules() if isinstance(part, PartSequence)}}
        for path, part in sections.items():
            children = [child.path.rpartition(".")[2] for child in model.plan.parts[path].children]
            assert list(part.part_names) == children
