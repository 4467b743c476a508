"""The whole path in a minute: train on real digits, export C, compile it, prove it equal, show the sizes."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from bitcore.errors import BitLabError
from bitexport.targets import CTarget
from bitlab.footprint import totals
from bitlab.pipeline import export, open_checkpoint, verify
from bittrain.fit import fit
from bittrain.recipe import Recipe
from bittrain.run_folder import LOCK_FILE

RECIPE = Recipe(
    name="digits-mlp",
    normalization="pow2",
    epochs=40,
    lr=5e-3,
    weight_decay=0.01,
    warmup_epochs=2,
    tensorboard=False,
)
"""The same as recipes/digits-mlp.yaml, which an installed package does not have."""


def run_quickstart(out: Path, progress: bool) -> dict[str, Any]:
    """Trains the full-precision twin and the 4-bit network, exports and verifies.

    Args:
        out: The folder for everything; an earlier quickstart in it is replaced.
        progress: Whether to show progress bars.

    Returns:
        Plain data: the verification report, sizes, folders and seconds.

    Raises:
        BitLabError: If the folder holds anything else, or a step fails, for example because there is no C compiler.
    """
    _clear(out)
    start = time.monotonic()
    twin = fit(RECIPE.full_precision(), out / "float", progress=progress)
    run = fit(RECIPE, out / "quantized", progress=progress)
    checkpoint = open_checkpoint(run)
    artifact, graph = export(checkpoint, out / "c", "digits")
    report = verify(run, twin)
    sizes = totals(graph, CTarget().describe(artifact))
    return {
        **report.to_dict(),
        "sizes": sizes.to_dict(),
        "seconds": round(time.monotonic() - start, 1),
        "folders": {"c": str(artifact.folder), "quantized": str(run), "float": str(twin)},
    }


def _clear(out: Path) -> None:
    """Empties an earlier quickstart's folder; refuses any other that is in use."""
    folders = ("float", "quantized", "c")
    if out.exists():
        if not out.is_dir() or any(entry.name not in (*folders, LOCK_FILE) for entry in out.iterdir()):
            raise BitLabError(f"'{out}' holds other files; choose another folder with --out")
        for name in folders:
            shutil.rmtree(out / name, ignore_errors=True)
