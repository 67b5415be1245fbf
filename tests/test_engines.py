"""Engines: their logits against fp32 in torch, whoever asks and however many; what is loud about them kept quiet."""

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
from resnetkit.engines import calibration, openvino
from resnetkit.engines import export as served
from resnetkit.engines import no_telemetry as quiet
from resnetkit.engines import onnxruntime as onnx_runtime
from resnetkit.engines import torch_compile as compiled
from resnetkit.engines import torch_eager as eager
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig, pad_batch
from resnetkit.errors import MachineError, UsageError
from resnetkit.images.prepare import resize_and_crop
from resnetkit.network.build import build
from resnetkit.network.inference import inference
from resnetkit.runtime.device import has_fast_bf16
from resnetkit.surgery.norms import fold_for_inference, fold_norms
from resnetkit.weights.save import save

from helpers.tiny import BASE, TINY


def once(spec, *attention):
    """With one block in a stage, and attention of a kind in each."""
    kinds = attention or [stage.attention for stage in spec.stages]
    stages = zip(spec.stages, kinds, strict=True)
    return replace(spec, stages=tuple(replace(stage, blocks=1, attention=kind) for stage, kind in stages))


SMALL = once(BASE)
VARIANTS = {
    "bottleneck, SE, ECA, SiLU, blur, grey": replace(
        once(TINY["blurred"], (SqueezeExcite(4),), (EfficientChannels(),)), activation="silu", input=(1, 15, 17)
    ),
    "pre-activation, option A": once(TINY["pre-a"]),
    "pre-activation, option D, group norm": once(TINY["pre-d"]),
    "VGG": once(TINY["vgg"]),
}
OFF = {"fp32": 1e-4, "bf16": 5e-2, "int8": 0.2, "int8-body": 0.2}
needs_bf16 = pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="this processor has no bf16")
PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16)]


def pictures_for(card, count=8, seed=0):
    how = card.preparation
    return np.random.default_rng(seed).integers(0, 256, (count, *how.crop, len(how.mean)), dtype=np.uint8)


def answers(model, pixels):
    with inference(model, torch.device("cpu")) as logits:
        return logits(torch.from_numpy(pixels)).numpy()


def network_of(spec):
    """One with norms that do something: all variances 1 would hide an eps that is forgotten."""
    model = build(spec, seed=1)
    draw = torch.Generator().manual_seed(2)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.data.uniform_(0.2, 1.5, generator=draw)
    return model.eval()


def made(tmp_path, kind, model, choice, pixels=None):
    """The engine, from nothing."""
    folder, artefact = tmp_path / "model", tmp_path / choice.name
    if not folder.exists():
        save(model, folder)
    artefact.mkdir()
    kind.export_artifact(model, artefact, choice.precision, pixels)
    return kind.load_engine(folder, artefact, choice)


def apart(found, wanted):
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    return np.abs(found - wanted).max() / np.abs(wanted).max()


# ------------------------------------------------------------------------------------------- the answers


@pytest.fixture(scope="module", autouse=True)
def exported_once():
    """The graph of a network is exported once in this file, as that takes longest."""
    kept, export = {}, served.export_program

    def once(network):
        if network not in kept:
            kept[network] = export(network)
        return kept[network]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "export_program", once)
        yield


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    """A network, pictures, and its answers."""
    model = network_of(VARIANTS[request.param])
    pixels = pictures_for(model.card)
    return model, pixels, answers(model, pixels)


@pytest.fixture(scope="module")
def base():
    return network_of(SMALL)


def test_openvino(tmp_path, variant):
    model, pixels, wanted = variant
    engine = made(tmp_path, openvino, model, EngineConfig("openvino", "fp32", 4))
    assert apart(engine(pixels[:3]), wanted[:3]) <= OFF["fp32"]
    assert apart(engine(pixels[4:]), wanted[4:]) <= OFF["fp32"]
    if has_fast_bf16(torch.device("cpu")):
        low = openvino.load_engine(tmp_path / "model", tmp_path / "openvino-fp32", EngineConfig("openvino", "bf16", 8))
        assert OFF["fp32"] < apart(low(pixels), wanted) <= OFF["bf16"]


