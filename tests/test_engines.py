"""Engines: their logits against fp32 in PyTorch, calls from several threads, and that libraries stay quiet."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import resnetkit
from resnetkit.architecture.spec import EfficientChannels, SqueezeExcite
from resnetkit.engines import (
    calibration,
    export,
    no_telemetry,
    onnxruntime,
    openvino,
    torch_compile,
    torch_eager,
)
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig, pad_batch
from resnetkit.errors import MachineError, UsageError, format_install_command
from resnetkit.images.prepare import resize_and_crop
from resnetkit.network.build import build
from resnetkit.network.inference import inference
from resnetkit.runtime.device import has_fast_bf16
from resnetkit.surgery.norms import fold_for_inference, fold_norms
from resnetkit.weights.save import save

from helpers.tiny import BASE, TINY


def with_single_blocks(spec, *attention):
    """Return the network with one block per stage, and each stage with its attention."""
    attentions = attention or [stage.attention for stage in spec.stages]
    stages = zip(spec.stages, attentions, strict=True)
    return replace(spec, stages=tuple(replace(stage, blocks=1, attention=layers) for stage, layers in stages))


SMALL = with_single_blocks(BASE)
VARIANTS = {
    "bottleneck, SE, ECA, SiLU, blur, grayscale": replace(
        with_single_blocks(TINY["blurred"], (SqueezeExcite(4),), (EfficientChannels(),)),
        activation="silu",
        input=(1, 15, 17),
    ),
    "pre-activation, option A": with_single_blocks(TINY["pre-a"]),
    "pre-activation, option D, group norm": with_single_blocks(TINY["pre-d"]),
    "VGG": with_single_blocks(TINY["vgg"]),
}
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "int8": 0.2, "int8-body": 0.2}
needs_bf16 = pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="this processor has no bf16")
PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16)]


def make_pixels(card, count=8, seed=0):
    preparation = card.preparation
    shape = (count, *preparation.crop, len(preparation.mean))
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def compute_logits(model, pixels):
    with inference(model, torch.device("cpu")) as infer:
        return infer(torch.from_numpy(pixels)).numpy()


def build_network(spec):
    """Build a network whose norms are not the identity; variances of 1 would hide a forgotten eps."""
    model = build(spec, seed=1)
    generator = torch.Generator().manual_seed(2)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.data.uniform_(0.2, 1.5, generator=generator)
    return model.eval()


def make_engine(tmp_path, backend, model, config, pixels=None):
    """Save the model, export it and load the engine."""
    folder, artifact = tmp_path / "model", tmp_path / config.name
    if not folder.exists():
        save(model, folder)
    artifact.mkdir()
    backend.export_artifact(model, artifact, config.precision, pixels)
    return backend.load_engine(folder, read_contents(artifact), config)


def read_contents(artifact):
    return {path.name: path.read_bytes() for path in artifact.iterdir()}


def compute_error(logits, expected):
    """Return the largest difference, relative to the largest logit."""
    assert logits.dtype == np.float32
    assert logits.shape == expected.shape
    return np.abs(logits - expected).max() / np.abs(expected).max()


# --------------------------------------------------------------------------------------------------------------- logits


@pytest.fixture(scope="module", autouse=True)
def cache_exports():
    """Export the graph of each network once in this file, because that takes longest."""
    programs, export_program = {}, export.export_program

    def export_once(network):
        if network not in programs:
            programs[network] = export_program(network)
        return programs[network]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_program", export_once)
        yield


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    """Return a network, images, and its logits."""
    model = build_network(VARIANTS[request.param])
    pixels = make_pixels(model.card)
    return model, pixels, compute_logits(model, pixels)


@pytest.fixture(scope="module")
def base():
    return build_network(SMALL)


def test_openvino(tmp_path, variant):
    model, pixels, expected = variant
    engine = make_engine(tmp_path, openvino, model, EngineConfig("openvino", "fp32", 4))
    assert compute_error(engine(pixels[:3]), expected[:3]) <= TOLERANCES["fp32"]
    assert compute_error(engine(pixels[4:]), expected[4:]) <= TOLERANCES["fp32"]
    if has_fast_bf16(torch.device("cpu")):
        contents = read_contents(tmp_path / "openvino-fp32")
        low = openvino.load_engine(tmp_path, contents, EngineConfig("openvino", "bf16", 8))
        assert TOLERANCES["fp32"] < compute_error(low(pixels), expected) <= TOLERANCES["bf16"]


def test_openvino_has_static_shapes(tmp_path, base):
    engine = make_engine(tmp_path, openvino, base, EngineConfig("openvino", "fp32", 3))
    assert str(engine.compiled.input().get_partial_shape()) == "[3,16,16,3]"
    assert str(engine.compiled.output().get_partial_shape()) == "[3,5]"


def test_onnx_runtime(tmp_path, variant):
    model, pixels, expected = variant
    engine = make_engine(tmp_path, onnxruntime, model, EngineConfig("onnxruntime", "fp32", 4))
    assert compute_error(engine(pixels[:3]), expected[:3]) <= TOLERANCES["fp32"]
    assert compute_error(engine(pixels[4:]), expected[4:]) <= TOLERANCES["fp32"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_eager(tmp_path, variant, precision):
    model, pixels, expected = variant
    engine = make_engine(tmp_path, torch_eager, model, EngineConfig("eager", precision, 4))
    assert compute_error(engine(pixels[:3]), expected[:3]) <= TOLERANCES[precision]
    assert list((tmp_path / f"eager-{precision}").iterdir()) == []


def list_quantized_in_openvino(artifact):
    """Return for each convolution and matrix product in order whether its input is quantized."""
    graph = no_telemetry.import_without_telemetry("openvino").Core().read_model(artifact / "model.xml")
    nodes = [node for node in graph.get_ordered_ops() if node.get_type_name() in ("Convolution", "MatMul")]
    return [find_producer(node) == "FakeQuantize" for node in nodes]


def find_producer(node):
    """Return the type of the node that computes a node's input, before transposes."""
    node = node.input_value(0).get_node()
    while node.get_type_name() in ("Transpose", "Reshape"):
        node = node.input_value(0).get_node()
    return node.get_type_name()


