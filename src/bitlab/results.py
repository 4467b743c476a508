"""Published figures: a run's results as JSON, and the tables of the documentation made from them.

``python -m bitlab.results`` rewrites the tables in README.md; a test checks that they are up to date.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bitcore.config import FLOAT
from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitcore.naming import cell, is_file_name, shown
from bitlab.footprint import layer_footprints, totals
from bitlab.measure import measure_export
from bitlab.pages import with_table
from bitlab.pipeline import Checkpoint, export, make_graph, measure, measure_integers, open_checkpoint, verify

Row = Callable[[dict[str, Any]], Sequence[Sequence[str]]]


def publish(
    run: Path,
    twin: Path,
    folder: Path,
    chips: Sequence[str] = (),
    samples: int = 20,
    target: str = "c",
    compared: int | None = None,
) -> Path:
    """Measures a finished run on its whole test set and writes it by `write_result`.

    Where the network has an integer graph, every output of its C code is compared with the interpreter's. A network of
    float activations has none; its packed weights are measured.

    Args:
        run: The run's folder.
        twin: The folder of its full-precision twin.
        folder: Where the results are kept.
        chips: Microcontrollers to measure it on, in their emulators; ``NAME:flash`` and ``NAME:speed`` choose the
            runtime, see `bitexport.targets.CTarget`.
        samples: Images that each of them runs.
        target: What is compared with the interpreter, ``c`` or ``engine``: C is slow on large networks.
        compared: Compare only so many images; accuracy is still that of all of them.

    Returns:
        The file.

    Raises:
        BitLabError: As `bitlab.pipeline.verify` and `bitlab.measure.measure_export`.
    """
    checkpoint = open_checkpoint(run)
    recipe = checkpoint.extra["recipe"]
    home = checkpoint.path.parent
    environment = json.loads((home / "environment.json").read_text())
    layers = layer_footprints(checkpoint.model, checkpoint.preprocessing.shape)
    result = {
        "recipe": recipe["name"],
        "seed": recipe["seed"],
        "epochs": recipe["epochs"],
        "seconds": _seconds(home / "metrics.csv"),
        "environment": {key: environment[key] for key in ("processor", "cores", "gpu", "versions", "commit")},
        "model": recipe["model"],
        "weights": sorted({layer.weights for layer in layers}),
        "activations": sorted({layer.activations for layer in layers}),
        "sizes": {"weights": sum(layer.bytes for layer in layers)},
    }
    if FLOAT in result["activations"]:
        result |= {"dataset": checkpoint.extra["dataset"], "mismatches": None}
    else:
        report = verify(run, None if compared else twin, max_samples=compared, target=target).to_dict()
        result |= {"sizes": totals(make_graph(checkpoint)).to_dict(), **report, "compared_with": target}
    if compared or FLOAT in result["activations"]:  # the whole test set has not been measured yet
        accuracies = {"float": measure(open_checkpoint(twin)), "fake_quantized": measure(checkpoint)}
        result["accuracy"] = {name: measured["accuracy"] for name, measured in accuracies.items()}
        if result["mismatches"] is not None:
            result["accuracy"]["integer"] = measure_integers(checkpoint)
    result["chips"] = [_on_chip(checkpoint, chip, samples) for chip in chips]
    return write_result(folder, result)


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Writes ``folder/NAME.json``, or ``folder/NAME-seedN.json`` for seeds other than 0; returns the file.

    Raises:
        BitLabError: The recipe's name, which the model's file says, can name no file there; or it cannot be written.
    """
    if not is_file_name(result["recipe"]) or type(result["seed"]) is not int:
        raise BitLabError(f"the model says that its recipe is {shown(result['recipe'])}, which names no file")
    seed = f"-seed{result['seed']}" if result["seed"] else ""
    path = folder / f"{result['recipe']}{seed}.json"
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    return path


def _on_chip(checkpoint: Checkpoint, chip: str, samples: int) -> dict[str, Any]:
    name, _, runtime = chip.partition(":")
    with tempfile.TemporaryDirectory(prefix="bitlab-") as folder:
        out = Path(folder) / "network"
        export(checkpoint, out, "network", name, runtime or None)
        return measure_export(out, name, samples=samples)


def _seconds(metrics: Path) -> int:
    """How long the run trained; an epoch in which it was interrupted does not count."""
    with metrics.open(newline="") as file:
        return round(sum(float(row["seconds"] or 0) for row in csv.DictReader(file)))


def results_tables(folder: Path) -> str:
    """Returns Markdown tables of all results in a folder, with links to the recipes in the folder beside it.

    Each data set has a table, and one more where networks were measured on microcontrollers.
    """
    results = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    results.sort(key=lambda result: (result["recipe"], result["seed"]))
    files = {path.stem: path.relative_to(folder.parent).as_posix() for path in folder.parent.glob("recipes/**/*.yaml")}
    for result in results:
        name = result["recipe"]
        result["link"] = f"[{cell(name)}]({files[name]})" if name in files else cell(name)
    tables = []
    for dataset in sorted({result["dataset"] for result in results}):
        mine = [result for result in results if result["dataset"] == dataset]
        tables.append(_table(dataset, _COLUMNS, _rows, mine))
        if chips := [result for result in mine if result.get("chips")]:
            tables.append(_table(f"{dataset} on microcontrollers", _CHIP_COLUMNS, _chip_rows, chips))
    return "\n\n".join(tables)


def _table(title: str, columns: Sequence[str], rows: Row, results: Sequence[dict[str, Any]]) -> str:
    lines = [columns, ("---",) * len(columns), *(row for result in results for row in rows(result))]
    return f"**{cell(title)}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


_COLUMNS = (
    "recipe", "epochs", "weights", "activations", "weight bytes",
    "float twin", "quantized", "integers", "interpreter against",
)  # fmt: skip


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    share = result["accuracy"]
    return [
        (
            _run(result),
            str(result["epochs"]),
            cell(", ".join(result["weights"])),
            cell(", ".join(result.get("activations", ("–",)))),
            f"{result['sizes']['weights']:,}",
            _percent(share["float"]),
            _percent(share["fake_quantized"]),
            _percent(share.get("integer")),
            "–" if result["mismatches"] is None else _mismatches(result),
        )
    ]


def _mismatches(result: dict[str, Any]) -> str:
    name = {"c": "C", "engine": "engine"}[result.get("compared_with", "c")]
    return f"{name}: {result['mismatches']} of {result['samples']:,} images differ"


_CHIP_COLUMNS = ("recipe", "integers", "chip", "runtime", "flash", "RAM", "a run")


def _chip_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    share = result["accuracy"]
    network = _run(result), _percent(share.get("integer"))
    rows = []
    for chip in result["chips"]:
        counter = next(unit for unit in ("instructions", "cycles") if unit in chip)
        run = f"{chip[counter]:,} {counter}"
        runtime = "compact" if chip["optimize"] == "flash" else "fast"
        sizes = f"{chip['flash']:,}", f"{chip['ram']:,}"
        rows.append((*network, cell(f"{chip['chip']} ({chip['target']})"), runtime, *sizes, run))
    return rows


def _run(result: dict[str, Any]) -> str:
    commit = str(result["environment"].get("commit") or "")[:7]
    return f"{result['link']}, seed {result['seed']}" + (f", commit {commit}" if commit else "")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


if __name__ == "__main__":
    root = Path.cwd()
    readme = root / "README.md"
    write_atomically(readme, with_table(readme.read_text(), results_tables(root / "results")))
