"""Which class a label means. `docs/training.md` has the rules."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from bitcore.errors import BitLabError
from bitcore.naming import is_clean

MAX_CLASSES = 1 << 16
"""More are refused: a column of identities or of measured values is no class."""
_LONGEST = 255


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset.

    Attributes:
        names: Their names, in the order of their numbers.
        numbers: The number of each label that occurs in the training data; ``None`` where labels are numbers.
    """

    names: tuple[str, ...]
    numbers: Mapping[int | str, int] | None = None

    @classmethod
    def named(cls, names: Sequence[str], where: str) -> Classes:
        """Classes whose names are known; labels are their numbers, from 0.

        Raises:
            BitLabError: Two are equal, one is empty or unprintable, or they are too many.
        """
        check_names(names, where)
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise BitLabError(f"{where}: two classes are called '{twice}'; rename one")
        return cls(tuple(names))

    @classmethod
    def occurring(cls, values: Collection[int | str], where: str) -> Classes:
        """Classes of the labels that occur in the training data: numbers in their order, texts in that of Unicode.

        Raises:
            BitLabError: As `named`; or two texts differ in case only, or there are numbers and texts.
        """
        if len({type(value) for value in values}) > 1:
            raise BitLabError(f"{where}: some labels are numbers and some texts; make all of them texts")
        ordered = sorted(values)  # pyright: ignore[reportArgumentType]  (of one kind)
        names = tuple(map(str, ordered))
        check_names(names, where)
        check_case(names, where)
        return cls(names, {value: number for number, value in enumerate(ordered)})

    def number(self, label: object, where: str) -> int:
        """The class number that a label means.

        Raises:
            BitLabError: None; the message names the place ``where``.
        """
        count = len(self.names)
        if label is None or label == "":
            raise BitLabError(f"{where}: no label; label or remove the row")
        if self.numbers is None:
            if isinstance(label, int) and 0 <= label < count:
                return label
            raise BitLabError(
                f"{where}: label {label!r} is out of range 0 to {count - 1} ({count} classes); class numbers begin at 0"
            )
        number = self.numbers.get(label) if isinstance(label, int | str) else None
        if number is None:
            raise BitLabError(
                f"{where}: label {label!r} occurs in no training row (-1: no label at all); remove the row, or "
                "train on such rows too"
            )
        return number


def check_count(count: int, where: str) -> None:
    """Checks the number of classes.

    Raises:
        BitLabError: It is 0 or more than `MAX_CLASSES`.
    """
    if not count:
        raise BitLabError(f"{where}: no classes, as there are no training images")
    if count > MAX_CLASSES:
        raise BitLabError(f"{where}: more than {MAX_CLASSES} different labels; name a column of classes 'label'")


def check_names(names: Sequence[str], where: str) -> None:
    """Checks class names.

    Raises:
        BitLabError: There is none, too many, or one is empty, very long or not printable.
    """
    check_count(len(names), where)
    for name in names:
        if not name or len(name) > _LONGEST or not is_clean(name):
            raise BitLabError(f"{where}: {name[:_LONGEST]!r} is no printable class name; rename the class")


def check_case(names: Sequence[str], where: str) -> None:
    """Checks that names stay different where case, or the way accents are encoded, does not count.

    Raises:
        BitLabError: Two do not.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise BitLabError(f"{where}: classes '{other}' and '{name}' differ in case only; rename or merge them")
