"""Methods that have a name: their values and gradients are the papers' formulas, in float64, also on the edges."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitQuantConfig, get_preset
from bitcore.config import WEIGHT_GRANULARITIES
from bitcore.formats import FORMATS
from bitcore.quantizers import Learned, LearnedPlus, Pact, Quantizer, Ttq, pact_penalty
from bitcore.quantizers.estimators import nearest_power_of_two

FLOAT64 = torch.float64


def weights() -> dict[str, Tensor]:
    """Random weights and edges, four output channels each."""
    normal = torch.randn(4, 12, dtype=FLOAT64)
    zeros = normal.clone()
    zeros[1], zeros[2] = 0, -0.25
    return {
        "normal": normal,
        "a channel of zeros, one of equal weights": zeros,
        "all equal": torch.full((4, 12), 0.5, dtype=FLOAT64),
        "all zero": torch.zeros(4, 12, dtype=FLOAT64),
        "beyond the clip": normal * 3,
        "on the borders": torch.tensor([-1.0, 1, -0.5, 0.5, 0, -0.0, 2, -2], dtype=FLOAT64).repeat(4, 3)[:, :12],
    }


every_case = pytest.mark.parametrize("case", weights())


def weight_quantizer(config: BitQuantConfig, shape: tuple[int, ...] = (4, 12)) -> Quantizer:
    quantizer = config.weight_quantizer(shape)
    assert quantizer is not None
    return quantizer.double()


def activation_quantizer(preset: str, **changes: object) -> Quantizer:
    quantizer = get_preset(preset).replace(**changes).activation_quantizer(1)
    assert quantizer is not None
    return quantizer.double()


def gradient(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, incoming gradient and the values' gradient."""
    x = x.clone().requires_grad_()
    value = quantizer(x)
    incoming = torch.randn_like(value)
    value.backward(incoming)
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
    return value.detach(), incoming, x.grad


@every_case
def test_twn(case: str):
    """α sign(w) beyond Δ = 0.7 mean|w|, α the survivors' mean; the latent gradient is straight through."""
    w = weights()[case]
    value, incoming, latent = gradient(weight_quantizer(get_preset("twn")), w)
    delta = 0.7 * w.abs().mean()
    beyond = w.abs() > delta
    alpha = w.abs()[beyond].mean() if beyond.any() else torch.zeros(())
    torch.testing.assert_close(value, torch.where(beyond, w.sign() * alpha, 0.0))
    torch.testing.assert_close(latent, incoming)


def test_a_weight_on_twns_threshold_becomes_zero():
    w = torch.tensor([[1.0, 0.7, 1.0, -1.3]], dtype=FLOAT64)  # mean 1, threshold 0.7
    assert weight_quantizer(get_preset("twn"), (1, 4)).quantize(w).levels.tolist() == [[1, 0, 1, -1]]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@every_case
def test_ttq(case: str, granularity: str):
    """arXiv:1612.01064, eq. 6 to 8, with Wn counted as the negative weight's magnitude."""
    w = weights()[case]
    quantizer = weight_quantizer(get_preset("ttq").replace(weight_granularity=granularity))
    source = quantizer.source
    assert isinstance(source, Ttq)
    quantizer(w)  # initializes
    with torch.no_grad():
        source.scales.copy_(torch.rand_like(source.scales) + 0.5)
    value, incoming, latent = gradient(quantizer, w)
    delta = 0.05 * (w.abs().amax(1, keepdim=True) if granularity == "per_channel" else w.abs().amax())
    above, below = w > delta, w < -delta
    positive, negative = (s.expand(4, 12) for s in source.scales.detach())
    torch.testing.assert_close(value, above * positive - below * negative)
    torch.testing.assert_close(latent, incoming * torch.where(above, positive, torch.where(below, negative, 1.0)))
    expected = torch.stack([incoming * above, -incoming * below])
    assert source.scales.grad is not None
    torch.testing.assert_close(source.scales.grad, expected.sum_to_size(source.scales.shape))


