"""Random integer graphs, put together block by block: every operation, valid types, extreme constants.

Targets and engines are fuzzed with them: ``random_graph(rng)`` against ``graph.run(extreme_codes(graph, n))``.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bitcore.formats import FORMATS
from bitcore.graph import (
    Add,
    Concat,
    Conv2d,
    Flatten,
    Graph,
    InputSpec,
    IntTensor,
    Linear,
    Lookup,
    MaxPool2d,
    Node,
    NormShift,
    Op,
    Requantize,
    SumPool2d,
    Threshold,
)
from networks import FOLDS, Ints, random_fold

INPUTS = ("int8", "uint8", "8bit", "uint4", "ternary")
_NONE = np.zeros(1, dtype=np.int64)


class GraphMaker:
    """A graph under construction. ``at`` names the latest tensor: maps ``[c, h, w]`` of at most 8 bits.

    Args:
        rng: Where all that is random comes from.
        shape: The input's shape, ``[c, h, w]``.
        input_format: Its format.
    """

    def __init__(self, rng: np.random.Generator, shape: Sequence[int], input_format: str) -> None:
        self.rng = rng
        self.spec = InputSpec(tuple(shape), input_format, 0.5)
        self.nodes: list[Node] = []
        self.types: dict[str, IntTensor] = {"input": self.spec.type}
        low, high = self.spec.type.low, self.spec.type.high
        self.values = {
            "input": rng.integers(low, high + 1, (6, *shape))
        }  # of a few samples: constants are chosen by them
        self.at = "input"
        self.conv_formats = sorted(FORMATS)

    @property
    def type(self) -> IntTensor:
        """The latest tensor's type."""
        return self.types[self.at]

    @property
    def seen(self) -> IntTensor:
        """The latest tensor's type, were its values no larger than the samples have them."""
        largest = int(np.abs(self.values[self.at]).max(initial=1))
        return IntTensor(self.type.shape, -largest, largest)

    def add(self, op: Op, *inputs: str) -> str:
        """Adds a node that reads the latest tensor (or ``inputs``), which becomes the latest; returns its name."""
        inputs = inputs or (self.at,)
        name = f"n{len(self.nodes)}.{op.kind}"
        self.types[name] = op.infer(*(self.types[i] for i in inputs))
        self.values[name] = op.reference(*(self.values[i] for i in inputs))
        self.nodes.append(Node(name, op, inputs, self.types[name]))
        self.at = name
        return name

    def levels(self, shape: tuple[int, ...], fmt: str) -> Ints:
        """Random weight levels; now and then all of one sign at their largest."""
        choices = np.array(FORMATS[fmt].levels)
        if self.rng.integers(8) == 0:
            return np.full(shape, self.rng.choice([choices.min(), choices.max()]), dtype=np.int64)
        return self.rng.choice(choices, shape).astype(np.int64)

    def bias(self, n: int) -> Ints:
        """A bias for every channel, or none."""
        return self.rng.integers(-5000, 5000, n) if self.rng.integers(2) else np.zeros(n, dtype=np.int64)

    def conv(self, outputs: int = 0, stride: int = 0, keep: bool = False) -> str:
        """Adds a convolution: plain, grouped or depthwise, strided, padded, dilated.

        Args:
            outputs: Its channels, 0 for a random number.
            stride: 0 for a random one.
            keep: Whether the maps keep their size (at stride 1).
        """
        rng, (c, h, w) = self.rng, self.type.shape
        groups = int(rng.choice([g for g in range(1, c + 1) if c % g == 0]))
        outputs = outputs or groups * int(rng.integers(1, 4))
        groups = groups if outputs % groups == 0 else 1
        kernel = [int(rng.choice([1, 3])) if keep else int(rng.integers(1, 4)) for _ in range(2)]
        dilation = [1 if keep else int(rng.integers(1, 3)) for _ in range(2)]
        padding = [k // 2 if keep else int(rng.integers(0, k)) for k in kernel]
        for i, size in enumerate((h, w)):
            if (kernel[i] - 1) * dilation[i] + 1 > size + 2 * padding[i]:
                kernel[i], padding[i] = 1, 0
        strides = [stride or int(rng.integers(1, 3)) for _ in range(2)]
        fmt = str(rng.choice(self.conv_formats))
        levels = self.levels((outputs, c // groups, *kernel), fmt)
        stride_pair, padding_pair, dilation_pair = ((v[0], v[1]) for v in (strides, padding, dilation))
        bias = self.bias(outputs)
        return self.add(Conv2d(levels, fmt, bias, stride_pair, padding_pair, dilation_pair, groups))

    def linear(self, outputs: int) -> str:
        """Adds a matrix product of a vector."""
        fmt = str(self.rng.choice(self.conv_formats))
        bias = self.bias(outputs) if self.rng.integers(2) else _NONE
        return self.add(Linear(self.levels((outputs, self.type.size), fmt), fmt, bias))

    def fold(self) -> str:
        """Adds what makes activations of at most 8 bits: requantize, threshold, normshift."""
        kinds = [f for f in FOLDS if self.type.storage == "int32" or "normshift" not in f]
        return self.add(random_fold(self.rng, str(self.rng.choice(kinds)), self.seen))

    def grid(self, bits: int = 14) -> str:
        """Adds a requantization to int16, by shifts or multipliers, per channel or shared."""
        rng, largest = self.rng, self.seen.high
        channels = int(rng.choice([1, self.type.shape[0]]))
        shift = rng.integers(0, max(1, largest.bit_length() - bits + 2), channels)
        low, high = int(rng.choice([0, -(2**bits) + 1])), 2**bits - 1
        if rng.integers(2):
            return self.add(Requantize(np.ones(1, dtype=np.int64), rng.integers(-9, 9, channels), shift, low, high))
        multiplier = rng.choice([-1, 1], channels) * rng.integers(2**14, 2**15, channels)
        return self.add(Requantize(multiplier, rng.integers(-(2**28), 2**28, channels), shift + 15, low, high))

    def window(self, largest: int) -> tuple[tuple[int, int], ...]:
        """A random kernel, stride and padding that fit the latest maps."""
        rng, sizes = self.rng, self.type.shape[1:]
        kernel = [int(rng.integers(1, min(largest, n) + 1)) for n in sizes]
        pairs = kernel, [int(rng.integers(1, 4)) for _ in sizes], [int(rng.integers(0, k // 2 + 1)) for k in kernel]
        return tuple((a, b) for a, b in pairs)

    def finish(self, end: str) -> Graph:
        """Adds a classifier (linear, or a convolution as it is) and returns the graph."""
        if end == "maps":
            self.conv()
        self.add(Flatten())
        if end != "maps":
            if self.rng.integers(2):
                self.linear(int(self.rng.integers(1, 12)))
                self.fold()
            self.linear(int(self.rng.integers(1, 6)))
        if end == "requantize":
            n = self.type.size
            multiplier, bias = self.rng.integers(-(2**30), 2**30, n), self.rng.integers(-(2**40), 2**40, n)
            self.add(Requantize(multiplier, bias, self.rng.integers(20, 40, n), -(2**31), 2**31 - 1))
        return Graph(self.spec, tuple(self.nodes), 0.125, {"made": "at random"})


def _conv(m: GraphMaker) -> None:
    m.conv()
    m.fold()


def _residual(m: GraphMaker) -> None:
    """A stream in int16 that its own branch reads, too; the addition may be of three, and of the stream itself."""
    if m.type.item_bytes == 1 and m.rng.integers(2):
        m.conv()
        m.grid()
    skip = m.at
    m.fold()
    m.conv(m.type.shape[0], 1, keep=True)
    branch = m.grid()
    kinds = [(branch, skip), (skip, branch), (branch, skip, skip)]
    m.add(Add(), *kinds[m.rng.integers(3)])
    if m.rng.integers(2):
        m.add(Add(), m.at, m.grid())
    m.fold()


def _parallel(m: GraphMaker) -> None:
    """Two convolutions of one input; their sum, or both side by side, in int16 or narrower."""
    source, outputs = m.at, int(m.rng.integers(1, 5))
    narrow = [m.grid, m.fold][m.rng.integers(2)]
    ends = []
    for _ in range(2):
        m.at = source
        m.conv(outputs, 1, keep=True)
        ends.append(narrow())
    m.add(Concat() if m.rng.integers(2) else Add(), *ends)
    m.fold()


def _concat(m: GraphMaker) -> None:
    source = m.at
    m.conv(0, 1, keep=True)
    m.fold()
    m.add(Concat(), m.at, source, m.at)
    m.fold()


def _lookup(m: GraphMaker) -> None:
    if m.rng.integers(2):
        m.conv()
    shift = np.array([max(0, m.seen.high.bit_length() - int(m.rng.integers(6, 9)))])
    low, high = [(-128, 127), (0, 255)][m.rng.integers(2)]
    m.add(Requantize(np.ones(1, dtype=np.int64), _NONE, shift, low, high))
    low, high = [(-128, 128), (0, 256), (-(2**15), 2**15)][m.rng.integers(3)]
    m.add(Lookup(m.rng.integers(low, high, 256)))
    m.fold()


def _maxpool(m: GraphMaker) -> None:
    if m.rng.integers(3) == 0:  # of accumulators, or of int16
        m.conv()
        if m.rng.integers(2):
            m.grid()
    m.add(MaxPool2d(*m.window(4)))
    if m.type.item_bytes > 1:
        m.fold()


def _sumpool(m: GraphMaker) -> None:
    if m.rng.integers(2):
        m.conv()
        m.grid()
    whole = m.rng.integers(2)
    kernel, stride, padding = (m.type.shape[1:], (1, 1), (0, 0)) if whole else m.window(5)
    m.add(SumPool2d((kernel[0], kernel[1]), stride, padding))
    m.fold()


def _normshift(m: GraphMaker) -> None:
    m.conv()
    m.add(NormShift(127, bool(m.rng.integers(2))))


def _threshold(m: GraphMaker) -> None:
    m.conv()
    largest = m.seen.high
    count = int(m.rng.choice([1, 2, 15, 255]))
    thresholds = np.sort(m.rng.integers(-largest, largest + 2, (1, count)), axis=1)
    m.add(Threshold(thresholds, np.ones(1, dtype=np.int64), 0, 1))


BLOCKS: dict[str, Callable[[GraphMaker], None]] = {
    "conv2d": _conv,
    "residual": _residual,
    "parallel": _parallel,
    "concat": _concat,
    "lookup": _lookup,
    "maxpool2d": _maxpool,
    "sumpool2d": _sumpool,
    "normshift": _normshift,
    "threshold": _threshold,
}
ENDS = ("linear", "requantize", "maps")


def random_graph(
    rng: np.random.Generator,
    blocks: Sequence[str] = (),
    shape: Sequence[int] = (),
    input_format: str = "",
    formats: Sequence[str] = (),
    end: str = "",
) -> Graph:
    """A random graph over maps; what is not given is random.

    Args:
        rng: Where all that is random comes from.
        blocks: Names of `BLOCKS`, in order.
        shape: The input's shape, ``[c, h, w]``.
        input_format: One of `INPUTS`.
        formats: What weights may be.
        end: One of `ENDS`.
    """
    shape = shape or [int(rng.integers(1, most + 1)) for most in (4, 9, 9)]
    maker = GraphMaker(rng, shape, input_format or str(rng.choice(INPUTS)))
    maker.conv_formats = list(formats) or maker.conv_formats
    for name in blocks or rng.choice(sorted(BLOCKS), int(rng.integers(1, 5))):
        BLOCKS[str(name)](maker)
    return maker.finish(end or str(rng.choice(ENDS)))


def plain_network(rng: np.random.Generator) -> Graph:
    """Convolutions with ReLU, many with a pooling, then dense layers: what small chips run; or dense layers alone.

    Weights have evenly spaced levels on both sides of 0.
    """
    shifts = bool(rng.integers(2))
    c, h, w = (int(rng.integers(1, most + 1)) for most in (3, 12, 11))
    maker = GraphMaker(rng, (c, h, w) if rng.integers(4) else (c * h,), str(rng.choice(["int8", "uint8"])))
    maker.conv_formats = [f.name for f in FORMATS.values() if f.affine and f.low == -f.high and len(f.levels) <= 32]
    for left in range(int(rng.integers(1, 5)), -1, -1):
        if len(maker.type.shape) > 1 and (left < 1 or rng.integers(5) == 0):
            maker.add(Flatten())
        outputs = int(rng.integers(1, 24))
        if len(maker.type.shape) == 1:
            maker.linear(outputs)
        else:
            fmt, (c, *sizes) = str(rng.choice(maker.conv_formats)), list(maker.type.shape)
            kernel = [int(rng.integers(1, min(n, 3) + 1)) for n in sizes]
            padding, stride = [int(rng.integers(0, k)) for k in kernel], [int(rng.integers(1, 3)) for _ in kernel]
            levels, bias = maker.levels((outputs, c, *kernel), fmt), maker.bias(outputs)
            maker.add(Conv2d(levels, fmt, bias, (stride[0], stride[1]), (padding[0], padding[1]), (1, 1), 1))
        if left:
            bits = maker.seen.high.bit_length()
            channels = int(rng.choice([1, outputs]))
            high, shift = int(rng.choice([255, 255, 15, 1])), rng.integers(0, max(2, bits - 5), channels)
            multiplier = np.ones(channels, dtype=np.int64)
            if not shifts:  # of few enough bits for int32
                most = min(15, 30 - maker.type.high.bit_length())
                multiplier = rng.integers(-(2**most) + 1, 2**most, channels)
                shift = shift + most - 1
            offset = rng.integers(-(2**12), 2**12, channels)
            maker.add(Requantize(multiplier, offset, shift, 0, high))
            if len(maker.type.shape) > 1 and min(maker.type.shape[1:]) > 1 and rng.integers(3):
                maker.add(MaxPool2d((2, 2), (2, 2), (0, 0)))
    return Graph(maker.spec, tuple(maker.nodes), 0.125, {"made": "at random"})
