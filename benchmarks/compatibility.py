"""Try networks of resnetkit in other libraries, each in a process of its own.

    python benchmarks/compatibility.py [CLIENT ...] [--write]

The script installs nothing. A library that is missing is listed as missing; ``pip install`` its package to try it.
Each check compares with an answer that does not come from the library: a count of the plan, the network's own logits.
``--write`` writes docs/measured/compatibility.json, from which docs/make.py makes a table.
"""

import argparse
import copy
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import resnetkit as rk

OUT = Path(__file__).parents[1] / "docs" / "measured" / "compatibility.json"
TIMEOUT = 300


def make_network(name="resnet20"):
    return rk.build(name, classes=10, seed=0).eval()


def make_images(model, n=2):
    return torch.randn(n, *model.card.spec.input, generator=torch.Generator().manual_seed(0))


def check_close(output, expected, tolerance=1e-5):
    """Return the largest difference, relative to the largest expected number; fail if it exceeds the tolerance."""
    output, expected = torch.as_tensor(output), torch.as_tensor(expected)
    assert output.shape == expected.shape, (output.shape, expected.shape)
    error = float((output - expected).abs().max() / expected.abs().max())
    assert error <= tolerance, f"relative error {error:.1e}"
    return f"outputs match (relative error {error:.0e}, allowed {tolerance:g})"


def try_grad_cam():
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = make_network()
    with GradCAM(model, [model.stage3]) as cam:
        heat = cam(make_images(model), [ClassifierOutputTarget(3)] * 2)
    assert heat.shape == (2, 32, 32) and np.isfinite(heat).all() and heat.max() > 0
    return "a heat map of stage3 for each image"


def try_captum():
    from captum.attr import IntegratedGradients

    model, images = make_network(), make_images(make_network())
    attributions, delta = IntegratedGradients(model).attribute(images, target=3, return_convergence_delta=True)
    assert attributions.shape == images.shape and float(delta.abs().max()) < 0.05
    return f"integrated gradients add up to the logit (difference {float(delta.abs().max()):.0e})"


def try_torchinfo():
    import torchinfo

    model = make_network("resnet18")
    summary = torchinfo.summary(model, (1, *model.card.spec.input), verbose=0)
    assert summary.total_params == model.plan.params
    return f"counts {summary.total_params:,} parameters, as the plan does"


def try_fvcore():
    from fvcore.nn import FlopCountAnalysis

    model = make_network("resnet18")
    analysis = FlopCountAnalysis(model, make_images(model, 1)).unsupported_ops_warnings(False)
    counts = analysis.by_operator()
    macs = counts["conv"] + counts["linear"]
    assert macs == model.plan.macs, (macs, model.plan.macs)
    return f"counts {macs:,} MACs of convolutions and the classifier, as the plan does"


def try_torch_pruning():
    import torch_pruning

    model, images = make_network("resnet18"), make_images(make_network("resnet18"), 1)
    pruner = torch_pruning.pruner.MetaPruner(
        model, images, torch_pruning.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=[model.head]
    )
    pruner.step()
    n_params = sum(parameter.numel() for parameter in model.parameters())
    assert model(images).shape == (1, 10) and n_params < 0.4 * model.plan.params
    return f"{n_params:,} of {model.plan.params:,} parameters are left, and the forward pass works"


def try_torchao():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = make_network()
    images = make_images(model)
    expected = model(images).detach()
    quantize_(model, Int8WeightOnlyConfig())
    return "int8 weights of the classifier: " + check_close(model(images).detach(), expected, 0.05)


def try_nncf():
    from resnetkit.engines.no_telemetry import import_without_telemetry

    nncf, model = import_without_telemetry("nncf"), make_network()
    images = make_images(model, 8)
    quantized = nncf.quantize(copy.deepcopy(model), nncf.Dataset(list(images.split(1))), subset_size=8)
    return "int8: " + check_close(quantized(images).detach(), model(images).detach(), 0.2)


