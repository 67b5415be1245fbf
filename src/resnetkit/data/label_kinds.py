"""Recognize label columns that are not classes: numbers to predict, and several labels in one cell.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from resnetkit.data.class_names import parse_number
from resnetkit.errors import DataError
from resnetkit.formatting import join_names

_MAX_FRACTIONS, _MAX_INTEGERS = 10, 20  # so many different numbers can be the names of classes
_MISSING = {"nan", "n/a", "#n/a", "<na>", "null"}  # as pandas, R and spreadsheets write a missing cell
_SEPARATORS = ("|", ";", ",")


def check_label_kind(counts: Mapping[str, int], location: str) -> list[str]:
    """Check that the labels of a table are classes, and return notes about doubtful ones.

    Args:
        counts: Label -> the number of its images.
        location: The table, for the error.

    Raises:
        DataError: the labels are numbers to predict (regression), or cells hold several labels (multi-label).
    """
    several = list(dict.fromkeys(_iter_several(counts)))
    if several:
        what = f"cells hold several labels (multi-label), but an image has one class: {join_names(several, 3)}"
        fix = "keep one label per image; if each is the name of one class, write it without the separator"
        raise DataError(what, where=location, fix=fix)
    numbers = {number for label in counts if (number := parse_number(label)) is not None}
    has_fractions, n_images = any(number.denominator > 1 for number in numbers), sum(counts.values())
    notes = [f"the class {label!r} may stand for missing labels" for label in counts if label.casefold() in _MISSING]
    if n_images > _MAX_INTEGERS and len(counts) > n_images // 2:
        notes.append(f"{len(counts):,} classes for {n_images:,} images: the labels may identify images")
    if not numbers or None in map(parse_number, counts):
        return notes
    text = f"the labels are {len(numbers):,} different numbers ({join_names(list(counts), 3)})"
    is_many = len(numbers) > (_MAX_FRACTIONS if has_fractions else _MAX_INTEGERS)
    if is_many and (has_fractions or len(numbers) > n_images // 2):
        what = f"{text}: a quantity to predict (regression), not classes"
        fix = "if they are classes, name them, such as 'grade 1'; otherwise divide the numbers into a few ranges"
        raise DataError(what, where=location, fix=fix)
    is_index = min(numbers) in (0, 1) and max(numbers) - min(numbers) == len(numbers) - 1  # 0 to K - 1, or 1 to K
    is_doubtful = has_fractions or (is_many and not is_index)
    return [*notes, *([f"{text}; each is a class of its own, without an order"] if is_doubtful else [])]


def _iter_several(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield the labels that combine several, such as ``ant|bee`` if ``ant`` occurs in another label."""
    for label in counts:
        if re.fullmatch(r"\[.*\]|\{.*\}", label):
            yield label
    for separator in _SEPARATORS:
        parts_of_label = {label: _split(label, separator) for label in counts if separator in label}
        n_uses = {part: 0 for parts in parts_of_label.values() for part in parts}
        for label in counts:
            for part in set(_split(label, separator)) & n_uses.keys():
                n_uses[part] += 1
        # All parts must be known for a comma: a class may be called "maillot, tank suit" next to a class "maillot".
        is_known = all if separator == "," else any
        yield from (label for label, parts in parts_of_label.items() if is_known(n_uses[part] > 1 for part in parts))


def _split(label: str, separator: str) -> list[str]:
    return [part.strip() for part in label.split(separator)]