@pytest.mark.parametrize("kind", ["learned", "learned_plus"])
@pytest.mark.parametrize("granularity", WEIGHT_GRANULARITIES)
@every_case
def test_lsq_of_weights(case: str, granularity: str, kind: str):
    """arXiv:1902.08153, eq. 3, gradient scale 1/sqrt(N Qp) with N the weights that share a step."""
    w, fmt = weights()[case], FORMATS["int3"]
    config = get_preset("lsq-3").replace(weight_granularity=granularity, weight_scale=kind, weight_group_size=4)
    quantizer = weight_quantizer(config)
    source = quantizer.source
    assert isinstance(source, Learned)
    quantizer(w)
    with torch.no_grad():
        source.step.copy_(torch.rand_like(source.step) + 0.25)
    _, incoming, latent = gradient(quantizer, w)
    count = {"per_tensor": 48, "per_channel": 12, "per_group": 4}[granularity]
    rows = [12, 12, 4][WEIGHT_GRANULARITIES.index(granularity)]
    units = w / source.step.detach().reshape(-1, 1).repeat_interleave(rows, 1).reshape(-1, 12)
    inside = units.abs() < 3
    torch.testing.assert_close(latent, incoming * inside)
    terms = incoming * torch.where(inside, fmt.nearest(units) - units, 3 * units.sign())
    expected = terms.reshape(-1, count).sum(1) / math.sqrt(count * 3)
    assert source.step.grad is not None
    torch.testing.assert_close(source.step.grad.flatten(), expected)


def test_starting_points_of_learned_weights():
    w = torch.randn(4, 12, dtype=FLOAT64) + 0.3
    config = get_preset("lsq-4").replace(weight_granularity="per_channel")
    lsq = weight_quantizer(config).scale(w)
    torch.testing.assert_close(lsq[:, 0], 2 * w.abs().mean(1) / math.sqrt(7))
    plus = weight_quantizer(config.replace(weight_scale="learned_plus")).scale(w)
    mean, std = w.mean(1), w.std(1, correction=0)
    expected = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 8
    torch.testing.assert_close(plus[:, 0], expected)


def test_a_learned_weight_scale_that_never_trained_follows_the_weight_and_changes_nothing():
    quantizer = weight_quantizer(get_preset("lsq-4")).eval()
    before = copy.deepcopy(quantizer.state_dict())
    for factor in (1, 10):
        w = weights()["normal"] * factor
        torch.testing.assert_close(quantizer.scale(w), 2 * w.abs().mean() / math.sqrt(7))
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


@pytest.mark.parametrize("values", ["relu", "gelu", "normal", "far"])
@pytest.mark.parametrize("bits", [2, 4])
def test_lsq_plus_activations_start_from_the_least_squared_error(bits: int, values: str):
    fmt = FORMATS[f"uint{bits}"]
    quantizer = activation_quantizer(f"lsq-plus-{bits}")
    normal = torch.randn(64, 50, dtype=FLOAT64)
    x = {"relu": normal.relu(), "gelu": nn.functional.gelu(normal), "normal": normal, "far": 100 + normal}[values]

    def error(scale: float, shift: int) -> float:
        levels = (x / scale).round().clamp(shift, fmt.high + shift)
        return float((levels * scale - x).square().mean())

    span = float(x.max() - x.min())
    best = min(
        error(scale, shift)
        for scale in (span / fmt.high * torch.linspace(0.05, 1, 60)).tolist()
        for shift in range(math.floor(float(x.min()) / scale), math.ceil(float(x.max()) / scale) - fmt.high + 2)
    )
    codes = quantizer.quantize(x)
    assert codes.shift is not None
    assert error(float(codes.scale), int(codes.shift)) <= 1.08 * best
    expected = (x / codes.scale).round().clamp(int(codes.shift), fmt.high + int(codes.shift)) * codes.scale
    torch.testing.assert_close(quantizer(x).detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["uint2", "uint4", "uint8", "int4", "ternary", "binary", "4bitsym"])
@pytest.mark.parametrize("beta", [0.0, -0.28, 3.7, -40.0])
def test_lsq_plus(name: str, beta: float):
    """arXiv:2004.09576, eq. 4 and 5, with β a multiple of the step: so it is the paper's own quantizer.

    The derivatives by step and offset are those of ``round(clip((x − β)/s, low, high)) s + β``.
    """
    fmt, step = FORMATS[name], 0.25
    quantizer = activation_quantizer("lsq-plus-4", activation_dtype=name).eval()
    source = quantizer.source
    assert isinstance(source, LearnedPlus) and source.beta is not None
    nn.init.constant_(source.step, step)
    nn.init.constant_(source.beta, beta)
    shift = round(beta / step)
    edges = torch.tensor([fmt.low, fmt.high, fmt.low - 0.5, fmt.high + 0.5, 0, fmt.low + 0.5, 99, -99], dtype=FLOAT64)
    v = torch.cat([edges, torch.randn(56, dtype=FLOAT64) * fmt.high])  # (x − β) / s
    x = ((v + shift) * step).reshape(4, 16)
    value, incoming, latent = gradient(quantizer, x)
    inside = ((v > fmt.low) & (v < fmt.high)).reshape(4, 16)
    v = v.reshape(4, 16)
    assert fmt.step != 1 or torch.equal(value, (x / step).round().clamp(fmt.low + shift, fmt.high + shift) * step)
    levels = value / step - shift
    assert bool((levels - v).abs()[inside].max() <= fmt.step / 2) and set(levels.unique().tolist()) <= set(fmt.levels)
    torch.testing.assert_close(latent, incoming * inside)
    scale = 1 / math.sqrt(16 * fmt.high)
    expected = scale * (incoming * torch.where(inside, levels - v, levels)).sum()
    assert source.step.grad is not None and source.beta.grad is not None
    torch.testing.assert_close(source.step.grad, expected)
    torch.testing.assert_close(source.beta.grad, scale * incoming[~inside].sum())