def try_lightning():
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = make_network()

        def training_step(self, batch, index):
            images, labels = batch
            return nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    classifier = Classifier()
    before = copy.deepcopy(classifier.network.state_dict())
    data = torch.utils.data.TensorDataset(make_images(classifier.network, 8), torch.arange(8))
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, torch.utils.data.DataLoader(data, 4))
    after = classifier.network.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    return "an epoch of training"


def try_accelerate():
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), make_network()
    expected = model(make_images(model)).detach()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    result = check_close(prepared(make_images(model)).detach(), expected)
    accelerator.backward(prepared(make_images(model)).sum())
    optimizer.step()
    return f"{result}, and a training step"


def try_transformers():
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model = make_network("resnet18")
        rk.convert(model, to="hf", path=Path(folder, "hf"))
        classify = transformers.pipeline("image-classification", str(Path(folder, "hf")), device="cpu")
        path = Path(folder, "image.png")
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(path)
        prediction = classify(str(path), top_k=1)[0]
        ours = rk.predict(path, model, top=1)[0]
    assert abs(prediction["score"] - ours.probability) < 1e-2, (prediction, ours)
    scores = f"probability {prediction['score']:.3f}, ours {ours.probability:.3f}"
    return f"a pipeline on the folder of `convert --to hf`: {scores}"


def try_timm():
    model = make_network("resnet50")
    return "a live model by `as_module`: " + check_close(
        rk.as_module(model, "timm")(make_images(model)).detach(), model(make_images(model)).detach()
    )


def try_smp():
    import segmentation_models_pytorch as smp

    backbone, _ = rk.surgery.features(make_network("resnet18"), (1, 2, 3, 4))

    class Encoder(nn.Module):
        """The maps that a decoder of this library expects, from the image to the smallest."""

        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def forward(self, x):
            maps = list(self.backbone(x).values())
            return [x, nn.functional.interpolate(maps[0], scale_factor=2.0), *maps]

    model = smp.Unet("resnet18", encoder_weights=None, classes=3)
    model.encoder = Encoder()
    model.encoder.output_stride = 32
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    return "a U-Net with `surgery.features` as its encoder"


class FeatureBackbone(nn.Module):
    """A backbone as torchvision's detectors expect it: a dict of maps, and their channels."""

    def __init__(self, stages):
        super().__init__()
        self.body, _ = rk.surgery.features(make_network("resnet18"), stages)
        self.out_channels = list(self.body.feature_info.values())[-1].output[0]

    def forward(self, x):
        return self.body(x)


def try_detection():
    from torchvision.models import detection
    from torchvision.ops import MultiScaleRoIAlign

    model = detection.FasterRCNN(
        FeatureBackbone((4,)),
        num_classes=3,
        rpn_anchor_generator=detection.rpn.AnchorGenerator(((32, 64),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["stage4"], 7, 2),
        min_size=128,
        max_size=128,
    )
    target = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 128, 128)], [target])
    sum(losses.values()).backward()
    assert model.backbone.body.stage1.block1.branch.conv1.weight.grad is not None
    return "a Faster R-CNN, with gradients in the backbone"


def try_segmentation():
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    backbone, _ = rk.surgery.features(rk.surgery.dilate(make_network("resnet18"), output_stride=8)[0], (4,))
    head = DeepLabHead(backbone.feature_info["stage4"].output[0], 3).eval()
    assert head(backbone(torch.randn(1, 3, 64, 64))["stage4"]).shape == (1, 3, 8, 8)
    return "a DeepLabV3 head on a dilated backbone"


def run_distributed(wrap):
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            model = make_network()
            images, expected = make_images(model), model(make_images(model)).detach()
            wrapped = wrap(model)
            outputs = wrapped(images)
            outputs.sum().backward()
            return check_close(outputs.detach(), expected)
        finally:
            torch.distributed.destroy_process_group()


