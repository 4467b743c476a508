"""`bitlab.compile`: models of the zoo, small, run in the engine; what they compute is the interpreter's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bitlab
from bitcore import BitLabError, BitQuantConfig
from bitexport.targets import EngineTarget
from bitmodels.resnet import BitResNetConfig, ResNet
from networks import extreme_codes, random_chain

TERNARY = BitQuantConfig(weight_granularity="per_channel", activation_dtype="int8", activation_scale="tracked")
BINARY = BitQuantConfig("binary", activation_dtype="binary", activation_scale="unit", weight_granularity="per_channel")


def resnet(**options: object) -> nn.Module:
    return ResNet(BitResNetConfig(out_channels=7, blocks=(1, 1), width=16, **options))  # type: ignore[arg-type]


MODELS = {
    "basic": (resnet, TERNARY),
    "bottleneck": (lambda: resnet(block="bottleneck"), TERNARY),
    "4 bits": (resnet, TERNARY.replace(weight_format="int4", weight_scale="octav", activation_dtype="uint4")),
    "signs": (lambda: resnet(block="bireal", stem="cifar"), BINARY),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    build, config = MODELS[name]
    model = bitlab.quantize(build(), config).train()
    x = torch.randn(4, 3, 32, 30)
    with torch.no_grad():
        model(x)
    graph = bitlab.lower(model, (3, 32, 30))
    codes = graph.input.quantize(x)
    expected = torch.from_numpy(graph.run(codes))
    assert graph.output_scale is not None
    for network in (bitlab.compile(model, (3, 32, 30)), bitlab.compile(graph)):
        assert torch.equal(network(x), expected.float() * graph.output_scale)
        assert np.array_equal(network.run(codes), expected.numpy())


def test_the_shape_is_needed() -> None:
    with pytest.raises(BitLabError, match=r"input_shape=\(3, 224, 224\)"):
        bitlab.compile(resnet())


def test_the_target_leaves_other_files_alone(tmp_path: Path) -> None:
    graph = random_chain(np.random.default_rng(0))
    target = EngineTarget()
    target.emit(graph, tmp_path / "net", "net")
    artifact = target.emit(graph, tmp_path / "net", "net")  # again over itself
    codes = extreme_codes(graph, 9)
    assert np.array_equal(target.run(artifact, codes), graph.run(codes))
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(BitLabError, match="holds other files"):
        target.emit(graph, tmp_path, "net")
