"""Published figures: a run's results as JSON, and the tables of the documentation made from them.

``python -m bitlab.results`` rewrites the table in README.md; a test checks that it is up to date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitcore.files import write_atomically
from bitlab.footprint import layer_footprints, totals
from bitlab.pipeline import make_graph, open_checkpoint, verify

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
_COLUMNS = ("recipe", "weights", "weight bytes", "float twin", "fake-quantized", "C", "mismatches, interpreter – C")


def publish(run: Path, twin: Path, folder: Path) -> Path:
    """Verifies a finished run on its whole test set and writes ``folder/NAME.json``.

    Args:
        run: The run's folder.
        twin: The folder of its full-precision twin.
        folder: Where the results are kept.

    Returns:
        The file.

    Raises:
        BitLabError: As `bitlab.pipeline.verify`.
    """
    checkpoint = open_checkpoint(run)
    recipe = checkpoint.extra["recipe"]
    environment = json.loads((checkpoint.path.parent / "environment.json").read_text())
    layers = layer_footprints(checkpoint.model, checkpoint.preprocessing.shape)
    result = {
        "recipe": recipe["name"],
        "seed": recipe["seed"],
        "epochs": recipe["epochs"],
        "environment": {key: environment[key] for key in ("processor", "cores", "gpu", "versions", "commit")},
        "weights": sorted({layer.weights for layer in layers}),
        "sizes": totals(make_graph(checkpoint)).to_dict(),
        **verify(run, twin).to_dict(),
    }
    path = folder / f"{recipe['name']}.json"
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    return path


def results_table(folder: Path) -> str:
    """Returns the Markdown table of all results in a folder."""
    rows = [_row(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    accuracy = {name: "–" if share is None else f"{100 * share:.2f} %" for name, share in result["accuracy"].items()}
    commit = str(result["environment"].get("commit") or "")[:7]
    return (
        f"[{result['recipe']}](recipes/{result['recipe']}.yaml), seed {result['seed']}, commit {commit}",
        ", ".join(result["weights"]),
        f"{result['sizes']['weights']:,}",
        accuracy["float"],
        accuracy["fake_quantized"],
        accuracy["c"],
        f"{result['mismatches']} of {result['samples']:,} images",
    )


def with_table(text: str, table: str) -> str:
    """Returns a document with the table between its markers replaced."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    root = Path.cwd()
    readme = root / "README.md"
    write_atomically(readme, with_table(readme.read_text(), results_table(root / "results")))