def try_ddp():
    return run_distributed(nn.parallel.DistributedDataParallel) + ", and gradients"


def try_fsdp2():
    from torch.distributed.fsdp import fully_shard

    return run_distributed(lambda model: fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))) + (
        ", and gradients"
    )


def try_onnxruntime():
    from resnetkit.engines.no_telemetry import import_without_telemetry

    for package in ("onnx", "onnxscript"):
        import_without_telemetry(package)
    runtime, model = import_without_telemetry("onnxruntime"), make_network()
    images = make_images(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False, external_data=False)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    return "`torch.onnx.export`: " + check_close(logits, model(images).detach(), 1e-4)


def try_openvino():
    from resnetkit.engines.no_telemetry import import_without_telemetry

    openvino, model = import_without_telemetry("openvino"), make_network()
    images = make_images(model)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.convert_model(model, example_input=images), "CPU", settings)
    return "`openvino.convert_model`: " + check_close(compiled(images.numpy())[0], model(images).detach(), 1e-4)


CLIENTS = {  # name: (function, module, distribution)
    "grad-cam": (try_grad_cam, "pytorch_grad_cam", "grad-cam"),
    "captum": (try_captum, "captum", "captum"),
    "torchinfo": (try_torchinfo, "torchinfo", "torchinfo"),
    "fvcore": (try_fvcore, "fvcore", "fvcore"),
    "torch-pruning": (try_torch_pruning, "torch_pruning", "torch-pruning"),
    "torchao": (try_torchao, "torchao", "torchao"),
    "nncf": (try_nncf, "nncf", "nncf"),
    "Lightning": (try_lightning, "lightning", "lightning"),
    "accelerate": (try_accelerate, "accelerate", "accelerate"),
    "transformers pipeline": (try_transformers, "transformers", "transformers"),
    "timm": (try_timm, "timm", "timm"),
    "segmentation-models-pytorch": (try_smp, "segmentation_models_pytorch", "segmentation-models-pytorch"),
    "torchvision detection": (try_detection, "torchvision", "torchvision"),
    "torchvision segmentation": (try_segmentation, "torchvision", "torchvision"),
    "DDP": (try_ddp, "torch", "torch"),
    "FSDP2": (try_fsdp2, "torch", "torch"),
    "ONNX Runtime": (try_onnxruntime, "onnxruntime", "onnxruntime"),
    "OpenVINO": (try_openvino, "openvino", "openvino"),
}


def try_client(name):
    """Try a client in this process; return its row."""
    function, module, distribution = CLIENTS[name]
    if importlib.util.find_spec(module) is None:
        return {"client": name, "version": "", "outcome": "missing", "details": f"pip install {distribution}"}
    row = {"client": name, "version": importlib.metadata.version(distribution)}
    try:
        return row | {"outcome": "works", "details": function()}
    except Exception as error:  # noqa: BLE001  a library may raise anything
        return row | {"outcome": "fails", "details": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def try_in_process(name):
    args = [sys.executable, __file__, "--in-process", name]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=TIMEOUT, env=environment)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return {"client": name, "version": "", "outcome": "fails", "details": f"its process: {type(error).__name__}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", help=f"all by default: {', '.join(CLIENTS)}")
    parser.add_argument("--write", action="store_true", help="write docs/measured/compatibility.json")
    parser.add_argument("--in-process", metavar="CLIENT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        warnings.simplefilter("ignore")
        print(json.dumps(try_client(args.in_process)))
        return 0
    if unknown := set(args.clients) - set(CLIENTS):
        parser.error(f"unknown client {min(unknown)!r}; allowed: {', '.join(CLIENTS)}")
    rows = []
    for name in args.clients or CLIENTS:
        rows.append(try_in_process(name))
        print("{client} {version}: {outcome}: {details}".format(**rows[-1]), flush=True)
    if args.write:
        OUT.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    return int(any(row["outcome"] == "fails" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
