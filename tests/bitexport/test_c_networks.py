"""Exported C computes what the interpreter computes: every output, under every compiler, sanitizer and switch."""

import subprocess
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.formats import FORMATS
from bitcore.graph import Graph
from bitcore.presets import PRESETS
from bitexport import lower
from bitexport.targets import Artifact, CTarget
from bitlayers.convert import quantize
from networks import FOLDS, extreme_codes, perceptron, random_chain, train_a_little
from programs import SANITIZERS, Program, build

Tool = Callable[[str, str], str]
Networks = dict[str, tuple[Graph, Artifact]]

DYNAMIC = PRESETS["mcu-4bitsym"]
STATIC = DYNAMIC.replace(activation_scale="tracked", activation_dtype="uint8")
ANY_SCALE = STATIC.replace(activation_scale_pow2=False, weight_scale_pow2=False)
FEW_LEVELS = [name for name, fmt in FORMATS.items() if fmt.step and len(fmt.levels) <= 16]
# What folds between layers: the ways to make activations, each in one network or more.
ACTIVATIONS: dict[str, BitQuantConfig] = {
    "dynamic_int8": DYNAMIC,
    "dynamic_uint8": DYNAMIC.replace(activation_dtype="uint8"),
    "dynamic_int4": DYNAMIC.replace(activation_dtype="int4"),
    "shift_uint8": STATIC,
    "shift_int8": STATIC.replace(activation_dtype="int8"),
    "multiplier_uint8": ANY_SCALE,
    "multiplier_int8": ANY_SCALE.replace(activation_dtype="8bit"),
    "channel_uint8": ANY_SCALE.replace(weight_granularity="per_channel", input_dtype="uint8"),
    "channel_int8": STATIC.replace(weight_granularity="per_channel", activation_dtype="int8"),
    **{f"thresholds_{name}": ANY_SCALE.replace(activation_dtype=name) for name in FEW_LEVELS},
}
BUILDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gcc": ("gcc", ("-O2",)),
    "gcc-no-multiplier": ("gcc", ("-Os", "-DBIT_NO_MULTIPLIER")),
    "gcc-sanitized": ("gcc", SANITIZERS),
    "clang": ("clang", ("-O2",)),
    "clang-no-multiplier": ("clang", ("-O1", "-DBIT_NO_MULTIPLIER")),
}
SLOW_BUILDS: dict[str, tuple[str, tuple[str, ...]]] = {
    **BUILDS,
    "gcc-O3": ("gcc", ("-O3",)),
    "gcc-sanitized-no-multiplier": ("gcc", (*SANITIZERS, "-DBIT_NO_MULTIPLIER")),
    "gcc-unsigned-char": ("gcc", ("-O1", "-funsigned-char")),
    "clang-O0": ("clang", ("-O0",)),
}


def trained(config: BitQuantConfig, seed: int, formats: tuple[str, ...]) -> Graph:
    """A small trained network whose layers have weights of different formats."""
    torch.manual_seed(seed)
    dynamic = config.activation_scale == "dynamic"
    few = config.activation_dtype in FEW_LEVELS and not dynamic
    activation = nn.Hardtanh if few and FORMATS[config.activation_dtype].signed else nn.ReLU
    widths = (24, 13, 9, 5)
    model = perceptron(
        config, widths, bias=not dynamic, batch_norm=not dynamic and seed % 2 == 0, activation=activation
    )
    for i, name in enumerate(formats):
        quantized = config.replace(
            weight_format=name, activation_dtype=config.input_dtype if i == 0 else config.activation_dtype
        )
        layer = model.get_submodule(f"fc{i}")
        plain = nn.Linear(widths[i], widths[i + 1], layer.bias is not None)
        model.set_submodule(f"fc{i}", quantize(plain, quantized, {"": quantized}))
    x = torch.randn(64, 2, 3, 4)
    train_a_little(model, x, negative_gammas=True)
    return lower(model, (2, 3, 4))


def emit(graphs: dict[str, Graph], folder: Path) -> Networks:
    return {name: (graph, CTarget().emit(graph, folder / name, name)) for name, graph in graphs.items()}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """One network by hand for each weight format, with every fold in it, and one trained for each activation."""
    graphs: dict[str, Graph] = {}
    inputs = cycle(["int8", "uint8", "8bit"])
    for seed, name in enumerate(FORMATS):
        rng = np.random.default_rng(seed)
        widths = [int(n) for n in rng.integers(1, 41, len(FOLDS) + 2)]
        folds = [str(fold) for fold in rng.permutation(FOLDS)]
        graphs[f"by_hand_{name}"] = random_chain(rng, [name] * (len(FOLDS) + 1), folds, widths, next(inputs))
    formats = cycle(FORMATS)
    for seed, (name, config) in enumerate(ACTIVATIONS.items()):
        graphs[f"trained_{name}"] = trained(config, seed, (next(formats), next(formats), next(formats)))
    return emit(graphs, tmp_path_factory.mktemp("networks"))


def check(program: Program, networks: Networks, samples: int) -> None:
    """Every network, every sample, every output."""
    compared = 0
    for name, (graph, _) in networks.items():
        codes = extreme_codes(graph, samples)
        expected, got = graph.run(codes), program.run(name, codes)
        bad = np.argwhere(expected != got)
        assert not len(bad), f"{name}: first difference at {bad[0]}: {expected[tuple(bad[0])]}, C {got[tuple(bad[0])]}"
        compared += expected.size
    assert compared