def test_openvino_knows_every_size(tmp_path, base):
    engine = made(tmp_path, openvino, base, EngineConfig("openvino", "fp32", 3))
    assert str(engine._compiled.input().get_partial_shape()) == "[3,16,16,3]"
    assert str(engine._compiled.output().get_partial_shape()) == "[3,5]"


def test_onnx_runtime(tmp_path, variant):
    model, pixels, wanted = variant
    engine = made(tmp_path, onnx_runtime, model, EngineConfig("onnxruntime", "fp32", 4))
    assert apart(engine(pixels[:3]), wanted[:3]) <= OFF["fp32"]
    assert apart(engine(pixels[4:]), wanted[4:]) <= OFF["fp32"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_eager(tmp_path, variant, precision):
    model, pixels, wanted = variant
    engine = made(tmp_path, eager, model, EngineConfig("eager", precision, 4))
    assert apart(engine(pixels[:3]), wanted[:3]) <= OFF[precision]
    assert list((tmp_path / f"eager-{precision}").iterdir()) == []


def rounded_in_openvino(artefact):
    """For each convolution and matrix product in order, whether its input is rounded to 8 bits."""
    graph = quiet.import_without_telemetry("openvino").Core().read_model(artefact / "model.xml")
    nodes = [node for node in graph.get_ordered_ops() if node.get_type_name() in ("Convolution", "MatMul")]
    return [before_moves(node) == "FakeQuantize" for node in nodes]


def before_moves(node):
    """What made the input of a node, before it was put into another order."""
    node = node.input_value(0).get_node()
    while node.get_type_name() in ("Transpose", "Reshape"):
        node = node.input_value(0).get_node()
    return node.get_type_name()


def rounded_in_onnx(artefact):
    graph = quiet.import_without_telemetry("onnx").load(artefact / "model.onnx").graph
    maker = {name: node.op_type for node in graph.node for name in node.output}
    nodes = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [[maker.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2 for node in nodes]


@pytest.mark.parametrize("precision", ["int8", "int8-body"])
@pytest.mark.parametrize(("kind", "rounded"), [(openvino, rounded_in_openvino), (onnx_runtime, rounded_in_onnx)])
def test_int8(tmp_path, base, kind, rounded, precision):
    pixels = pictures_for(base.card, 32)
    wanted = answers(base, pixels)
    engine = made(tmp_path, kind, base, EngineConfig("any", precision, 32), pixels)
    assert OFF["fp32"] < apart(engine(pixels), wanted) <= OFF[precision]
    assert apart(engine(pixels[:5]), wanted[:5]) <= OFF[precision]
    ends = precision == "int8"  # the first convolution and the classifier
    assert rounded(tmp_path / f"any-{precision}") == [ends, *[True] * 5, ends]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "option A" not in name], indirect=True)
@pytest.mark.parametrize("kind", [openvino, onnx_runtime])
def test_int8_of_every_kind_of_network(tmp_path, variant, kind):
    """Option A has no product of its own to be rounded."""
    model, pixels, wanted = variant
    engine = made(tmp_path, kind, model, EngineConfig("any", "int8", 8), pixels)
    assert OFF["fp32"] < apart(engine(pixels), wanted) <= OFF["int8"]


@pytest.mark.parametrize("kind", [openvino, onnx_runtime])
@pytest.mark.parametrize("pixels", [None, np.zeros((0, 16, 16, 3), np.uint8)])
def test_int8_needs_pictures(tmp_path, base, kind, pixels):
    with pytest.raises(UsageError) as caught:
        kind.export_artifact(base, tmp_path, "int8", pixels)
    assert str(caught.value) == "error: int8 needs pictures to measure ranges\nfix: --data DIR"
    assert list(tmp_path.iterdir()) == []