def list_quantized_in_onnx(artifact):
    graph = no_telemetry.import_without_telemetry("onnx").load(artifact / "model.onnx").graph
    maker = {name: node.op_type for node in graph.node for name in node.output}
    nodes = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [[maker.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2 for node in nodes]


@pytest.mark.parametrize("precision", ["int8", "int8-body"])
@pytest.mark.parametrize(
    ("backend", "list_quantized"), [(openvino, list_quantized_in_openvino), (onnxruntime, list_quantized_in_onnx)]
)
def test_int8_quantizes_every_layer_or_the_body(tmp_path, base, backend, list_quantized, precision):
    pixels = make_pixels(base.card, 32)
    expected = compute_logits(base, pixels)
    engine = make_engine(tmp_path, backend, base, EngineConfig("any", precision, 32), pixels)
    assert TOLERANCES["fp32"] < compute_error(engine(pixels), expected) <= TOLERANCES[precision]
    assert compute_error(engine(pixels[:5]), expected[:5]) <= TOLERANCES[precision]
    are_ends_quantized = precision == "int8"  # the first convolution and the classifier
    assert list_quantized(tmp_path / f"any-{precision}") == [are_ends_quantized, *[True] * 5, are_ends_quantized]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "option A" not in name], indirect=True)
@pytest.mark.parametrize("backend", [openvino, onnxruntime])
def test_int8_of_every_variant(tmp_path, variant, backend):
    """Option A has no matrix product to quantize."""
    model, pixels, expected = variant
    engine = make_engine(tmp_path, backend, model, EngineConfig("any", "int8", 8), pixels)
    assert TOLERANCES["fp32"] < compute_error(engine(pixels), expected) <= TOLERANCES["int8"]


