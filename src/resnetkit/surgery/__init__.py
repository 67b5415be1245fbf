"""Edit a trained network; each edit reports every tensor and verifies what stays equal.

    model, report = resnetkit.surgery.dilate(model, output_stride=8)
    print(report)

Each function takes a network and returns a new one of the same type, device and mode, with its `TensorReport`. The
network that was passed in does not change. If a verification fails, the edit raises `VerificationError`.
"""

from resnetkit.surgery.blocks import deepen, insert, remove, shortcuts
from resnetkit.surgery.freeze import checkpoint, freeze, freeze_norms
from resnetkit.surgery.head_and_input import classes, cut, features, head, input_channels
from resnetkit.surgery.norms import fold_norms, group_norm
from resnetkit.surgery.strides import dilate, restride, stem
from resnetkit.surgery.widths import prune, widen

__all__ = [
    "checkpoint", "classes", "cut", "deepen", "dilate", "features", "fold_norms", "freeze", "freeze_norms",
    "group_norm", "head", "input_channels", "insert", "prune", "remove", "restride", "shortcuts", "stem", "widen",
]  # fmt: skip
