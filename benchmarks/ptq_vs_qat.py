"""Post-training quantization against quantization-aware training: every weight format, one network, one budget.

Run with ``BITLAB_DATA`` set or the hub in reach: ``python benchmarks/ptq_vs_qat.py``. It writes the figures to
``benchmarks/results/ptq_vs_qat.json`` and the table of ``docs/qat.md``, in about five minutes on one core.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.files import write_atomically
from bitcore.formats import FORMATS
from bitlab.pages import with_table
from bitlayers import quantize
from bitmodels import AutoBitModel
from bittrain.data import Split, load_dataset
from bittrain.seeds import generator

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ptq_vs_qat.json"
IMAGES, EPOCHS, BATCH, LR, SEEDS = 20_000, 8, 128, 3e-3, (0, 1, 2)
# Layer by layer MSE-optimal clipping for both; binary and ternary by the mean, as in their papers.
CONFIG = BitQuantConfig(weight_scale="octav", activation_dtype="int8", activation_granularity="per_token")


def main() -> None:
    """Trains the twin and every format, three seeds each, and writes the table."""
    torch.set_num_threads(1)
    data = load_dataset("mnist", 16)
    train, test = data.train.take(torch.arange(IMAGES)), data.test
    rows: dict[str, dict[str, list[float]]] = {name: {"ptq": [], "qat": []} for name in _formats()}
    twins = []
    for seed in SEEDS:
        twin = _fit(None, train, seed)
        twins.append(_accuracy(twin, test))
        for name, row in rows.items():
            row["ptq"].append(_accuracy(quantize(twin, _config(name)), test))
            row["qat"].append(_accuracy(_fit(_config(name), train, seed), test))
    result = {"images": IMAGES, "epochs": EPOCHS, "seeds": SEEDS, "twin": twins, "formats": rows}
    write_atomically(RESULT, json.dumps(result, indent=2) + "\n")
    page = ROOT / "docs" / "qat.md"
    write_atomically(page, with_table(page.read_text(), table()))


def table() -> str:
    """Returns the Markdown table of the kept figures."""
    result = json.loads(RESULT.read_text())
    lines = ["| weights | bits | after training | in training | gained |", "|---|---|---|---|---|"]
    for name, row in result["formats"].items():
        ptq, qat = (100 * sum(row[key]) / len(row[key]) for key in ("ptq", "qat"))
        lines.append(f"| {name} | {FORMATS[name].bits:g} | {ptq:.2f} % | {qat:.2f} % | {qat - ptq:+.2f} |")
    twin = 100 * sum(result["twin"]) / len(result["twin"])
    return "\n".join([*lines, f"| float32 | 32 | {twin:.2f} % | | |"])


def _formats() -> list[str]:
    """Every signed format, by bits."""
    return [f.name for f in sorted(FORMATS.values(), key=lambda f: (f.bits, len(f.levels))) if f.signed]


def _config(name: str) -> BitQuantConfig:
    few = len(FORMATS[name].levels) <= 3
    return CONFIG.replace(weight_format=name, weight_scale="absmean" if few else "octav")


def _inputs(split: Split) -> Tensor:
    return split.images.float() / 255


def _fit(config: BitQuantConfig | None, train: Split, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = AutoBitModel.from_name(
        "mlp", config, in_channels=256, out_channels=10, hidden_dims=(48, 32), batch_norm=True, bias=False
    )
    optimizer = torch.optim.Adam(model.parameters(), LR)
    batches = len(train) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    images, order = _inputs(train), generator(seed, "order")
    for _ in range(EPOCHS):
        shuffled = torch.randperm(len(train), generator=order)
        for rows in shuffled[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), train.labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model


def _accuracy(model: nn.Module, split: Split) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(_inputs(split)).argmax(1) == split.labels).float().mean())


if __name__ == "__main__":
    main()
