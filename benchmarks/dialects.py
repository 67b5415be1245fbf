"""Compare logits with other libraries' models, and check that tensors survive the conversion both ways.

    python benchmarks/dialects.py [--cifar10 FOLDER WEIGHTS ...]     needs the extra dev

With CIFAR-10's test images and akamaster's published weights, the script evaluates, converts and evaluates again.

Weights, norm statistics and affine weights are random, so that no error can hide behind a one or a zero.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import resnetkit as rk

OUT = Path(__file__).parents[1] / "docs" / "measured" / "dialects.json"
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
    images, *weights = parser.parse_args().cifar10 or [""]
    import timm
    import torchvision
    import transformers

    warnings.simplefilter("ignore")
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
