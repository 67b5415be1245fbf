"""Networks of Keras as oracles for the catalog and for the names of layers."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed")

# In another process, because Keras reads its backend from the environment when it is imported.
COMPARE = """
import sys
import keras, numpy, torch
import resnetkit as rk
from resnetkit.weights.layer_aliases import translate_path

SIZE = 45, 39

def randomize(path, tensors, rng):
    if "norm" in path:
        return [torch.rand(t.shape, generator=rng) * 0.5 + low for t, low in zip(tensors, (0.5, -0.2, -0.2, 0.7))]
    return [*tensors[:1], *(torch.rand(t.shape, generator=rng) - 0.5 for t in tensors[1:])]

def compare(name, application):
    theirs = getattr(keras.applications, application)(
        weights=None, input_shape=(*SIZE, 3), pooling="avg", include_top=False)
    ours = rk.build(name).eval()
    rng = torch.Generator().manual_seed(1)
    layer_names = set()
    for node in ours.plan.nodes:
        if node.role == "add" or node.op.params == 0 or node.path == "head.linear":
            continue
        layer = theirs.get_layer(translate_path(ours.plan, node.path, "keras"))
        layer_names.add(layer.name)
        tensors = [torch.as_tensor(numpy.array(weight)) for weight in layer.get_weights()]
        tensors = randomize(node.path, tensors, rng)
        layer.set_weights([t.numpy() for t in tensors])
        state = ours.get_submodule(node.path).state_dict()
        with torch.no_grad():
            for key, tensor in zip(("weight", "bias", "running_mean", "running_var"), tensors):
                state[key].copy_(tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor)
    assert layer_names == {layer.name for layer in theirs.layers if layer.get_weights()}, layer_names
    x = torch.randn(1, *SIZE, 3, generator=rng)
    with torch.inference_mode():
        expected = torch.as_tensor(keras.ops.convert_to_numpy(theirs(x, training=False)))
        actual = ours.extract_features(x.permute(0, 3, 1, 2), ["head.pool"])["head.pool"]
    return float((actual - expected).abs().max() / expected.abs().max())

torch.manual_seed(0)
for argument in sys.argv[1:]:
    print(argument, compare(*argument.split("=")))
"""
NETWORKS = {"keras_resnet50": "ResNet50", "keras_resnet50v2": "ResNet50V2"}


def test_catalog_networks_compute_what_keras_computes(tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    arguments = [f"{name}={application}" for name, application in NETWORKS.items()]
    command = [sys.executable, "-c", COMPARE, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    differences = dict(line.split() for line in done.stdout.splitlines() if line.startswith("keras_"))
    assert list(differences) == arguments
    assert all(float(difference) <= 1e-5 for difference in differences.values()), differences
