"""Scale sources: from the values, tracked, learned."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from bitcore.formats import FORMATS, NumberFormat
from bitcore.quantizers import SCALERS, STATIC_RANGES, FromValues, Learned, Quantizer, Tracked
from bitcore.quantizers.estimators import open_ste

every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
every_range = pytest.mark.parametrize("kind", STATIC_RANGES.values(), ids=STATIC_RANGES)
INT8 = FORMATS["int8"]


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
    batches = [torch.randn(4, 5) * k for k in (3, 1, 7, 2)]
    expected = float(batches[0].abs().max())
    for i, batch in enumerate(batches):
        if i:
            expected += 0.25 * (float(batch.abs().max()) - expected)
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
