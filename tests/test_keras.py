"""Keras's own networks as oracles: their rows here, and what `addresses` says that its layers are called."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed")

# In a process of its own: Keras chooses its backend by the environment when it is imported.
COMPARE = """
import sys
import keras, numpy, torch
import resnetkit as rk
from resnetkit.weights.layer_aliases import translate_path

name, application = sys.argv[1:]
torch.manual_seed(0)
theirs = getattr(keras.applications, application)(
    weights=None, input_shape=(75, 69, 3), pooling="avg", include_top=False)
ours = rk.build(name).eval()
draw = torch.Generator().manual_seed(1)
met = set()
for node in ours.plan.nodes:
    if node.role == "add" or node.op.params == 0 or node.path == "head.linear":
        continue
    layer = theirs.get_layer(translate_path(ours.plan, node.path, "keras"))
    met.add(layer.name)
    tensors = [torch.as_tensor(numpy.array(weight)) for weight in layer.get_weights()]
    if "norm" in node.path:
        tensors = [torch.rand(t.shape, generator=draw) * 0.5 + low for t, low in zip(tensors, (0.5, -0.2, -0.2, 0.7))]
    elif len(tensors) == 2:
        tensors[1] = torch.rand(tensors[1].shape, generator=draw) - 0.5
    layer.set_weights([t.numpy() for t in tensors])
    keys = ("weight", "bias", "running_mean", "running_var")
    mine = ours.get_submodule(node.path).state_dict()
    with torch.no_grad():
        for key, tensor in zip(keys, tensors):
            mine[key].copy_(tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor)
assert met == {layer.name for layer in theirs.layers if layer.get_weights()}, met
x = torch.randn(2, 75, 69, 3, generator=draw)
with torch.inference_mode():
    expected = torch.as_tensor(keras.ops.convert_to_numpy(theirs(x, training=False)))
    found = ours.extract_features(x.permute(0, 3, 1, 2), ["head.pool"])["head.pool"]
print(float((found - expected).abs().max() / expected.abs().max()))
"""


@pytest.mark.parametrize(("name", "application"), [("keras_resnet50", "ResNet50"), ("keras_resnet50v2", "ResNet50V2")])
def test_a_row_computes_what_keras_computes(name, application, tmp_path):
    home = {"KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, name, application],
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) <= 1e-5
