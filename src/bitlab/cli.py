"""The command line, one function a command; `bitlab --help` lists them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from bitcore.errors import BitLabError, unknown
from bitlab import console, process, reports
from bitlab.arguments import Command, TrainCommand, dashes
from bitlab.options import recipe_flags

app = typer.Typer(
    help="Low-bit neural networks: train them, export them to C, and prove that every bit is the same.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": dashes},
    pretty_exceptions_enable=False,
)

CheckpointPath = Annotated[
    Path, typer.Argument(help="A run folder, its model.safetensors, or a training checkpoint (.ckpt).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Dataset = Annotated[str | None, typer.Option(help="Another dataset than the one it was trained on.")]
Samples = Annotated[int | None, typer.Option("--max-samples", min=1, help="Use only the first so many images.")]
Inputs = Annotated[
    Path | None,
    typer.Option(help="Run these instead, an array [samples, ...] (.npy): the network's integers, or floats."),
]
Labels = Annotated[Path | None, typer.Option(help="The classes of --inputs, an array [samples] (.npy).")]
Optimize = Annotated[
    str | None,
    typer.Option(help="speed, or flash: a smaller, slower runtime; by default speed, and flash if that does not fit."),
]
_MEASURED = ("dataset", "max_test_samples")  # the options of a recipe that `train --evaluate` reads
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


@app.command(cls=Command)
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the results; an earlier quickstart in it is replaced.")] = Path(
        "quickstart"
    ),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on real digits, export to C, compile, verify every test image: the whole path in a minute."""
    from bitlab.quickstart import run_quickstart
    from bittrain.run_folder import lock_folder

    with lock_folder(out):
        result = run_quickstart(out, progress=not (quiet or json))
    if json:
        console.show_json(result)
    else:
        reports.show_report(result)
        sizes = result["sizes"]
        rows = [
            (
                "weights",
                console.size(sizes["weights"]),
                f"{sizes['float32'] / sizes['weights']:.1f}× less than float32",
            ),
            ("flash", console.size(sizes["constants"]), "weights and other constants; code comes on top"),
            ("RAM", console.size(sizes["ram"]), f"arena and input ({sizes['input']} B) share it; without the stack"),
        ]
        console.show_table("Size", ("", "bytes", ""), rows)
        console.out.print(f"{result['seconds']} s. The C code: {result['folders']['c']}; see its README.md.")
        console.native_kernels()
    _exit_on_mismatch(result)


@app.command(cls=TrainCommand)
@recipe_flags
def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe (YAML), or a run's folder; without one, a small network on digits.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "--save-path", help="Run folder; by default RESULTS_DIR/SAVE, or the resumed one."),
    ] = None,
    results_dir: Annotated[Path, typer.Option("--results-dir", help="Where run folders lie.")] = Path("runs"),
    save: Annotated[str | None, typer.Option("--save", help="Name of the run folder; by default the run's.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data-path", "--data", help="Folder of the datasets; by default $BITLAB_DATA.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--evaluate", "-e", help="Only measure this checkpoint, on the recipe's data.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, exactly.")] = False,
    float_twin: Annotated[
        bool, typer.Option("--float-twin", help="Train the full-precision twin instead (quant: none).")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
    **flags: Any,
) -> None:
    """Train a recipe. Every line of a recipe is also a flag; flags win."""
    from bitlab.pipeline import find_run, measure, open_checkpoint
    from bittrain.fit import fit, is_first_process
    from bittrain.unused import load_with_flags

    if data is not None:
        if not data.is_dir():
            raise BitLabError(f"--data-path {data}: there is no such folder")
        os.environ["BITLAB_DATA"] = str(data)
    if recipe is not None and (run := find_run(recipe)):
        recipe, out = run / "recipe.yaml", out or (run if resume else None)
    if out is not None and (save is not None or results_dir != Path("runs")):
        raise BitLabError("--out names the whole folder; leave --save and --results-dir out")
    chosen, ignored = load_with_flags(recipe, flags)
    if checkpoint is not None:
        ignored = [f"{name} (--evaluate only measures)" for name in flags if name not in _MEASURED]
    if ignored and is_first_process():
        console.note(f"ignored: {', '.join(ignored)}")
    if float_twin:
        chosen = chosen.full_precision()
    if checkpoint is not None:
        given = chosen.dataset if recipe or "dataset" in flags else None
        result = measure(open_checkpoint(checkpoint), given, chosen.max_test_samples)
    else:
        folder = fit(chosen, out or results_dir / (save or chosen.name), resume=resume, progress=not (quiet or json))
        if not is_first_process():
            return
        result = {"folder": str(folder), **measure(open_checkpoint(folder), max_samples=chosen.max_test_samples)}
    if json:
        console.show_json(result)
    else:
        reports.show_measure(result)


