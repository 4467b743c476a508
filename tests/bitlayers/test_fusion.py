# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalOperand=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
"""Batch norm fused with layers: after training, in training, and in the integer graph. Requantizing layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitcore.config import FLOAT, BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.presets import get_preset
from bitexport.trace import lower
from bitlayers import BitConv2d, BitLinear, pack, quantize
from bitlayers.base import BitLayer
from bitlayers.fusion import FusedNorm, fuse_batchnorm, train_fused, trains_fused
from networks import CONV_SHAPE, convolutional, with_ranges

STATIC = get_preset("mcu-4bitsym-static")
CHANNELS = BitQuantConfig(
    weight_format="int4",
    weight_scale="absmax",
    weight_granularity="per_channel",
    activation_dtype="uint8",
    activation_scale="tracked",
)
NOTHING = BitQuantConfig(weight_format=FLOAT)


def randomize(model: nn.Module) -> nn.Module:
    """Gives batch norms statistics and weights that are not those of the beginning, negative ones among them."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.2, 3)
    return model


def floats() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.BatchNorm2d(6, affine=False),
        nn.Conv2d(6, 6, 1, groups=3),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 14 * 12, 5, bias=False),
        nn.BatchNorm1d(5),
    ).double()


def test_fused_float_layers_compute_the_same() -> None:
    model = floats()
    for _ in range(3):
        model(torch.randn(8, 2, 9, 8, dtype=torch.float64))
    x = torch.randn(3, 2, 9, 8, dtype=torch.float64)
    expected = model.eval()(x)
    assert fuse_batchnorm(model, inplace=True) is model
    assert [type(model[i]) for i in (1, 4, 6, 9)] == [FusedNorm] * 4
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_the_formula() -> None:
    model = randomize(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))).eval()
    layer, norm = model
    sigma = (norm.running_var + norm.eps).sqrt()
    weight = layer.weight * (norm.weight / sigma)[:, None]
    bias = norm.bias + (layer.bias - norm.running_mean) * norm.weight / sigma
    model = fuse_batchnorm(model)
    torch.testing.assert_close(model[0].weight, weight)
    torch.testing.assert_close(model[0].bias, bias)


