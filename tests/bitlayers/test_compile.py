"""torch.compile without graph breaks, and torch.export, give the same bits as eager."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.config import FLOAT
from bitcore.kernels import KernelRegistry
from bitcore.presets import PRESETS
from bitlayers import BitConv2d, BitLayer, BitLinear

LAYERS: dict[str, tuple[Callable[[BitQuantConfig], BitLayer], tuple[int, ...]]] = {
    "linear": (lambda config: BitLinear(33, 7, quant_config=config), (3, 33)),
    "conv": (lambda config: BitConv2d(4, 6, 3, 2, 1, quant_config=config), (2, 4, 9, 7)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)
# Compiling is slow: one preset of each way to scale weights and activations, and the slow sweep takes all of them.
WAYS = {(c.weight_scale, c.activation_dtype == FLOAT, c.activation_scale): name for name, c in PRESETS.items()}
# As much for a convolution and for export: one preset of each way to scale activations.
FEWER = {(c.activation_dtype == FLOAT, c.activation_scale): name for name, c in PRESETS.items()}
CASES = [
    pytest.param(kind, name, marks=[] if name in (WAYS if kind == "linear" else FEWER).values() else pytest.mark.slow)
    for kind in LAYERS
    for name in PRESETS
]
EXPORTS = [
    pytest.param(*case.values, marks=[] if case.values[1] in FEWER.values() else pytest.mark.slow) for case in CASES
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def make(kind: str, preset: str) -> tuple[BitLayer, Tensor]:
    build, shape = LAYERS[kind]
    layer, x = build(PRESETS[preset]), torch.randn(shape)
    with torch.no_grad():
        layer.train()(x)
    return layer.eval(), x


def compiled(layer: BitLayer, backend: str = "eager") -> Callable[[Tensor], Tensor]:
    return torch.compile(layer, fullgraph=True, backend=backend)


@pytest.mark.parametrize(("kind", "preset"), CASES)
@torch.no_grad()
def test_eval_and_packed_compile(kind: str, preset: str):
    layer, x = make(kind, preset)
    expected = layer(x)
    assert torch.equal(compiled(layer)(x), expected)
    layer.pack()
    torch._dynamo.reset()
    assert torch.equal(compiled(layer)(x), expected)


@pytest.mark.parametrize(("kind", "preset"), EXPORTS)
@torch.no_grad()
def test_eval_and_packed_export(kind: str, preset: str):
    layer, x = make(kind, preset)
    expected = layer(x)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)
    layer.pack()
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), expected)
    quantizer = layer.activation_quantizer
    fused = quantizer is not None and quantizer.source.offset(x, quantizer.format) is None
    if layer.packed_tensor().uniform and (kind == "linear" or fused):
        operator = "bitcore.linear_" if kind == "linear" else "bitcore.conv2d_"
        assert operator in str(program.graph), "the packed operator was taken apart"


@pytest.mark.parametrize("preset", ["bitlab", "bitnet", "w8a8"])
def test_the_compiled_graph_holds_the_best_kernels_operator(preset: str):
    layer, x = make("linear", preset)
    layer.pack()
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(str(graph.graph))
        return graph.forward

    torch.compile(layer, fullgraph=True, backend=backend)(x)
    kernel = KernelRegistry.get_kernel_for_config(PRESETS[preset])
    fused = "real" if PRESETS[preset].activation_dtype == FLOAT else "simd_float"
    operator = fused if kernel.rearranges else "portable" if kernel.has_cpp_backend else "torch"
    assert len(graphs) == 1 and f"bitcore.linear_{operator}" in graphs[0]


@every_layer
@torch.no_grad()
def test_aot_autograd_takes_the_packed_layer(kind: str):
    layer, x = make(kind, "bitnet")
    layer.pack()
    assert torch.equal(compiled(layer, "aot_eager")(x), layer(x))


@torch.no_grad()
def test_an_exported_layer_takes_other_batch_sizes():
    layer, x = make("linear", "bitnet")
    layer.pack()
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (2, 3, 11):
        other = torch.randn(batch, 33)
        assert torch.equal(program.module()(other), layer(other))


# torch.compile itself makes instances of autograd functions, and torch warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "preset"), [("linear", "bitnet"), ("conv", "w8a8")])
def test_a_training_step_compiles(kind: str, preset: str):
    layer, x = make(kind, preset)
    layer.train()
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    expected, layer.weight.grad = layer.weight.grad.clone(), None
    twin = compiled(layer, "aot_eager")
    twin(x).square().sum().backward()
    assert layer.weight.grad is not None
    if PRESETS[preset].activation_scale == "dynamic":  # a tracked range has moved on
        torch.testing.assert_close(layer.weight.grad, expected)