@app.command(cls=Command)
def evaluate(checkpoint: CheckpointPath, dataset: Dataset = None, samples: Samples = None, json: Json = False) -> None:
    """Measure a checkpoint's accuracy on the test images."""
    from bitlab.pipeline import measure, open_checkpoint

    result = measure(open_checkpoint(checkpoint), dataset, samples)
    if json:
        console.show_json(result)
    else:
        reports.show_measure(result)


@app.command(cls=Command)
def quantize(
    checkpoint: CheckpointPath,
    preset: Annotated[str, typer.Option(help="Quantization preset, see bitlab info.")],
    calibrate: Annotated[int, typer.Option(min=1, help="Training images that ranges are found from.")] = 1024,
    quant_overrides: Annotated[
        list[str] | None,
        typer.Option(help="Other quantization for layers: PATTERN=PRESET, or PATTERN={field: value}; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder to write; by default RUN-PRESET.")] = None,
    json: Json = False,
) -> None:
    """Quantize a full-precision run without training it; the folder is then like a trained run's."""
    from bitlab.pipeline import measure, open_checkpoint
    from bittrain.quantizing import quantize_run

    opened = open_checkpoint(checkpoint)
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent
    folder = out or run.with_name(f"{run.name}-{preset}")
    quantize_run(opened.model, opened.extra, folder, preset, quant_overrides or (), calibrate)
    before, after = measure(opened), measure(open_checkpoint(folder))
    result = {"folder": str(folder), **after, "full_precision": before["accuracy"]}
    if json:
        console.show_json(result)
    else:
        reports.show_measure(result)
        console.out.print(f"Full precision: {console.percent(before['accuracy'])}")


@app.command(cls=Command)
def export(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; new, empty, or an earlier export.")],
    name: Annotated[str, typer.Option(help="Name of the network in C.")] = "network",
    target: Annotated[
        str, typer.Option(help="c or host for any machine, or a chip that must hold it: rv32ec, cortex-m0, ...")
    ] = "c",
    optimize: Optimize = None,
    json: Json = False,
) -> None:
    """Write a network as C99 source that computes the same bits."""
    from bitexport.targets import Manifest, get_target
    from bitlab import pipeline
    from bitlab.footprint import totals

    opened = pipeline.open_checkpoint(checkpoint)
    artifact, graph = pipeline.export(opened, out, name, target, optimize)
    sizes = totals(graph, get_target(target).describe(artifact))
    used = None if target == "engine" else Manifest.load(artifact.folder).optimize
    if json:
        shown = {"folder": str(artifact.folder), "name": name, "optimize": used, "sizes": sizes.to_dict()}
        console.show_json(shown)
        return
    if used == "flash" and optimize is None:
        console.out.print(f"The fast runtime does not fit {target}: the compact one is used (--optimize flash).")
    written = "the integer graph" if target == "engine" else f"{name}.c, {name}.h, the runtime and a README"
    console.out.print(
        f"{artifact.folder}: {written}. "
        f"Constants {console.size(sizes.constants)}, arena {console.size(sizes.arena)}, {sizes.macs:,} MACs."
    )
    if target != "engine" and (rice := Manifest.load(artifact.folder).rice):
        console.out.print(f"Rice codes in {', '.join(rice)}: README.md says what they save and cost.")