class Shared(nn.Module):
    """Nothing in it is a pair: an output that is used twice, a layer that is called twice, a norm of other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.b, self.nb = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = y + self.na(y)
        return self.nb(self.b(self.b(y)))


def test_what_is_no_pair_stays() -> None:
    model = fuse_batchnorm(Shared())
    assert isinstance(model.na, nn.BatchNorm1d)
    assert isinstance(model.nb, nn.BatchNorm1d)


class Untraceable(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_given_pairs_and_errors() -> None:
    model = Untraceable(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    randomize(model).eval()
    x = torch.randn(5, 3)
    expected = model(x)
    with pytest.raises(BitLabError, match=r"cannot be traced .*; give pairs=\["):
        fuse_batchnorm(model)
    with pytest.raises(BitLabError, match="'0' and '4' cannot be fused: 4 outputs, 3 normalized channels"):
        fuse_batchnorm(model, [("0", "4")])
    with pytest.raises(BitLabError, match="there is no layer '7'"):
        fuse_batchnorm(model, [("7", "1")])
    torch.testing.assert_close(fuse_batchnorm(model, [("0", "1"), ("3", "4")])(x), expected)


def bit_model(config: BitQuantConfig) -> nn.Module:
    return convolutional(config, batch_norm=True)


def test_training_without_quantization_is_batch_norm() -> None:
    """Outputs, gradients and running statistics equal those of the layer with batch norm behind, in float64."""
    plain = randomize(bit_model(NOTHING)).double()
    fused = train_fused(copy.deepcopy(plain))
    assert trains_fused(fused)
    assert not trains_fused(plain)
    x = torch.randn(6, *CONV_SHAPE, dtype=torch.float64)
    for mode in (True, True, False):
        outputs = [model.train(mode)(x) for model in (plain, fused)]
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
        if mode:
            for y, model in zip(outputs, (plain, fused), strict=True):
                model.zero_grad()
                y.square().sum().backward()
            for name in ("conv0", "depthwise", "conv1", "head"):
                grads = [model.get_submodule(name).weight.grad for model in (plain, fused)]
                torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)
            for i, name in enumerate(("conv0", "depthwise", "conv1")):
                pair = plain.get_submodule(f"norm{i}"), fused.get_submodule(name).batch_norm
                torch.testing.assert_close(pair[0].weight.grad, pair[1].weight.grad, rtol=1e-7, atol=1e-9)
                for one, other in zip(pair[0].buffers(), pair[1].buffers(), strict=True):
                    torch.testing.assert_close(one, other)
    torch.testing.assert_close(fuse_batchnorm(fused)(x), outputs[0], rtol=1e-9, atol=1e-9)


def test_the_fused_weight_is_what_is_quantized() -> None:
    layer = BitLinear(6, 4, quant_config=BitQuantConfig(weight_format="int4", weight_scale="absmax"))
    model = train_fused(randomize(nn.Sequential(layer, nn.BatchNorm1d(4))), inplace=True)
    x, norm = torch.randn(16, 6), layer.batch_norm
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    fused = layer.weight * gain[:, None]
    scale = fused.abs().max() / 7
    outputs = x @ ((fused / scale).round() * scale / gain[:, None]).T + layer.bias

    torch.testing.assert_close(model.eval()(x), (outputs - norm.running_mean) * gain + norm.bias)
    before, mean = norm.running_mean.clone(), outputs.mean(0)
    expected = (outputs - mean) / (outputs.var(0, correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(model.train()(x), expected)
    torch.testing.assert_close(norm.running_mean, before.lerp(mean, norm.momentum))


def test_a_channel_of_zero_gain_is_no_nan() -> None:
    layer = BitLinear(6, 4, quant_config=BitQuantConfig(weight_format="int4", weight_scale="absmax"))
    model = train_fused(randomize(nn.Sequential(layer, nn.BatchNorm1d(4))), inplace=True)
    with torch.no_grad():
        layer.batch_norm.weight[1] = 0
    y = model.train()(torch.randn(16, 6))
    y.square().sum().backward()
    assert torch.equal(y[:, 1], layer.batch_norm.bias[1].expand(16))
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("config", [STATIC, CHANNELS], ids=["layer-wise", "channel-wise"])
def test_trained_fused_and_fused_afterwards_are_one_integer_graph(config: BitQuantConfig) -> None:
    model = train_fused(bit_model(config))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x, labels = torch.randn(32, *CONV_SHAPE), torch.arange(32) % 5
    losses, before = [], torch.zeros(8)
    for step in range(12):
        model.train()
        if step == 8:  # frozen statistics
            for layer in model.modules():
                if isinstance(layer, BitLayer) and layer.batch_norm is not None:
                    layer.batch_norm.eval()
            before = model.conv0.batch_norm.running_mean.clone()
        elif step > 8:
            model.conv0.batch_norm.eval()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    torch.testing.assert_close(model.conv0.batch_norm.running_mean, before, rtol=0, atol=0)
    model.eval()
    expected, graph = model(x), lower(model, CONV_SHAPE)
    packed = copy.deepcopy(model)
    for layer in packed.modules():
        if isinstance(layer, BitLayer):
            layer.pack()
    assert torch.equal(packed(x), expected)
    model = fuse_batchnorm(model)
    assert not trains_fused(model)
    assert torch.equal(model(x), expected)
    again = lower(model, CONV_SHAPE)
    codes = graph.input.quantize(x)
    assert [node.name for node in graph.nodes] == [node.name for node in again.nodes]
    assert (graph.run(codes) == again.run(codes)).all()
    for name in ("conv0", "depthwise", "conv1"):
        assert torch.equal(packed.get_submodule(name).qweight, model.get_submodule(name).qweight)


def test_state_dict_of_the_training_form() -> None:
    model = with_ranges(randomize(train_fused(bit_model(STATIC))))
    other = train_fused(bit_model(STATIC))
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, *CONV_SHAPE)
    assert torch.equal(other.eval()(x), model.eval()(x))


# ---- requantize -------------------------------------------------------------------------------------------------


def trained(config: BitQuantConfig) -> BitConv2d:
    layer = BitConv2d(2, 3, 3, quant_config=config)
    layer(torch.rand(4, 2, 6, 6)).sum().backward()
    return layer


def test_requantize_keeps_learned_ranges() -> None:
    lsq = get_preset("lsq-8")
    layer = trained(lsq)
    weight, activation = layer.weight_quantizer.source, layer.activation_quantizer.source
    steps = [float(s.step.detach()) for s in (weight, activation)]
    parameters = [id(p) for p in layer.parameters()]
    layer.requantize(lsq.replace(weight_format="int4", activation_dtype="uint4"))
    assert [id(p) for p in layer.parameters()] == parameters  # an optimizer keeps its hold on them
    assert float(weight.step.detach()) == pytest.approx(steps[0] * 127 / 7)
    assert float(activation.step.detach()) == pytest.approx(steps[1] * 255 / 15)
    assert layer.eval()(torch.rand(1, 2, 6, 6)).shape == (1, 3, 4, 4)
    assert layer.qweight.abs().max() <= 7


def test_requantize_switches_off_and_on_and_keeps_tracked_ranges() -> None:
    config = CHANNELS
    layer = trained(config)
    x = torch.rand(2, 2, 6, 6)
    tracked = layer.activation_quantizer.source.range.clone()
    expected = layer.eval()(x)
    layer.requantize(config.replace(weight_format=FLOAT))
    assert layer.weight_quantizer is None
    assert torch.equal(layer.activation_quantizer.source.range, tracked)
    layer.requantize(config)
    assert torch.equal(layer(x), expected)
    layer.requantize(NOTHING)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias))
    layer.requantize(config.replace(activation_scale="learned"))
    layer.train()(x)
    assert layer.training
    assert layer.activation_quantizer.training
    layer.pack()
    with pytest.raises(BitLabError, match="a packed layer has no float weights"):
        layer.requantize(config)


def test_held_scales_travel_with_the_state() -> None:
    layer = quantize(nn.Sequential(nn.Linear(5, 4)), "bitnet-cnn")[0]
    source = layer.weight_quantizer.source
    source.hold(layer.weight.detach(), layer.weight_quantizer.format)
    with torch.no_grad():
        layer.weight.mul_(3)
    other = quantize(nn.Sequential(nn.Linear(5, 4)), "bitnet-cnn")[0]
    other.load_state_dict(layer.state_dict())
    assert other.weight_quantizer.source.held
    x = torch.randn(2, 5)
    assert torch.equal(other.eval()(x), layer.eval()(x))
    other.load_state_dict(quantize(nn.Sequential(nn.Linear(5, 4)), "bitnet-cnn")[0].state_dict())
    assert not other.weight_quantizer.source.held


# ---- what is no pair, and what only looks like one --------------------------------------------------------------


class Tied(nn.Module):
    """Two layers of one weight; the first has a norm, the second one too if asked."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.na = nn.BatchNorm1d(4)
        self.nb = nn.BatchNorm1d(4) if norms == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.nb(self.b(self.na(self.a(x)).relu()))