@pytest.mark.parametrize("backend", [openvino, onnxruntime])
@pytest.mark.parametrize("pixels", [None, np.zeros((0, 16, 16, 3), np.uint8)])
def test_int8_needs_images(tmp_path, base, backend, pixels):
    with pytest.raises(UsageError) as caught:
        backend.export_artifact(base, tmp_path, "int8", pixels)
    assert str(caught.value) == "error: int8 needs images for calibration\nfix: --data DIR"
    assert list(tmp_path.iterdir()) == []


def test_calibration_uses_at_most_300_images():
    assert len(calibration.select_calibration_pixels("int8-body", np.zeros((301, 1, 1, 1), np.uint8))) == 300
    assert calibration.select_calibration_pixels("fp32", np.zeros((301, 1, 1, 1), np.uint8)) is None


def test_export_module_normalizes_pixels(tmp_path):
    """The other tests compare with `network.inference`; this one with the card's definition in fp64."""
    model = build_network(BASE)
    preparation, pixels = model.card.preparation, make_pixels(model.card, 2)
    x = (pixels / 255 - np.array(preparation.mean)) / np.array(preparation.std)
    with torch.inference_mode():
        expected = model.double()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        result = export.ExportModule(model.float()).eval()(torch.from_numpy(pixels)).numpy()
    assert compute_error(result, expected) <= 1e-5


def test_read_only_pixels_give_no_warning(tmp_path, pictures):
    from PIL import Image

    model = build_network(BASE)
    path = next(pictures("p", ["a"]).rglob("*.png"))
    pixels = resize_and_crop(Image.open(path), model.card.preparation)[None]
    assert not pixels.flags.writeable
    engine = make_engine(tmp_path, torch_eager, model, EngineConfig("eager", "fp32", 4))
    assert compute_error(engine(pixels), compute_logits(model, pixels.copy())) <= TOLERANCES["fp32"]


@pytest.fixture(scope="module")
def two_stream_engines(tmp_path_factory, base):
    """Load engines of one network with two streams: openvino, onnxruntime, eager."""
    folder, model = tmp_path_factory.mktemp("engines"), base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnetkit.engines.base.count_cores", lambda: 2)
        configs = {name: EngineConfig(name, "fp32", 4, 2) for name in ("openvino", "onnxruntime", "eager")}
        yield (
            model,
            {
                name: make_engine(folder, ENGINE_SPECS[name].import_backend(), model, config)
                for name, config in configs.items()
            },
        )
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "eager"])
def test_two_threads_get_the_logits_of_one(two_stream_engines, name):
    model, engines = two_stream_engines
    batches = [make_pixels(model.card, 1 + i % 4, seed=i) for i in range(40)]
    sequential = [engines[name](batch) for batch in batches]
    barrier, thread_ids = threading.Barrier(2), []

    def infer(batches):
        barrier.wait()
        thread_ids.append(threading.get_ident())
        return [engines[name](batch) for batch in batches]

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(infer, batches[i::2]) for i in range(2)]
        parallel = [future.result() for future in futures]
    assert len(set(thread_ids)) == 2
    for i, expected in enumerate(sequential):
        assert compute_error(parallel[i % 2][i // 2], expected) <= 1e-6
    assert compute_error(sequential[3], compute_logits(model, batches[3])) <= TOLERANCES["fp32"]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "eager"])
def test_logits_are_not_overwritten_by_the_next_call(two_stream_engines, name):
    model, engines = two_stream_engines
    first = engines[name](make_pixels(model.card, 4, seed=1))
    copy = first.copy()
    engines[name](make_pixels(model.card, 4, seed=2))
    assert np.array_equal(first, copy)


def test_pad_batch_appends_black_images():
    pixels = np.full((2, 3, 3, 1), 7, np.uint8)
    assert pad_batch(pixels, 2) is pixels
    assert pad_batch(pixels, 4).tolist() == [*pixels.tolist(), *np.zeros((2, 3, 3, 1), int).tolist()]


