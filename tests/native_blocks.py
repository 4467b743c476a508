"""Programs of the engine as one block of memory: what another machine's processor runs (engine_harness.c)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from bitcore.engine import Engine
from bitcore.engine.program import CProgram
from bitcore.graph import Graph
from native_programs import records
from networks import extreme_codes


class Block:
    """Memory in which addresses are offsets, plus 1. Structures have the same layout on every 64-bit machine."""

    def __init__(self) -> None:
        self.bytes = bytearray(5 * 8)
        self.addresses: list[int] = []

    def put(self, data: bytes | bytearray) -> int:
        """Adds bytes, on a cache line; returns where."""
        self.bytes += bytes(-len(self.bytes) % 64)
        self.bytes += data
        return len(self.bytes) - len(data)

    def point(self, where: int, to: int) -> None:
        """Writes an address."""
        self.bytes[where : where + 8] = (to + 1).to_bytes(8, "little")
        self.addresses.append(where)

    def put_program(self, engine: Engine) -> int:
        """Adds a program with all that it points to; returns where it is."""
        arrays = [item for item in engine._keep if not isinstance(item, list)]
        arrays += [item for items in engine._keep if isinstance(items, list) for item in items]
        held: dict[int, bytes] = {}
        for array in arrays:
            if isinstance(array, torch.Tensor):
                held[array.data_ptr()] = array.numpy().tobytes()
            elif len(array):
                held[ctypes.addressof(array)] = bytes(array)
        held[ctypes.addressof(engine._program)] = bytes(engine._program)
        places = {address: self.put(data) for address, data in held.items()}
        for record in records(engine):
            inside = ctypes.addressof(record)
            start = max(address for address in places if address <= inside)
            self._move(record, places[start] + inside - start, places)
        return places[ctypes.addressof(engine._program)]

    def _move(self, record: Any, at: int, places: dict[int, int]) -> None:
        """Turns the addresses of a structure, which lies at ``at``, into those of the block."""
        for name, kind in record._fields_:
            here = at + getattr(type(record), name).offset
            if kind in (ctypes.c_void_p, ctypes.c_void_p * 2) or hasattr(kind, "contents"):
                for where in range(here, here + ctypes.sizeof(kind), 8):
                    address = int.from_bytes(self.bytes[where : where + 8], "little")
                    if address in places:
                        self.point(where, places[address])
                    else:
                        self.bytes[where : where + 8] = bytes(8)  # to nothing, or to no elements

    def finish(self, cases: list[tuple[int, int, int, int]]) -> bytes:
        """Returns the block with its cases: program, input, expected output, batch."""
        table = self.put(bytes(32 * len(cases)))
        for i, (*pointers, batch) in enumerate(cases):
            for k, to in enumerate(pointers):
                self.point(table + 32 * i + 8 * k, to)
            self.bytes[table + 32 * i + 24 : table + 32 * i + 32] = batch.to_bytes(8, "little")
        count = len(self.addresses)
        places = self.put(np.array(self.addresses, dtype="<i8").tobytes())
        self.bytes += bytes(-len(self.bytes) % 64)
        self.bytes[:40] = np.array([len(self.bytes), len(cases), table, count, places], dtype="<i8").tobytes()
        return bytes(self.bytes)


def programs(graphs: Iterable[Graph], samples: int = 6) -> bytes:
    """Returns the programs of graphs, their inputs, and what the interpreter gives."""
    block, cases = Block(), []
    for graph in graphs:
        engine = Engine(graph)
        assert isinstance(engine._program, CProgram)
        codes = extreme_codes(graph, samples)
        last = engine._last
        y = graph.run(codes).reshape(samples, last.channels, last.height, last.width).transpose(0, 2, 3, 1)
        data = [np.ascontiguousarray(values, dtype="<i4").tobytes() for values in (codes, y)]
        cases.append((block.put_program(engine), block.put(data[0]), block.put(data[1]), samples))
    return block.finish(cases)
