"""From an integer graph to the engine's steps: what runs on which kernel, and what is fused behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitcore.engine.posts import Post, elementwise
from bitcore.engine.program import PostKind, StepKind
from bitcore.engine.steps import Buffer, Step
from bitcore.engine.weights import Block, cut, fits_tiles, padded, sign_words, tile_weights
from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitcore.graph import Graph, Node
from bitcore.graph.ops import (
    Add,
    Concat,
    Conv2d,
    Flatten,
    Ints,
    Linear,
    Lookup,
    MaxPool2d,
    NormShift,
    Requantize,
    SumPool2d,
    Threshold,
)
from bitcore.graph.types import IntTensor
from bitcore.naming import printable

_FEW_SIGNS = 32  # inputs of a tap: below, bytes beat words of 64 bits that are mostly empty
_FEW_CHANNELS = 16  # below, rows of the input are read in one go, over a border of zeros
_MOST_POSTS = 64  # behind one step; chains of more begin another
OUTPUT = -1
OPERATIONS = frozenset(
    {Linear, Conv2d, MaxPool2d, SumPool2d, NormShift, Concat, Flatten, Add, Requantize, Threshold, Lookup}
)
"""What the engine computes, and nothing else: an operation of another kind has no step."""


class Plan:
    """The steps and buffers of a graph.

    Attributes:
        buffers: By number.
        steps: In order.
        input: The input's buffer.
        output: The output's buffer.
    """

    def __init__(self, graph: Graph) -> None:
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self._graph = graph
        self._types = {"input": graph.input.type, **{node.name: node.type for node in graph.nodes}}
        self._inputs = {"input": (), **{node.name: node.inputs for node in graph.nodes}}
        self._readers: dict[str, list[Node]] = {name: [] for name in self._types}
        for node in graph.nodes:
            if type(node.op) not in OPERATIONS:
                raise BitLabError(
                    f"layer '{printable(node.name)}': the engine has no '{node.op.kind}'; leave it out of the model"
                )
            for name in dict.fromkeys(node.inputs):
                self._readers[name].append(node)
        self._where: dict[str, int] = {}
        self._signs: dict[int, int] = {}
        self._only_signs = _only_signs(graph)
        self._done: set[str] = set()
        self.output = OUTPUT
        self.input = self._input_buffer()
        for node in graph.nodes:
            if node.name not in self._done:
                self._lower(node)
        self._lifetimes()

    # ---- buffers -------------------------------------------------------------------------------------------------

    def _buffer(self, kind: IntTensor, output: bool = False) -> Buffer:
        channels, height, width = (*kind.shape, 1, 1)[:3]
        item = 4 if output else kind.item_bytes
        offset = 128 if item == 1 and kind.high > 127 else 0
        pixel = channels * item if output else -(-channels * item // 4) * 4
        return Buffer(height, width, channels, item, offset, pixel)

    def _new(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _place(self, name: str) -> int:
        """Returns the buffer of a node's result, a new one if it has none."""
        if name not in self._where:
            output = name == self._graph.output.name
            self._where[name] = self._new(self._buffer(self._types[name], output))
            if output:
                self.output = self._where[name]
        return self._where[name]

    def _input_buffer(self) -> int:
        """The input's buffer, with a border where all its readers want the same and it has few channels."""
        buffer = self._buffer(self._graph.input.type)
        readers = [self._window(node) for node in self._readers["input"]]
        paddings = {window.padding for window in readers if window is not None}
        narrow = buffer.item == 1 and buffer.channels < _FEW_CHANNELS
        if narrow and None not in readers and len(paddings) == 1:
            top, left = buffer.border = paddings.pop()
            buffer.height, buffer.width, buffer.pixel = (
                buffer.height + 2 * top,
                buffer.width + 2 * left,
                buffer.channels,
            )
            self._in_rows = True
        else:
            self._in_rows = False
        self._where["input"] = self._new(buffer)
        return self._where["input"]

    def _window(self, node: Node) -> Conv2d | None:
        """A node's operation, if it is a convolution of all channels at once, horizontally dense."""
        op, readers = node.op, self._readers[node.name]
        if isinstance(op, Flatten) and len(readers) == 1 and isinstance(readers[0].op, Linear):
            op = _of_map(readers[0].op, self._types["input"])
        if not isinstance(op, Conv2d) or op.groups > 1 or op.dilation[1] > 1:
            return None
        return op if _product_fits(op, self._types["input"]) else None

    def _lifetimes(self) -> None:
        for i, buffer in enumerate(self.buffers):
            writers = [s for s, step in enumerate(self.steps) if i in step.writes]
            readers = [s for s, step in enumerate(self.steps) if i in step.reads]
            buffer.first = min(writers, default=-1)
            buffer.last = max([*writers, *readers], default=-1)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _lower(self, node: Node) -> None:
        """Adds the step of a node that none took along."""
        op, name = node.op, node.inputs[0]
        self._done.add(node.name)
        if isinstance(op, Conv2d):
            self._run(self._conv(op, name), node)
        elif isinstance(op, Linear):
            self._run(self._linear(op, name), node)
        elif isinstance(op, MaxPool2d | SumPool2d):
            step = self._pass(StepKind.MAX if isinstance(op, MaxPool2d) else StepKind.SUM, name)
            step.size = (node.type.shape[1], node.type.shape[2])
            step.pairs = {"kernel": op.kernel, "stride": op.stride, "padding": op.padding, "dilation": (1, 1)}
            self._run(step, node)
        elif isinstance(op, NormShift):
            step = self._pass(StepKind.NORMSHIFT, name)
            step.numbers = {"high": op.high, "relu": int(op.relu)}
            self._run(step, node)
        elif isinstance(op, Concat):
            self._concat(node)
        elif isinstance(op, Flatten):
            self._flatten(node)
        else:
            step = self._pass(StepKind.LOAD, name)
            step.posts += self._post(node, name)
            self._run(step, node)

    def _pass(self, kind: StepKind, name: str) -> Step:
        """A step over a buffer as it is."""
        source = self._where[name]
        buffer = self.buffers[source]
        pairs = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
        return Step(kind, source, (buffer.height, buffer.width), tuple(cut(buffer.channels)), {}, pairs)

    def _run(self, step: Step, node: Node) -> None:
        """Adds a step whose tiles are a node's result, with everything that can follow within the tile."""
        self._follow(node.name, step, 0)
        self.steps.append(step)

    def _follow(self, name: str, step: Step, depth: int) -> None:
        room = len(step.posts) < _MOST_POSTS
        fused = [node for node in self._readers[name] if room and self._fuses(node, name)]
        if len(fused) < len(self._readers[name]) or name == self._graph.output.name:
            step.posts.append(_store(self._place(name)))
        for i, node in enumerate(fused):
            if len(fused) > 1:
                step.slots = max(step.slots, depth + 1)
                step.posts.append(Post(PostKind.RESTORE if i else PostKind.KEEP, {"target": depth}))
            step.posts += self._post(node, name)
            self._done.add(node.name)
            self._follow(node.name, step, depth + (len(fused) > 1))

    def _fuses(self, node: Node, name: str) -> bool:
        """Whether a node can follow on a tile of one of its inputs."""
        if node.name in self._done:
            return False
        if isinstance(node.op, Add):
            others = [i for i in node.inputs if i != name]
            return len(others) == len(node.inputs) - 1 and all(i in self._where for i in others)
        if isinstance(node.op, Flatten):
            return _is_vector(self._types[name])
        return isinstance(node.op, Requantize | Threshold | Lookup)

    def _post(self, node: Node, name: str) -> list[Post]:
        if isinstance(node.op, Flatten):
            return []
        if isinstance(node.op, Add):
            others = list(node.inputs)
            others.remove(name)
            return [Post(PostKind.ADD, {"target": self._where[i]}) for i in others]
        return [elementwise(node.op, self._types[name])]

    def _concat(self, node: Node) -> None:
        target, channel = self._place(node.name), 0
        for name in node.inputs:
            step = self._pass(StepKind.LOAD, name)
            step.posts.append(_store(target, channel))
            channel += self._types[name].shape[0]
            self.steps.append(step)

    def _flatten(self, node: Node) -> None:
        name = node.inputs[0]
        if _is_vector(self._types[name]) and node.name != self._graph.output.name:
            self._where[node.name] = self._where[name]
            return
        readers = self._readers[node.name]
        if node.name == self._graph.output.name or any(not isinstance(n.op, Linear) for n in readers):
            flat = self._where[node.name] = self._new(self._buffer(node.type))
            self.steps.append(Step(StepKind.FLATTEN, self._where[name], (1, 1), numbers={"target": flat}))
        if node.name == self._graph.output.name:
            step = self._pass(StepKind.LOAD, node.name)
            del self._where[node.name]
            step.posts.append(_store(self._place(node.name)))
            self.steps.append(step)

    # ---- products ------------------------------------------------------------------------------------------------

    def _linear(self, op: Linear, name: str) -> Step:
        """A linear layer is a convolution whose kernel is the whole map."""
        if name not in self._where:  # flattened: the map itself is there
            name = self._inputs[name][0]
        return self._conv(_of_map(op, self._types[name]), name)

    def _conv(self, op: Conv2d, name: str) -> Step:
        source, kind = self._where[name], self._types[name]
        buffer = self.buffers[source]
        outputs, inputs, *kernel = op.levels.shape
        size = _windows((*kind.shape, 1, 1)[1:3], op)
        step = Step(StepKind.PLAIN, source, size, tuple(cut(outputs)))
        step.pairs = {
            "kernel": (kernel[0], kernel[1]),
            "stride": op.stride,
            "padding": op.padding,
            "dilation": op.dilation,
        }
        taps = op.levels.transpose(0, 2, 3, 1).reshape(outputs, -1, inputs)
        bias = np.zeros(padded(outputs), np.int64)
        bias[:outputs] = op.bias
        step.arrays["constant"] = bias
        bias[:outputs] += buffer.offset * taps.sum(axis=(1, 2))
        if not _product_fits(op, kind):
            self._plain(step, op, taps)
        elif inputs == 1 and op.groups == outputs > 1:
            step.kind = StepKind.DEPTHWISE
            weight = np.zeros((taps.shape[1], padded(outputs)), np.int16)
            weight[:, :outputs] = taps[:, :, 0].T
            step.arrays["weight"] = weight
            step.numbers = {"stride_weight": weight.shape[1]}
        elif (
            get_format(op.format).levels == (-1, 1)
            and op.groups == 1
            and inputs >= _FEW_SIGNS
            and name in self._only_signs
        ):
            self._count(step, taps)
        else:
            if source == self.input and self._in_rows:
                taps = taps.reshape(outputs, kernel[0], -1)
                step.pairs = {**step.pairs, "kernel": (kernel[0], 1), "padding": (0, 0)}
            self._product(step, taps, op)
        step.arrays["constant"] = step.arrays["constant"].astype(np.int32)  # modulo 2**32, as the kernels' sums are
        return step

    def _plain(self, step: Step, op: Conv2d, taps: Ints) -> None:
        buffer = self.buffers[step.source]
        step.arrays["constant"] = np.pad(np.broadcast_to(op.bias, len(taps)), (0, padded(len(taps)) - len(taps)))
        step.arrays["weight"] = taps.astype(np.int16)
        step.numbers["length"] = taps.shape[2] * buffer.item
        step.numbers["grouped"] = int(op.groups > 1)
        if op.groups > 1:  # one group a block
            per_group = len(taps) // op.groups
            step.blocks = tuple(
                Block(0, g * per_group + b.first, b.rows, g * taps.shape[2])
                for g in range(op.groups)
                for b in cut(per_group)
            )

    def _count(self, step: Step, taps: Ints) -> None:
        weight, step.blocks, words = sign_words(taps)
        step.kind = StepKind.COUNT
        sums = np.zeros((taps.shape[1], padded(len(taps))), np.int32)
        sums[:, : len(taps)] = taps.sum(axis=2).T
        step.arrays["constant"] += taps.shape[1] * taps.shape[2]
        step.arrays |= {"weight": weight, "tap_sums": sums}
        step.numbers = {"units": words, "stride_weight": sums.shape[1]}
        if step.source not in self._signs:
            b = self.buffers[step.source]
            bits = self._new(Buffer(b.height, b.width, 8 * words, 1, 0, 8 * words))
            self.steps.append(Step(StepKind.SIGNS, step.source, (b.height, b.width), numbers={"target": bits}))
            self._signs[step.source] = bits
        step.source = self._signs[step.source]

    def _product(self, step: Step, taps: Ints, op: Conv2d) -> None:
        tiles = tile_weights(taps, op.format, op.groups)
        step.kind, step.blocks = StepKind.PRODUCT, tiles.blocks
        step.arrays["weight"] = tiles.data
        names = ("bits", "base", "shift", "planes", "length", "units")
        step.numbers = {name: getattr(tiles, name) for name in names} | {"grouped": int(op.groups > 1)}
        step.numbers["bits"] = tiles.bits.bit_length() - 1


