"""Compare logits with other libraries' models, and check that tensors survive the conversion both ways.

    python benchmarks/dialects.py [--cifar10 FOLDER WEIGHTS ...]     needs the extra dev

With CIFAR-10's test images and akamaster's published weights, the script evaluates, converts and evaluates again.

Weights, norm statistics and affine weights are random, so that no error can hide behind a one or a zero.
"""

import argparse
import copy
import json
import random
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import resnetkit as rk

OUT = Path(__file__).parents[1] / "docs" / "measured" / "dialects.json"
SWEEP = OUT.with_name("sweep.json")
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
               "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "vgg11", "vgg16_bn")  # fmt: skip
TIMM = [
    "resnet10t",
    "resnet14t",
    "resnet18",
    "resnet18d",
    "resnet26",
    "resnet26d",
    "resnet26t",
    "resnet34",
    "resnet34d",
    "resnet50",
    "resnet50c",
    "resnet50d",
    "resnet50s",
    "resnet50t",
    "resnet101d",
    "resnet152d",
    "resnet200",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "seresnet50",
    "seresnext50_32x4d",
    "ecaresnet50d",
    "resnetblur50",
    "resnetv2_50",
    "resnetv2_50d",
    "resnetv2_50t",
    "resnetv2_101",
]
HUGGING_FACE = {
    "18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "50": {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]},
    "50, v1": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "downsample_in_bottleneck": True},
}


def randomize_tensors(model):
    """Give the batch norms of a model random weights, biases and statistics, and return it."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3),
                                      (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0)):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def compare_models(library, name, theirs, source):
    """Return the largest relative error of logits, and whether the tensors convert back bit for bit.

    Args:
        library: The name of the other library.
        name: The name of the model there.
        theirs: The model of the other library, with random tensors.
        source: What `resnetkit.load` reads: the model itself, or its folder.
    """
    ours = rk.load(source, name if "blur" in name else None)  # no tensor tells a blur
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        a, b = ours(x), theirs(x)
    b = getattr(b, "logits", b)
    converted, state = rk.as_module(ours, library).state_dict(), theirs.state_dict()
    equal = converted.keys() == state.keys() and all(torch.equal(value, state[key]) for key, value in converted.items())
    row = {"library": library, "name": name, "error": float((a - b).abs().max() / b.abs().max()), "equal": equal}
    print(row, flush=True)
    return row


def describe_outcome(theirs, load, names=()):
    """Load and compare: exact, refused, the --network that is exact if the first line names it, or wrong."""
    x = torch.randn(1, next(theirs.parameters()).shape[1], 64, 64, generator=torch.Generator().manual_seed(1))

    def error(a, b, x):
        with torch.inference_mode():
            a, b = a(x), b(x)
        b = getattr(b, "logits", b)
        return float((a - b).abs().max() / b.abs().max())

    def measure_error(ours):
        """Compare in fp32, and again in fp64: deep networks of random weights amplify rounding."""
        if (result := error(ours, theirs, x)) > 1e-5:
            result = error(copy.deepcopy(ours).double(), copy.deepcopy(theirs).double(), x.double())
        return result

    try:
        ours = load(None)
    except rk.ResnetkitError as error:
        return "refused: " + error.what[:160]
    if measure_error(ours) <= 1e-5:
        return "exact"
    first = ours.card.origin
    readings = first.partition("the tensors also fit ")[2].partition(": --network")[0].split(", ")
    for reading in filter(None, readings):
        if "first stage" in reading and getattr(theirs.config, "downsample_in_first_stage", False):
            return "named: the first stage halves the map"
        try:
            if measure_error(load(reading)) <= 1e-5:
                return f"named: {reading}"
        except rk.ResnetkitError:
            continue
    return f"WRONG ({measure_error(ours):.2g}): {first}"


def compare_in_all_ways(library, name, theirs, save):
    """Load one network as state dict, as file, as the folder of its library, and live."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"state_dict": theirs.state_dict()}, f"{folder}/file.pth")
        state = theirs.state_dict()
        row = {"library": library, "name": name, "state dict": describe_outcome(theirs, lambda n: rk.load(state, n)),
               "file": describe_outcome(theirs, lambda n: rk.load(f"{folder}/file.pth", n))}  # fmt: skip
        if save:
            save(theirs, f"{folder}/hub")
            row["folder"] = describe_outcome(theirs, lambda n: rk.load(f"{folder}/hub"))
        row["live"] = describe_outcome(theirs, lambda n: rk.load(theirs))
    print(json.dumps(row), flush=True)
    return row


