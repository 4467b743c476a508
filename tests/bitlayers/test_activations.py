"""ReActNet's modules, latent weight clipping, and networks of every method's preset down to integers."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.presets import PRESETS
from bitexport.trace import lower
from bitlayers import BitLayer, BitLinear, RPReLU, RSign, clip_latent_weights, pack, quantize

SHAPE = (2, 8, 8)
REFUSALS = ("stays float32", "several scales", "dynamic", "whole batch", "unevenly spaced")


def test_rsign_is_a_learned_threshold():
    module = RSign(3)
    nn.init.normal_(module.threshold)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = module(x)
    assert torch.equal(y.detach(), (x - module.threshold.reshape(3, 1, 1)).detach())
    incoming = torch.randn_like(y)
    y.backward(incoming)
    assert module.threshold.grad is not None and x.grad is not None
    torch.testing.assert_close(module.threshold.grad, -incoming.sum((0, 2, 3)))
    assert torch.equal(x.grad, incoming)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 5)], ids=str)
def test_rprelu_is_the_papers_formula(shape: tuple[int, ...]):
    module = RPReLU(3).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    shift_in, slope, shift_out = (p.detach().reshape(-1, *[1] * (x.ndim - 2)) for p in module.parameters())
    z = x.detach() - shift_in
    y = module(x)
    torch.testing.assert_close(y.detach(), torch.where(z > 0, z, slope * z) + shift_out)
    incoming = torch.randn_like(y)
    y.backward(incoming)
    dims = tuple(d for d in range(x.ndim) if d != 1)
    factor = torch.where(z > 0, 1.0, slope)
    expected = {
        "shift_in": -(incoming * factor).sum(dims),
        "slope": (incoming * z.clamp_max(0)).sum(dims),
        "shift_out": incoming.sum(dims),
    }
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name])
    assert x.grad is not None
    torch.testing.assert_close(x.grad, incoming * factor)


def test_latent_weights_are_clipped_where_the_config_says_so():
    clipped, free = BitLinear(9, 9, quant_config=PRESETS["bnn"]), BitLinear(9, 9, quant_config=PRESETS["xnor"])
    packed = BitLinear(9, 9, quant_config=PRESETS["bnn"])
    packed.pack()
    model = nn.Sequential(clipped, free, packed, nn.Linear(9, 9))
    for layer in (clipped, free):
        nn.init.normal_(layer.weight, std=3)
    before = clipped.weight.detach().clone(), free.weight.detach().clone()
    assert clip_latent_weights(model) == 1
    assert torch.equal(clipped.weight.detach(), before[0].clamp(-1, 1)) and torch.equal(free.weight.detach(), before[1])
    assert clipped.weight.requires_grad


def network(config: BitQuantConfig) -> nn.Module:
    """What a paper's block looks like: convolution, batch norm, then a threshold or a ReLU."""
    signs = config.activation_dtype == "binary"
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv0=nn.Conv2d(2, 6, 3, padding=1, bias=False), norm0=nn.BatchNorm2d(6)
    )
    layers["act0"] = RSign(6) if signs else nn.ReLU()
    layers |= {"conv1": nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), "norm1": nn.BatchNorm2d(8)}
    layers |= {"act1": RSign(8) if signs else nn.ReLU(), "flatten": nn.Flatten(), "head": nn.Linear(128, 5)}
    return quantize(nn.Sequential(layers), config)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_packs_and_agrees_with_its_integers(name: str):
    config = PRESETS[name]
    model = network(config)
    x, target = torch.randn(16, *SHAPE), torch.randint(5, (16,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.train()(x), target)
        loss.backward()
        optimizer.step()
        clip_latent_weights(model)
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all() and min(losses[4:]) < losses[0]
    if config.weight_clip:
        assert all(float(m.weight.detach().abs().max()) <= 1 for m in model.modules() if isinstance(m, BitLayer))
    model.eval()
    with torch.no_grad():
        expected = model(x)
        graph, refusal = None, ""
        try:
            graph = lower(model, SHAPE)
        except BitLabError as error:
            refusal = str(error)
        assert graph is not None or any(reason in refusal for reason in REFUSALS), refusal
        assert torch.equal(pack(model)(x), expected)
    if graph is not None:
        outputs = graph.run(graph.input.quantize(x))
        assert graph.output_scale is not None
        real = torch.from_numpy(outputs * graph.output_scale)
        agree = (real.argmax(1) == expected.argmax(1)).double().mean()
        spread = (expected.max() - expected.min()).item()
        off = ((real - expected).abs() > 0.02 * spread).any(1).double().mean()
        assert agree >= 0.9 and off <= 0.2, (float(agree), float(off))


def test_presets_of_static_ranges_export():
    """Guards the test above: there is something to compare."""
    for name in ("bnn", "xnor", "bireal", "irnet", "pact-sawb-2", "pact-sawb-4", "lsq-2", "lsq-4", "lsq-8", "dorefa-4"):
        x = torch.randn(8, *SHAPE)
        model = network(PRESETS[name])
        model(x)
        lower(model, SHAPE)


@pytest.mark.parametrize("slopes", ["of each channel", "one"])
@pytest.mark.parametrize("activation_dtype", ["binary", "uint4", "int8"])
@torch.no_grad()
def test_bent_activations_in_integers(activation_dtype: str, slopes: str):
    """RPReLU and PReLU are sums of two clipped branches, on a grid of 15 bits: few levels are one off, none two."""
    config = PRESETS["w8a8"].replace(activation_dtype=activation_dtype)
    bent: nn.Module = RPReLU(6) if slopes == "of each channel" else nn.PReLU()
    for parameter in bent.parameters():
        nn.init.normal_(parameter)  # slopes of either sign
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), bent, nn.Flatten(), nn.Linear(216, 5)]
    model = nn.Sequential(*layers)
    model = quantize(model, config)
    x = torch.randn(16, *SHAPE)
    for _ in range(3):
        model(x)
    model.eval()
    graph = lower(model, SHAPE)
    head = model[4]
    assert isinstance(head, BitLayer) and head.activation_quantizer is not None
    expected = head.activation_quantizer.quantize(model[:4](x)).levels
    trace = dict(graph.trace(graph.input.quantize(x)))
    product = next(node for node in graph.nodes if node.name == "4")
    found = torch.from_numpy(trace[product.inputs[0]])
    off = (found - expected).abs()
    step = head.activation_quantizer.format.step
    assert float((off > 0).double().mean()) <= 0.02 and float(off.max()) <= step, off.max()


