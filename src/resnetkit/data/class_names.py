"""Class names: printable text, known to the train split, and written in one way.

Two names mean one class if they are equal after Unicode composition (NFC), case folding and removing spaces. ``_`` and
``-`` between letters count as spaces, and numbers are equal by value. So ``black_bear`` means ``Black bear``, and
``1.0`` means ``1``.

This module imports no torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from resnetkit.errors import DataError, find_closest
from resnetkit.formatting import join_names, pluralize

MERGE_OPTION = "--merge-classes"
_SEPARATOR = re.compile(r"(?<=[^\W\d_])[_-](?=[^\W\d_])")  # between two letters
_NUMBER = re.compile(r"[+-]?(\d{1,100}(\.\d{0,100})?|\.\d{1,100})(e[+-]?\d{1,3})?", re.IGNORECASE)


def is_text(name: str) -> bool:
    """Return whether a class name is printable text, as cards, tables and web pages need it."""
    return name.isprintable() and not any("\ud800" <= character <= "\udfff" for character in name)


def parse_number(text: str) -> Fraction | None:
    """Return the exact value of a decimal number, or None if the text is not one."""
    return Fraction(text.strip()) if _NUMBER.fullmatch(text.strip()) else None


# ------------------------------------------------------------------------------------------------------ equal spellings


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _fold_case(name: str) -> str:
    return _compose(_compose(name).casefold())


def _remove_spaces(name: str) -> str:
    return " ".join(_fold_case(name).split())


def _replace_separators(name: str) -> str:
    return _SEPARATOR.sub(" ", _remove_spaces(name))


def normalize_class_name(name: str) -> str:
    """Return a key that is equal for all spellings of one class."""
    number = parse_number(name)
    return _replace_separators(name) if number is None else str(number)


_DIFFERENCES: dict[str, Callable[[str], str]] = {  # each step includes the ones before it
    "the Unicode form of their accents": _compose,
    "upper and lower case": _fold_case,
    "spaces": _remove_spaces,
    "the characters between words": _replace_separators,
    "the notation of a number": normalize_class_name,
}


def find_spellings(names: Iterable[str]) -> list[list[str]]:
    """Find groups of different names that mean one class; the shortest name comes first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names), key=lambda name: (len(name), name)):
        groups[normalize_class_name(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def describe_spellings(names: Sequence[str]) -> str:
    """Describe in which way the spellings of one class differ."""
    difference = next(text for text, step in _DIFFERENCES.items() if len(set(map(step, names))) == 1)
    quote = ascii if len(set(map(_compose, names))) < len(names) else repr
    return f"{' and '.join(map(quote, names))} differ only in {difference}"


def check_spellings(names: Iterable[str], location: str) -> None:
    """Check that no class is written in two ways.

    Args:
        names: The class names.
        location: The dataset, for the error.

    Raises:
        DataError: two names mean one class.
    """
    groups = find_spellings(names)
    if groups:
        what = f"{pluralize(len(groups), 'class')} {'is' if len(groups) == 1 else 'are'} written in several ways"
        fix = f"merge them ({MERGE_OPTION}), or rename them"
        raise DataError(what, where=[location, *map(describe_spellings, groups[:5])], fix=fix)


# ------------------------------------------------------------------------------------------------------- unknown names


def hint_name(name: str, known_names: Iterable[str]) -> str:
    """Return the beginning of a fix, "did you mean X? Otherwise ", or "" if no known name is similar.

    Args:
        name: The unknown name.
        known_names: The allowed names.
    """
    return "".join(f"did you mean {match}? Otherwise " for match in find_closest(name, known_names))


def describe_extra_classes(split: str, train_split: str, classes: Sequence[str]) -> str:
    """Describe classes that the model cannot learn.

    Args:
        split: The split that has them.
        train_split: The split to train on, which lacks them.
        classes: Their names.
    """
    return f"{split} has a class that {train_split} lacks: {join_names(classes)}"


def check_classes(classes_of_split: Mapping[str, Iterable[str]], location: str) -> None:
    """Check that every class of any split also occurs in the first split.

    Args:
        classes_of_split: Split -> the names of its classes.
        location: The dataset, for the error.

    Raises:
        DataError: a split has a class that cannot be learned; the error suggests a similar name.
    """
    train_split = next(iter(classes_of_split))
    known = sorted(classes_of_split[train_split])
    for split, classes in classes_of_split.items():
        extra = sorted(set(classes) - set(known))
        if extra:
            fix = f"{hint_name(extra[0], known)}add it to {train_split}, or remove it from {split}"
            spellings = [name for name in known if normalize_class_name(name) == normalize_class_name(extra[0])]
            if spellings:
                fix = f"{describe_spellings([spellings[0], extra[0]])}: merge them ({MERGE_OPTION}), or rename one"
            raise DataError(describe_extra_classes(split, train_split, extra), where=location, fix=fix)