def test_ranges_are_measured_on_three_hundred_pictures_at_most():
    assert len(calibration.select_calibration_pixels("int8-body", np.zeros((301, 1, 1, 1), np.uint8))) == 300
    assert calibration.select_calibration_pixels("fp32", np.zeros((301, 1, 1, 1), np.uint8)) is None


def test_pixels_are_prepared_as_pictures_are(tmp_path):
    """Not by `runtime.device`, which the other tests compare with: the definition in a card, in fp64."""
    model = network_of(BASE)
    how, pixels = model.card.preparation, pictures_for(model.card, 2)
    numbers = (pixels / 255 - np.array(how.mean)) / np.array(how.std)
    with torch.inference_mode():
        wanted = model.double()(torch.from_numpy(numbers).permute(0, 3, 1, 2)).numpy()
        found = served.ExportModule(model.float()).eval()(torch.from_numpy(pixels)).numpy()
    assert apart(found, wanted) <= 1e-5


def test_a_picture_that_must_not_be_written_is_no_warning(tmp_path, pictures):
    from PIL import Image

    model = network_of(BASE)
    path = next(pictures("p", ["a"]).rglob("*.png"))
    pixels = resize_and_crop(Image.open(path), model.card.preparation)[None]
    assert not pixels.flags.writeable
    engine = made(tmp_path, eager, model, EngineConfig("eager", "fp32", 4))
    assert apart(engine(pixels), answers(model, pixels.copy())) <= OFF["fp32"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory, base):
    """Engines of one network with two streams: openvino, onnxruntime, eager."""
    place, model = tmp_path_factory.mktemp("engines"), base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnetkit.engines.base.count_cores", lambda: 2)
        choices = {kind: EngineConfig(kind, "fp32", 4, 2) for kind in ("openvino", "onnxruntime", "eager")}
        yield (
            model,
            {kind: made(place, ENGINE_SPECS[kind].import_backend(), model, choice) for kind, choice in choices.items()},
        )
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime", "eager"])
def test_two_threads_at_once_get_what_one_gets(opened, kind):
    model, engines = opened
    batches = [pictures_for(model.card, 1 + i % 4, seed=i) for i in range(40)]
    alone = [engines[kind](batch) for batch in batches]
    both, busy = threading.Barrier(2), []

    def ask(mine):
        both.wait()
        busy.append(threading.get_ident())
        return [engines[kind](batch) for batch in mine]

    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(ask, batches[i::2]) for i in range(2)]
        beside = [part.result() for part in parts]
    assert len(set(busy)) == 2
    for i, wanted in enumerate(alone):
        assert apart(beside[i % 2][i // 2], wanted) <= 1e-6
    assert apart(alone[3], answers(model, batches[3])) <= OFF["fp32"]


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime", "eager"])
def test_an_answer_stays_when_the_next_comes(opened, kind):
    model, engines = opened
    first = engines[kind](pictures_for(model.card, 4, seed=1))
    kept = first.copy()
    engines[kind](pictures_for(model.card, 4, seed=2))
    assert np.array_equal(first, kept)


def test_padding_is_black_and_behind():
    given = np.full((2, 3, 3, 1), 7, np.uint8)
    assert pad_batch(given, 2) is given
    assert pad_batch(given, 4).tolist() == [*given.tolist(), *np.zeros((2, 3, 3, 1), int).tolist()]


# ------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize("name", ["basic-b", "pre-bottleneck", "biases", "group-norm", "vgg"])
def test_folding_without_proof_is_the_same_folding(name):
    model = network_of(TINY[name]).train()
    found = fold_for_inference(model)
    assert model.training
    assert not found.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    if name in ("group-norm", "vgg"):
        assert found.card == model.card
        wanted = model
    else:
        wanted, _ = fold_norms(model)
        assert found.card == wanted.card
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_serving_changes_nothing_of_the_network():
    model = network_of(TINY["vgg"]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    served.ExportModule(model, torch.bfloat16).to(memory_format=torch.channels_last)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in model.parameters())


@needs_bf16
def test_bf16_keeps_no_weights_in_fp32(tmp_path):
    folder = save(network_of(TINY["pre-bottleneck"]), tmp_path / "m")
    module, _ = eager.load_export_module(folder, EngineConfig("eager", "bf16"))
    wide = [key for key, value in module.state_dict().items() if value.dtype == torch.float32]
    assert wide == ["scale", "shift"]


# ------------------------------------------------------------------------------------------- compiled


@pytest.fixture
def compiler(monkeypatch, tmp_path_factory):
    from torch._inductor import config

    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("there is no C++ compiler here")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    with config.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}):
        yield