@app.command(cls=Command)
def measure(
    folder: Annotated[Path, typer.Argument(help="An exported folder.")],
    target: Annotated[
        str | None, typer.Option(help="host, wasm32 or a chip; by default the one it was exported for.")
    ] = None,
    dataset: Dataset = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="The first so many test images.")] = 100,
    all: Annotated[bool, typer.Option("--all", help="All test images.")] = False,
    inputs: Inputs = None,
    labels: Labels = None,
    json: Json = False,
) -> None:
    """Run an exported network in an emulator of its chip: accuracy, equality, flash, RAM, instructions, time."""
    from bitlab.measure import measure_export, rows_of

    result = measure_export(folder, target, dataset, None if all else samples, inputs, labels)
    if json:
        console.show_json(result)
    else:
        console.show_table(f"{result['name']} on {result['chip']}", ("", "", ""), rows_of(result))
    _exit_on_mismatch(result)


@app.command(cls=Command)
def fit(
    target: Annotated[str, typer.Option(help="The chip: rv32ec, cortex-m0, ...")],
    dataset: Annotated[str, typer.Option(help="The dataset.")] = "mnist",
    flash: Annotated[str | None, typer.Option(help="Bytes of flash, as 8k; by default the chip's.")] = None,
    ram: Annotated[
        str | None, typer.Option(help="Bytes of RAM, with input and stack, as 2k; by default the chip's.")
    ] = None,
    instructions: Annotated[str | None, typer.Option(help="Instructions (AVR: cycles) of an image, as 500k.")] = None,
    family: Annotated[str, typer.Option(help="mcunet or mlp.")] = "mcunet",
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="A weight format to choose; repeatable.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="How to train: a recipe; its network is replaced.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Networks to train.")] = 30,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the longest training in the search.")] = 18,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Height and width of the images; by default at most 16.")
    ] = None,
    validation: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the training images that networks are judged by.")
    ] = 0.1,
    max_train_samples: Annotated[int | None, typer.Option(min=1, help="Search on so many training images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of search and trainings.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for study.json, pareto.png and best.yaml.")] = Path("fit"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in the folder.")] = False,
    json: Json = False,
) -> None:
    """Search the most accurate network for a chip and budgets of flash, RAM and instructions."""
    from bitlab import fit as search
    from bitlab.fit_cost import parse_budget
    from bitlab.fit_space import DEFAULT_FORMATS
    from bittrain.recipe import Recipe
    from bittrain.run_folder import lock_folder

    budget = parse_budget(target, flash, ram, instructions)
    base = Recipe.load(recipe) if recipe else search.RECIPE
    size = search.fit_image_size(dataset, image_size or base.image_size)
    base = base.replace(dataset=dataset, seed=seed, validation=0, image_size=size)
    chosen = tuple(formats or DEFAULT_FORMATS)
    wanted = search.Search(target, budget, base, epochs, family, chosen, validation, max_train_samples)
    with lock_folder(out), console.err.status("") as status:
        show = (lambda _: None) if json else reports.show_trial
        fitter = search.Fitter(wanted, out, resume, show, status.update)
        fitter.run(trials)
    best = fitter.best
    if json:
        console.show_json({"folder": str(out), "best": best})
    elif best is not None:
        reports.show_trial(best, "Best")
        console.out.print(f"{out}: study.json, pareto.png, best.yaml. Train it: bitlab train {out / 'best.yaml'}")
        if best.get("optimize") == "flash":
            console.out.print("It fits with the compact runtime: bitlab export with --optimize flash")
    if best is None:
        raise BitLabError(f"no network was trained to the end within the budget; go on with --resume --out {out}")