# -------------------------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize("name", ["basic-b", "pre-bottleneck", "biases", "group-norm", "vgg"])
def test_fold_for_inference_equals_fold_norms(name):
    model = build_network(TINY[name]).train()
    result = fold_for_inference(model)
    assert model.training
    assert not result.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in result.parameters())
    if name in ("group-norm", "vgg"):
        assert result.card == model.card
        expected = model
    else:
        expected, _ = fold_norms(model)
        assert result.card == expected.card
    ours, theirs = result.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_export_module_does_not_change_the_network():
    model = build_network(TINY["vgg"]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export.ExportModule(model, torch.bfloat16).to(memory_format=torch.channels_last)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in model.parameters())


@needs_bf16
def test_bf16_keeps_only_scale_and_shift_in_fp32(tmp_path):
    folder = save(build_network(TINY["pre-bottleneck"]), tmp_path / "m")
    module, _ = torch_eager.load_export_module(folder, EngineConfig("eager", "bf16"))
    fp32_keys = [key for key, value in module.state_dict().items() if value.dtype == torch.float32]
    assert fp32_keys == ["scale", "shift"]


# ------------------------------------------------------------------------------------------------------------- compiled


@pytest.fixture
def compiler(monkeypatch, tmp_path_factory):
    from torch._inductor import config

    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler is installed")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    with config.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}):
        yield


@needs_bf16
def test_compiled(tmp_path, compiler):
    model = build_network(replace(TINY["no-stem"], stages=SMALL.stages[:1], input=(3, 8, 8)))
    pixels = make_pixels(model.card, 4)
    expected = compute_logits(model, pixels)
    engines = {}
    for precision in ("fp32", "bf16"):
        engines[precision] = make_engine(tmp_path, torch_compile, model, EngineConfig("compiled", precision, 4))
        assert list((tmp_path / f"compiled-{precision}").iterdir()) == []
    assert any((Path(os.environ["RESNETKIT_CACHE"]) / "inductor").iterdir())
    torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1)  # as another library may set it
    with torch.compiler.set_stance("fail_on_recompile"):
        for precision, engine in engines.items():
            assert compute_error(engine(pixels), expected) <= TOLERANCES[precision]
            assert compute_error(engine(pixels[:3]), expected[:3]) <= TOLERANCES[precision]
        with ThreadPoolExecutor(1) as pool:
            assert compute_error(pool.submit(engines["fp32"], pixels).result(), expected) <= TOLERANCES["fp32"]
    torch.set_num_threads(1)


def test_compiled_needs_a_cpp_compiler(tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "user-cache"))
    with config.patch({"cpp.cxx": (None, str(tmp_path / "g++"))}), pytest.raises(MachineError) as caught:
        make_engine(tmp_path, torch_compile, build_network(TINY["no-stem"]), EngineConfig("compiled", "fp32"))
    assert str(caught.value) == (
        "error: torch.compile needs a C++ compiler, and none is installed\n"
        "fix: install g++ or clang (the variable CXX names it), or use another engine"
    )
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "user-cache")


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["eager", "compiled"])
def test_bf16_on_a_processor_without_bf16(tmp_path, monkeypatch, name):
    monkeypatch.setattr("resnetkit.runtime.device.has_fast_bf16", lambda device: False)
    with pytest.raises(MachineError) as caught:
        make_engine(tmp_path, ENGINE_SPECS[name].import_backend(), build_network(BASE), EngineConfig(name, "bf16"))
    assert str(caught.value) == "error: this processor has no bf16 instructions\nfix: use an engine in fp32 or int8"


GRAPH = {"model.xml": b"<?xml", "model.bin": b""}


