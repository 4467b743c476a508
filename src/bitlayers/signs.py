"""What torch's operations make of signs: whether their results can be negative."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from torch import nn

from bitlayers.tracing import name_of


class Sign(Enum):
    """What is known of a tensor's values."""

    NEVER = "never negative"
    CAN = "can be negative"
    UNKNOWN = "unknown"


def words(text: str) -> frozenset[str]:
    """Returns the names in a text."""
    return frozenset(text.split())


# Operations by one name for module, function and method (`word`): batchnorm is BatchNorm2d and F.batch_norm.
NEVER = words("relu relu6 sigmoid hardsigmoid softmax softmin softplus abs exp square sqrt rsqrt norm var std")
CAN = words(
    "layernorm groupnorm instancenorm batchnorm rmsnorm linear conv convtranspose embedding bilinear neg sub isub rsub"
    " log logsoftmax logsigmoid sin cos alphadropout featurealphadropout rrelu glu randn randnlike rsign rprelu"
)
KEEPS = words(
    "identity dropout flatten unflatten view reshape permute transpose t contiguous clone detach to float half"
    " double bfloat16 type typeas expand expandas unsqueeze squeeze chunk split tensorsplit getitem get unbind mean"
    " sum amax amin max min maxpool avgpool adaptiveavgpool adaptivemaxpool interpolate upsample pixelshuffle"
    " pixelunshuffle channelshuffle repeat repeatinterleave tile flip roll narrow select movedim moveaxis swapaxes"
    " swapdims indexselect gather cumsum reflectionpad replicationpad circularpad zeropad unfold ceil floor round"
    " normalize localresponsenorm requiresgrad"
)
# f(x) >= 0 wherever x >= 0, and can be negative elsewhere.
FAITHFUL = words(
    "gelu silu hardswish mish elu selu celu leakyrelu prelu tanh softsign tanhshrink hardshrink softshrink"
)
OF_ALL = words(
    "add iadd radd mul imul rmul multiply div divide truediv itruediv rtruediv cat concat concatenate stack hstack"
    " vstack matmul rmatmul imatmul bmm mm minimum pad constantpad pow ipow"
)
OF_ANY = words("maximum")
JOINS = words("cat concat concatenate stack hstack vstack")  # their numbers are dimensions
CLAMPS = words("clamp clip clampmin clampmax hardtanh")
NO_TENSOR = words("size dim ndimension numel len stride isfloatingpoint device dtype shape")


def word(name: str) -> str:
    """Returns the name that modules, functions and methods have in common: ``MaxPool2d``, ``max_pool2d``: maxpool."""
    return re.sub(r"[123]d$", "", name.replace("_", "").lower())


def sign_of(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], signs: Sequence[Sign]) -> Sign:
    """Returns what is known of an operation's result.

    Args:
        operation: A type of module, a function or a method's name.
        args: The arguments.
        kwargs: The arguments by name; of a module, its options (`options_of`).
        signs: What is known of the tensors among the arguments, in their order.
    """
    name = word(name_of(operation))
    first = signs[0] if signs else Sign.UNKNOWN
    if name in NEVER:
        return Sign.NEVER
    if name in CAN:
        return Sign.CAN
    if name in KEEPS:
        if "bicubic" in (*args, *kwargs.values()):  # it overshoots
            return Sign.CAN
        return joined(signs) if name == "min" else first
    if name in FAITHFUL:
        return Sign.NEVER if first is Sign.NEVER else Sign.CAN
    if name in CLAMPS:
        return _clamped(name, args, kwargs, first)
    if name == "scaleddotproductattention":
        return signs[2] if len(signs) > 2 else Sign.UNKNOWN
    if name in ("mul", "multiply") and len(args) > 1 and args[0] is args[1]:
        return Sign.NEVER
    numbers = [] if name in JOINS else [x for x in (*args, *kwargs.values()) if type(x) in (int, float)]
    return _combined(name, [*signs, *(Sign.NEVER if number >= 0 else Sign.CAN for number in numbers)])


def _combined(name: str, signs: Sequence[Sign]) -> Sign:
    if name in OF_ANY and Sign.NEVER in signs:
        return Sign.NEVER
    if name not in OF_ALL and name not in OF_ANY:
        return Sign.UNKNOWN
    return joined(signs)


def joined(signs: Sequence[Sign]) -> Sign:
    """Returns what is known of values that may be any of these."""
    if all(sign is Sign.NEVER for sign in signs):
        return Sign.NEVER
    return Sign.UNKNOWN if Sign.UNKNOWN in signs else Sign.CAN


def _clamped(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], first: Sign) -> Sign:
    limits = [*args[1:3], None, None]
    low, high = (None, limits[0]) if name == "clampmax" else (limits[0], limits[1])
    low = kwargs.get("min", kwargs.get("min_val", low))
    high = kwargs.get("max", kwargs.get("max_val", high))
    if name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    if high is not None and not (isinstance(high, (int, float)) and high >= 0):
        return Sign.CAN if isinstance(high, (int, float)) else Sign.UNKNOWN
    if first is Sign.NEVER or (isinstance(low, (int, float)) and low >= 0):
        return Sign.NEVER
    return Sign.UNKNOWN if low is not None and not isinstance(low, (int, float)) else Sign.CAN


def options_of(module: nn.Module) -> dict[str, Any]:
    """Returns the options of a module that its result's sign depends on, by the names of the function's arguments."""
    options = {name: getattr(module, name, None) for name in ("min_val", "max_val", "value", "mode")}
    return {name: value for name, value in options.items() if isinstance(value, (int, float, str))}
