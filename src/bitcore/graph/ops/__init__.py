"""The integer operations. `reference` is the meaning of each: every kernel and target equals it exactly.

All of them work on int64 arrays ``[batch, *shape]``; the first dimension of ``shape`` is the channel. Parameters "per
channel" are arrays of length 1 (shared) or ``shape[0]``. `infer` gives the type of the result; it refuses parameters
that do not fit each other or the inputs, and accumulators that int32 would not hold.
"""

from bitcore.graph.ops.base import Ints, Op, shift_half_even
from bitcore.graph.ops.elementwise import Lookup, NormShift, Requantize, Threshold
from bitcore.graph.ops.moves import Add, Concat, Flatten
from bitcore.graph.ops.products import Conv2d, Linear
from bitcore.graph.ops.windows import MaxPool2d, SumPool2d

OPS: dict[str, type[Op]] = {
    op.kind: op
    for op in (Linear, Conv2d, Requantize, Threshold, NormShift, Lookup, Add, Concat, MaxPool2d, SumPool2d, Flatten)
}

__all__ = [
    "OPS",
    "Add",
    "Concat",
    "Conv2d",
    "Flatten",
    "Ints",
    "Linear",
    "Lookup",
    "MaxPool2d",
    "NormShift",
    "Op",
    "Requantize",
    "SumPool2d",
    "Threshold",
    "shift_half_even",
]