class FakeCore:
    """An OpenVINO core of a processor without bf16, or one that changes the precision."""

    def __init__(self, capabilities, actual_precision):
        self.capabilities, self.actual_precision = capabilities, actual_precision

    def get_property(self, *names):
        return self.capabilities if "OPTIMIZATION_CAPABILITIES" in names else self

    def get_type_name(self):
        return self.actual_precision

    def read_model(self, graph, weights):
        return self

    def input(self):
        return self

    def get_shape(self):
        return [1, 1, 1, 1]

    def create_infer_request(self):
        return types.SimpleNamespace(infer=lambda inputs, share_inputs: None, get_output_tensor=lambda: self)

    @property
    def data(self):
        return np.zeros((1, 5), np.float32)

    def get_partial_shape(self):
        return [None, *[types.SimpleNamespace(get_length=lambda: 1)] * 3]

    def reshape(self, shape):
        assert shape == [1, 1, 1, 1]

    def compile_model(self, model, device, settings):
        self.settings = settings
        return self


@pytest.mark.parametrize("capabilities", [["FP32"], ["FP32", "BF16"]])
def test_bf16_that_openvino_would_emulate_or_ignore(tmp_path, monkeypatch, capabilities):
    monkeypatch.setattr(openvino, "get_core", lambda: FakeCore(capabilities, "f32"))
    with pytest.raises(MachineError, match="this processor has no bf16 instructions"):
        openvino.load_engine(tmp_path, GRAPH, EngineConfig("openvino", "bf16"))


def test_layers_outside_int8_run_in_fp32_without_bf16(tmp_path, monkeypatch):
    core = FakeCore(["FP32"], "f32")
    monkeypatch.setattr(openvino, "get_core", lambda: core)
    monkeypatch.setattr("resnetkit.engines.base.count_cores", lambda: 8)
    openvino.load_engine(tmp_path, GRAPH, EngineConfig("openvino", "int8", 1, 4))
    assert core.settings == {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 4, "INFERENCE_NUM_THREADS": 8}


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("openvino", "openvino", lambda path: openvino.load_engine(path, GRAPH, EngineConfig("openvino", "fp32"))),
        ("nncf", "openvino", lambda path: ENGINE_SPECS["openvino"].check_packages(for_export=True)),
        ("onnxruntime", "onnx", lambda path: onnxruntime.load_engine(path, {}, EngineConfig("onnxruntime", "fp32"))),
        ("onnxscript", "onnx", lambda path: onnxruntime.export_artifact(build(BASE), path, "fp32", None)),
    ],
)
def test_a_missing_extra(tmp_path, monkeypatch, package, extra, call):
    monkeypatch.setattr(openvino, "get_core", openvino.get_core.__wrapped__)  # without its cache
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MachineError) as caught:
        call(tmp_path)
    assert str(caught.value) == f"error: {package} is not installed\nfix: {format_install_command(extra)}"


# --------------------------------------------------------------------------------------------------------- other files


def test_an_onnx_graph_cannot_open_other_files(tmp_path, monkeypatch):
    onnx, weights = no_telemetry.import_without_telemetry("onnx"), tmp_path / "weights.data"
    weights.write_bytes(np.ones(8, np.float32).tobytes())
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> graph (float[8] pixels) => (float[8] logits)'
        "<float[8] weights = {0, 0, 0, 0, 0, 0, 0, 0}> { logits = Mul (pixels, weights) }"
    )
    (tensor,) = model.graph.initializer
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="")
    monkeypatch.chdir(tmp_path)
    for location in ("weights.data", "./weights.data", str(weights), f"../{tmp_path.name}/weights.data", "../../x"):
        tensor.external_data[0].value = location
        with pytest.raises(Exception, match="External data path validation failed"):
            onnxruntime.load_engine(
                tmp_path, {"model.onnx": model.SerializeToString()}, EngineConfig("onnxruntime", "fp32")
            )
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.ClearField("external_data")
    tensor.raw_data = weights.read_bytes()
    contents = {"model.onnx": model.SerializeToString()}
    engine = onnxruntime.load_engine(tmp_path, contents, EngineConfig("onnxruntime", "fp32"))
    assert engine(np.full(8, 3, np.float32)).tolist() == [3.0] * 8