def recognize_shapes(library, name, make):
    """Recognize a large network by keys and shapes alone; no tensor has memory."""
    from resnetkit.weights.readings import describe_readings
    from resnetkit.weights.recognize import recognize_weights
    from resnetkit.weights.unwrap import SeveralTablesError

    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in make().state_dict().items()}
    try:
        result = recognize_weights(shapes)
    except SeveralTablesError as error:
        result = str(error)
    text = f"refused: {result}" if isinstance(result, str) else describe_readings(result.spec, result.mapping.dialect)
    row = {"library": library, "name": name, "keys and shapes": text or "recognized"}
    print(json.dumps(row), flush=True)
    return row


def sweep(timm, torchvision, transformers, pattern=""):
    """Compare all of timm's resnet and resnetv2, torchvision's ResNets and VGGs, and 14 transformers configs."""
    from timm.models import save_for_hf

    def save_timm(theirs, folder):
        save_for_hf(theirs, folder, safe_serialization=True)

    rows = []
    makers = [("timm", name, lambda name=name: timm.create_model(name), save_timm)
              for module in ("resnet", "resnetv2") for name in timm.list_models(module=module)]  # fmt: skip
    makers += [("torchvision", name, lambda name=name: getattr(torchvision.models, name)(weights=None), None)
               for name in torchvision.models.list_models(torchvision.models)
               if name.startswith(("resnet", "resnext", "wide_resnet", "vgg"))]  # fmt: skip
    for library, name, make, save in makers:
        if pattern not in f"{library} {name}":
            continue
        with torch.device("meta"):
            size = sum(value.numel() for value in make().parameters())
        small = size <= 100e6
        rows.append(
            compare_in_all_ways(library, name, randomize_tensors(make()), save)
            if small
            else recognize_shapes(library, name, make)
        )
    draw = random.Random(0)
    for number in range(14):
        n = draw.randint(2, 4)
        words = {"embedding_size": 8, "hidden_sizes": [8 * draw.randint(1, 5) for _ in range(n)],
                 "depths": [draw.randint(1, 3) for _ in range(n)], "layer_type": draw.choice(["basic", "bottleneck"]),
                 "downsample_in_first_stage": draw.random() < 0.3, "num_labels": draw.randint(2, 9),
                 "downsample_in_bottleneck": draw.random() < 0.3}  # fmt: skip
        if pattern in "transformers":
            torch.manual_seed(number)
            theirs = randomize_tensors(transformers.ResNetForImageClassification(transformers.ResNetConfig(**words)))
            rows.append(
                compare_in_all_ways(
                    "transformers", f"config {number}", theirs, lambda t, folder: t.save_pretrained(folder)
                )
            )
    return rows


def evaluate_conversion(images, path):
    """Count correct predictions of published weights, and compare those of the converted file."""
    with tempfile.TemporaryDirectory() as folder:
        again = rk.convert(rk.load(path), "akamaster", f"{folder}/again.safetensors")
        first, second = rk.evaluate(path, images), rk.evaluate(again, images)
    text = f"{first.correct:,} of {first.n:,} right"
    row = {"library": "akamaster", "what": f"{Path(path).name}, CIFAR-10's test images", "accuracy": text}
    row["equal"] = "the same answers" if first.predictions == second.predictions else "other answers"
    print(row, flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", nargs="+", default=[])
    parser.add_argument("--sweep", nargs="?", const="", help="read every name instead, or those with this text")
    args = parser.parse_args()
    images, *weights = args.cifar10 or [""]
    import timm
    import torchvision
    import transformers

    warnings.simplefilter("ignore")
    if args.sweep is not None:
        rows = sweep(timm, torchvision, transformers, args.sweep)
        SWEEP.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
        return
    rows = []
    for name in TORCHVISION:
        theirs = randomize_tensors(getattr(torchvision.models, name)(weights=None))
        rows.append(compare_models("torchvision", name, theirs, theirs))
    for name in TIMM:
        theirs = randomize_tensors(timm.create_model(name))
        rows.append(compare_models("timm", name, theirs, theirs))
    for name, words in HUGGING_FACE.items():
        theirs = randomize_tensors(transformers.ResNetForImageClassification(transformers.ResNetConfig(**words)))
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            rows.append(compare_models("transformers", name, theirs, folder))
    versions = {
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
    }
    cifar = [evaluate_conversion(images, path) for path in weights]
    if not weights and OUT.exists():  # keep the rows of the last measurement
        cifar = json.loads(OUT.read_text())["cifar"]
    OUT.write_text(json.dumps({"versions": versions, "rows": rows, "cifar": cifar}, indent=2) + "\n")


if __name__ == "__main__":
    main()