def test_lsq_plus_weights_have_no_offset():
    quantizer = weight_quantizer(get_preset("lsq-plus-4"))
    assert quantizer.quantize(weights()["normal"]).shift is None and len(list(quantizer.parameters())) == 1


@pytest.mark.parametrize("name", ["uint2", "uint4", "uint8", "int4"])
def test_pact(name: str):
    """arXiv:1805.06085, eq. 2 and 3: the gradient of α is 1 from α on, of x it is 1 in [0, α)."""
    fmt = FORMATS[name]
    alpha = fmt.high / 2  # the scale 1/2 is exact, so that the borders are
    quantizer = activation_quantizer("pact-sawb-4", activation_dtype=name).eval()
    source = quantizer.source
    assert isinstance(source, Pact)
    nn.init.constant_(source.alpha, alpha)
    edges = torch.tensor(
        [0.0, -0.0, alpha, -alpha, 0.25, 0.75, alpha - 0.25, alpha + 0.25, -0.1, 9 * alpha, -9 * alpha]
    )
    x = torch.cat([edges.double(), torch.nextafter(edges, torch.zeros(11)).double(), torch.randn(50).double() * alpha])
    value, incoming, latent = gradient(quantizer, x)
    low = -alpha if fmt.signed else 0.0
    clipped = x.clamp(low, alpha)
    torch.testing.assert_close(value, fmt.nearest(clipped * 2) / 2)
    torch.testing.assert_close(latent, incoming * ((x >= low) & (x < alpha)))
    expected = incoming[x >= alpha].sum() - (incoming[x < low].sum() if fmt.signed else 0)
    assert source.alpha.grad is not None
    torch.testing.assert_close(source.alpha.grad, expected)


def test_pact_starts_from_the_first_batch_and_its_penalty_has_a_gradient():
    model = nn.ModuleList([activation_quantizer("pact-sawb-4") for _ in range(2)]).train()
    maxima = []
    for factor, quantizer in enumerate(model, start=1):
        x = torch.randn(8, 5, dtype=FLOAT64) * factor
        maxima.append(float(x.abs().max()))
        quantizer(x)
        quantizer(x * 10)
    penalty = pact_penalty(model)
    assert float(penalty.detach()) == pytest.approx(sum(m * m for m in maxima))
    penalty.backward()
    for maximum, quantizer in zip(maxima, model, strict=True):
        assert float(quantizer.source.alpha.grad) == pytest.approx(2 * maximum)  # type: ignore[union-attr, arg-type]
    assert float(pact_penalty(nn.Linear(2, 2))) == 0


@every_case
def test_bnn(case: str):
    """sign(w) with sign(0) = +1; the gradient passes where |w| <= 1."""
    w = weights()[case]
    for quantizer in (weight_quantizer(get_preset("bnn")), activation_quantizer("bnn")):
        value, incoming, latent = gradient(quantizer, w)
        torch.testing.assert_close(value, torch.where(w >= 0, 1.0, -1.0).double())
        torch.testing.assert_close(latent, incoming * (w.abs() <= 1))


def test_stochastic_binarization_is_a_hard_sigmoid_in_training_and_the_sign_in_eval():
    quantizer = weight_quantizer(get_preset("bnn-stochastic"), (9, 4000))
    w = torch.linspace(-1.5, 1.5, 9, dtype=FLOAT64)[:, None].expand(9, 4000).clone()
    value, incoming, latent = gradient(quantizer, w)
    assert set(value.unique().tolist()) == {-1, 1}
    share = (value > 0).double().mean(1)
    expected = ((w[:, 0] + 1) / 2).clamp(0, 1)
    assert float((share - expected).abs().max()) < 0.04
    assert bool((share[expected == 0] == 0).all()) and bool((share[expected == 1] == 1).all())
    torch.testing.assert_close(latent, incoming * (w.abs() <= 1))
    assert not torch.equal(quantizer(w), value)
    quantizer.eval()
    assert torch.equal(quantizer(w), torch.where(w >= 0, 1.0, -1.0).double())
    assert torch.equal(quantizer.train().quantize(w).levels, quantizer.eval()(w))


