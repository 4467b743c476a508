"""Every preset on a convolutional network that was trained on real digits: eval, packed and integer graph agree.

`docs/numbers.md` says how far: packed eval is eval, bit for bit; the graph is exact where scales are powers of two and
no batch norm lies between, and where thresholds are used; elsewhere few classes differ.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.config import DYNAMIC, FLOAT
from bitcore.formats import FORMATS
from bitcore.presets import PRESETS
from bitexport import lower
from bitlayers import BitLinear, RPReLU, RSign, clip_latent_weights, pack, quantize
from bittrain.data import Split, load_dataset

STEPS, BATCH = 100, 128
SANE, BINARY = 0.7, 0.4  # accuracy; guessing has 0.1, and networks of signs need more channels than these
DIFFERENT = 0.01  # of the test images, where 8-bit requantization rounds otherwise than float32


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load_dataset("digits")
    train, test = data.train, data.test
    assert isinstance(train, Split) and isinstance(test, Split)
    return train.images.float() / 255, train.labels, test.images.float() / 255, test.labels


def trained(config: BitQuantConfig, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """conv - bn - activation - pool, twice, and a linear layer; behind dynamic scales without batch norm and bias."""
    static = config.activation_scale != DYNAMIC
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(outputs)] if static else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), *norm, activation(), nn.MaxPool2d(2)]

    layers = [*block(1, 8), *block(8, 16), nn.Flatten(), nn.Linear(64, 10, bias=static)]
    return fit(quantize(nn.Sequential(*layers), config))


def fit(model: nn.Module) -> nn.Module:
    images, labels, _, _ = digits()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        clip_latent_weights(model)
        schedule.step()
    return model.eval()


class ReActBlock(nn.Module):
    """ReActNet's: RSign, binary convolution, batch norm, shortcut, RPReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sign, self.conv = RSign(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(channels), RPReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.norm(self.conv(self.sign(x))))


def refusal(config: BitQuantConfig) -> str | None:
    """Why integers cannot do it."""
    if config.activation_dtype == FLOAT:
        return "its input stays float32; choose an activation_dtype"
    if config.activation_scale == DYNAMIC and not config.activation_scale_pow2:
        return "a dynamic activation scale that is no power of two; set activation_scale_pow2=True"
    return None


def scores(model: nn.Module) -> tuple[Tensor, Tensor]:
    """What the integer graph computes and what eval does."""
    images = digits()[2]
    graph = lower(model, (1, 8, 8))
    integers = torch.from_numpy(graph.run(graph.input.quantize(images))).double()
    with torch.no_grad():
        return integers * (graph.output_scale or 1), model(images).double()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_agrees_with_itself(preset: str):
    config = PRESETS[preset]
    model = trained(config)
    _, _, images, labels = digits()
    with torch.no_grad():
        expected = model(images)
        accuracy = float((expected.argmax(1) == labels).float().mean())
        if config.weight_rounding == "nearest":  # random signs need many more steps, see `test_training_of_presets`
            assert accuracy >= (BINARY if config.activation_dtype == "binary" else SANE), accuracy
        assert torch.equal(pack(copy.deepcopy(model))(images), expected)
    reason = refusal(config)
    if reason is not None:
        with pytest.raises(BitLabError, match=f"layer '.*': {reason}"):
            lower(model, (1, 8, 8))
        return
    graph, fake = scores(model)
    if config.activation_scale == DYNAMIC:  # each sample has its own power of two
        ratio = torch.where(graph != 0, fake / graph, torch.nan)
        factors = ratio.nanmedian(1, keepdim=True).values
        assert torch.equal(graph * factors, fake) and bool((torch.frexp(factors).mantissa == 0.5).all())
    elif len(FORMATS[config.activation_dtype].levels) <= 16:
        np.testing.assert_allclose(graph, fake, rtol=1e-6, atol=1e-6 * float(fake.abs().max()))
    else:
        assert float((graph.argmax(1) != fake.argmax(1)).float().mean()) <= DIFFERENT
        assert float((graph - fake).abs().max()) <= 0.1 * float(fake.abs().max())


@pytest.mark.parametrize("preset", [name for name, c in PRESETS.items() if c.activation_scale == "learned_plus"])
def test_learned_offsets_behind_gelu(preset: str):
    """Offsets are learned; a table of 256 points stands for the function."""
    model = trained(PRESETS[preset], nn.GELU)
    offsets = [m.activation_quantizer.quantize(torch.zeros(0)).shift for m in (model[4], model[9])]  # type: ignore[union-attr]
    assert all(offset is not None and -4 <= float(offset) <= 0 for offset in offsets)
    assert PRESETS[preset].activation_dtype == "uint2" or min(offsets) < 0  # of 4 levels, none may be left for −0.17
    graph, fake = scores(model)
    _, _, images, labels = digits()
    assert float((fake.argmax(1) == labels).float().mean()) >= SANE
    assert float((graph.argmax(1) != fake.argmax(1)).float().mean()) <= 0.1  # of 4 levels, close scores are many
    with torch.no_grad():
        assert torch.equal(pack(copy.deepcopy(model))(images).double(), fake)


def test_offsets_whose_levels_are_no_bytes_are_refused():
    config = PRESETS["lsq-plus-4"].replace(activation_dtype="uint8")
    model = quantize(nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), config)
    x = torch.randn(16, 4)
    with torch.no_grad():
        model(x)
        expected = model.eval()(x)
        with pytest.raises(
            BitLabError, match=r"layer '2': its offset makes levels -\d+…\d+ of uint8, .* such as uint7"
        ):
            lower(model, (4,))
        assert torch.equal(pack(model)(x), expected)


def test_an_offset_at_the_networks_input_is_refused():
    model = nn.Sequential(BitLinear(4, 3, quant_config=PRESETS["lsq-plus-4"]))
    with torch.no_grad():
        model(torch.randn(16, 4) - 3)
    with pytest.raises(BitLabError, match="an activation offset at the network's input; use activation_scale=learned"):
        lower(model, (4,))


def test_reactnet():
    """The preset bireal with ReActNet's modules; sums and RPReLU are on a grid of 15 bits in the graph."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
    layers = [*stem, ReActBlock(16), nn.MaxPool2d(2), ReActBlock(16), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    model = fit(quantize(nn.Sequential(*layers), "bireal", {"last": "w8a8"}))
    graph, fake = scores(model)
    _, _, images, labels = digits()
    assert float((fake.argmax(1) == labels).float().mean()) >= SANE
    assert float((graph.argmax(1) != fake.argmax(1)).float().mean()) <= DIFFERENT
    with torch.no_grad():
        assert torch.equal(pack(copy.deepcopy(model))(images).double(), fake)
