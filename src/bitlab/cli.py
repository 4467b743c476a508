"""The command line: bitlab quickstart | train | evaluate | export | verify | info | publish."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many threads on a busy machine are far slower than one

import typer

from bitcore.errors import BitLabError, unknown
from bitlab import console
from bitlab.options import recipe_flags

app = typer.Typer(
    help="Low-bit neural networks: train them, export them to C, and prove that every bit is the same.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

CheckpointPath = Annotated[
    Path, typer.Argument(help="A run folder, its model.safetensors, or a training checkpoint (.ckpt).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Dataset = Annotated[str | None, typer.Option(help="Another dataset than the one it was trained on.")]
Samples = Annotated[int | None, typer.Option("--max-samples", min=1, help="Use only the first so many images.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the results; an earlier quickstart in it is replaced.")] = Path(
        "quickstart"
    ),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on real digits, export to C, compile, verify every test image: the whole path in a minute."""
    from bitlab.quickstart import run_quickstart

    result = run_quickstart(_fresh_folder(out), progress=not (quiet or json))
    if json:
        console.show_json(result)
    else:
        _show_report(result)
        sizes = result["sizes"]
        rows = [
            (
                "weights",
                console.size(sizes["weights"]),
                f"{sizes['float32'] / sizes['weights']:.1f}× less than float32",
            ),
            ("flash", console.size(sizes["constants"]), "weights and other constants; code comes on top (about 1 kB)"),
            ("RAM", console.size(sizes["ram"]), f"arena {sizes['arena']} + input {sizes['input']}, without the stack"),
        ]
        console.show_table("Size", ("", "bytes", ""), rows)
        console.out.print(f"{result['seconds']} s. The C code: {result['folders']['c']}; see its README.md.")
        console.native_kernels()
    _exit_on_mismatch(result)


@app.command()
@recipe_flags
def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe (YAML); without one, the digits recipe.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [default: runs/NAME].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, exactly.")] = False,
    float_twin: Annotated[
        bool, typer.Option("--float-twin", help="Train the full-precision twin instead (quant: none).")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
    **flags: Any,
) -> None:
    """Train a recipe. Every line of a recipe is also a flag; flags win."""
    from bitlab.pipeline import measure, open_checkpoint
    from bittrain.fit import fit
    from bittrain.recipe import Recipe

    chosen = (Recipe.load(recipe) if recipe else Recipe()).replace(**flags)
    if float_twin:
        chosen = chosen.replace(name=f"{chosen.name}-float", quant=None, quant_overrides={})
    folder = fit(chosen, out or Path("runs") / chosen.name, resume=resume, progress=not (quiet or json))
    result = {"folder": str(folder), **measure(open_checkpoint(folder), max_samples=chosen.max_test_samples)}
    if json:
        console.show_json(result)
    else:
        _show_measure(result)


@app.command()
def evaluate(checkpoint: CheckpointPath, dataset: Dataset = None, samples: Samples = None, json: Json = False) -> None:
    """Measure a checkpoint's accuracy on the test images."""
    from bitlab.pipeline import measure, open_checkpoint

    result = measure(open_checkpoint(checkpoint), dataset, samples)
    if json:
        console.show_json(result)
    else:
        _show_measure(result)


@app.command()
def export(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; new, empty, or an earlier export.")],
    name: Annotated[str, typer.Option(help="Name of the network in C.")] = "network",
    target: Annotated[str, typer.Option(help="What to export to.")] = "c",
    json: Json = False,
) -> None:
    """Write a network as C99 source that computes the same bits."""
    from bitexport.targets import TARGETS
    from bitlab import pipeline
    from bitlab.footprint import totals

    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    opened = pipeline.open_checkpoint(checkpoint)
    artifact, graph = pipeline.export(opened, out, name, target)
    sizes = totals(graph)
    if json:
        console.show_json({"folder": str(artifact.folder), "name": name, "sizes": sizes.to_dict()})
        return
    console.out.print(
        f"{artifact.folder}: {name}.c, {name}.h, the runtime and a README. "
        f"Constants {console.size(sizes.constants)}, arena {console.size(sizes.arena)}, {sizes.macs:,} MACs."
    )


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="An exported folder, a run folder or a checkpoint.")],
    float_twin: Annotated[
        Path | None, typer.Option("--float-twin", help="Checkpoint of the full-precision twin, for its accuracy.")
    ] = None,
    dataset: Dataset = None,
    samples: Samples = None,
    json: Json = False,
) -> None:
    """Prove that the C code gives the same bits: every output of every test image, against the interpreter."""
    from bitlab import pipeline

    result = pipeline.verify(path, float_twin, dataset, samples).to_dict()
    if json:
        console.show_json(result)
    else:
        _show_report(result)
    _exit_on_mismatch(result)