def test_stochastic_rounding_of_other_formats_is_unbiased():
    quantizer = weight_quantizer(BitQuantConfig("int4", "unit", weight_rounding="stochastic"), (1, 20000))
    w = torch.full((1, 20000), 0.4 / 7, dtype=FLOAT64)
    assert float(quantizer(w).mean()) == pytest.approx(0.4 / 7, rel=0.05)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@every_case
def test_irnet(case: str, temperature: float):
    """sign(ŵ) 2^round(log2 mean|ŵ|), ŵ standardized by channel; EDE's gradient through the standardization."""
    w = weights()[case]
    quantizer = weight_quantizer(get_preset("irnet"))
    quantizer.temperature = temperature
    value, incoming, latent = gradient(quantizer, w)
    x = w.clone().requires_grad_()
    centred = x - x.mean(1, keepdim=True)
    deviation = centred.std(1, correction=0, keepdim=True)
    hat = centred / torch.where(deviation == 0, 1, deviation)  # a channel of equal weights stays zeros
    mean = hat.detach().abs().mean(1, keepdim=True)
    scale = nearest_power_of_two(torch.where(mean > 1e-30, mean, 1.0))
    torch.testing.assert_close(value, torch.where(hat.detach() >= 0, scale, -scale))
    smooth = scale * max(1 / temperature, 1) * torch.tanh(temperature * hat)
    smooth.backward(incoming)
    assert x.grad is not None
    torch.testing.assert_close(latent, x.grad)
    if case == "normal":
        assert float(hat.detach().mean(1).abs().max()) < 1e-12


def test_irnets_activations_take_the_temperature():
    quantizer = activation_quantizer("irnet")
    quantizer.temperature = 3.0
    x = torch.randn(40, dtype=FLOAT64)
    _, incoming, latent = gradient(quantizer, x)
    torch.testing.assert_close(latent, incoming * 3 * (1 - torch.tanh(3 * x) ** 2))


def test_bi_reals_activations():
    x = torch.tensor([-2.0, -1, -0.5, -0.0, 0, 0.25, 1, 3], dtype=FLOAT64)
    value, incoming, latent = gradient(activation_quantizer("bireal"), x)
    assert value.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(latent, incoming * torch.tensor([0, 0, 1, 2, 2, 1.5, 0, 0], dtype=FLOAT64))


@every_case
def test_xnor(case: str):
    w = weights()[case]
    mean = w.abs().mean(1, keepdim=True)
    expected = torch.where(w >= 0, 1.0, -1.0) * torch.where(mean > 0, mean, 1.0)
    torch.testing.assert_close(weight_quantizer(get_preset("xnor"))(w), expected)


@pytest.mark.parametrize("bits", [2, 4])
@every_case
def test_dorefa(case: str, bits: int):
    """2 quantize(tanh(w) / (2 max|tanh(w)|) + 1/2) − 1 (arXiv:1606.06160, eq. 9), straight through behind the tanh."""
    w = weights()[case]
    value, incoming, latent = gradient(weight_quantizer(get_preset(f"dorefa-{bits}")), w)
    x = w.clone().requires_grad_()
    squashed = torch.tanh(x) / (torch.tanh(w).abs().max() if w.any() else 1)
    steps = 2**bits - 1
    unit = squashed.detach() / 2 + 0.5
    if case not in ("all zero", "on the borders"):  # where values lie on ties
        torch.testing.assert_close(value, 2 * torch.round(unit * steps) / steps - 1)
    squashed.backward(incoming)
    assert x.grad is not None
    torch.testing.assert_close(latent, x.grad)


@pytest.mark.parametrize("size", [1, 5, 6, 12, 50])
def test_groups_of_a_row_have_scales_of_their_own(size: int):
    w = torch.randn(4, 3, 2, 2, dtype=FLOAT64)
    config = BitQuantConfig("int4", "absmax", "per_group", weight_group_size=size)
    quantizer = weight_quantizer(config, (4, 3, 2, 2))
    codes = quantizer.quantize(w)
    assert codes.scale.shape == (4, math.ceil(12 / size)) and not (codes.uniform or codes.pack().uniform)
    assert torch.equal(codes.pack().unpack(FLOAT64).dequantize(), codes.dequantize())
    rows = [torch.cat([g / g.abs().max() * 7 for g in row.split(size)]) for row in w.flatten(1)]
    torch.testing.assert_close(codes.levels.flatten(1), torch.stack(rows).round())
