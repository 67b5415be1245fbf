"""Read the index of weights that lie in several files (``model.safetensors.index.json``).

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from resnetkit.errors import UsageError, WeightsError
from resnetkit.formatting import pluralize
from resnetkit.serialization import parse_json, read_text
from resnetkit.weights.mismatch import sanitize_text

INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_SHARD_NAME = re.compile(r"(?!\.)[\w.\-]{1,200}\.(safetensors|bin)")
_MAX_LISTED = 3


def check_not_a_shard(path: Path) -> None:
    """Refuse a file that holds one part of the weights.

    Args:
        path: The weights file.

    Raises:
        WeightsError: the name is that of a shard.
    """
    match = _SHARD.fullmatch(path.name)
    if match and int(match[2]) > 1:
        message = f"this file is shard {int(match[1])} of {int(match[2])} and does not hold the whole network"
        raise WeightsError(message, where=str(path), fix=f"name the folder {path.parent}")


def read_index(path: Path) -> dict[Path, list[str]]:
    """Return the names of the tensors in each shard, in the order of the index.

    Args:
        path: The index.

    Raises:
        WeightsError: the index is damaged, names a file outside its folder, or a shard is missing.
    """
    try:
        index = parse_json(read_text(path, "this index"), str(path))
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where]) from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError("this index has no weight_map", where=str(path), fix="copy the whole folder again")
    names = dict.fromkeys(map(str, weight_map.values()))
    outside = [name for name in names if not _SHARD_NAME.fullmatch(name)]
    if outside:
        message = f"this index names {sanitize_text(outside[0])!r}, which is not a weights file in its folder"
        raise WeightsError(message, where=str(path), fix="write the plain names of the shards into weight_map")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        message = f"{pluralize(len(missing), 'shard')} of {len(names)} {'is' if len(missing) == 1 else 'are'} missing"
        where = [str(path), ", ".join(map(sanitize_text, missing[:_MAX_LISTED]))]
        raise WeightsError(message, where=where, fix="copy the missing files into the folder")
    return {path.parent / name: [key for key, shard in weight_map.items() if shard == name] for name in names}


def check_shard(path: Path, expected: list[str], actual: Mapping[str, object]) -> None:
    """Check that a shard holds the tensors that the index says.

    Args:
        path: The shard.
        expected: The names in the index.
        actual: The tensors of the shard by name.

    Raises:
        WeightsError: a tensor is missing, or the index does not name one.
    """
    missing = [name for name in expected if name not in actual]
    extra = [name for name in actual if name not in set(expected)]
    if missing or extra:
        problem = f"lacks {sanitize_text(missing[0])}" if missing else f"also holds {sanitize_text(extra[0])}"
        message = f"this shard does not fit its index: it {problem}"
        raise WeightsError(message, where=str(path), fix="copy the whole folder again")
