"""Graph files that lie: one thing of a valid file changed, and the checksum made right again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from bitcore.engine import Engine
from bitcore.errors import BitLabError
from bitcore.graph import OPS, Graph
from networks import extreme_codes

NUMBERS: list[Any] = [
    -1, 0, 1, 2, 3, 7, 63, 200, 255, 20_000, 2**31 - 1, 2**31, 2**62, 10**400, -(2**63), 1.5, float("nan"), True, None,
    "int8", "unknown", [], [1], [0, 0], [1, 1], [3, 3], [-1, 1], [10**9, 10**9], [1, 1, 1], {"a": 1},
]  # fmt: skip
KIND = "bitlab-graph-1"
BLANK = "0" * 64
LARGEST_RUN = 2**22  # values of a tensor: what a lie makes larger is legal, but takes too long here


def arrays(value: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Arrays that are not what they should be; a few are."""
    yield value.astype(np.float32)
    yield value.astype(np.uint8)
    yield value[:0]
    yield value[..., :1]
    yield value.reshape(1, *value.shape)
    yield value.ravel()
    yield np.repeat(value, 2, axis=0)
    for extreme in (0, 1, -1, 3, 128, -129, 255, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63)):
        changed = value.copy()
        changed.flat[rng.integers(value.size)] = extreme
        yield changed
        yield np.full_like(value, extreme)


def encode(header: Any, tensors: dict[str, np.ndarray]) -> bytes:
    """Returns the file with the right checksum: whoever lies on purpose computes it, too. NaN is written as well."""
    text = json.dumps({"sha256": BLANK, **header})
    return seal(save({name: np.ascontiguousarray(t) for name, t in tensors.items()}, {KIND: text}))


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the header and the tensors of a file that `Graph.save` wrote."""
    text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][KIND]
    return {key: value for key, value in json.loads(text).items() if key != "sha256"}, dict(sorted(load(data).items()))


def seal(data: bytes) -> bytes:
    """Returns a file with the checksum of its content, if there is a place for one."""
    place = re.search(rb'\{\\"sha256\\": \\"(.{64})\\"', data, re.DOTALL)
    if place is None:
        return data
    before, behind = data[: place.start(1)], data[place.end(1) :]
    return before + hashlib.sha256(before + BLANK.encode() + behind).hexdigest().encode() + behind


def judge(path: Path, what: str, largest: int = LARGEST_RUN) -> bool:
    """Whether a graph is accepted; then interpreter and engine must agree, as far as its tensors are not too large."""
    try:
        graph = Graph.load(path)
        if max(node.type.size for node in graph.nodes) > largest:
            return True
        engine = Engine(graph)
    except BitLabError:
        return False
    codes = extreme_codes(graph, 8)
    assert np.array_equal(engine.run(codes), graph.run(codes)), what
    return True


def lie(header: dict[str, Any], tensors: dict[str, np.ndarray], rng: np.random.Generator) -> str:
    """Changes one thing of a file's content; returns what."""
    nodes = header["nodes"]
    node = nodes[rng.integers(len(nodes))]
    mine = [key for key in tensors if key.rpartition(".")[0] == node["name"]]
    choices = ["input", "inputs", "op", "name", "scale", "output_scale", "drop", "twice", "swap"]
    choices += ["field"] * 8 * bool(node["fields"]) + ["array"] * 8 * bool(mine)
    choice = str(rng.choice(choices))
    number = NUMBERS[rng.integers(len(NUMBERS))]
    if choice == "field":
        key = str(rng.choice(list(node["fields"])))
        node["fields"][key] = number
        return f"{node['op']}.{key} = {number!r:.40}"
    if choice == "array":
        key = str(rng.choice(mine))
        options = list(arrays(tensors[key].astype(np.int64), rng))
        tensors[key] = options[rng.integers(len(options))]
        return f"{key} of {node['op']}"
    if choice == "input":
        key = str(rng.choice(list(header["input"])))
        header["input"][key] = number
        return f"input.{key} = {number!r:.40}"
    if choice == "inputs":
        node["inputs"] = [str(rng.choice([n["name"] for n in nodes] + ["input", ""])) for _ in range(rng.integers(4))]
        return f"inputs of {node['op']}"
    if choice == "op":
        node["op"] = str(rng.choice([*OPS, "unknown"]))
        return "op"
    if choice == "drop":
        nodes.remove(node)
    elif choice == "twice":
        nodes.insert(int(rng.integers(len(nodes))), node)
    elif choice == "swap":
        rng.shuffle(nodes)
    elif choice == "output_scale":
        header["output_scale"] = number
    else:
        node[choice] = number
    return choice