def test_the_networks_cover_everything(networks: Networks) -> None:
    graphs = [graph for graph, _ in networks.values()]
    ops = {node.op.kind for graph in graphs for node in graph.nodes}
    assert ops == {"flatten", "linear", "requantize", "threshold", "normshift"}
    weights = {(node.op.format, types) for graph in graphs for node, types in linears(graph)}
    assert {name for name, _ in weights} == set(FORMATS)
    assert {(name, storage) for name in FORMATS for storage in ("int8", "uint8")} <= weights
    calls = " ".join((a.folder / f"{a.name}.c").read_text() for _, a in networks.values())
    for function in ("bit_requantize(", "bit_requantize_shift(", "bit_threshold(", "bit_normshift(", "bit_argmax("):
        assert function in calls


def linears(graph: Graph) -> list[tuple]:
    types = {"input": graph.input.type, **{node.name: node.type for node in graph.nodes}}
    return [(node, types[node.inputs[0]].storage) for node in graph.nodes if node.op.kind == "linear"]


@pytest.mark.parametrize("how", BUILDS)
def test_c_equals_the_interpreter(how: str, networks: Networks, tmp_path: Path, require_tool: Tool) -> None:
    compiler, flags = BUILDS[how]
    program = build([a for _, a in networks.values()], tmp_path / "build", require_tool(compiler, compiler), flags)
    check(program, networks, 25 if "sanitized" in how else 120)


def test_the_runtime_names_no_libc_and_no_float(networks: Networks, tmp_path: Path, require_tool: Tool) -> None:
    """The objects' undefined symbols are the runtime's own functions; nothing pulls in libm, libc or libgcc."""
    nm = require_tool("nm", "binutils")
    gcc = require_tool("gcc", "gcc")
    picked = [a for name, (_, a) in networks.items() if name.startswith("trained")][:6]
    program = build(picked, tmp_path / "build", gcc, ("-O1", "-ffreestanding"))
    defined, undefined = set(), set()
    for path in sorted(program.path.parent.glob("*.o")):
        if path.name == "main.o":
            continue
        for line in command(nm, "-P", str(path)):
            symbol, kind = line.split()[:2]
            (undefined if kind == "U" else defined).add(symbol)
    undefined -= {"_GLOBAL_OFFSET_TABLE_"}
    assert undefined <= defined
    assert all(symbol.startswith("bit_") for symbol in undefined), undefined
    for artifact in picked:
        for path in artifact.folder.glob("*.[ch]"):
            code = strip_comments(path.read_text())
            assert not any(word in code.split() for word in ("float", "double", "malloc")), path
            included = [line.split()[1] for line in code.splitlines() if line.startswith("#include")]
            # AVR's program memory has a header of its own, behind an #ifdef __AVR__.
            assert all(name in ("<stdint.h>", "<avr/pgmspace.h>") or name[0] == '"' for name in included), path


def strip_comments(code: str) -> str:
    while "/*" in code:
        before, _, rest = code.partition("/*")
        code = before + rest.partition("*/")[2]
    return code


def command(*words: str) -> list[str]:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def test_networks_of_any_width(tmp_path_factory: pytest.TempPathFactory, require_tool: Tool) -> None:
    """Odd sizes, formats and folds by chance, several networks to a program."""
    gcc = require_tool("gcc", "gcc")

    @settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    @given(st.lists(st.integers(0, 2**32), min_size=4, max_size=4, unique=True))
    def check_some(seeds: list[int]) -> None:
        folder = tmp_path_factory.mktemp("chance")
        graphs = {f"n{i}": random_chain(np.random.default_rng(seed)) for i, seed in enumerate(seeds)}
        networks = emit(graphs, folder)
        check(build([a for _, a in networks.values()], folder / "build", gcc, ("-O1",)), networks, 40)

    check_some()


def test_every_row_tail(tmp_path: Path, require_tool: Tool) -> None:
    """Rows of 1 to 9 weights of each format: bytes that are full, and bytes that are not."""
    graphs = {
        f"tails_{name}": random_chain(np.random.default_rng(i), [name] * 9, ["shift"] * 8, [*range(1, 10), 3], "int8")
        for i, name in enumerate(FORMATS)
    }
    made = emit(graphs, tmp_path)
    check(build([a for _, a in made.values()], tmp_path / "build", require_tool("gcc", "gcc"), ("-O0",)), made, 20)


@pytest.mark.slow
@pytest.mark.parametrize("how", SLOW_BUILDS)
def test_the_full_cross_product(how: str, tmp_path: Path, require_tool: Tool) -> None:
    """Every weight format with every activation, trained, and chains by chance."""
    compiler, flags = SLOW_BUILDS[how]
    graphs = {
        f"{activation}_{weight}": trained(config, i, (weight,) * 3)
        for activation, config in ACTIVATIONS.items()
        for i, weight in enumerate(FORMATS)
    }
    graphs |= {f"chance_{i}": random_chain(np.random.default_rng(i)) for i in range(100)}
    made = emit(graphs, tmp_path)
    program = build([a for _, a in made.values()], tmp_path / "build", require_tool(compiler, compiler), flags)
    check(program, made, 60)