@needs_bf16
def test_compiled(tmp_path, compiler):
    model = network_of(replace(SMALL, stages=SMALL.stages[:1]))
    pixels = pictures_for(model.card, 4)
    wanted = answers(model, pixels)
    engines = {}
    for precision in ("fp32", "bf16"):
        engines[precision] = made(tmp_path, compiled, model, EngineConfig("compiled", precision, 4))
        assert list((tmp_path / f"compiled-{precision}").iterdir()) == []
    assert any((Path(os.environ["RESNETKIT_CACHE"]) / "inductor").iterdir())
    torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1)  # somebody else's wish
    with torch.compiler.set_stance("fail_on_recompile"):
        for precision, engine in engines.items():
            assert apart(engine(pixels), wanted) <= OFF[precision]
            assert apart(engine(pixels[:3]), wanted[:3]) <= OFF[precision]
        with ThreadPoolExecutor(1) as pool:
            assert apart(pool.submit(engines["fp32"], pixels).result(), wanted) <= OFF["fp32"]
    torch.set_num_threads(1)


def test_without_a_compiler(tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "told"))
    with config.patch({"cpp.cxx": (None, str(tmp_path / "g++"))}), pytest.raises(MachineError) as caught:
        made(tmp_path, compiled, network_of(TINY["no-stem"]), EngineConfig("compiled", "fp32"))
    assert str(caught.value) == (
        "error: torch compiles with a C++ compiler, and finds none here\n"
        "fix: install g++ or clang (CXX names it), or take another engine"
    )
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "told")


# ------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_bf16_where_the_processor_has_none(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("resnetkit.runtime.device.has_fast_bf16", lambda device: False)
    with pytest.raises(MachineError) as caught:
        made(tmp_path, ENGINE_SPECS[kind].import_backend(), network_of(BASE), EngineConfig(kind, "bf16"))
    assert str(caught.value) == "error: this processor does not multiply in bf16\nfix: an engine in fp32 or int8"


class Processor:
    """Of OpenVINO, as it answers for one that has no bf16, or takes another precision than asked for."""

    def __init__(self, able, taken):
        self.able, self.taken = able, taken

    def get_property(self, *words):
        return self.able if "OPTIMIZATION_CAPABILITIES" in words else self

    def get_type_name(self):
        return self.taken

    def read_model(self, path):
        return self

    def input(self):
        return self

    def get_shape(self):
        return [1, 1, 1, 1]

    def create_infer_request(self):
        return types.SimpleNamespace(infer=lambda given, share_inputs: None, get_output_tensor=lambda: self)

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


@pytest.mark.parametrize("able", [["FP32"], ["FP32", "BF16"]])
def test_bf16_that_openvino_would_emulate_or_leave_out(tmp_path, monkeypatch, able):
    monkeypatch.setattr(openvino, "_get_core", lambda: Processor(able, "f32"))
    with pytest.raises(MachineError, match="this processor does not multiply in bf16"):
        openvino.load_engine(tmp_path, tmp_path, EngineConfig("openvino", "bf16"))


def test_what_int8_leaves_is_in_fp32_where_there_is_no_bf16(tmp_path, monkeypatch):
    core = Processor(["FP32"], "f32")
    monkeypatch.setattr(openvino, "_get_core", lambda: core)
    monkeypatch.setattr("resnetkit.engines.base.count_cores", lambda: 8)
    openvino.load_engine(tmp_path, tmp_path, EngineConfig("openvino", "int8", 1, 4))
    assert core.settings == {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 4, "INFERENCE_NUM_THREADS": 8}


