"""Records of what `optimize` measured on this machine, in the user's cache folder: they decide which engines are used.

A model folder cannot vouch for its own engines. A record is a copy of an ``engines.json`` that `optimize` wrote, and
its name is the SHA-256 of that text. It stays valid if the model folder is moved or copied.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from resnetkit import files
from resnetkit.errors import MachineError

_FOLDER = "engines"


def get_record_path(content: bytes) -> Path:
    """Return the path of the record of an ``engines.json``.

    Args:
        content: the bytes of that file.
    """
    return files.get_cache_folder() / _FOLDER / f"{hashlib.sha256(content).hexdigest()}.json"


def write_record(content: bytes) -> str:
    """Write the record of an ``engines.json``; return why that failed, or an empty text.

    Args:
        content: the bytes of that file.
    """
    path = get_record_path(content)
    try:
        files.write_bytes(path, content)
    except MachineError as error:
        return f"{error.what}, in the cache folder {path.parent}"
    return find_distrust_reason(content)


def find_distrust_reason(content: bytes) -> str:
    """Return why no record vouches for an ``engines.json``; empty if one does.

    Args:
        content: the bytes of that file.
    """
    path = get_record_path(content)
    try:
        is_same = files.read_regular_file(path, len(content)) == content
    except FileNotFoundError:
        return "the engines in the model folder were not optimized by this user on this machine"
    except OSError as error:
        return f"cannot read the record of the engines: {error.strerror or error} ({path})"
    return "" if is_same else f"the record of the engines is damaged ({path})"
