"""List the files of a folder tree; a folder that cannot be read is named and the others are listed.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnetkit.errors import DataError
from resnetkit.formatting import join_names, pluralize
from resnetkit.images.decode import (
    SUFFIXES,
    count_kinds,
    describe_read_error,
    has_image_suffix,
    is_folder,
    list_entries,
)

OTHER_FILES, UNREADABLE_FOLDERS = "files of other types", "folders that cannot be read"
DOCUMENTS = "files outside of class folders"


@dataclass(frozen=True)
class FolderScan:
    """The files below a folder, sorted by name, and the folders that cannot be read, each with its reason."""

    folder: Path
    images: list[Path] = field(default_factory=list)
    other_files: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def list_subfolders(self) -> list[str]:
        """List the folders directly below that hold images, at any depth."""
        return sorted({parts[0] for parts in self.list_parts() if len(parts) > 1})

    def list_parts(self) -> list[tuple[str, ...]]:
        """Return the parts of the path of each image below the folder."""
        return [image.relative_to(self.folder).parts for image in self.images]

    @property
    def has_own_images(self) -> bool:
        """Whether an image is directly in the folder."""
        return any(image.parent == self.folder for image in self.images)


def scan_folder(folder: Path) -> FolderScan:
    """List every file below a folder, without hidden ones; each real folder is entered once."""
    scan, pending, visited = FolderScan(folder), [folder], set()
    while pending:
        current = pending.pop()
        try:
            entries, status = list_entries(current), current.stat()
        except DataError as error:
            scan.unreadable.append(f"{current}: {error.what}")
            continue
        except OSError as error:
            scan.unreadable.append(f"{current}: {describe_read_error(error)}")
            continue
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            if is_folder(entry):
                pending.append(Path(entry.path))
            else:
                (scan.images if has_image_suffix(entry.name) else scan.other_files).append(Path(entry.path))
    scan.images.sort()
    scan.other_files.sort()
    return scan


def describe_skipped(skipped: Mapping[str, Sequence[str]]) -> list[str]:
    """Describe what is skipped, one sentence per kind, with all numbers.

    Args:
        skipped: Kind, such as "files of other types" -> the skipped paths.
    """
    notes = []
    for kind, items in skipped.items():
        noun, attribute = kind.split(" ", 1)
        if kind in (OTHER_FILES, DOCUMENTS):
            examples = count_kinds(map(Path, items))
        else:
            names = items if kind == UNREADABLE_FOLDERS else [Path(item).name for item in items]
            examples = join_names(names, 3)
        supported = f" (supported: {' '.join(SUFFIXES)})" if kind == OTHER_FILES else ""
        notes.append(f"skipped {pluralize(len(items), noun[:-1])} {attribute}: {examples}{supported}")
    return notes


def list_skipped_findings(skipped: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the findings about skipped items; documents next to the class folders are not a finding."""
    return {f"skipped {kind}": tuple(items) for kind, items in skipped.items() if kind != DOCUMENTS}
