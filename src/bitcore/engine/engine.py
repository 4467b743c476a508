"""The engine: a whole integer network in one native call, bit for bit what the interpreter computes."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitcore.engine.memory import place
from bitcore.engine.plan import Plan, describe
from bitcore.engine.posts import Post
from bitcore.engine.program import PROBLEMS, CBlock, CBuffer, CPost, CProgram, CStep
from bitcore.engine.steps import Buffer, Step
from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitcore.graph import Graph
from bitcore.graph.ops import Ints
from bitcore.kernels import gate
from bitcore.kernels.machine import check
from bitcore.kernels.native import library, usable_sets

Integers = NDArray[np.signedinteger | np.unsignedinteger]
_SLACK = 4096  # bytes behind the arena and the zeros: kernels read whole vectors
_PORTABLE = -1
_KINDS = {torch.int32: 0, torch.float32: 1, torch.int8: 2, torch.uint8: 3}  # enum bit_input_kind
_CHANNELS_LAST = 4
BAD_CODE = 4  # enum bit_error
_OF_THE_PROCESS = ("_keep", "_arenas", "_program", "_native")


class Made(NamedTuple):
    """What of a plan (see there) an engine is made from, without the graph."""

    buffers: list[Buffer]
    steps: list[Step]
    input: int
    output: int


def _native() -> ctypes.CDLL | None:
    native = library()
    if native is None or not hasattr(native, "bit_engine_run"):
        return None
    integer, size, pointer, real = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    native.bit_engine_run.argtypes = [
        integer, pointer, pointer, integer, real, pointer, size, integer, pointer, pointer,
    ]  # fmt: skip
    native.bit_program_check.argtypes = [pointer, pointer]
    native.bit_conv2d_float.argtypes = [
        integer, pointer, pointer, pointer, pointer, integer, pointer, size, size, integer, pointer,
    ]  # fmt: skip
    return native


def instruction_set() -> int:
    """Returns the number of the best instruction set."""
    return next(iter(usable_sets().values()), _PORTABLE)


def _levels(codes: Integers) -> Tensor:
    """Integers as the native function takes them: int8 and uint8 as they are, others as int32."""
    dtype = codes.dtype if codes.dtype in (np.int8, np.uint8) else np.int32
    return torch.from_numpy(np.ascontiguousarray(codes, dtype))


class Engine:
    """An integer network, compiled for this machine.

    Weights are rearranged once; a call runs every layer in one native function, on as many threads as
    ``torch.get_num_threads()`` says, in one arena. Several threads may call at the same time. Results equal
    ``graph.run`` exactly, on every instruction set. Where the native library is missing, the interpreter stands in,
    with one warning.

    Args:
        graph: The network.

    Attributes:
        input: The input's specification.
        output_scale: The real value of one output step, ``None`` where it differs from sample to sample.
        steps: What runs, in order (see `describe`).
        arena_bytes: Of intermediate results, for each sample of a batch.
        weight_bytes: Of all weights and constants, as they are held.

    Raises:
        BitLabError: If it holds thresholds of accumulators that reach the ends of int32, or the native library finds
            that a step would read or write beyond its memory.
    """

    def __init__(self, graph: Graph) -> None:
        self.input, self.output_scale = graph.input, graph.output_scale
        plan = Plan(graph)
        self.steps = describe(plan)
        self.weight_bytes = 0
        self._shape, self._last = graph.output.type.shape, plan.buffers[plan.output]
        self._native = _native()
        self._interpreter = graph if self._native is None else None  # which holds every weight as int64
        self._made = Made(plan.buffers, plan.steps, plan.input, plan.output)
        self._load()
        if self._native is None:
            warnings.warn("the native kernels are missing: the interpreter runs instead", RuntimeWarning, stacklevel=2)

    def _load(self) -> None:
        """Lays the program out in this process's memory, and has it checked."""
        self._keep: list[Any] = []
        self._arenas: list[Tensor] = []
        made = self._made
        sizes = [0 if i == made.output else b.bytes for i, b in enumerate(made.buffers)]
        offsets, self.arena_bytes = place(sizes, [(b.first, b.last) for b in made.buffers])
        self._program = self._build(made, offsets)
        if self._native is not None:
            self._verify(self._native)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no addresses."""
        return {name: value for name, value in vars(self).items() if name not in _OF_THE_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.weight_bytes = 0
        self._native = _native()
        if self._native is None and self._interpreter is None:
            raise BitLabError("an engine of native kernels was copied to where there are none; compile the model here")
        self._load()

    def run(self, codes: Integers) -> Ints:
        """Returns the outputs, int64 ``[batch, *output shape]``, for integer inputs ``[batch, *input shape]``.

        Raises:
            BitLabError: If the input has another shape, or values that are no levels of its format.
        """
        self.input.check(codes)
        if self._interpreter is not None:
            return self._interpreter.run(codes.astype(np.int64))
        return self._call(_levels(codes)).numpy().astype(np.int64)

    def __call__(self, x: Tensor | NDArray[np.floating]) -> Tensor:
        """Returns the network's real outputs for real inputs: float32 ``[batch, *input shape]``, of torch or numpy.

        Where the output's scale differs from sample to sample (dynamic activation ranges), outputs count in units of
        it: their order is the model's.

        Raises:
            BitLabError: If the input has another shape, is not on the CPU, or holds NaN.
        """
        x = x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x, np.float32))
        spec = self.input
        gate.expect("the input", x, (*gate.FLOATS, *gate.INTEGERS), (None, *spec.shape))
        fmt = get_format(spec.format)
        rounds = fmt.affine and fmt.step == 1 and spec.type.item_bytes == 1
        if self._native is not None and spec.scale is not None and rounds:
            outputs = self._call(x.detach().to(torch.float32).contiguous(), spec.scale)
        else:
            outputs = torch.from_numpy(self.run(spec.quantize(x.detach().float())))
        return outputs.float() * (1.0 if self.output_scale is None else self.output_scale)

    def profile(self, codes: Integers) -> list[float]:
        """Returns the seconds that one run takes for the input and for each of the plan's steps.

        Raises:
            BitLabError: If the native library is missing.
        """
        if self._native is None:
            raise BitLabError("only native kernels are timed; install a C compiler and reinstall bitlab")
        seconds = torch.zeros(1 + len(self.steps), dtype=torch.float64)
        self._call(_levels(codes), seconds=seconds)
        return seconds.tolist()

    def _call(
        self, x: Tensor, scale: float = 0.0, seconds: Tensor | None = None, program: CProgram | None = None
    ) -> Tensor:
        """Runs the program (or another of the same buffers) on float32, int32 or bytes, channels first or last."""
        program = program or self._program
        kind = _CHANNELS_LAST if x.ndim == 4 and not x.is_contiguous() else _KINDS[x.dtype]
        batch, last = len(x), self._last
        y = torch.empty(batch, last.height, last.width, last.channels, dtype=torch.int32)
        if batch:
            arena = self._arena(batch)
            assert self._native is not None
            error = self._native.bit_engine_run(
                instruction_set(), ctypes.byref(program), gate.address(x), kind, scale, y.data_ptr(), batch,
                torch.get_num_threads(), arena.data_ptr(), None if seconds is None else seconds.data_ptr(),
            )  # fmt: skip
            self._arenas.append(arena)
            if error == BAD_CODE:
                raise BitLabError("the input holds NaN")
            check(error)
        return y.permute(0, 3, 1, 2).reshape(batch, *self._shape)

    def _arena(self, batch: int) -> Tensor:
        """Returns memory that no call uses."""
        count = batch * self.arena_bytes + _SLACK
        try:
            arena = self._arenas.pop()
        except IndexError:
            return torch.empty(count, dtype=torch.uint8)
        return arena if len(arena) >= count else torch.empty(count, dtype=torch.uint8)

    def _verify(self, native: ctypes.CDLL) -> None:
        """Has the native library check the program, once."""
        step = ctypes.c_int64()
        problem = native.bit_program_check(ctypes.byref(self._program), ctypes.byref(step))
        if problem:
            where = f"step {step.value} ({self.steps[step.value]['kind']}): " if step.value >= 0 else ""
            raise BitLabError(f"the engine refuses this network: {where}{PROBLEMS[problem]}")

    # ---- the program ---------------------------------------------------------------------------------------------

    def _build(self, plan: Made, offsets: Sequence[int]) -> CProgram:
        kind = self.input.type
        buffers = (CBuffer * len(plan.buffers))()
        for i, (c, b) in enumerate(zip(buffers, plan.buffers, strict=True)):
            c.at, c.bytes = offsets[i], b.bytes
            if i == plan.output:
                c.at, c.bytes = -1, b.height * b.width * b.pixel
            for name in ("height", "width", "channels", "pixel", "item", "offset"):
                setattr(c, name, getattr(b, name))
        steps = (CStep * len(plan.steps))(*(self._step(step) for step in plan.steps))
        widest = max(b.pixel for b in plan.buffers) + _SLACK
        zeros = [torch.full((widest,), value, dtype=torch.int8) for value in (0, -128)]
        self._keep += [buffers, steps, zeros]
        step = get_format(self.input.format).step
        program = CProgram(
            buffers, steps, len(buffers), len(steps), input=plan.input, low=kind.low, high=kind.high, step=step,
            zeros_bytes=widest, arena_bytes=self.arena_bytes, output_bytes=buffers[plan.output].bytes,
            input_count=kind.size, border=plan.buffers[plan.input].border,
        )  # fmt: skip
        program.zeros[:] = [z.data_ptr() for z in zeros]
        return program

    def _step(self, step: Step) -> CStep:
        c = CStep(kind=int(step.kind), source=step.source, slots=step.slots, **{"planes": 1, **step.numbers})
        c.height, c.width = step.size
        for name, pair in step.pairs.items():
            setattr(c, name, tuple(pair))
        for name in step.arrays:
            setattr(c, name, self._hold(step.arrays, name))
        c.weight_bytes = step.arrays["weight"].nbytes if "weight" in step.arrays else 0
        c.constant_count, c.tap_sums_count = (
            step.arrays[name].size if name in step.arrays else 0 for name in ("constant", "tap_sums")
        )
        blocks = (CBlock * len(step.blocks))()
        for block, b in zip(blocks, step.blocks, strict=True):
            block.weight, block.first, block.rows, block.shape, block.channel = (
                b.weight,
                b.first,
                b.rows,
                b.shape,
                b.channel,
            )
        posts = (CPost * len(step.posts))(*(self._post(post) for post in step.posts))
        self._keep += [blocks, posts]
        c.blocks, c.block_count, c.posts, c.post_count = blocks, len(blocks), posts, len(posts)
        return c

    def _post(self, post: Post) -> CPost:
        arrays = {name: self._hold(post.arrays, name) for name in post.arrays}
        items = min((array.size for array in post.arrays.values()), default=0)
        return CPost(kind=int(post.kind), items=items, **post.numbers, **arrays)

    def _hold(self, arrays: dict[str, np.ndarray], name: str) -> int:
        """Moves an array to memory that lives as long as the engine, on a cache line, and returns its address."""
        array = np.ascontiguousarray(arrays[name])
        held = torch.empty(array.nbytes + 64, dtype=torch.uint8)
        held[: array.nbytes] = torch.from_numpy(array.view(np.uint8).reshape(-1))
        arrays[name] = held[: array.nbytes].numpy().view(array.dtype).reshape(array.shape)
        self.weight_bytes += array.nbytes
        self._keep.append(held)
        return held.data_ptr()
