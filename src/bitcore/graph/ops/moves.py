"""Operations that bring tensors together or reshape them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from bitcore.errors import BitLabError
from bitcore.graph.ops.base import Ints, Op
from bitcore.graph.ops.checks import one_input
from bitcore.graph.types import IntTensor, narrow


@dataclass(frozen=True, eq=False)
class Add(Op):
    """The sum of two or more tensors of one shape, whose integers count in the same unit."""

    kind = "add"
    fused = True

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        if len(types) < 2 or any(kind.shape != types[0].shape for kind in types):
            shapes = ", ".join(str(kind.shape) for kind in types)
            raise BitLabError(f"an addition takes two or more tensors of one shape, not {shapes}")
        return narrow(types[0].shape, sum(kind.low for kind in types), sum(kind.high for kind in types))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return np.sum(x, axis=0)


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Tensors one behind the other along the channels; their integers count in the same unit."""

    kind = "concat"

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        if not types or any(kind.shape[1:] != types[0].shape[1:] for kind in types):
            shapes = ", ".join(str(kind.shape) for kind in types)
            raise BitLabError(f"a concatenation takes tensors that differ in their channels only, not {shapes}")
        channels = sum(kind.shape[0] for kind in types)
        return narrow(
            (channels, *types[0].shape[1:]), min(kind.low for kind in types), max(kind.high for kind in types)
        )

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return np.concatenate(x, axis=1)


@dataclass(frozen=True, eq=False)
class Flatten(Op):
    """The same values as one vector, channels first. Costs nothing: the buffer is shared."""

    kind = "flatten"

    def infer(self, *types: IntTensor) -> IntTensor:  # noqa: D102
        source = one_input(types)
        return replace(source, shape=(source.size,))

    def reference(self, *x: Ints) -> Ints:  # noqa: D102
        return as_vectors(x[0])


def as_vectors(x: Ints) -> Ints:
    """Returns every sample as a vector; a batch may be empty."""
    return x.reshape(len(x), math.prod(x.shape[1:]))