def test_layers_without_an_integer_operation_are_refused():
    config = PRESETS["w8a8"]
    models = {
        "BitEmbedding": quantize(nn.Sequential(nn.Embedding(5, 4)), config),
        "BitConv1d": quantize(nn.Sequential(nn.Conv1d(2, 3, 1)), config),
        "BitConvTranspose2d": quantize(nn.Sequential(nn.ConvTranspose2d(2, 3, 1)), config),
    }
    for name, model in models.items():
        with pytest.raises(BitLabError, match=f"layer '0': {name} has no integer operation; integer graphs take Bit"):
            lower(model, (2, 4, 4))
    encoder = quantize(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), config)
    with pytest.raises(BitLabError, match="'self_attn'|cannot be traced"):
        lower(encoder, (3, 8))


@pytest.mark.parametrize("changes", [{"weight_scale": "ttq"}, {"weight_granularity": "per_group"}], ids=str)
def test_several_scales_a_row_are_refused_by_name(changes: dict[str, str]):
    config = PRESETS["w8a8"].replace(weight_format="ternary", weight_scale="absmean").replace(**changes)
    if "weight_scale" in changes:
        config = config.replace(weight_granularity="per_tensor")
    model = network(config)
    model(torch.randn(8, *SHAPE))
    with pytest.raises(BitLabError, match="layer 'conv0': weight_scale .* several scales.*use per_channel"):
        lower(model, SHAPE)