@pytest.mark.parametrize("content", [b"", b"\x08\t:\x01a", b"<net/>"])
def test_openvino_reads_its_own_format_only(tmp_path, content):
    with pytest.raises(MachineError) as caught:
        openvino.load_engine(tmp_path, GRAPH | {"model.xml": content}, EngineConfig("openvino", "fp32"))
    assert str(caught.value) == "error: model.xml is not an OpenVINO graph"


# ------------------------------------------------------------------------------------------------------------ telemetry

WATCHED_PROGRAM = """
import json, os, socket, sys, threading
events, is_done = [], threading.Event()
def hook(event, arguments):
    if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        events.append("write " + str(arguments[0]))
    elif event.startswith(("socket.", "subprocess.", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.system")):
        events.append(event + " " + str(arguments[:1]))
def look():
    try:
        for task in os.listdir("/proc/self/task"):
            events.extend("child of " + task for _ in open(f"/proc/self/task/{task}/children").read().split())
        for number in os.listdir("/proc/self/fd"):
            target = os.readlink("/proc/self/fd/" + number)
            if target.startswith("socket:") and target[8:-1] not in open("/proc/net/unix").read():  # not a local one
                events.append(target)
    except OSError:
        pass
def watch():
    while not is_done.wait(0.005):
        look()
sys.dont_write_bytecode = True
sys.addaudithook(hook)
import torch
events.clear()
thread = threading.Thread(target=watch)
thread.start()
import functools
from dataclasses import replace
from pathlib import Path
import numpy as np
from helpers.tiny import BASE
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig
from resnetkit.engines import export, no_telemetry
from resnetkit.network.build import build
if sys.argv[1] == "enabled":
    no_telemetry.block_telemetry = lambda: None
    no_telemetry.import_without_telemetry("nncf"), no_telemetry.import_without_telemetry("onnxruntime")
else:
    network = build(replace(BASE, stages=(replace(BASE.stages[0], blocks=1),)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    export.export_program = functools.cache(export.export_program)
    for name in ("openvino", "onnxruntime"):
        backend, artifact = ENGINE_SPECS[name].import_backend(), Path(sys.argv[2], name)
        artifact.mkdir()
        backend.export_artifact(network, artifact, "int8", pixels)
        contents = {path.name: path.read_bytes() for path in artifact.iterdir()}
        backend.load_engine(artifact, contents, EngineConfig(name, "int8", 2))(pixels)
for _ in range(60):  # a library may send a little later, in a thread of its own
    is_done.wait(0.005)
    look()
is_done.set()
thread.join()
telemetry = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
sys.stderr.write(json.dumps({"events": events, "telemetry": telemetry}) + "\\n")
"""


def run_watched(tmp_path, telemetry):
    """Run int8 engines from export to logits; return events, modules, files in the home folder, stdout and stderr.

    With telemetry enabled the libraries are only imported, which is enough.
    """
    home, artifacts, work_dir = (tmp_path / name for name in ("home", "artifacts", "work"))
    for folder in (home, artifacts, work_dir):
        folder.mkdir()
    path = os.pathsep.join([str(Path(resnetkit.__file__).parent.parent), str(Path(__file__).parent)])
    # a proxy without a server: what the libraries send stays on this machine
    proxies = dict.fromkeys(["https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"], "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_PROGRAM, telemetry, str(artifacts)], capture_output=True, text=True,
        check=False, cwd=work_dir,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": path, "TMPDIR": str(work_dir),
             "OMP_NUM_THREADS": "1", **proxies},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stderr.splitlines()[-1])
    expected = (str(artifacts), str(work_dir), "write /dev/null")
    events = [event for event in report["events"] if not any(place in event for place in expected)]
    events = [event for event in events if not event.removeprefix("write ").isdecimal()]  # a file that is open already
    return events, report["telemetry"], [*home.rglob("*")], done.stdout, done.stderr.splitlines()[:-1]


