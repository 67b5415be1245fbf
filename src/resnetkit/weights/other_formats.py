"""Name the files of other formats that hold a network, and say how to convert them.

The first bytes decide, and for a zip archive the names of its entries.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_STATE_DICT = "torch.save({}.state_dict(), 'weights.pth')"
_ARRAYS = "save its arrays by torchvision's names with safetensors.numpy.save_file; kernels are O I H W"
_EXPORTED = "save the state_dict() of the PyTorch model that it was exported from"


@dataclass(frozen=True)
class OtherFormat:
    """A format with its article, and how to make weights of it that resnetkit reads."""

    name: str
    fix: str


_HEADERS = (  # the first bytes -> the format
    (rb"\x93NUMPY", OtherFormat("a NumPy file", _ARRAYS)),
    (rb"\x89HDF\r\n\x1a\n", OtherFormat("an HDF5 file", _ARRAYS)),
    (rb"GGUF", OtherFormat("a GGUF file", "convert the model it was made from: save its state_dict()")),
    (rb"\x12\x01\0{6}", OtherFormat("an MXNet parameter file", _ARRAYS)),
    (rb".{4}TFL3", OtherFormat("a TensorFlow Lite model", _ARRAYS)),
    (rb"\x08\x01\x12", OtherFormat("a TensorFlow SavedModel", _ARRAYS)),
    (rb"\x08[\x02-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]", OtherFormat("an ONNX model", _EXPORTED)),
    (rb"\x0a[\x01-\x7f][\x20-\x7e]{1,127}(\xa2\x06|\x12|\x1a|\x2a)", OtherFormat("a Caffe model", _ARRAYS)),
)
_ENTRIES = (  # a name in a zip archive -> the format
    (
        r"(?m)^[^/\n]+/(constants\.pkl|code/)",
        OtherFormat("a TorchScript archive", _STATE_DICT.format("torch.jit.load(FILE)")),
    ),
    (
        r"(?m)(^|/)(serialized_exported_program\.json|archive_format|models/[^/\n]+\.json)$",
        OtherFormat("a torch.export archive", "torch.save(torch.export.load(FILE).state_dict, 'weights.pth')"),
    ),
    (r"(?m)^(model\.weights\.h5|metadata\.json)$", OtherFormat("a Keras model", _ARRAYS)),
    (
        r"(?m)\.npy$",
        OtherFormat("a NumPy archive", "safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors')"),
    ),
    (
        r"(?m)(^|/)\.data/extern_modules$",
        OtherFormat("a torch.package archive", "import the model with torch.package and save its state_dict()"),
    ),
)
DISTRIBUTED = OtherFormat(
    "a distributed checkpoint (torch.distributed.checkpoint)",
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} weights.pth",
)


def detect_header(header: bytes) -> OtherFormat | None:
    """Return the format of a file by its first bytes; None if it is none of these."""
    return next((row for pattern, row in _HEADERS if re.match(pattern, header, re.DOTALL)), None)


def detect_archive(names: Collection[str]) -> OtherFormat | None:
    """Return the format of a zip archive by the names of its entries; None if it is none of these."""
    text = "\n".join(names)
    return next((row for pattern, row in _ENTRIES if re.search(pattern, text)), None)
