"""Every preset learns: on real digits it comes near its full-precision twin, which a wrong gradient would not."""

import pytest
import torch

from bitcore.presets import PRESETS
from bitlayers import clip_latent_weights
from bitmodels import AutoBitModel
from bittrain.data import Split, load_dataset
from bittrain.seeds import generator

# How far below the twin a preset may end. Guessing would be 0.88 below it.
STOCHASTIC, BINARY_ACTIVATIONS, OTHERS = 0.6, 0.15, 0.05


def train(preset: str | None) -> float:
    """Trains a small perceptron for 150 steps and returns its test accuracy in eval mode."""
    data = load_dataset("digits")
    train, test = data.train, data.test
    assert isinstance(train, Split) and isinstance(test, Split)
    torch.manual_seed(0)
    model = AutoBitModel.from_name(
        "mlp", preset, in_channels=64, out_channels=10, hidden_dims=(64,), batch_norm=True, bias=False
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=150)
    order = generator(0, "batches")
    images = train.images.float() / 255
    for _ in range(150):
        batch = torch.randint(len(images), (256,), generator=order)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), train.labels[batch]).backward()
        optimizer.step()
        clip_latent_weights(model)
        schedule.step()
    model.eval()
    with torch.no_grad():
        return float((model(test.images.float() / 255).argmax(1) == test.labels).float().mean())


@pytest.fixture(scope="module")
def twin() -> float:
    accuracy = train(None)
    assert accuracy > 0.95
    return accuracy


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns(preset: str, twin: float):
    config = PRESETS[preset]
    margin = BINARY_ACTIVATIONS if config.activation_dtype == "binary" else OTHERS
    if config.weight_rounding == "stochastic":  # random signs need many more steps than a short test has
        margin = STOCHASTIC
    assert train(preset) >= twin - margin
