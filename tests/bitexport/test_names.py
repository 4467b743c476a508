"""Names only tell layers apart: whatever a model calls them, everything that a graph becomes is the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bitcore.engine import Engine
from bitcore.graph import Graph
from bitcore.graph.render import graph_dot, graph_table
from bitcore.presets import PRESETS
from bitexport import lower
from bitexport.targets.c.target import CTarget
from bitlayers import quantize

SHAPE = (2, 5, 5)
ODD = (
    "input",
    "output",
    "scratch of first",
    "first",
    "0",
    "int",
    "class",
    "*/ no C /*",
    'a"b',
    "a b",
    "ünder\n",
    "\\",
    "main",
    "memcpy",
)


def network(names: tuple[str, str, str, str]) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.Flatten(), nn.Linear(36, 3)]
    model = nn.Sequential()
    for name, layer in zip(names, layers, strict=True):
        model.add_module(name, layer)
    model = quantize(model, PRESETS["mcu-4bitsym-static"].replace(weight_granularity="per_channel"))
    model(torch.randn(8, *SHAPE))
    return model


PLAIN = lower(network(("first", "second", "flat", "last")), SHAPE)
CODES = PLAIN.input.quantize(torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", ODD)
def test_the_names_of_layers_change_nothing(name: str, place: int, tmp_path: Path) -> None:
    names = [f"layer{i}" for i in range(4)]
    names[place] = name
    graph = lower(network((names[0], names[1], names[2], names[3])), SHAPE)
    expected = PLAIN.run(CODES)
    assert np.array_equal(graph.run(CODES), expected)
    assert np.array_equal(Engine(graph).run(CODES), expected)
    graph.save(tmp_path / "graph.safetensors")
    assert np.array_equal(Graph.load(tmp_path / "graph.safetensors").run(CODES), expected)
    assert len(graph_table(graph).splitlines()) == len(graph_table(PLAIN).splitlines())
    assert len(graph_dot(graph).splitlines()) == len(graph_dot(PLAIN).splitlines())
    assert graph_dot(graph).count('"') == graph_dot(PLAIN).count('"')


@pytest.mark.parametrize("names", [ODD[i : i + 4] for i in range(0, len(ODD) - 3, 3)])
def test_the_c_is_the_same_network(names: tuple[str, str, str, str], tmp_path: Path) -> None:
    target = CTarget()
    artifact = target.emit(lower(network(names), SHAPE), tmp_path / "c", "network")
    assert np.array_equal(target.run(artifact, CODES), PLAIN.run(CODES))
