"""What operations check of their parameters. A graph may come from a file that somebody else wrote."""

from __future__ import annotations

import numpy as np

from bitcore.errors import BitLabError
from bitcore.formats import FORMATS
from bitcore.graph.types import INT32, IntTensor

LONGEST = 2**31 - 1  # of a padded side, a stride, a dilated window: int32 counts them


def one_input(types: tuple[IntTensor, ...]) -> IntTensor:
    """Returns the only input's type.

    Raises:
        BitLabError: If there are more or none.
    """
    if len(types) != 1:
        raise BitLabError(f"it takes one input, not {len(types)}")
    return types[0]


def one_map(types: tuple[IntTensor, ...]) -> IntTensor:
    """Returns the only input's type, that of a map ``[channels, height, width]``.

    Raises:
        BitLabError: If there are more or none, or it is no map.
    """
    source = one_input(types)
    if len(source.shape) != 3:
        raise BitLabError(f"it takes maps [channels, height, width], its input has shape {list(source.shape)}")
    return source


def check_number(name: str, value: object, low: int, high: int) -> None:
    """Checks that a parameter is an integer in ``low … high``.

    Raises:
        BitLabError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise BitLabError(f"its {name} is {value!r:.80}; it must be an integer in {low}…{high}")


def check_pair(name: str, value: object, low: int) -> None:
    """Checks that a parameter is two integers of at least ``low``: vertical, horizontal.

    Raises:
        BitLabError: If it is not.
    """
    if not isinstance(value, tuple) or len(value) != 2:
        raise BitLabError(f"its {name} is {value!r:.80}; it must be two integers: vertical, horizontal")
    for number in value:
        check_number(name, number, low, LONGEST)


def check_integers(name: str, value: object, low: int, high: int, *shapes: tuple[int, ...]) -> None:
    """Checks that a parameter is an int64 array of one of the shapes with values in ``low … high``.

    Raises:
        BitLabError: If it is not.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.int64:
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise BitLabError(f"its {name} must be an int64 array, not {kind}")
    if value.shape not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        raise BitLabError(f"its {name} has shape {list(value.shape)}; it must have {allowed}")
    least, most = int(value.min()), int(value.max())
    if least < low or most > high:
        raise BitLabError(f"its {name} has values in {least}…{most}; they must lie in {low}…{high}")


def check_levels(levels: object, format_name: object, shape: tuple[int, ...]) -> None:
    """Checks that weights are levels of their format.

    Args:
        levels: The weights.
        format_name: Their format's name.
        shape: Theirs, of which the first is the number of outputs: 0 stands for any.

    Raises:
        BitLabError: If they have another shape, or values that are no levels.
    """
    if not isinstance(format_name, str) or format_name not in FORMATS:
        raise BitLabError(f"its weights have the unknown format {format_name!r:.80}")
    fmt = FORMATS[format_name]
    outputs = levels.shape[0] if isinstance(levels, np.ndarray) and levels.ndim == len(shape) else 0
    check_integers("weight", levels, fmt.low, fmt.high, (max(outputs, 1), *shape[1:]))
    if not fmt.holds(levels):  # type: ignore[arg-type]
        raise BitLabError(f"its weights have values that are no levels of {format_name}")


def check_bias(bias: object, outputs: int) -> None:
    """Checks that a bias is one int32 an output, or a single one.

    Raises:
        BitLabError: If it is not.
    """
    check_integers("bias", bias, *INT32, (outputs,), (1,))