def _only_signs(graph: Graph) -> set[str]:
    """Returns the names of the tensors that hold −1 and +1 only."""
    signs = {"input"} if get_format(graph.input.format).levels == (-1, 1) else set()
    for node in graph.nodes:
        op = node.op
        made = isinstance(op, Threshold) and (op.low, op.step, op.thresholds.shape[1]) == (-1, 2, 1)
        if made or (isinstance(op, Flatten | MaxPool2d | Concat) and signs.issuperset(node.inputs)):
            signs.add(node.name)
    return signs


def _is_vector(kind: IntTensor) -> bool:
    return kind.size == kind.shape[0]


def _windows(shape: tuple[int, ...], op: Conv2d) -> tuple[int, int]:
    sizes = zip(shape, op.levels.shape[2:], op.stride, op.padding, op.dilation, strict=True)
    height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
    return height, width


def _of_map(op: Linear, kind: IntTensor) -> Conv2d:
    """A linear layer of a flattened map, as a convolution of the map."""
    levels = op.levels.reshape(-1, *(*kind.shape, 1, 1)[:3])
    return Conv2d(levels, op.format, op.bias, (1, 1), (0, 0), (1, 1), 1)


def _product_fits(op: Conv2d, kind: IntTensor) -> bool:
    """Whether inputs and weights are bytes, so that the fast kernels take them."""
    return kind.item_bytes == 1 and fits_tiles(op.levels, op.format)


def _store(target: int, channel: int = 0) -> Post:
    return Post(PostKind.STORE, {"target": target, "low": channel})


def describe(plan: Plan) -> list[dict[str, Any]]:
    """Returns what each step is: kind, size, bytes of its weights, operations fused behind it."""
    return [
        {
            "kind": step.kind.name.lower(),
            "size": step.size,
            "weights": step.arrays["weight"].nbytes if "weight" in step.arrays else 0,
            "posts": [post.kind.name.lower() for post in step.posts],
        }
        for step in plan.steps
    ]
