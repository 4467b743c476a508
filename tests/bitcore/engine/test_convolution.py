"""The convolution of packed weights, as a torch operator, equals torch's on float64."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.engine.convolution import Geometry, convolve, make_tiles
from bitcore.formats import FORMATS, get_format
from bitcore.kernels import KernelRegistry
from bitcore.kernels.native import ISA_VARIABLE, PORTABLE, usable_sets
from bitcore.quantizers import PackedTensor, QTensor
from bitlayers import BitConv2d

GEOMETRIES = (
    Geometry((20, 5, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    Geometry((6, 2, 3, 2), (2, 1), (0, 1), (1, 2), 3),
    Geometry((20, 1, 3, 3), (1, 2), (1, 1), (1, 1), 20),
)


def case(fmt: str, activation: str, g: Geometry) -> tuple[Tensor, PackedTensor, Tensor]:
    """Levels, packed weight, and their convolution."""
    rng = np.random.default_rng(0)
    levels, inputs = (np.array(get_format(name).levels) for name in (fmt, activation))
    weight = torch.from_numpy(rng.choice(levels, g.shape))
    weight[0], weight[-1] = int(levels.max()), int(levels.min())
    x = torch.from_numpy(rng.choice(inputs, (2, g.shape[1] * g.groups, 7, 6)))
    x[0] = int(inputs.max())
    packed = QTensor(weight.float(), torch.ones(()), get_format(fmt)).pack()
    y = torch.nn.functional.conv2d(x.double(), weight.double(), None, g.stride, g.padding, g.dilation, g.groups)
    return x.to(get_format(activation).level_dtype), packed, y.to(torch.int32)


@pytest.mark.parametrize("isa", [PORTABLE, *usable_sets()])
@pytest.mark.parametrize("activation", ["int8", "uint8", "binary", "fp130"])
def test_every_format(activation: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    for fmt in FORMATS:
        for g in GEOMETRIES:
            x, weight, expected = case(fmt, activation, g)
            tiles = make_tiles(weight, activation, g)
            assert tiles is not None
            for layout in (torch.contiguous_format, torch.channels_last):
                y = convolve(x.contiguous(memory_format=layout), tiles, fmt, activation, g)
                assert torch.equal(y, expected)


def test_the_kernel_is_registered() -> None:
    kernel = KernelRegistry.find("conv2d", "ternary", "int8", "cpu")
    x, weight, expected = case("ternary", "int8", Geometry((20, 5, 1, 1), (1, 1), (0, 0), (1, 1), 1))
    assert torch.equal(kernel(x, kernel.prepare(weight), weight), expected)


def test_the_operator_is_well_formed() -> None:
    x, weight, _ = case("ternary", "int8", GEOMETRIES[0])
    tiles = make_tiles(weight, "int8", GEOMETRIES[0])
    arguments = (x, tiles, "ternary", "int8", *GEOMETRIES[0])
    torch.library.opcheck(torch.ops.bitcore.conv2d_packed, arguments)
    empty = torch.ops.bitcore.conv2d_packed(x[:0], *arguments[1:])
    assert empty.shape == (0, 20, 7, 6)


def test_packed_layers_run_on_it() -> None:
    """At other sizes, after a copy and a reload, and without tiles: always the same bits."""
    config = BitQuantConfig(activation_dtype="uint8", activation_scale="tracked", weight_granularity="per_channel")
    layer = BitConv2d(20, 70, 3, 2, 1, quant_config=config)
    images = [torch.randn(2, 20, n, 9) for n in (9, 12)]
    with torch.no_grad():
        layer(images[0])
        layer.eval()
        expected = [layer(x) for x in images]
        layer.pack()
        assert layer.tiles is not None
        other = BitConv2d(20, 70, 3, 2, 1, quant_config=config).eval()
        other.load_state_dict(layer.state_dict())
        for packed in (layer, copy.deepcopy(layer), other, copy.deepcopy(layer).double().float()):
            assert packed.tiles is not None
            assert all(torch.equal(packed(x), y) for x, y in zip(images, expected, strict=True))
        layer.tiles = None
        assert all(torch.equal(layer(x), y) for x, y in zip(images, expected, strict=True))
        assert "tiles" not in layer.state_dict()


def test_corrupt_codes_and_other_paddings_have_no_tiles() -> None:
    _, weight, _ = case("ternary", "int8", GEOMETRIES[0])
    weight.data.fill_(255)
    assert make_tiles(weight, "int8", GEOMETRIES[0]) is None
    config = BitQuantConfig(activation_dtype="int8", activation_granularity="per_token")
    for options in ({"padding_mode": "reflect"}, {"padding": "same", "kernel_size": 2}):
        layer = BitConv2d(3, 4, **{"kernel_size": 3, "padding": 1, **options}, quant_config=config)
        layer.pack()
        assert layer.tiles is None
