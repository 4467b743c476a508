"""Programs of the engine in which one number is a lie: refused, or run without touching memory that is not theirs."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bitcore.engine import Engine
from bitcore.engine.engine import instruction_set
from bitcore.engine.program import Record
from graphs import random_graph

POINTERS = ("weight", "constant", "tap_sums", "factor", "addend", "multiplier", "bias", "shift", "table")
TRUE = (  # how long arrays are, is Python's word
    "weight_bytes", "constant_count", "tap_sums_count", "items", "buffer_count", "zeros", "zeros_bytes", "arena_bytes",
    "output_bytes", "input_count", "unused",
)  # fmt: skip
COUNTS = ("step_count", "block_count", "post_count")  # of arrays too: they may be fewer


def records(engine: Engine) -> Iterator[Record]:
    """Every structure of a program."""
    program: Any = engine._program
    yield program
    yield from (program.buffers[i] for i in range(program.buffer_count))
    for step in (program.steps[i] for i in range(program.step_count)):
        yield step
        yield from (step.blocks[i] for i in range(step.block_count))
        yield from (step.posts[i] for i in range(step.post_count))


def lie(rng: random.Random, record: Any) -> tuple[str, Any]:
    """Changes a number of a structure; returns its name, and what it was."""
    names = [name for name, kind in record._fields_ if name not in (*POINTERS, *TRUE) and not hasattr(kind, "contents")]
    name = rng.choice(names)
    value = getattr(record, name)
    was = tuple(value) if isinstance(value, ctypes.Array) else value
    pair = list(was) if isinstance(was, tuple) else [was]
    at = rng.randrange(len(pair))
    n = pair[at]
    wrong = [0, -1, 1, 2, 3, n + 1, n - 1, 2 * n, -n, n + 64, 2**31 - 1, -(2**31), 2**30, rng.randrange(300)]
    if name in COUNTS:
        wrong = [0, -1, n - 1, -(2**31)]
    pair[at] = max(min(rng.choice(wrong), 2**31 - 1), -(2**31))
    setattr(record, name, tuple(pair) if isinstance(was, tuple) else pair[0])
    return name, was


def verdict(engine: Engine) -> int:
    """Returns what the native library finds wrong with a program (``enum bit_problem``)."""
    assert engine._native is not None
    step = ctypes.c_int64()
    return engine._native.bit_program_check(ctypes.byref(engine._program), ctypes.byref(step))


def run(engine: Engine) -> None:
    """Runs a program on two samples, in memory of exactly its size."""
    assert engine._native is not None
    batch, size = 2, engine._program.output_bytes
    x = torch.randint(-3, 3, (batch, *engine.input.shape), dtype=torch.int32)
    y = torch.empty(batch * size // 4, dtype=torch.int32)
    arena = torch.empty(batch * engine.arena_bytes + 4096, dtype=torch.uint8)
    engine._native.bit_engine_run(
        instruction_set(), ctypes.byref(engine._program), x.data_ptr(), 0, 0.0, y.data_ptr(), batch, 1,
        arena.data_ptr(), None,
    )  # fmt: skip


def lies(count: int, seed: int) -> str:
    """Tells lies, one at a time, and runs what is not refused; returns how many were."""
    rng, refused = random.Random(seed), 0
    engine = None
    for i in range(count):
        if engine is None or i % 50 == 0:
            engine = Engine(random_graph(np.random.default_rng(seed + i)))
        record: Any = rng.choice(list(records(engine)))
        name, was = lie(rng, record)
        if verdict(engine):
            refused += 1
        else:
            run(engine)
        setattr(record, name, was)
        assert verdict(engine) == 0
    return f"{count} lies, {refused} refused"
