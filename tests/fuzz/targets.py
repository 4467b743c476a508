"""What is fuzzed: everything that reads a file, or a name, which a stranger wrote."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.formats import FORMATS
from bitcore.graph import Graph
from bitexport.targets import CTarget, get_target, open_export
from bitexport.targets.manifest import MANIFEST_FILE, Manifest
from bitlab.inspection import show_network
from bitlayers import BitLinear
from bitmodels import AutoBitModel, load_model, save_model
from bitmodels.io import read_header
from bittrain.build import build_model, restore
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe
from fuzz.mutations import lie_in_container, lie_in_json, lie_in_zip, mutate_tree
from graphs import BLOCKS, ENDS, random_graph
from lies import decode, encode, judge, lie

ROOT = Path(__file__).parents[2]
LARGEST = 2**16  # values of a tensor that is computed
Check = Callable[[bytes, Path], bool]


@dataclass(frozen=True)
class Target:
    """Something that reads bytes of strangers.

    Attributes:
        check: Reads them, in a folder for its files. True: accepted, and what it means is right. False or
            `BitLabError`: refused. Any other exception is a finding.
        seeds: Valid files.
        lie: What changes the meaning of a file rather than its bytes.
    """

    check: Check
    seeds: Callable[[], list[bytes]]
    lie: Callable[[Random, bytes], bytes] | None = None


TARGETS: dict[str, Target] = {}


def target(
    seeds: Callable[[], list[bytes]], lie: Callable[[Random, bytes], bytes] | None = None
) -> Callable[[Check], Check]:
    """Decorator: registers a function under its name."""

    def register(check: Check) -> Check:
        TARGETS[check.__name__] = Target(check, lru_cache(maxsize=1)(seeds), lie)
        return check

    return register


def written(write: Callable[[Path], Any]) -> bytes:
    """Returns what a function writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


# ---- graphs -------------------------------------------------------------------------------------------------------


def _graphs() -> list[bytes]:
    rng = np.random.default_rng(0)
    blocks = [[name] for name in BLOCKS] * 2
    return [written(random_graph(rng, b, [2, 5, 4], end=ENDS[i % len(ENDS)]).save) for i, b in enumerate(blocks)]


