"""The folder ``engines/`` of a model folder: who may write it, and what a search leaves in it.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE
from resnetkit.engines import saved
from resnetkit.engines.base import ENGINE_SPECS
from resnetkit.engines.records import write_record
from resnetkit.errors import ResnetkitWarning, UsageError
from resnetkit.optimization.report import get_model_name, render_optimize_report
from resnetkit.serialization import to_json

_RUN_FOLDER_NAME = re.compile("[0-9a-f]{8}")


@contextlib.contextmanager
def lock_model_folder(folder: Path) -> Iterator[None]:
    """Keep other searches out of a model folder, for as long as the body runs.

    Raises:
        UsageError: another search works in it.
    """
    with files.lock_file(folder / CARD_FILE) as is_locked:
        if not is_locked:
            what, fix = "another optimize command is working on this model", "wait for it, or stop it"
            raise UsageError(what, where=str(folder), fix=fix)
        yield


@contextlib.contextmanager
def create_work_folder(model_folder: Path) -> Iterator[tuple[Path, str]]:
    """Create a new folder inside ``engines/``, which gets its name if the body succeeds.

    If ``engines/`` is empty afterwards, it is removed.

    Returns:
        The temporary path of the folder, and its final name.

    Raises:
        UsageError: a link or a file has the name ``engines``; its content does not belong to this model.
    """
    folder, name = model_folder / saved.ENGINES_FOLDER, secrets.token_hex(4)
    if folder.is_symlink():
        raise _not_ours_error("link", folder, "remove the link; a new folder takes its place")
    if os.path.lexists(folder) and not folder.is_dir():
        raise _not_ours_error("file", folder, "remove it")
    path = folder / saved.ENGINES_FILE
    if os.path.lexists(path) and not path.is_file():
        raise _not_ours_error("folder" if path.is_dir() else "special file", path, "remove it")
    if folder.is_dir():
        files.remove_temporary(folder)
    try:
        with files.atomic_write_folder(folder / name) as work_dir:
            yield work_dir, name
    finally:
        files.remove_empty_folders([folder])


def _not_ours_error(kind: str, path: Path, fix: str) -> UsageError:
    return UsageError(f"cannot save engines: a {kind} has the name {path.name}", where=str(path), fix=fix)


def save_engines(
    work_dir: Path, name: str, best: Mapping[saved.Purpose, saved.Measurement]
) -> tuple[saved.SavedEngine, ...]:
    """Keep the files of the chosen engines and remove all others.

    Args:
        work_dir: the folder with the exported files.
        name: its final name.
        best: the chosen engine for each purpose.
    """
    engines = tuple(_build_saved_engine(work_dir, name, purpose, row) for purpose, row in best.items())
    saved_names = {engine.config.name for engine in engines}
    for path in work_dir.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name not in saved_names:
            shutil.rmtree(path)
    return engines


def _build_saved_engine(work_dir: Path, name: str, purpose: saved.Purpose, row: saved.Measurement) -> saved.SavedEngine:
    artifact, spec = work_dir / row.config.name, ENGINE_SPECS[row.config.engine]
    digests = tuple((file_name, files.hash_file(artifact / file_name)) for file_name in spec.files)
    return saved.SavedEngine(purpose, row, spec.get_versions(), name, digests)


def publish_result(model_folder: Path, name: str, result: saved.OptimizeResult) -> None:
    """Write the list of engines, the report and the record, and remove the engines of earlier searches.

    Args:
        model_folder: the model folder.
        name: the name of this search's folder inside ``engines/``.
        result: the result to write.
    """
    folder = model_folder / saved.ENGINES_FOLDER
    content = to_json(result).encode("utf-8", "backslashreplace")
    files.write_bytes(folder / saved.ENGINES_FILE, content)
    files.write_text(folder / saved.REPORT_FILE, render_optimize_report(get_model_name(model_folder), result))
    for path in folder.iterdir():
        if _RUN_FOLDER_NAME.fullmatch(path.name) and path.name != name and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    if reason := write_record(content):
        fix = "set RESNETKIT_CACHE to a folder that can be written, and optimize again"
        warnings.warn(f"predict will use torch for this model: {reason}; {fix}", ResnetkitWarning, stacklevel=2)