@pytest.mark.parametrize(
    ("package", "extra", "ask"),
    [
        ("openvino", "openvino", lambda path: openvino.load_engine(path, path, EngineConfig("openvino", "fp32"))),
        ("nncf", "openvino", lambda path: ENGINE_SPECS["openvino"].check_packages(for_export=True)),
        ("onnxruntime", "onnx", lambda path: onnx_runtime.load_engine(path, path, EngineConfig("onnxruntime", "fp32"))),
        ("onnxscript", "onnx", lambda path: onnx_runtime.export_artifact(build(BASE), path, "fp32", None)),
    ],
)
def test_an_extra_that_is_not_installed(tmp_path, monkeypatch, package, extra, ask):
    monkeypatch.setattr(openvino, "_get_core", openvino._get_core.__wrapped__)  # it has been imported here already
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MachineError) as caught:
        ask(tmp_path)
    assert str(caught.value) == f"error: {package} is not installed\nfix: pip install 'resnetkit[{extra}]'"


# ------------------------------------------------------------------------------------------- quiet

WATCHED = """
import os, socket, sys, threading, time
loud, alive = [], True
def hook(event, arguments):
    if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        loud.append("write " + str(arguments[0]))
    elif event.startswith(("socket.", "subprocess.", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.system")):
        loud.append(event + " " + str(arguments[:1]))
def look():
    me = "/proc/self/"
    while alive:
        try:
            for task in os.listdir(me + "task"):
                loud.extend("child of " + task for _ in open(me + f"task/{task}/children").read().split())
            for number in os.listdir(me + "fd"):
                to = os.readlink(me + "fd/" + number)
                if to.startswith("socket:") and to[8:-1] not in open("/proc/net/unix").read():  # of this machine
                    loud.append(to)
        except OSError:
            pass
        time.sleep(0.005)
sys.dont_write_bytecode = True
sys.addaudithook(hook)
import torch
before = list(loud)
loud.clear()
threading.Thread(target=look, daemon=True).start()
import functools
from dataclasses import replace
from pathlib import Path
import numpy as np
from helpers.tiny import BASE
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig
from resnetkit.engines import no_telemetry as quiet
from resnetkit.engines import export as served
from resnetkit.network.build import build
if sys.argv[1] == "loud":
    quiet._block_telemetry = lambda: None
    quiet.import_without_telemetry("nncf"), quiet.import_without_telemetry("onnxruntime")
else:
    network = build(replace(BASE, stages=(replace(BASE.stages[0], blocks=1),)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    served.export_program = functools.cache(served.export_program)
    for kind in ("openvino", "onnxruntime"):
        backend, artefact = ENGINE_SPECS[kind].import_backend(), Path(sys.argv[2], kind)
        artefact.mkdir()
        backend.export_artifact(network, artefact, "int8", pixels)
        backend.load_engine(artefact, artefact, EngineConfig(kind, "int8", 2))(pixels)
time.sleep(0.3)
alive = False
telemetry = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
import json
sys.stderr.write(json.dumps({"loud": loud, "telemetry": telemetry}) + "\\n")
"""


def watched(tmp_path, how):
    """What engines in int8 do from their making to their answers: events, files in the home folder, stdout.

    The loud ones are only imported, which is enough.
    """
    home, artefact, away = (tmp_path / name for name in ("home", "artefact", "away"))
    for folder in (home, artefact, away):
        folder.mkdir()
    path = os.pathsep.join([str(Path(resnetkit.__file__).parent.parent), str(Path(__file__).parent)])
    # a proxy where nobody listens: what would be sent by the loud ones stays here
    nowhere = dict.fromkeys(["https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"], "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, how, str(artefact)], capture_output=True, text=True, check=False, cwd=away,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": path, "TMPDIR": str(away), "OMP_NUM_THREADS": "1", **nowhere},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr.splitlines()[-1])
    ours = (str(artefact), str(away), "write /dev/null")
    loud = [event for event in found["loud"] if not any(place in event for place in ours)]
    loud = [event for event in loud if not event.removeprefix("write ").isdecimal()]  # a file that is open already
    return loud, found["telemetry"], [*home.rglob("*")], done.stdout, done.stderr.splitlines()[:-1]