@app.command()
def info(
    path: Annotated[Path | None, typer.Argument(help="A run folder, a checkpoint or an exported folder.")] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Show the integer graph and its memory plan.")] = False,
    dot: Annotated[Path | None, typer.Option("--dot", help="Write the integer graph for Graphviz.")] = None,
    json: Json = False,
) -> None:
    """Show layers, formats and sizes of a network; without one, the formats, presets and models there are."""
    from bitlab import inspection

    if path is None:
        inspection.show_registries(json)
    else:
        inspection.show_network(path, graph, dot, json)


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    float_twin: Annotated[Path, typer.Option("--float-twin", help="Run folder of the full-precision twin.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("results"),
) -> None:
    """Verify a run on its whole test set and keep its figures as JSON, for the tables of the documentation."""
    from bitlab import results

    path = results.publish(run, float_twin, out)
    console.out.print(f"{path} is written; refresh the README's table with: python -m bitlab.results")


def _show_measure(result: dict[str, Any]) -> None:
    counted = f"{result['correct']:,} of {result['samples']:,} images"
    console.out.print(
        f"{result['dataset']}: {console.percent(result['accuracy'])} ({counted}), loss {result['loss']:.4f}"
    )
    if "folder" in result:
        console.out.print(f"Run folder: {result['folder']}")


def _show_report(result: dict[str, Any]) -> None:
    accuracy = result["accuracy"]
    rows = [
        ("full precision (twin)", console.percent(accuracy["float"])),
        ("fake-quantized (PyTorch)", console.percent(accuracy["fake_quantized"])),
        ("integer graph (interpreter)", console.percent(accuracy["integer"])),
        ("C", console.percent(accuracy["c"])),
    ]
    differing = result["classes_differing_between_fake_quantized_and_integer"]
    console.show_table(f"{result['dataset']}, {result['samples']:,} test images", ("network", "accuracy"), rows)
    if differing is not None:
        console.out.print(f"Fake-quantized and integer classes differ on {differing} of {result['samples']:,} images.")
    compared = f"{result['outputs_compared']:,} outputs of {result['samples']:,} images compared with C"
    if result["mismatches"]:
        console.out.print(f"[bold red]FAILED[/]: {compared}: {result['mismatches']:,} images differ. First: "
                          f"{result['first_mismatch']}.")  # fmt: skip
    else:
        console.out.print(f"[bold green]Verified[/]: {compared}: 0 mismatches.")


def _exit_on_mismatch(result: dict[str, Any]) -> None:
    if result["mismatches"]:
        raise typer.Exit(1)


def _fresh_folder(out: Path) -> Path:
    """Empties an earlier quickstart's folder; refuses any other that is in use."""
    import shutil

    known = ("float", "quantized", "c")
    if out.exists():
        if not out.is_dir() or any(entry.name not in known for entry in out.iterdir()):
            raise BitLabError(f"'{out}' holds other files; choose another folder with --out")
        for name in known:
            shutil.rmtree(out / name, ignore_errors=True)
    return out


def _errors(run: Callable[[], None]) -> Callable[[], None]:
    @wraps(run)
    def guarded() -> None:
        try:
            run()
        except BitLabError as error:
            console.err.print(f"[bold red]error:[/] {console.escape(str(error))}", soft_wrap=True)
            sys.exit(1)

    return guarded


@_errors
def main() -> None:
    """The entry point: one line and exit code 1 for every `BitLabError`."""
    app()


if __name__ == "__main__":
    main()
