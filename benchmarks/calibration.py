"""Calibration (post-training quantization) against training with quantization: a small network, static ranges.

Run with ``BITLAB_DATA`` set or the hub in reach: ``python benchmarks/calibration.py``. It writes the figures to
``benchmarks/results/calibration.json`` and the second table of ``docs/qat.md``, in about five minutes on one core.
Every kind of static range is in it, and two ways to calibrate: all ranges at once, which is what
`bitlayers.calibrate` does, and layer by layer, each behind the ones that are quantized already.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.files import write_atomically
from bitcore.presets import PRESETS
from bitlab.pages import with_table
from bitlayers import BitLayer, calibrate, quantize
from bitlayers.batchnorm import reestimate_batchnorm
from bittrain.data import Split, load_dataset
from bittrain.seeds import generator

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "calibration.json"
MARK = "calibration"
STEPS, BATCH, LR, CALIBRATION = 300, 128, 3e-3, 1024
CONFIGS = {
    "w8a8": PRESETS["w8a8"],
    "w8a8, 99.9th percentile": PRESETS["w8a8"].replace(activation_scale="tracked_percentile"),
    "w8a8, tracked_mse": PRESETS["w8a8"].replace(activation_scale="tracked_mse"),
    **{name: PRESETS[name] for name in ("mcu-4bitsym-static", "lsq-8", "lsq-4", "lsq-plus-4", "pact-sawb-4")},
    "lsq-2": PRESETS["lsq-2"],
}


def main() -> None:
    """Trains, calibrates and writes the table."""
    torch.set_num_threads(1)
    data = load_dataset("mnist", 16)
    train, test = data.train, data.test
    twin = _fit(_network(), train)
    inputs = _inputs(train)[torch.randperm(len(train), generator=generator(0, "calibration"))[:CALIBRATION]].split(64)
    rows = {}
    for name, config in CONFIGS.items():
        fresh = quantize(copy.deepcopy(twin), config)
        rows[name] = {
            "at once": _accuracy(calibrate(fresh, inputs), test),
            "layer by layer": _accuracy(_layer_by_layer(fresh, inputs), test),
            "trained": _accuracy(_trained(config, train, inputs), test),
        }
    result = {"steps": STEPS, "images": CALIBRATION, "float": _accuracy(twin, test), "presets": rows}
    write_atomically(RESULT, json.dumps(result, indent=2) + "\n")
    page = ROOT / "docs" / "qat.md"
    write_atomically(page, with_table(page.read_text(), table(), MARK))


def table() -> str:
    """Returns the Markdown table of the kept figures."""
    result = json.loads(RESULT.read_text())
    lines = ["| preset | calibrated | calibrated layer by layer | trained |", "|---|---|---|---|"]
    for name, row in result["presets"].items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * accuracy:.2f} %" for accuracy in row.values()) + " |")
    return "\n".join([*lines, f"| float32 | | | {100 * result['float']:.2f} % |"])


def _trained(config: BitQuantConfig, train: Split, batches: Sequence[Tensor]) -> nn.Module:
    """Trains with quantization; then batch norm is estimated anew, as `bitlab train` does in short trainings."""
    model = _fit(quantize(_network(), config), train)
    reestimate_batchnorm(model, batches)
    return model


def _layer_by_layer(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Calibrates each layer's range while those before it quantize and those behind it do not."""
    model = copy.deepcopy(model)
    layers = [layer for layer in model.modules() if isinstance(layer, BitLayer)]
    quantizers = [layer.activation_quantizer for layer in layers]
    for layer in layers:
        layer.activation_quantizer = None
    for layer, quantizer in zip(layers, quantizers, strict=True):
        for done in layers:
            done.train(done is layer)  # in a model in training mode what is in eval mode stays as it is
        layer.activation_quantizer = quantizer
        calibrate(model, batches, inplace=True)
    return model.train()


def _network() -> nn.Module:
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    pool = nn.MaxPool2d(2)
    convolutions = [*block(1, 8), pool, *block(8, 16), pool, *block(16, 16), *block(16, 16)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(256, 10))


def _fit(model: nn.Module, train: Split) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    images, order = _inputs(train), generator(0, "order")
    for _ in range(STEPS):
        rows = torch.randint(len(train), (BATCH,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), train.labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return model


def _inputs(split: Split) -> Tensor:
    return split.images.float() / 255


def _accuracy(model: nn.Module, split: Split) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(_inputs(split)).argmax(1) == split.labels).float().mean())


if __name__ == "__main__":
    main()