@app.command(cls=Command)
def verify(
    path: Annotated[Path, typer.Argument(help="An exported folder, a run folder or a checkpoint.")],
    float_twin: Annotated[
        Path | None, typer.Option("--float-twin", help="Checkpoint of the full-precision twin, for its accuracy.")
    ] = None,
    dataset: Dataset = None,
    samples: Samples = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="What to compare: c, or engine (the CPU kernels); by default what it was exported for, or c."
        ),
    ] = None,
    inputs: Inputs = None,
    labels: Labels = None,
    json: Json = False,
) -> None:
    """Prove that the C code gives the same bits: every output of every test image, against the interpreter."""
    from bitexport.targets import TARGETS
    from bitlab import pipeline

    if target is not None and target not in TARGETS:
        raise unknown("target", target, TARGETS)
    result = pipeline.verify(path, float_twin, dataset, samples, target, inputs, labels).to_dict()
    if json:
        console.show_json(result)
    else:
        reports.show_report(result)
    _exit_on_mismatch(result)


@app.command(cls=Command)
def info(
    path: Annotated[Path | None, typer.Argument(help="A run folder, a checkpoint or an exported folder.")] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Show the integer graph and its memory plan.")] = False,
    dot: Annotated[Path | None, typer.Option("--dot", help="Write the integer graph for Graphviz.")] = None,
    json: Json = False,
) -> None:
    """Show layers, formats and sizes of a network; without one, the formats, presets and models there are."""
    from bitlab import inspection

    if path is None and (graph or dot):
        raise BitLabError("--graph and --dot show a network; name its run folder, checkpoint or exported folder")
    if path is None:
        inspection.show_registries(json)
    else:
        inspection.show_network(path, graph, dot, json)


@app.command(cls=Command)
def doctor(json: Json = False) -> None:
    """Show what this machine has, test every kernel on it, and say which ones run."""
    from bitlab.doctor import examine, show

    result = examine()
    if json:
        console.show_json(result)
    else:
        show(result)
    if not result["healthy"]:
        raise typer.Exit(1)


@app.command(cls=Command)
def bench(
    out: Annotated[Path, typer.Option("--out", help="Where to write the results (JSON).")] = Path("bench.json"),
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each contestant.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="The most threads, from 1 on.")] = 2,
    roofline: Annotated[Path | None, typer.Option(help="Draw the roofline (PNG); needs matplotlib.")] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table into this Markdown page.")] = None,
) -> None:
    """Time packed layers against torch, onnxruntime and ggml, and against the machine's limits."""
    from bitlab import bench

    if page is not None:
        bench.check_page(page)
    results = bench.run(range(1, threads + 1), rounds)
    bench.publish(results, out, page)
    if roofline is not None:
        bench.draw(results, roofline)


@app.command(cls=Command)
def publish(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    float_twin: Annotated[Path, typer.Option("--float-twin", help="Run folder of the full-precision twin.")],
    chips: Annotated[
        list[str] | None,
        typer.Option("--chip", help="Measure it on this microcontroller, NAME or NAME:flash, NAME:speed; repeatable."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images that each chip runs.")] = 20,
    target: Annotated[str, typer.Option(help="What to compare with the interpreter: c, or engine.")] = "c",
    compared: Samples = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("results"),
) -> None:
    """Verify a run on its whole test set and keep its figures as JSON, for the tables of the documentation."""
    from bitlab import results

    path = results.publish(run, float_twin, out, chips or (), samples, target, compared)
    console.out.print(f"{path} is written; refresh the README's tables with: python -m bitlab.results")


def _exit_on_mismatch(result: dict[str, Any]) -> None:
    if result["mismatches"]:
        raise typer.Exit(1)


def main() -> None:
    """The entry point: one line and exit code 1 for every `BitLabError`, 128 + N where signal N ends it."""
    process.keep_freed_memory()
    with process.errors_as_lines():
        app()


if __name__ == "__main__":
    main()
