"""Read a network of your own from a file, explain it, build it, edit it, and extract the outputs of its stages."""

from dataclasses import replace
from pathlib import Path

import torch

import resnetkit as rk
from resnetkit.architecture.spec import OPTION_A

spec = rk.spec(Path(__file__).parent / "small.toml")
print(rk.plan(spec))
print()
print(rk.why(rk.plan(spec), "stage3.block1.shortcut"))

padded = replace(spec, shortcuts=OPTION_A)  # a spec is frozen: an edit returns a new one
print(f"\noption A saves {rk.plan(spec).params - rk.plan(padded).params:,} params")

model = rk.build(spec, seed=0).eval()
with torch.inference_mode():
    features = model.extract_features(torch.zeros(1, *model.plan.input), ["stage1", "stage2", "stage3"])
for path, feature_map in features.items():
    print(f"{path}: {tuple(feature_map.shape)}, as planned: {model.plan[path].output}")
