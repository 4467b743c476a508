"""What the commands found, for people to read."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from bitlab import console

_TARGET_NAMES = {"c": "C", "engine": "the engine"}
_COSTS = {"parameters": "parameters", "flash": "B flash", "ram": "B RAM", "instructions": "instructions"}


def show_measure(result: dict[str, Any]) -> None:
    """Shows an accuracy as `bitlab.pipeline.measure` returns it."""
    counted = f"{result['correct']:,} of {result['samples']:,} images"
    console.out.print(
        f"{result['dataset']}: {console.percent(result['accuracy'])} ({counted}), loss {result['loss']:.4f}"
    )
    if "folder" in result:
        console.out.print(f"Run folder: {result['folder']}")


def show_trial(row: dict[str, Any], title: str = "") -> None:
    """Shows a network that `bitlab fit` tried, in one line."""
    costs = [f"{row[name]:,} {unit}" for name, unit in _COSTS.items() if row.get(name) is not None]
    found = console.percent(row["accuracy"]) if row["state"] == "finished" else f"{row['state']}: {row['reason']}"
    text = ", ".join([*costs, found])
    console.out.print(f"{title or row['number']}: {row['network']}: {text}", soft_wrap=True)


def show_report(result: dict[str, Any]) -> None:
    """Shows what `bitlab.pipeline.verify` found."""
    accuracy = result["accuracy"]
    target = next(name for name in _TARGET_NAMES if name in accuracy)
    rows = [
        ("full precision (twin)", console.percent(accuracy["float"])),
        ("fake-quantized (PyTorch)", console.percent(accuracy["fake_quantized"])),
        ("integer graph (interpreter)", console.percent(accuracy["integer"])),
        (_TARGET_NAMES[target], console.percent(accuracy[target])),
    ]
    differing = result["classes_differing_between_fake_quantized_and_integer"]
    inputs = result["inputs"]
    console.show_table(f"{result['dataset']}, {result['samples']:,} {inputs}", ("network", "accuracy"), rows)
    if differing is not None:
        console.out.print(f"Fake-quantized and integer classes differ on {differing} of {result['samples']:,} images.")
    compared = f"{result['outputs_compared']:,} outputs of {result['samples']:,} {inputs} compared"
    compared += f" with {_TARGET_NAMES[target]}"
    if result["mismatches"]:
        differ = f"{result['mismatches']:,} {inputs} differ. First: {result['first_mismatch']}."
        console.out.print(Text("FAILED", "bold red"), f": {compared}: {differ}", sep="")
    else:
        console.out.print(Text("Verified", "bold green"), f": {compared}: 0 mismatches.", sep="")