def test_engines_send_nothing_and_write_nothing_into_home(tmp_path):
    assert run_watched(tmp_path, "blocked") == ([], [], [], "", [])


def test_the_watched_program_sees_telemetry_that_is_enabled(tmp_path):
    events, telemetry, home, _, _ = run_watched(tmp_path, "enabled")
    assert "openvino_telemetry" in telemetry
    assert any(event.startswith("os.fork") for event in events)
    assert any(event.startswith("child of") for event in events)
    names = {path.name for path in home}
    assert "openvino_ga_cid" in names
    assert "deviceid" in names or not has_native_telemetry("onnxruntime")


def has_native_telemetry(package):
    """Return whether the library can send usage data from its C++ code."""
    folder = Path(importlib.util.find_spec(package).origin).parent / "capi"
    return any(b"ORT_DISABLE_TELEMETRY" in path.read_bytes() for path in folder.glob("onnxruntime_pybind11*"))


def test_telemetry_imported_earlier_is_disabled(monkeypatch):
    sent = []

    class Telemetry:
        def send_event(self, event):
            sent.append(event)

    package, main = types.ModuleType("openvino_telemetry"), types.ModuleType("openvino_telemetry.main")
    package.Telemetry = main.Telemetry = Telemetry
    monkeypatch.setitem(sys.modules, "openvino_telemetry", package)
    monkeypatch.setitem(sys.modules, "openvino_telemetry.main", main)
    telemetry = Telemetry()
    telemetry.send_event("first")
    no_telemetry.import_without_telemetry("openvino")
    telemetry.send_event("second")
    assert sent == ["first"]
    with pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401


def test_silence_is_restored(capsys):
    handlers = logging.root.handlers[:]
    with no_telemetry.silence():
        print("loud")
        logging.getLogger("library").warning("loud")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "")
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == 0
    print("visible")
    assert capsys.readouterr().out == "visible\n"
    with pytest.raises(DeprecationWarning), no_telemetry.silence():
        raise DeprecationWarning("an error is one")


TORCH_FREE_PROGRAM = """
import sys, threading
from pathlib import Path
import numpy as np
from resnetkit.architecture.spec import EfficientChannels
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig
folder, config = Path(sys.argv[2]), EngineConfig(sys.argv[1], "fp32", 2)
contents = {path.name: path.read_bytes() for path in folder.iterdir()}
engine = ENGINE_SPECS[sys.argv[1]].import_backend().load_engine(folder, contents, config)
assert not {"torch", "onnx", "nncf"} & set(sys.modules)
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)
def infer():
    barrier.wait()
    assert engine(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 5)
threads = [threading.Thread(target=infer) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_loading_needs_no_torch_and_the_first_calls_may_be_parallel(tmp_path, base, name):
    ENGINE_SPECS[name].import_backend().export_artifact(base, tmp_path, "fp32", None)
    path = str(Path(resnetkit.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", TORCH_FREE_PROGRAM, name, str(tmp_path)], capture_output=True, text=True,
        check=False, timeout=600,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


SIGNAL_PROGRAM = """
import gc, signal, sys
from pathlib import Path
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
folder = Path(sys.argv[2])
backend = ENGINE_SPECS[sys.argv[1]].import_backend()
contents = {path.name: path.read_bytes() for path in folder.iterdir()}
engines = [backend.load_engine(folder, contents, EngineConfig(sys.argv[1], "fp32", batch)) for batch in (1, 2)]
while engines:
    del engines[0]
    gc.collect()
    signal.raise_signal(signal.SIGTERM)
print("signals", len(signals))
"""


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_signals_are_handled_after_engines_are_deleted(tmp_path, base, name):
    """OpenVINO changes the signal stack; the engines are deleted in the order of their creation."""
    ENGINE_SPECS[name].import_backend().export_artifact(base, tmp_path, "fp32", None)
    args = [sys.executable, "-c", SIGNAL_PROGRAM, name, str(tmp_path)]
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "signals 2\n", "")