def _lie_in_graph(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return lie_in_container(rng, data)
    header, tensors = decode(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        lie(header, tensors, np.random.default_rng(rng.randrange(2**32)))
    return encode(header, tensors)


@target(_graphs, _lie_in_graph)
def graph(data: bytes, folder: Path) -> bool:
    """A graph file: refused, or the engine computes what the interpreter does."""
    path = folder / "graph.safetensors"
    path.write_bytes(data)
    return judge(path, "interpreter and engine differ", LARGEST)


# ---- models, checkpoints, recipes ---------------------------------------------------------------------------------

EXTRA = {"preprocessing": Preprocessing((2, 3), 1, (0.5,), (0.25,)).to_dict(), "classes": ["a", "b"], "dataset": "d"}
QUANTS = ("bitnet", "bnn", "mcu-4bitsym-static")
RECIPE = Recipe(model="mlp", model_options={"hidden_dims": (4,)}, quant="bitnet")


def _model(quant: str | None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoBitModel.from_name("mlp", quant, in_channels=6, hidden_dims=(4,), out_channels=2)
    model(torch.randn(8, 6))
    return model.eval()


def _models() -> list[bytes]:
    return [written(lambda path, q=quant: save_model(_model(q), path, EXTRA)) for quant in (*QUANTS, None)]


@target(_models, lie_in_container)
def model(data: bytes, folder: Path) -> bool:
    """A model file: refused, or a network that gives the same outputs once it is saved again."""
    path = folder / "model.safetensors"
    path.write_bytes(data)
    read_header(path)
    network, extra = load_model(path)
    again = folder / "again.safetensors"
    save_model(network, again, extra)
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    if next(iter(network.parameters())).shape[-1:] in ((6,), (4,), (2,)):
        with torch.no_grad():
            torch.testing.assert_close(network(x), load_model(again)[0](x), rtol=0, atol=0, equal_nan=True)
    return True


def _checkpoint(described: dict[str, Any]) -> bytes:
    network = build_model(RECIPE, (1, 2, 3), 2)
    content = {
        "bitlab": {**EXTRA, "recipe": RECIPE.to_dict(), **described},
        "state_dict": {f"model.{name}": value for name, value in network.state_dict().items()},
        "global_step": 3,
    }
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _lie_in_checkpoint(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return lie_in_zip(rng, data)
    leaves = [None, 3, -1, 1e999, "x", [], {}, torch.zeros(3), torch.full((4, 6), float("nan")), torch.ones(1).int()]
    content = torch.load(io.BytesIO(data), weights_only=True)
    out = io.BytesIO()
    torch.save(mutate_tree(rng, content, leaves), out)
    return out.getvalue()


@target(lambda: [_checkpoint({}), _checkpoint({"structure": {"layers": {}, "fused": False}})], _lie_in_checkpoint)
def checkpoint(data: bytes, folder: Path) -> bool:
    """A training checkpoint: refused, or a model that fits its own description."""
    path = folder / "last.ckpt"
    path.write_bytes(data)
    restore(path)
    return True


@target(lambda: [path.read_bytes() for path in sorted((ROOT / "recipes").rglob("*.yaml"))])
def recipe(data: bytes, folder: Path) -> bool:
    """A recipe: refused, or one that is the same once it is written and read again."""
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    read = Recipe.load(path)
    read.dump(folder / "again.yaml")
    assert Recipe.load(folder / "again.yaml") == read
    return True


# ---- exports ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _export() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        exported = random_graph(np.random.default_rng(0), ["conv2d"], [2, 5, 4], end="linear")
        artifact = CTarget().emit(exported, Path(folder) / "c", "network")
        return {path.name: path.read_bytes() for path in artifact.folder.iterdir()}


@target(lambda: [_export()[MANIFEST_FILE]], lie_in_json)
def manifest(data: bytes, folder: Path) -> bool:
    """What an export folder says about itself: refused, or shown."""
    export = folder / "export"
    if not export.exists():
        export.mkdir()
        for name, content in _export().items():
            (export / name).write_bytes(content)
    (export / MANIFEST_FILE).write_bytes(data)
    artifact, _ = open_export(export)
    get_target(Manifest.load(export).target).describe(artifact)
    with redirect_stdout(io.StringIO()):
        show_network(export, True, None, json=False)
    return True


TOKENS = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\w+|[^\s\w]', re.DOTALL)


def c_tokens(text: str) -> list[str]:
    """Returns what a compiler sees of C: words and signs, without comments."""
    return [token for token in TOKENS.findall(text) if not token.startswith(("/*", "//"))]


def _names() -> list[bytes]:
    names = ["first\nsecond\nlast", "*/ no C /*\na\\\nb", '"\n//\nint', "output\nmain\nint", "a.b\n\x1b[2J\n\\"]
    return [text.encode() for text in names]


@lru_cache(maxsize=1)
def _plain() -> Graph:
    return random_graph(np.random.default_rng(1), ["conv2d"], [1, 3, 3], end="linear")


@target(_names)
def names(data: bytes, folder: Path) -> bool:
    """Names of layers, which become C: refused, or the C says the same as with plain names but for identifiers."""
    plain = _plain()
    given = data.decode(errors="surrogateescape" if data[:1] == b"s" else "replace").split("\n")
    renamed = {node.name: given[i] for i, node in enumerate(plain.nodes) if i < len(given)}
    nodes = [
        replace(node, name=renamed.get(node.name, node.name), inputs=tuple(renamed.get(i, i) for i in node.inputs))
        for node in plain.nodes
    ]
    hostile = replace(plain, nodes=tuple(nodes))
    out = CTarget().emit(hostile, folder / "hostile", "network").folder
    known: dict[str, str] = {}
    for file in ("network.c", "network.h"):
        tokens, expected = c_tokens((out / file).read_text()), c_tokens(_plain_c(file))
        assert len(tokens) == len(expected), f"{file} says something else"
        for got, wanted in zip(tokens, expected, strict=True):
            if re.fullmatch(r"[A-Za-z_]\w*", wanted, re.ASCII):
                assert re.fullmatch(r"[A-Za-z_]\w*", got, re.ASCII), got
                assert known.setdefault(wanted, got) == got, f"{wanted} is {known[wanted]} and {got}"
            else:
                assert got == wanted, file
    assert len(set(known.values())) == len(known), "two things have one name"
    json.loads((out / MANIFEST_FILE).read_text())
    assert np.array_equal(Graph.load(out / "graph.safetensors").nodes[0].op.levels, plain.nodes[0].op.levels)  # type: ignore[attr-defined]
    return True


@lru_cache(maxsize=2)
def _plain_c(file: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return (CTarget().emit(_plain(), Path(folder) / "c", "network").folder / file).read_text()


# ---- packed weights -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _layer(fmt: str, outputs: int, inputs: int) -> BitLinear:
    torch.manual_seed(0)
    layer = BitLinear(inputs, outputs, False, BitQuantConfig(fmt, activation_dtype="float32")).eval()
    layer.pack()
    return layer


def _packed() -> list[bytes]:
    seeds = []
    for index, name in enumerate(FORMATS):
        layer = _layer(name, 3, 7)
        data = layer.state_dict()["packed_weight"].numpy().tobytes()
        seeds.append(bytes([index, 3, 7]) + np.float32(0.5).tobytes() + data)
    return seeds


def _levels(fmt: Any, data: bytes, outputs: int, inputs: int) -> list[list[int]] | None:
    """The levels of packed rows, decoded as docs/file-format.md says; ``None`` where they hold no codes."""
    packing, rows = fmt.packing, []
    size = -(-inputs // packing.codes) * packing.word
    for row in range(outputs):
        codes: list[int] = []
        for at in range(row * size, (row + 1) * size, packing.word):
            word = int.from_bytes(data[at : at + packing.word], "little")
            if word >= packing.radix**packing.codes:
                return None
            codes += [word // packing.radix**i % packing.radix for i in range(packing.codes)]
        if any(code >= len(fmt.levels) for code in codes[:inputs]):
            return None
        rows.append([fmt.levels[code] for code in codes[:inputs]])
    return rows


@target(_packed)
def packed(data: bytes, folder: Path) -> bool:
    """Packed bytes and a scale for a layer: refused, or its output is that of the levels that they hold."""
    data = data.ljust(7, b"\0")
    fmt = list(FORMATS.values())[data[0] % len(FORMATS)]
    outputs, inputs = data[1] % 20 + 1, data[2] % 40 + 1
    scale = float(np.frombuffer(data[3:7], np.float32)[0])
    size = fmt.packing.row_bytes(inputs)
    body = data[7 : 7 + outputs * size].ljust(outputs * size, b"\0")
    layer = _layer(fmt.name, outputs, inputs)
    state: dict[str, Tensor] = dict(layer.state_dict())
    state["packed_weight"] = torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(outputs, size)
    state["weight_scale"] = torch.full_like(state["weight_scale"], scale)
    levels = _levels(fmt, body, outputs, inputs)
    x = torch.arange(inputs).float()[None] - 3
    try:
        layer.load_state_dict(state)
        y = layer(x)
    except (BitLabError, RuntimeError, ValueError):
        padded = inputs % fmt.packing.codes  # bits behind the end of a row may be refused as well
        assert padded or levels is None or not 0 < scale < float("inf"), "what is valid is refused"
        return False
    finally:
        _layer.cache_clear()
    assert levels is not None, "bytes that hold no codes are taken for some"
    assert 0 < scale < float("inf"), f"a scale of {scale} is taken"
    assert torch.equal(y, x @ torch.tensor(levels).float().T * scale)
    return True
