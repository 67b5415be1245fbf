"""Weights of other libraries, loaded and written; their own models with random norms are the oracles."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import resnetkit as rk
from resnetkit.architecture.card import Preparation
from resnetkit.architecture.catalog import CATALOG, spec
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import MLP, OPTION_D, Bottleneck, Conv, Linear, MaxPool, NoHead, Pooled, Stem
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import MachineError, ResnetkitWarning, SpecError, UsageError, WeightsError
from resnetkit.weights.constructor_args import LIBRARIES, build_constructor_args
from resnetkit.weights.dialects import select_table
from resnetkit.weights.hugging_face import build_preprocessor_config
from resnetkit.weights.layer_aliases import translate_path
from resnetkit.weights.readings import adopt_conventions
from resnetkit.weights.recognize import RecognizedWeights, recognize_weights

from helpers.networks import randomize_norms
from helpers.tiny import BASE, networks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of these libraries' own dependencies, while they are imported
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    torchvision = pytest.importorskip("torchvision")

TORCHVISION = ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"]
TIMM = ["resnet10t", "resnet14t", "resnet18", "resnet18d", "resnet26", "resnet26d", "resnet26t", "resnet50s",
        "resnext50_32x4d", "seresnet50", "ecaresnet50d", "resnetv2_50", "resnetv2_50d", "resnetv2_50t"]  # fmt: skip
ON_META = {  # networks that differ from those above in size only, so that shapes are enough
    "torchvision": ["resnet34", "resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2",
                    "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"],
    "timm": ["resnet34", "resnet50", "resnet50c", "resnet50d", "resnet50t", "wide_resnet50_2", "resnet34d",
             "seresnext50_32x4d"],
}  # fmt: skip
HUGGING_FACE = {
    "v1.5": {"depths": [2, 1], "hidden_sizes": [32, 64], "embedding_size": 8},
    "v1": {"depths": [1, 2], "hidden_sizes": [32, 64], "downsample_in_bottleneck": True, "embedding_size": 16},
    "small": {"layer_type": "basic", "depths": [1, 1, 2], "hidden_sizes": [8, 12, 16], "embedding_size": 8},
}


def randomize(model):
    """Return the model in evaluation mode with random norms that have counted seven batches."""
    for module in randomize_norms(model).modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(7)
    return model


def build_hugging_face(name):
    return randomize(
        transformers.ResNetForImageClassification(transformers.ResNetConfig(**HUGGING_FACE[name], num_labels=7))
    )


def compute_logits(model, x):
    with torch.inference_mode():
        outputs = model(x)
    return getattr(outputs, "logits", outputs)


def check_same_outputs(ours, theirs, side=48):
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    a, b = compute_logits(ours, x), compute_logits(theirs, x)
    assert float((a - b).abs().max() / b.abs().max()) <= 1e-5


def check_same_tensors(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[key]) and value.dtype == b[key].dtype for key, value in a.items())


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_in_and_out(name):
    theirs = randomize(getattr(torchvision.models, name)(weights=None))
    ours = rk.load(theirs)
    assert ours.card.name == name
    assert not ours.training
    check_same_outputs(ours, theirs)
    check_same_tensors(rk.as_module(ours, "torchvision"), theirs)


@pytest.mark.parametrize("name", [name for name in CATALOG if name in timm.list_models()])
def test_timm_has_the_same_number_of_parameters(name):
    with torch.device("meta"):
        theirs = timm.create_model(name)
    assert sum(p.numel() for p in theirs.parameters()) == plan(CATALOG[name]).params


@pytest.mark.parametrize("name", [*TIMM, "resnetblur50"])
def test_timm_in_and_out(name):
    theirs = randomize(timm.create_model(name, num_classes=11))
    ours = rk.load(theirs.state_dict(), name if "blur" in name else None)  # a blur has no tensor to tell it by
    assert ours.card.name == name
    check_same_outputs(ours, theirs)
    check_same_tensors(rk.as_module(ours, "timm"), theirs)


def test_vgg_in_and_out():
    theirs = randomize(torchvision.models.vgg11_bn(weights=None, num_classes=3))
    ours = rk.load(theirs.state_dict())
    assert ours.card.name == "vgg11_bn"
    check_same_outputs(ours, theirs)
    restored = rk.as_module(ours, "torchvision")
    check_same_tensors(restored, theirs)


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in ON_META for name in ON_META[library]])
def test_networks_are_recognized_by_their_shapes(library, name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)() if library == "torchvision" else timm.create_model(name)
    their_shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    recognized = recognize_weights(their_shapes)
    assert isinstance(recognized, RecognizedWeights)
    assert recognized.spec == CATALOG[name]
    table = select_table(library, CATALOG[name])
    shapes = get_tensor_shapes(recognized.plan)
    assert {table.to_theirs(key): table_shape(table, key, shape) for key, shape in shapes.items()} == their_shapes
    build_constructor_args(recognized.spec, LIBRARIES[library])


def table_shape(table, key, shape):
    return (*shape, 1, 1) if key in table.conv_keys else shape


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_transformers_in_and_out(name, tmp_path):
    theirs = build_hugging_face(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = rk.load(tmp_path / "theirs")
    check_same_outputs(ours, theirs)
    check_same_tensors(rk.as_module(ours, "transformers"), theirs)
    path = rk.convert(ours, "hf", tmp_path / "ours")
    restored = transformers.ResNetForImageClassification.from_pretrained(path, local_files_only=True).eval()
    check_same_tensors(restored, theirs)
    check_same_outputs(restored, theirs)
    check_same_tensors(rk.load(path), ours)
    assert rk.load(path).card.spec == ours.card.spec


def test_a_transformers_folder_has_classes_and_preparation(tmp_path):
    model = rk.build(replace(spec("resnet18"), head=Linear(2)), classes=["cat", "dog"])
    model.card = replace(model.card, preparation=Preparation(256, (224, 224), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    back = rk.load(rk.convert(model, "hf", tmp_path / "hf"))
    assert back.card.classes == ("cat", "dog")
    assert back.card.preparation == model.card.preparation
    assert back.card.assumed == ("norms have epsilon 1e-05",)
    images = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(images | {"resample": 3}))
    assert "the option resample of the preprocessor config is ignored" in rk.load(tmp_path / "hf").card.assumed
    backbone = transformers.ResNetModel.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert rk.load(backbone.state_dict()).card.name == "resnet18"


# ------------------------------------------------------------------------------------------------ code for CIFAR


class TheirBlock(nn.Module):
    """A block as in the CIFAR repositories; option A pads, B projects."""

    def __init__(self, inputs, planes, stride, option):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.shortcut, self.pad = nn.Sequential(), 0
        if (stride != 1 or inputs != planes) and option == "A":
            self.pad = planes // 4
        elif stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        around = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else self.shortcut(x)
        return F.relu(out + around)


class Theirs(nn.Module):
    def __init__(self, channels, blocks, option, classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False), nn.BatchNorm2d(channels[0])
        inputs = channels[0]
        for i, (planes, count) in enumerate(zip(channels, blocks, strict=True), 1):
            stage = []
            for block in range(count):
                stage.append(TheirBlock(inputs, planes, 2 if i > 1 and block == 0 else 1, option))
                inputs = planes
            setattr(self, f"layer{i}", nn.Sequential(*stage))
        self.count, self.linear = len(channels), nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(1, self.count + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.linear(x.mean((2, 3)))


CIFAR = {
    "akamaster": (lambda: Theirs((16, 32, 64), (3, 3, 3), "A"), "resnet20"),
    "kuangliu": (lambda: Theirs((64, 128, 256, 512), (2, 2, 2, 2), "B"), "cifar_resnet18"),
}


@pytest.mark.parametrize("dialect", CIFAR)
def test_code_for_cifar_in_and_out(dialect, tmp_path, cli):
    make, name = CIFAR[dialect]
    theirs = randomize(make())
    state = {f"module.{key}": value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "theirs.th")
    ours = rk.load(tmp_path / "theirs.th")
    assert ours.card.name == name
    assert ours.card.origin == (
        f"theirs.th, read as {name} in the dialect {dialect}, from the table state_dict, without the prefix module."
    )
    check_same_outputs(ours, theirs, 32)
    counts = sum("num_batches" in key for key in theirs.state_dict())
    assert str(ours.report) == (
        f"0 kept, {len(state)} renamed, 0 adapted, {counts} initialized (batch counts that the file lacks), 0 dropped"
    )
    assert ours.report.renamed["stem.conv1.weight"] == "module.conv1.weight"
    code, out, err = cli("convert", tmp_path / "theirs.th", tmp_path / "out.safetensors", "--to", dialect)
    assert code == 0
    assert out.splitlines()[-1] == "verified: the file holds the same bits"
    assert "assumed: the 3x3 of the stem has stride 1, and no pool follows it; " in err
    missing = theirs.load_state_dict(load_file(tmp_path / "out.safetensors"))
    assert not missing.missing_keys
    check_same_tensors(rk.load(tmp_path / "out.safetensors"), ours)


def test_explain_a_weights_file(tmp_path, cli):
    torch.save(CIFAR["akamaster"][0]().state_dict(), tmp_path / "x.th")
    code, out, err = cli("explain", tmp_path / "x.th", "--why", "stage2.block1.shortcut")
    assert code == 0
    assert "zeros" in out
    assert err.startswith("read: x.th, read as resnet20 in the dialect akamaster\n")
    build_hugging_face("small").save_pretrained(tmp_path / "hf")
    assert "depth 10" in cli("explain", tmp_path / "hf")[1]
    (tmp_path / "junk.pth").write_bytes(b"junk")
    assert cli("explain", tmp_path / "junk.pth")[0] == 4


def test_kuangliu_has_its_own_preparation(tmp_path):
    assert rk.load(CIFAR["kuangliu"][0]()).card.preparation.mean == (0.4914, 0.4822, 0.4465)
    assert rk.load(CIFAR["akamaster"][0]()).card.preparation.mean == (0.485, 0.456, 0.406)


# ------------------------------------------------------------------------------------------- tables and prefixes


@pytest.mark.parametrize("container", [(), ("state_dict",), ("model",), ("model_state_dict",), ("net",), ("ema",),
                                       ("model", "state_dict")])  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.model.", "encoder_q.", "backbone."])
def test_w10_containers_and_prefixes(tmp_path, container, prefix):
    model = rk.build(BASE)
    table = select_table("torchvision", BASE).map_tensors(model.plan)
    content = {prefix + table[key]: value for key, value in model.state_dict().items()}
    for name in reversed(container):
        content = {"epoch": 3, name: content, "args": None}
    torch.save(content, tmp_path / "x.pth")
    ours = rk.load(tmp_path / "x.pth")
    check_same_tensors(ours, model)
    assert all(f"from the table {name}" in ours.card.origin for name in container)
    assert not prefix or f"without the prefix {prefix}" in ours.card.origin


def test_the_origin_names_unused_averaged_weights(tmp_path):
    state = rk.build(BASE).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "x.pth")
    assert "from the table state_dict (not state_dict_ema beside it)" in rk.load(tmp_path / "x.pth").card.origin


# ------------------------------------------------------------------------------------- another head, other channels


def replace_head(theirs):
    """Put several layers in the place of ``fc``."""
    theirs.fc = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    return randomize(theirs)


def test_an_unknown_head_is_replaced(tmp_path, cli):
    theirs = replace_head(torchvision.models.resnet18())
    path = tmp_path / "mine.pth"
    torch.save(theirs.state_dict(), path)
    code, out, err = cli("explain", path)
    assert (code, out) == (4, "")
    assert err.endswith(
        "fix: the body is that of resnet18; --reset-head CLASSES loads the body and starts a new classifier\n"
    )
    model = rk.load(path, reset_head=["cat", "dog"])
    assert (model.card.name, model.card.classes, model.card.spec.head) == ("resnet18", ("cat", "dog"), Linear(2))
    assert model.report.initialized == {"head.linear.weight": "new", "head.linear.bias": "new"}
    assert set(model.report.dropped) == {"fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"}
    assert len(model.report.kept) + len(model.report.renamed) + 2 == len(model.state_dict())
    theirs.fc = nn.Identity()
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(theirs(x), model.extract_features(x, ["head.pool"])["head.pool"].flatten(1))
    code, _, err = cli("convert", path, tmp_path / "model", "--to", "resnetkit", "--reset-head", 4)
    assert code == 0
    assert "2 initialized (new), 4 dropped" in err
    assert rk.load(tmp_path / "model").card.spec.head == Linear(4)


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("0.", "1.8."),
        ("module.encoder_q.", "module.queue."),
        ("backbone.", "head.fc."),
        ("", "projector.0."),
        ("model.", "model.last_linear."),
    ],
)
def test_bodies_among_unknown_tensors(body, head):
    theirs = randomize(torchvision.models.resnet34()).state_dict()
    names = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(i + 3) for i in range(1, 5)}} if body == "0." else {}

    def rename(key):
        first, _, rest = key.partition(".")
        return f"{body}{names.get(first, first)}.{rest}"

    tensors = {rename(key): value for key, value in theirs.items() if not key.startswith("fc")}
    tensors |= {head + "weight": torch.zeros(3, 5), head + "bias": torch.zeros(3)}
    with pytest.raises(WeightsError, match="--reset-head CLASSES"):
        rk.load(tensors)
    model = rk.load(tensors, reset_head=6)
    assert (model.card.name, model.card.spec.head) == ("resnet34", Linear(6))
    assert torch.equal(model.stage4.block1.shortcut.conv.weight, theirs["layer4.0.downsample.0.weight"])
    assert set(model.report.dropped) == {head + "weight", head + "bias"}


def test_the_norm_in_a_head_belongs_to_the_body(tmp_path):
    theirs = randomize(timm.models.resnetv2.ResNetV2([1, 1, 1, 1], norm_layer=timm.layers.BatchNormAct2d,
                                                  conv_layer=timm.layers.create_conv2d))  # fmt: skip
    model = rk.load(theirs.state_dict(), reset_head=3)
    assert model.card.spec.head == Linear(3)
    assert torch.equal(model.head.norm.running_mean, theirs.norm.running_mean)
    assert set(model.report.dropped) == {"head.fc.weight", "head.fc.bias"}
    restored = rk.load(model, reset_head=5)
    assert torch.equal(restored.head.norm.running_var, theirs.norm.running_var)


def test_assumptions_about_our_own_names():
    assumption = "shortcuts project with their stride, without a pool"
    assert assumption in rk.load(rk.build("resnet50d", device="cpu").state_dict()).card.assumed
    assert "the last map is averaged" in rk.load(rk.build(replace(BASE, head=NoHead())).state_dict()).card.assumed


def test_a_head_with_hidden_layers_does_not_make_a_vgg():
    with pytest.raises(
        UsageError, match="torchvision cannot express this network: it has MLP, torchvision builds Linear"
    ):
        rk.as_module(rk.build(replace(spec("resnet18"), head=MLP(5, (16,), 1))), "torchvision")


def test_invalid_classes():
    for wrong in ("cat", ["a", "a"], 0, [""]):
        with pytest.raises(UsageError, match="a classifier needs a number of classes"):
            rk.build("resnet18", classes=wrong, device="meta")


def test_loading_with_two_edits_has_one_report(tmp_path):
    theirs = randomize(torchvision.models.resnet18())
    model = rk.load(theirs.state_dict(), reset_head=2, input_channels=1)
    report = model.report
    assert report.initialized == {"head.linear.weight": "new", "head.linear.bias": "new"}
    assert len(report.kept) + len(report.renamed) + len(report.adapted) + len(report.initialized) == len(
        model.state_dict()
    )
    assert not any("3x224x224" in line or "RGB" in line for line in model.card.assumed)


def test_transformers_and_hf_are_one_dialect(tmp_path):
    model = rk.build("resnet18", classes=2)
    rk.convert(model, "transformers", tmp_path / "hf")
    assert rk.load(tmp_path / "hf").card.name == "resnet18"
    assert type(rk.as_module(model, "hf")).__name__ == "ResNetForImageClassification"
    assert translate_path(rk.plan("resnet18"), "stem.conv1", "transformers") == "resnet.embedder.embedder.convolution"


LIVE_NAMES = {
    ("resnet50", "torchvision"): torchvision.models.resnet50,
    ("vgg11", "torchvision"): torchvision.models.vgg11,
    ("resnet50", "timm"): lambda: timm.create_model("resnet50"),
    ("resnet18d", "timm"): lambda: timm.create_model("resnet18d"),
    ("seresnet50", "timm"): lambda: timm.create_model("seresnet50"),
    ("resnetv2_50d", "timm"): lambda: timm.create_model("resnetv2_50d"),
    ("resnet50", "hf"): lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig()),
}


@pytest.mark.parametrize(("name", "library"), LIVE_NAMES)
def test_names_equal_those_of_live_models(name, library):
    with torch.device("meta"):
        theirs = dict(LIVE_NAMES[name, library]().named_modules())
    network_plan = plan(CATALOG[name])
    names = {path: translate_path(network_plan, path, library) for path in network_plan.parts if path}
    assert {path: word for path, word in names.items() if word and word not in theirs} == {}
    assert sum(bool(names[node.path]) for node in network_plan.nodes if node.op.params) == sum(
        bool(n.op.params) for n in network_plan.nodes
    )


def test_a_damaged_body_is_refused():
    tensors = rk.build(BASE).state_dict()
    tensors.pop("stage2.block2.branch.conv1.weight")
    with pytest.raises(WeightsError, match=r"stage2\.block2\.branch\.conv1\.weight: got nothing"):
        rk.load(tensors, reset_head=3)
    with pytest.raises(UsageError, match="a classifier needs a number of classes, or a list of different names"):
        rk.load(rk.build(BASE), reset_head=0)


def test_other_input_channels_with_the_check_same_outputs():
    wide = randomize(rk.build(BASE))
    gray, image = rk.load(wide, input_channels=1), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(gray(image), wide(image.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)
        assert gray.report.adapted == {"stem.conv1.weight": "the sum of 3 channels"}
        restored = rk.load(gray, input_channels=3)
        assert torch.allclose(restored(image.expand(-1, 3, -1, -1)), gray(image), rtol=1e-5, atol=1e-5)
        six, more = rk.load(wide, input_channels=6), torch.rand(2, 6, 16, 16)
        assert torch.allclose(six(more), wide(more[:, :3]), rtol=1e-5, atol=1e-5)
    assert (gray.card.spec.input, len(gray.card.preparation.mean), six.card.spec.input[0]) == ((1, 16, 16), 1, 6)
    assert wide.card.spec.input[0] == 3
    with pytest.raises(UsageError, match="a network for 3 channels cannot be adapted to 2"):
        rk.load(wide, input_channels=2)


def test_six_channels_are_kept_but_images_do_not_have_them(tmp_path, cli):
    rk.save(rk.load(rk.build(BASE), input_channels=6), tmp_path / "six")
    assert rk.load(tmp_path / "six").card.spec.input[0] == 6
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert "6 channels / 255" in str(rk.load(rk.load(tmp_path / "six").state_dict()).card.assumed)
    code, _, err = cli("predict", tmp_path / "a.png", "--model", tmp_path / "six")
    assert code == 2
    assert err.startswith("error: this network takes 6 channels, but an image has 1 (grayscale) or 3 (RGB)")


# ---------------------------------------------------------------------------------- what shapes tell, and what not


@pytest.mark.parametrize("name", CATALOG)
def test_each_library_expresses_a_network_or_says_why_not(name):
    network = spec(name)
    for dialect, library in LIBRARIES.items():
        try:
            words = build_constructor_args(network, library)
        except UsageError as error:
            assert error.what.startswith(f"{library[0].name} cannot express this network: it has ")
            assert error.where
            continue
        assert words["family"] in {each.family for each in library}
        shapes = {
            select_table(dialect, network).to_theirs(key): shape
            for key, shape in get_tensor_shapes(plan(network)).items()
        }
        recognized = recognize_weights(shapes, dialect)
        assert isinstance(recognized, RecognizedWeights)
        stride = [getattr(stage.branch, "stride_at", 2) for stage in network.stages]
        if dialect == "hf" and 1 in stride:  # only the config of transformers tells v1 from v1.5
            continue
        if network.stem.blur:  # a blur has no tensor
            assert adopt_conventions(recognized.spec, network) == replace(network, input=recognized.spec.input)
            continue
        assert replace(recognized.spec, input=network.input) == network


REASONS = {
    "resnet50_v1": ("torchvision", "it has 1, torchvision builds 2", "stage1.branch.stride_at"),
    "resnet20": ("torchvision", "it has 3 items, torchvision builds 4 items", "stages"),
    "resnext50_32x4d": ("hf", "it has 128, transformers builds 64", "stage1.branch.width"),
    "resnet18_a": ("timm", "it has ZeroPadded, timm builds Projection", "shortcuts.wider"),
    "plain34": ("kuangliu", "it has 64, kuangliu's code builds", ""),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_a_library_cannot_express_a_network(name, tmp_path, cli):
    dialect, message, where = REASONS[name]
    rk.save(rk.build(name), tmp_path / "model")
    code, out, err = cli("convert", tmp_path / "model", tmp_path / "out.safetensors", "--to", dialect)
    assert (code, out) == (2, "")
    assert "cannot express this network: " in err
    if where:
        assert message in err
        assert f"where: {where}\n" in err
    assert not (tmp_path / "out.safetensors").exists()


@settings(max_examples=60)
@given(networks)
def test_random_networks_round_trip_or_say_why(network):
    try:
        network_plan = plan(network)
    except SpecError:  # a map that vanishes
        return
    for dialect in LIBRARIES:
        try:
            build_constructor_args(network, LIBRARIES[dialect])
        except UsageError as error:
            assert "cannot express this network" in error.what
            continue
        table = select_table(dialect, network).map_tensors(network_plan)
        assert len(set(table.values())) == len(get_tensor_shapes(network_plan))


def test_ambiguous_shapes_are_not_guessed():
    for name in ("plain20", "resnet20"):
        tensors = {key: torch.zeros(shape) for key, shape in get_tensor_shapes(plan(spec(name))).items()}
        with pytest.raises(WeightsError) as caught:
            rk.load(tensors)
        assert caught.value.what == (
            "cannot recognize the network of these weights: resnetkit: no tensor for "
            "shortcuts that change channels: option A, or no shortcuts?"
        )
        assert rk.load(tensors, network=name).card.spec == spec(name)


def test_every_tensor_is_accounted_for(tmp_path):
    theirs = torchvision.models.resnet18(weights=None, num_classes=3).half()
    ours = rk.load(theirs)
    assert str(ours.report) == "0 kept, 20 renamed, 102 adapted (cast from float16), 0 initialized, 0 dropped"
    report = ours.report
    every = [*report.kept, *report.renamed, *report.adapted, *report.initialized]
    assert sorted(every) == sorted(ours.state_dict())
    back = rk.load(rk.save(ours, tmp_path / "model"))
    assert str(back.report) == "122 kept, 0 renamed, 0 adapted, 0 initialized, 0 dropped"


def test_assumptions_are_recorded_and_kept(tmp_path):
    theirs = torchvision.models.resnet50(weights=None, num_classes=3)
    save_file(theirs.state_dict(), tmp_path / "x.safetensors")
    card = rk.load(tmp_path / "x.safetensors").card
    assert card.assumed == (
        "the tensors also fit resnet50_v1, resnetblur50, resnetaa50, caffe_resnet50: --network chooses",
        "the 7x7 of the stem has stride 2, and a max pool 3x3/2 padded by 1 follows it",
        "the 3x3 of a bottleneck has the stride (v1.5)",
        "every stage but the first halves the map; none is dilated or blurred",
        "an image is 3x224x224", "norms have epsilon 1e-05", "activations are relu",
        "images are RGB / 255, resized to 256, center crop 224x224, mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
    )  # fmt: skip
    rk.save(rk.load(tmp_path / "x.safetensors"), tmp_path / "model")
    assert rk.load(tmp_path / "model").card == card
    v1 = rk.load(tmp_path / "x.safetensors", network="resnet50_v1").card
    assert v1.spec.stages[0].branch == Bottleneck(64, 1, 1)
    assert v1.assumed == card.assumed[-1:]


LIVE = {
    "dilated": lambda: torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]),
    "output stride": lambda: timm.create_model("resnet18", output_stride=16),
    "activation": lambda: timm.create_model("resnet18", act_layer="silu"),
    "max": lambda: timm.create_model("resnet18", global_pool="max"),
    "epsilon": lambda: torchvision.models.resnet18(norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=0.1)),
}


@pytest.mark.parametrize("name", LIVE)
def test_a_live_model_with_other_outputs_is_refused(name):
    theirs = randomize(LIVE[name]()).train()
    with pytest.raises(WeightsError, match=r"has the tensors of resnet.*, but its outputs differ by"):
        rk.load(theirs)
    assert theirs.training
    assert all(module.training for module in theirs.modules())


@pytest.mark.parametrize("name", ["resnetaa34d", "resnetblur18"])
def test_a_live_model_decides_between_networks_with_equal_tensors(name):
    theirs = randomize(timm.create_model(name)).train()
    ours = rk.load(theirs)
    assert ours.card.name == name
    assert not any("also fit" in note for note in (ours.card.origin, *ours.card.assumed))
    assert theirs.training
    with torch.inference_mode():
        images = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(ours(images), theirs.eval()(images))


def test_a_live_transformers_model_has_its_config(tmp_path):
    theirs = build_hugging_face("v1")
    check_same_outputs(rk.load(theirs), theirs)
    theirs.save_pretrained(tmp_path / "hf")
    check_same_outputs(rk.load(tmp_path / "hf" / "model.safetensors"), theirs)  # the config stands beside it
    body = theirs.resnet
    assert rk.load(body.state_dict()).card.spec.head == Pooled()


def test_a_transformers_body_gets_a_head(tmp_path):
    build_hugging_face("small").resnet.save_pretrained(tmp_path / "hf")
    with pytest.raises(WeightsError, match="--reset-head CLASSES"):
        rk.load(tmp_path / "hf")
    assert rk.load(tmp_path / "hf", reset_head=4).card.spec.head == Linear(4)


def test_other_activations_of_transformers_are_refused(tmp_path):
    """Transformers uses ``hidden_act`` only in the stem and at the ends of blocks."""
    config = transformers.ResNetConfig(**HUGGING_FACE["small"], hidden_act="silu")
    theirs = transformers.ResNetForImageClassification(config)
    theirs.save_pretrained(tmp_path / "hf")
    for source in (theirs, tmp_path / "hf"):
        with pytest.raises(WeightsError, match="uses 'silu' in some places and ReLU in others"):
            rk.load(source)
    with pytest.raises(
        UsageError, match="transformers cannot express this network: it has 'silu', transformers builds 'relu'"
    ):
        rk.as_module(rk.build(replace(spec("resnet18"), activation="silu")), "transformers")


def test_option_a_needs_a_dialect_that_implies_it():
    state = {key.replace("head.", "fc."): value for key, value in rk.build("resnet20").state_dict().items()}
    theirs = {select_table("akamaster", spec("resnet20")).to_theirs(key): value
              for key, value in rk.build("resnet20").state_dict().items()}  # fmt: skip
    headless = {key: value for key, value in theirs.items() if not key.startswith("linear")}
    for tensors, more in ((headless, {}), (headless, {"reset_head": 3}), (state, {})):
        with pytest.raises(WeightsError, match="cannot recognize the network"):
            rk.load(tensors, **more)
    assert rk.load(theirs).card.name == "resnet20"


def test_pooled_names_do_not_fit_a_network_without_pools():
    theirs = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), avg_down=True)
    with pytest.raises(WeightsError):
        rk.load(theirs.state_dict(), network="resnet18")


def test_options_without_effect_are_refused(tmp_path, cli):
    model = rk.build(BASE)
    rk.save(model, tmp_path / "model")
    with pytest.raises(UsageError, match="the card of a model folder already describes its weights"):
        rk.load(tmp_path / "model", network="resnet18")
    with pytest.raises(UsageError, match="this model already has a card that describes it"):
        rk.load(model, dialect="timm")
    with pytest.raises(UsageError, match="a NoneType is not a model"):
        rk.load(None)
    assert cli("explain", "resnet18", "--reset-head", 5)[0] == 2
    for wrong in ("cat", ["a", "a"], 0, [""], True):
        with pytest.raises(UsageError, match="a classifier needs a number of classes"):
            rk.load(model, reset_head=wrong)


def test_a_named_file_is_read_instead_of_the_folder_next_to_it(tmp_path):
    (tmp_path / "run").mkdir()
    save_file(rk.build("resnet20_b").state_dict(), tmp_path / "run" / "model.safetensors")
    rk.save(rk.build(BASE), tmp_path / "run" / "model")
    assert rk.load(tmp_path / "run" / "model.safetensors").card.name == "resnet20_b"


def test_a_card_with_a_class_called_model_type(tmp_path):
    rk.save(rk.build(BASE, classes=["model_type", "b", "c", "d", "e"]), tmp_path / "model")
    assert rk.load(tmp_path / "model").card.classes[0] == "model_type"


def test_tied_tensors_get_separate_storage(tmp_path):
    state = rk.build(BASE).state_dict()
    first, second = "stage1.block1.branch.conv1.weight", "stage1.block2.branch.conv1.weight"
    torch.save(state | {second: state[first]}, tmp_path / "tied.pth")
    model = rk.load(tmp_path / "tied.pth")
    kept = model.state_dict()[second].clone()
    model.state_dict()[first].zero_()
    assert torch.equal(model.state_dict()[second], kept)
    rk.save(model, tmp_path / "model")
    with pytest.raises(UsageError, match="names and plain tensors"):
        rk.load({key: value.to("meta") for key, value in state.items()})
    with pytest.raises(UsageError, match="names and plain tensors"):
        rk.load(state | {first: state[first].to_sparse()})


def test_a_note_says_what_a_file_cannot_hold(tmp_path, cli):
    rk.save(rk.build("cifar_resnet18", classes=10), tmp_path / "model")
    code, _, err = cli("convert", tmp_path / "model", tmp_path / "k.safetensors", "--to", "kuangliu")
    assert (code, "note: the file does not hold the class names and the preparation of images" in err) == (
        0,
        True,
    )


@given(st.integers(1, 380), st.integers(1, 600))
def test_the_preparation_of_transformers_round_trips(crop, more):
    preparation = Preparation(crop + more, (crop, crop), (0.5,) * 3, (0.5,) * 3)
    ratio = build_preprocessor_config(preparation)["crop_pct"]
    assert int(crop / ratio) == crop + more


def test_negative_variances_are_reported():
    state = rk.build(BASE).state_dict()
    state["stem.norm1.running_var"][0] = -1
    with pytest.warns(ResnetkitWarning, match="negative variances in stem.norm1"):
        rk.load(state)


def test_variances_of_a_zero_filled_file_are_reported(tmp_path):
    rk.save(rk.build(BASE), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.warns(ResnetkitWarning, match=r"all variances are 0, as in an incomplete file, in .*running_var"):
        rk.load(path)


def test_other_channels_widths_and_no_head():
    model = timm.create_model("resnet18", in_chans=1, num_classes=0)
    ours = rk.load(model.state_dict())
    assert ours.card.spec.input == (1, 224, 224)
    assert ours(torch.zeros(1, 1, 40, 40)).shape == (1, 512)
    odd = replace(
        BASE, stem=Stem((Conv(12, 3, 2), Conv(8), Conv(8)), (MaxPool(),)), shortcuts=OPTION_D, input=(3, 224, 224)
    )
    table = select_table("timm", odd)
    shapes = {table.to_theirs(key): shape for key, shape in get_tensor_shapes(plan(odd)).items()}
    assert recognize_weights(shapes).spec == odd


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            "convert model out.pth --to torchvision",
            2,
            "error: the name of a weights file must end in .safetensors\nwhere: out.pth",
        ),
        ("convert model model --to hf", 2, "error: this path exists already\nwhere: model"),
        ("convert model x.safetensors --to keras", 2, "error: resnetkit cannot write the dialect 'keras'"),
        ("convert resnet18 x.safetensors --to timm", 2, "error: resnet18 is a network without weights"),
        ("convert model x.safetensors", 2, "error: missing: --to"),
    ],
)
def test_wrong_arguments(arguments, code, message, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rk.save(rk.build("resnet18", classes=2), "model")
    got, out, err = cli(*arguments.split())
    assert (got, out) == (code, "")
    assert err.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.models.resnet", None)
    with pytest.raises(MachineError) as caught:
        rk.as_module(rk.build("resnet18"), "timm")
    assert str(caught.value) == "error: timm is not installed\nfix: pip install timm"
    with pytest.raises(UsageError, match="resnetkit cannot build models of 'keras'"):
        rk.as_module(rk.build("resnet18"), "keras")


@pytest.mark.parametrize("change", [{"model_type": "vit"}, {"depths": [1]}, {"depths": "x"}, {"hidden_sizes": [0, 1]},
                                    {"layer_type": "other"}, {"embedding_size": 2**40}, {"hidden_act": "os.system"}])  # fmt: skip
def test_invalid_configs_of_transformers(tmp_path, change):
    build_hugging_face("small").save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError):
        rk.load(tmp_path / "m")
