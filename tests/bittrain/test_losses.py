"""Losses against formulas written out here, their gradients in float64, and the distiller."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bittrain.distill import Distiller
from bittrain.losses import LOSSES, attention_transfer, distillation, hinge, hint, make_loss, squared_hinge

LOGITS = torch.tensor([[0.5, -2.0, 1.0], [3.0, 0.0, -1.0]], dtype=torch.float64)
LABELS = torch.tensor([2, 1])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_hinge_by_hand() -> None:
    # targets: [-1 -1 +1], [-1 +1 -1]; margins: 1.5 0 0, 4 1 0
    assert hinge(LOGITS, LABELS).item() == pytest.approx((1.5 + 4 + 1) / 6)
    assert squared_hinge(LOGITS, LABELS).item() == pytest.approx((1.5**2 + 4**2 + 1) / 6)


def test_distillation_by_hand() -> None:
    student, teacher, t = [0.3, -1.2], [2.0, 0.5], 3.0
    p, q = ([math.exp(v / t) / sum(math.exp(u / t) for u in row) for v in row] for row in (teacher, student))
    expected = t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert distillation(torch.tensor([student]), torch.tensor([teacher]), t).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_gradient_is_the_papers() -> None:
    student, teacher = random(4, 5), random(4, 5).detach()
    distillation(student, teacher, 2.5).backward()
    expected = 2.5 * (torch.softmax(student / 2.5, 1) - torch.softmax(teacher / 2.5, 1)) / 4
    torch.testing.assert_close(student.grad, expected.detach())


def test_hint_is_smooth_l1_at_the_smaller_size() -> None:
    a, b = torch.tensor([[0.0, 0.5, 3.0]]), torch.zeros(1, 3)
    assert hint(a, b).item() == pytest.approx((0.5 * 0.25 + 2.5) / 3)
    large = torch.arange(16.0).reshape(1, 1, 4, 4)
    small = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])  # the means of the quarters
    assert hint(large, small) == 0
    assert hint(small, large) == 0


def test_attention_transfer_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])  # sums of squares over channels: 5, 4
    teacher = torch.tensor([[[[0.0, 3.0]]]])  # 0, 9
    norm = math.hypot(5, 4)
    expected = (5 / norm) ** 2 + (4 / norm - 1) ** 2
    assert attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert attention_transfer(student, 7 * student).item() == pytest.approx(0, abs=1e-6)


def test_gradients() -> None:
    logits, labels = random(3, 4), torch.tensor([0, 3, 1])
    for name in LOSSES:
        assert torch.autograd.gradcheck(lambda y, name=name: make_loss(name)(y, labels), logits)
    assert torch.autograd.gradcheck(make_loss("cross_entropy", 0.1).__call__, (logits, labels))
    assert torch.autograd.gradcheck(lambda y: distillation(y, logits.detach() * 2, 4.0), random(3, 4))
    teacher = random(2, 3, 4, 4).detach()
    assert torch.autograd.gradcheck(lambda y: hint(y, teacher), random(2, 3, 8, 8))
    assert torch.autograd.gradcheck(lambda y: attention_transfer(y, teacher), random(2, 5, 2, 2))


def test_label_smoothing_is_cross_entropys() -> None:
    with pytest.raises(
        BitLabError, match="label_smoothing is defined for the loss cross_entropy; set it to 0 for hinge"
    ):
        make_loss("hinge", 0.1)


def net(width: int, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes)
    )


def test_the_distillers_loss_is_the_sum_of_its_parts() -> None:
    student, teacher = net(4), net(6).train()
    x, labels = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    weights = {"temperature": 3.0, "alpha": 0.3, "hint_weight": 0.5, "attention_weight": 0.25}
    distiller = Distiller(teacher, **weights, layers=["1", "2:1"])
    distiller.prepare(student, x[:2])
    assert not teacher.training
    assert student.training
    assert {tuple(p.shape) for p in distiller.parameters()} == {(6, 4, 1, 1), (6,)}  # no parameter of the teacher
    logits, loss = distiller(student, x, lambda y: nn.functional.cross_entropy(y, labels))
    torch.testing.assert_close(logits, student(x))
    expected = 0.7 * nn.functional.cross_entropy(logits, labels) + 0.3 * distillation(logits, teacher(x), 3.0)
    for layer, ours, theirs in zip(distiller.projections, (student[:2], student[:3]), (teacher[:2],) * 2, strict=True):
        expected = expected + 0.5 * hint(layer(ours(x)), theirs(x)) + 0.25 * attention_transfer(ours(x), theirs(x))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in (*student.parameters(), *distiller.parameters()))
    assert not any(m._forward_hooks for m in (*student.modules(), *teacher.modules()))


def test_distiller_errors() -> None:
    x = torch.randn(2, 1, 6, 6)
    with pytest.raises(BitLabError, match="the teacher has 5 classes, the model 3"):
        Distiller(net(4, 5)).prepare(net(4), x)
    with pytest.raises(BitLabError, match="unknown hint layer '11'; did you mean '1'"):
        Distiller(net(4), hint_weight=1, layers=["11"]).prepare(net(4), x)
    with pytest.raises(BitLabError, match="hint layers '3' and '1' have outputs .* cannot be compared"):
        Distiller(net(4), hint_weight=1, layers=["3:1"]).prepare(net(4), x)
    with pytest.raises(BitLabError, match="name the layers in hint_layers"):
        Distiller(net(4), hint_weight=1)
    with pytest.raises(BitLabError, match="set hint_weight or attention_weight"):
        Distiller(net(4), layers=["1"])
