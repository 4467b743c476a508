"""torch.func's transforms of bit layers give what backward passes give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from bitcore.presets import PRESETS
from bitcore.quantizers import Tracked
from bitlayers import BitConv2d, BitConvTranspose2d, BitLayer, BitLinear

Weights = dict[str, Tensor]
LAYERS: dict[str, tuple[type[BitLayer], tuple[Any, ...], tuple[int, ...]]] = {
    "linear": (BitLinear, (9, 6), (4, 9)),
    "conv": (BitConv2d, (3, 4, 3), (4, 3, 5, 4)),
    "transposed": (BitConvTranspose2d, (3, 4, 3), (4, 3, 3, 2)),
}
CASES = [*(("linear", preset) for preset in PRESETS), *((kind, "lsq-plus-4") for kind in LAYERS if kind != "linear")]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use of it
@pytest.mark.parametrize(("kind", "preset"), CASES)
def test_transforms_equal_the_backward_pass(kind: str, preset: str):
    make, sizes, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, x = make(*sizes, quant_config=preset).train(), torch.randn(shape)
    with torch.no_grad():
        y = layer(x)
    quantizer = layer.activation_quantizer
    if quantizer is not None and isinstance(quantizer.source, Tracked):
        quantizer.eval()  # transforms let no buffer change, and a moving average does
    factors = torch.randn_like(y)
    weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(weights: Weights, x: Tensor, factors: Tensor) -> Tensor:
        torch.manual_seed(1)  # of stochastic rounding
        return (functional_call(layer, weights, (x,)) * factors).sum()

    expected = backward(layer, x, factors)
    gradients = grad(loss)(weights, x, factors)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0 or name.endswith("alpha"), name  # a clip that clips nothing has none
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6)

    if layer.quant_config.weight_rounding != "stochastic":
        each = vmap(grad(loss), (None, 0, 0))(weights, x[:, None], factors[:, None])
        for i in range(len(x)):
            for name, gradient in backward(layer, x[i : i + 1], factors[i : i + 1]).items():
                torch.testing.assert_close(each[name][i], gradient, rtol=1e-5, atol=1e-6)


def backward(layer: BitLayer, x: Tensor, factors: Tensor) -> Weights:
    layer.zero_grad()
    torch.manual_seed(1)
    (layer(x) * factors).sum().backward()
    return {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