def test_engines_send_nothing_and_write_nothing_into_home(tmp_path):
    assert watched(tmp_path, "quiet") == ([], [], [], "", [])


def test_the_watch_sees_what_they_do_when_they_are_let(tmp_path):
    loud, telemetry, home, _, _ = watched(tmp_path, "loud")
    assert "openvino_telemetry" in telemetry
    assert any(event.startswith("os.fork") for event in loud)
    assert any(event.startswith("child of") for event in loud)
    written = {path.name for path in home}
    assert "openvino_ga_cid" in written
    assert "deviceid" in written or not telemetry_inside("onnxruntime")


def telemetry_inside(package):
    """Whether the library can send by itself."""
    code = Path(importlib.util.find_spec(package).origin).parent / "capi"
    return any(b"ORT_DISABLE_TELEMETRY" in path.read_bytes() for path in code.glob("onnxruntime_pybind11*"))


def test_telemetry_that_somebody_imported_before_does_nothing(monkeypatch):
    sent = []

    class Telemetry:
        def send_event(self, what):
            sent.append(what)

    package, main = types.ModuleType("openvino_telemetry"), types.ModuleType("openvino_telemetry.main")
    package.Telemetry = main.Telemetry = Telemetry
    monkeypatch.setitem(sys.modules, "openvino_telemetry", package)
    monkeypatch.setitem(sys.modules, "openvino_telemetry.main", main)
    before = Telemetry()
    before.send_event("first")
    quiet.import_without_telemetry("openvino")
    before.send_event("second")
    assert sent == ["first"]
    with pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401


def test_silence_ends(capsys):
    handlers = logging.root.handlers[:]
    with quiet.silence():
        print("loud")
        logging.getLogger("library").warning("loud")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "")
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == 0
    print("heard")
    assert capsys.readouterr().out == "heard\n"
    with pytest.raises(DeprecationWarning), quiet.silence():
        raise DeprecationWarning("an error is one")


OPENED = """
import sys, threading
from pathlib import Path
import numpy as np
from resnetkit.architecture.spec import EfficientChannels
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig
folder, config = Path(sys.argv[2]), EngineConfig(sys.argv[1], "fp32", 2)
engine = ENGINE_SPECS[sys.argv[1]].import_backend().load_engine(folder, folder, config)
assert not {"torch", "onnx", "nncf"} & set(sys.modules)
sys.setswitchinterval(1e-6)
together = threading.Barrier(8)
def ask():
    together.wait()
    assert engine(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 5)
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("answered")
"""


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_opening_needs_no_torch_and_the_first_to_ask_may_be_many(tmp_path, base, kind):
    ENGINE_SPECS[kind].import_backend().export_artifact(base, tmp_path, "fp32", None)
    path = str(Path(resnetkit.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", OPENED, kind, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "answered\n", "")


SIGNALLED = """
import gc, signal, sys
from pathlib import Path
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
place = Path(sys.argv[2])
backend = ENGINE_SPECS[sys.argv[1]].import_backend()
opened = [backend.load_engine(place, place, EngineConfig(sys.argv[1], "fp32", batch)) for batch in (1, 2)]
while opened:
    del opened[0]
    gc.collect()
    signal.raise_signal(signal.SIGTERM)
print("heard", len(heard))
"""


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_a_signal_is_heard_when_engines_are_gone(tmp_path, base, kind):
    """In the order in which they came: OpenVINO changes the stack on which signals are handled."""
    ENGINE_SPECS[kind].import_backend().export_artifact(base, tmp_path, "fp32", None)
    words = [sys.executable, "-c", SIGNALLED, kind, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "heard 2\n", "")
