"""Activation checkpointing changes nothing: gradients, ranges and statistics are those of training without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bitcore.presets import PRESETS
from bitlayers import quantize, train_fused

BATCHES = [torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]


pytestmark = pytest.mark.filterwarnings("ignore:the model.s code cannot be followed")  # parts without a forward


def network(preset: str) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1), nn.Hardtanh())
    second = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 4))
    return quantize(nn.ModuleList([first, second]), preset)


def train(model: nn.Module, mode: bool | None, twice: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Three steps; returns the gradients and the state. ``mode`` is ``use_reentrant``, ``None``: no checkpoints."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    gradients = []
    for x in BATCHES:
        torch.manual_seed(7)  # of stochastic rounding
        optimizer.zero_grad()
        y = x.clone().requires_grad_()
        for part in (model[0], *model) if twice else model:  # type: ignore[index, misc]
            y = part(y) if mode is None else checkpoint(part, y, use_reentrant=mode)
        y.square().sum().backward()
        gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return gradients, model.state_dict()


def same(a: tuple[list[Tensor], dict[str, Tensor]], b: tuple[list[Tensor], dict[str, Tensor]]) -> None:
    assert len(a[0]) == len(b[0]) > 0
    assert all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
    assert all(torch.equal(value, b[1][name]) for name, value in a[1].items())


@pytest.mark.parametrize("mode", [True, False], ids=["reentrant", "hooks"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_alike(preset: str, mode: bool) -> None:
    same(train(network(preset), None), train(network(preset), mode))


@pytest.mark.parametrize("mode", [True, False], ids=["reentrant", "hooks"])
@pytest.mark.parametrize("preset", ["w8a8", "lsq-4", "mcu-4bitsym-static"])
def test_a_shared_layer_finds_the_scale_of_each_of_its_passes(preset: str, mode: bool) -> None:
    same(train(network(preset), None, twice=True), train(network(preset), mode, twice=True))


@pytest.mark.parametrize("mode", [True, False], ids=["reentrant", "hooks"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_fused_batch_norm_takes_a_batch_in_once(mode: bool, momentum: float | None) -> None:
    def fused() -> nn.Module:
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU())
        model = nn.ModuleList([first, nn.Sequential(nn.Flatten(), nn.Linear(144, 4))])
        return train_fused(quantize(model, "w8a8"), pairs=[("0.0", "0.1")])

    same(train(fused(), None), train(fused(), mode))