@pytest.mark.parametrize("norms", [1, 2])
def test_tied_weights_are_fused_each_on_its_own(norms: int) -> None:
    model = randomize(Tied(norms)).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    fused = fuse_batchnorm(model)
    assert not torch.equal(fused.a.weight, fused.b.weight)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norms", [1, 2])
@pytest.mark.parametrize("end", [fuse_batchnorm, pack], ids=["fused", "packed"])
def test_tied_bit_layers_stay_what_they_were_trained_as(norms: int, end: Callable[[nn.Module], nn.Module]) -> None:
    model = train_fused(quantize(randomize(Tied(norms)), STATIC.replace(activation_scale="dynamic"))).eval()
    x = torch.randn(5, 4)
    expected = model(x)
    assert torch.equal(end(model)(x), expected)


@pytest.mark.parametrize("fuse", [fuse_batchnorm, train_fused])
@pytest.mark.parametrize(("layer", "norm", "right", "wrong"), [
    (nn.Linear(6, 4), nn.BatchNorm1d(4), (5, 6), (5, 4, 6)),
    (nn.Conv1d(6, 4, 1), nn.BatchNorm1d(4), (5, 6, 4), (6, 4)),
])  # fmt: skip
def test_a_norm_over_tokens_is_refused(
    fuse: Callable[[nn.Module], nn.Module], layer: nn.Module, norm: nn.Module, right: tuple[int], wrong: tuple[int]
) -> None:
    model = nn.Sequential(layer, norm)
    model = fuse(quantize(model, NOTHING) if fuse is train_fused else model).eval()
    assert model(torch.randn(right)).shape[1] == 4
    with pytest.raises(BitLabError, match=r"dimension 1, which it normalized, is not the layer's outputs; leave"):
        model(torch.randn(wrong))


class Reads(nn.Module):
    """The model's own code reads a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.na(self.a(x)) @ self.a.weight


def test_a_weight_that_the_model_reads_stays() -> None:
    model = randomize(Reads()).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(fuse_batchnorm(model)(x), model(x))


def test_an_output_that_changes_in_place_before_its_norm_is_no_pair() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.na = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h += 1
            return self.na(h)

    model = randomize(Net()).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(fuse_batchnorm(model)(x), model(x))


def test_pairs_that_are_none() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm2d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    with pytest.raises(BitLabError, match="BatchNorm2d normalizes is not that of the layer's outputs"):
        fuse_batchnorm(model, [("0", "1")])
    with pytest.raises(BitLabError, match="'0' is in two pairs"):
        fuse_batchnorm(model, [("0", "2"), ("0", "3")])
    model[0].register_forward_hook(lambda _module, _inputs, y: y.relu())
    with pytest.raises(BitLabError, match="forward hooks between them"):
        fuse_batchnorm(model, [("0", "2")])
