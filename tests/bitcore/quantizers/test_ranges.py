"""Scale sources: from the values, tracked, learned."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from bitcore.formats import FORMATS, NumberFormat
from bitcore.quantizers import SCALERS, STATIC_RANGES, FromValues, Learned, LearnedPlus, Quantizer, Tracked
from bitcore.quantizers.estimators import open_ste
from bitcore.quantizers.granularity import sample
from bitcore.quantizers.ranges import Remembered

every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
every_range = pytest.mark.parametrize("kind", STATIC_RANGES.values(), ids=STATIC_RANGES)
INT8 = FORMATS["int8"]
REMEMBERED = {name: kind for name, kind in STATIC_RANGES.items() if issubclass(kind, Remembered)}
every_remembered = pytest.mark.parametrize("kind", REMEMBERED.values(), ids=REMEMBERED)


@pytest.mark.parametrize(
    ("trailing", "shape"), [(None, ()), (0, (2, 3, 4, 5)), (1, (2, 3, 4, 1)), (3, (2, 1, 1, 1)), (4, (1, 1, 1, 1))]
)
def test_one_scale_for_the_trailing_dimensions(trailing: int | None, shape: tuple[int, ...]):
    x = torch.randn(2, 3, 4, 5)
    scale = FromValues(SCALERS["absmax"], trailing)(x, INT8)
    assert scale.shape == shape
    dims = tuple(range(4))[4 - (4 if trailing is None else trailing) :]
    largest = x.abs().amax(dims, keepdim=True) if dims else x.abs()
    assert torch.equal(scale.expand(2, 3, 4, 5), (largest / 127).expand(2, 3, 4, 5))
    assert not FromValues.static


def test_no_gradient_flows_through_values():
    x = torch.randn(4, requires_grad=True)
    assert not FromValues(SCALERS["absmax"], None)(x, INT8).requires_grad


def test_tracked_is_a_moving_average_frozen_in_eval():
    source = Tracked(momentum=0.25)
    assert float(source.eval()(torch.randn(3), INT8)) == pytest.approx(1 / 127)  # before any batch the range is 1
    source.train()
    batches = [torch.randn(4, 5) * k for k in (3, 1, 7, 2, 9, 4)]
    expected = float(batches[0].abs().max())
    for i, batch in enumerate(batches):
        if i:  # the first batches count alike, later ones by the momentum
            expected += max(0.25, 1 / (i + 1)) * (float(batch.abs().max()) - expected)
        assert float(source(batch, INT8)) == pytest.approx(expected / 127, rel=1e-6)
        assert int(source.batches) == i + 1
    source(torch.zeros(0, 5), INT8)  # an empty batch says nothing
    source.eval()
    assert float(source(torch.full((2,), 1e6), INT8)) == pytest.approx(expected / 127, rel=1e-6)
    assert int(source.batches) == len(batches)


def test_tracked_of_zeros_stays_positive():
    source = Tracked().train()
    for _ in range(3):
        assert 0 < float(source(torch.zeros(5), INT8)) < math.inf


@every_format
@torch.no_grad()
def test_learned_starts_from_the_first_batch_only(fmt: NumberFormat):
    source = Learned().train()
    first = torch.randn(6, 5)
    expected = 2 * float(first.abs().mean()) / math.sqrt(fmt.high)
    assert float(source(first, fmt)) == pytest.approx(expected, rel=1e-6)
    assert float(source(first * 100, fmt)) == pytest.approx(expected, rel=1e-6)
    assert float(source.eval()(first * 100, fmt)) == pytest.approx(expected, rel=1e-6)
    assert int(source.batches) == 1


@torch.no_grad()
def test_learned_is_not_initialized_in_eval_or_by_an_empty_batch():
    source = Learned().eval()
    assert float(source(torch.randn(5), INT8)) == 1
    source.train()
    assert float(source(torch.zeros(0, 5), INT8)) == 1
    assert float(source(torch.full((1, 4), 3.0), INT8)) == pytest.approx(6 / math.sqrt(127))


@torch.no_grad()
def test_learned_step_is_positive_whatever_the_optimizer_does():
    source = Learned().eval()
    for value in (-0.5, 0.0, 1e-30):
        with torch.no_grad():
            source.step.fill_(value)
        assert 0 < float(source(torch.randn(5), INT8)) == max(abs(value), float(torch.tensor(1e-12)))


@every_format
def test_learned_gradient_is_lsqs(fmt: NumberFormat):
    """Esser et al., eq. 3 and section 2.2: (level - x/s) inside, else the outer level, times 1/sqrt(n * Qp)."""
    step = 0.37
    inside = [0.0, 0.5, 1.0, 1.5, 0.3, fmt.high - 0.5, fmt.high - 0.25, fmt.low + 0.5, fmt.low + 0.3]  # with ties
    outside = [float(fmt.high), float(fmt.low), fmt.high + 0.5, fmt.high * 3.0 + 1, fmt.low - 0.5, fmt.low * 3.0 - 1]
    units = torch.tensor([inside + outside] * 2, dtype=torch.float64)
    units = units.clamp(fmt.low - 9, fmt.high + 9)
    x = units * step
    quantizer = Quantizer(fmt, Learned().double(), estimator=open_ste).eval()
    source = quantizer.source
    assert isinstance(source, Learned)
    with torch.no_grad():
        source.step.fill_(step)
    x.requires_grad_()
    incoming = torch.randn_like(x)
    quantizer(x).backward(incoming)

    total, passed = 0.0, []
    for v, g in zip((x.detach() / step).flatten().tolist(), incoming.flatten().tolist(), strict=True):
        level = float(fmt.nearest(torch.tensor(v, dtype=torch.float64)))
        within = fmt.low < v < fmt.high
        total += g * (level - v if within else level)
        passed.append(g if within else 0.0)
    expected = total / math.sqrt(units.shape[1] * fmt.high)
    assert source.step.grad is not None and x.grad is not None
    assert float(source.step.grad) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert x.grad.flatten().tolist() == pytest.approx(passed, rel=1e-12)


@every_range
def test_static_ranges_are_static(kind: type[Tracked | Learned]):
    assert kind.static
    source = kind().train()
    source(torch.randn(4, 5) * 3, INT8)
    source.eval()
    scales = [source(x, INT8) for x in (torch.randn(3), torch.zeros(0), torch.randn(2, 3) * 1e9)]
    assert all(torch.equal(s, scales[0]) and s.shape == () for s in scales)


@every_range
def test_static_ranges_survive_a_state_dict(kind: type[Tracked | Learned]):
    """A source that was loaded goes on where the other one was: it does not start from its next batch."""
    source, batch = kind().train(), torch.randn(4, 5) * 3
    source(batch, INT8)
    loaded = kind().train()
    loaded.load_state_dict(source.state_dict())
    copied = copy.deepcopy(source)
    scales: list[Tensor] = [s(batch * 50, INT8) for s in (source, loaded, copied)]
    assert torch.equal(scales[0], scales[1]) and torch.equal(scales[0], scales[2])
    for name, value in source.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


@torch.no_grad()
def test_a_fresh_state_makes_learned_start_again():
    source, fresh = Learned().train(), Learned()
    source(torch.ones(4, 5), INT8)
    source.load_state_dict(fresh.state_dict())
    assert float(source(torch.full((2, 2), 3.0), INT8)) == pytest.approx(6 / math.sqrt(127))


# ---- batches that are no numbers, and calibration -----------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 4])
@every_remembered
@torch.no_grad()
def test_a_batch_with_a_value_that_is_no_number_does_not_enter(kind: type[Remembered], place: int, bad: float):
    good = [torch.randn(4, 5, 3) * k for k in (3, 1, 7, 2)]
    broken = torch.randn(2, 9)
    broken[1, 4] = bad
    sources = [kind().train() for _ in range(2)]
    for source, batches in zip(sources, (good, [*good[:place], broken, *good[place:]]), strict=True):
        for batch in batches:
            source(batch, INT8)
    expected, found = (source.state_dict() for source in sources)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert not sources[1].problem()
    started = isinstance(sources[1], Learned) or hasattr(sources[1], "alpha")  # what is learned looks at the first only
    assert sources[1].take_left_out() == (0 if started and place else 1)
    assert sources[1].take_left_out() == 0


@every_remembered
@torch.no_grad()
def test_a_value_in_no_sample_is_found_too(kind: type[Remembered]):
    x = torch.randn(1, 3, 300, 400)
    for at in (1, 12345, 359_999):
        source, broken = kind().train(), x.clone()
        broken.view(-1)[at] = math.nan
        source(broken, INT8)
        assert source.problem() and source.take_left_out() == 1


@every_remembered
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_problem_is_seen_in_every_number(kind: type[Remembered], bad: float):
    fresh = kind()
    assert "calibrate" in fresh.problem()
    fresh.train()(torch.randn(4, 5), INT8)
    assert not fresh.problem()
    for name, value in fresh.state_dict().items():
        if value.is_floating_point():
            source = copy.deepcopy(fresh)
            source.state_dict()[name].fill_(bad)
            assert "diverged" in source.problem()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_range_that_is_not_positive_is_a_problem(value: float):
    source = Tracked()
    source(torch.randn(5), INT8)
    source.range.fill_(value)
    assert "diverged" in source.problem()


@pytest.mark.parametrize("shape", [(128, 8, 16, 16), (64, 3, 28, 28), (7, 5), (1, 1), (3, 100_003)])
def test_a_sample_is_spread_over_every_dimension(shape: tuple[int, ...]):
    x = torch.arange(math.prod(shape)).reshape(shape)
    taken = sample(x, 2**13)
    assert min(2**12, x.numel()) <= len(taken) <= 2**13
    for dim, size in enumerate(shape):
        places = taken // math.prod(shape[dim + 1 :]) % size
        assert len(places.unique()) >= min(size, len(taken)) * 0.9


def error(x: Tensor, scale: Tensor, fmt: NumberFormat) -> float:
    return float((fmt.nearest(x / scale) * scale - x).square().mean())


@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("name", ["uint4", "int8", "2bitsym", "binary"])
@every_remembered
@torch.no_grad()
def test_calibrated_is_the_range_of_least_error(kind: type[Remembered], name: str, pow2: bool):
    fmt, source = FORMATS[name], kind()
    values = torch.randn(5000).abs() if not fmt.signed else torch.randn(5000)
    values[7] = 9.0
    source.calibrate(values, fmt, pow2)
    quantizer = Quantizer(fmt, source, pow2).eval()
    assert not source.problem()
    found = quantizer.quantize(values)
    if "percentile" in kind.__name__.lower():
        largest = float(values.abs().sort().values[4994])
        assert float(source(values, fmt)) * fmt.high == pytest.approx(largest)
        return
    mine = float((found.dequantize() - values).square().mean())
    scales = [torch.tensor(2.0**k) for k in range(-12, 5)] if pow2 else torch.linspace(0.05, 1, 300) * 9 / fmt.high
    assert mine <= min(error(values, scale, fmt) for scale in scales) * (
        1.05 if not isinstance(source, LearnedPlus) else 1.3
    )
    before = float(source(values, fmt))
    source.train()(values * 50, fmt)  # training goes on from there
    assert float(source(values, fmt)) != 50 * before


def test_zeros_calibrate_to_a_positive_range():
    for kind in REMEMBERED.values():
        source = kind()
        source.calibrate(torch.zeros(100), INT8, False)
        assert not source.problem() and 0 < float(source.eval()(torch.zeros(0), INT8).detach()) < 1
