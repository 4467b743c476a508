"""`bitlab info`: what a network is made of, and what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitcore.formats import FORMATS
from bitcore.graph import Graph, graph_dot, graph_table
from bitcore.presets import PRESETS
from bitexport.targets import Manifest, get_target, is_export, open_export
from bitlab import console
from bitlab.footprint import LayerFootprint, Totals, layer_footprints, totals
from bitlab.pipeline import Checkpoint, make_graph, open_checkpoint
from bitmodels import find_model, list_models


def show_registries(json: bool) -> None:
    """Shows number formats, presets and models."""
    formats = {
        f.name: {"bits": f.bits, "levels": len(f.levels), "low": f.low, "high": f.high} for f in FORMATS.values()
    }
    if json:
        presets = {name: preset.to_dict() for name, preset in PRESETS.items()}
        console.show_json({"formats": formats, "presets": presets, "models": list_models()})
        return
    rows = [(n, f"{v['bits']:g}", str(v["levels"]), f"{v['low']}…{v['high']}") for n, v in formats.items()]
    console.show_table("Number formats", ("format", "stored bits", "levels", "range"), rows)
    presets = [
        (name, p.weight_format, f"{p.weight_scale} {p.weight_granularity}", p.activation_dtype, p.activation_scale)
        for name, p in PRESETS.items()
    ]
    console.show_table("Presets", ("preset", "weights", "weight scale", "activations", "activation scale"), presets)
    console.show_table("Models", ("model", "family", "options", "own preset"), [_model(name) for name in list_models()])
    console.native_kernels()


def _model(name: str) -> tuple[str, str, str, str]:
    """One model's row: what its name stands for."""
    variant = find_model(name)
    options = ", ".join(f"{key}={value}" for key, value in variant.options.items())
    return name, variant.family.name, options, variant.quant if isinstance(variant.quant, str) else ""


def show_network(path: Path, with_graph: bool, dot: Path | None, json: bool) -> None:
    """Shows one network's layers and totals.

    Raises:
        BitLabError: If the path is no network, or ``--graph`` is asked of one that integers cannot express.
    """
    graph: Graph | None
    layers: list[LayerFootprint] = []
    sizes, arena, why, target = None, None, "", "c"
    if is_export(path):
        artifact, graph = open_export(path)
        manifest = Manifest.load(path)
        target, arena = manifest.target, manifest.places
        sizes = get_target(target).describe(artifact)
    else:
        checkpoint = open_checkpoint(path)
        layers = layer_footprints(checkpoint.model, checkpoint.preprocessing.shape)
        graph, why = _try_graph(checkpoint)
    if graph is None and (with_graph or dot):
        raise BitLabError(why)
    if dot is not None and graph is not None:
        write_atomically(dot, graph_dot(graph))
    size = None if graph is None else totals(graph, sizes)
    if json:
        data = {"layers": [asdict(layer) for layer in layers], "totals": size.to_dict() if size else None}
        console.show_json(data)
        return
    if layers:
        _show_layers(layers)
    if size is None:
        console.out.print(f"No integer graph: {why}")
    else:
        _show_totals(size, chip=target != "engine")
    if graph is not None and (with_graph or not layers):
        console.out.print(graph_table(graph, arena), soft_wrap=True, highlight=False)


def _try_graph(checkpoint: Checkpoint) -> tuple[Graph | None, str]:
    try:
        return make_graph(checkpoint), ""
    except BitLabError as error:
        return None, str(error)


def _show_layers(layers: list[LayerFootprint]) -> None:
    rows = [
        (
            layer.name,
            "×".join(map(str, layer.shape)),
            layer.weights,
            layer.activations,
            f"{layer.bits:g}",
            f"{layer.scale[0]:.3g}"
            if layer.scale[0] == layer.scale[1]
            else f"{layer.scale[0]:.3g}–{layer.scale[1]:.3g}",
            f"{100 * layer.zeros:.1f} %",
            f"{layer.entropy:.2f}",
            "–" if layer.macs is None else f"{layer.macs:,}",
            f"{layer.bytes:,}",
        )
        for layer in layers
    ]
    columns = ("layer", "shape", "weights", "input", "bits", "scale", "zeros", "entropy", "MACs", "bytes")
    console.show_table("Layers", columns, rows)


def _show_totals(size: Totals, chip: bool) -> None:
    console.out.print(
        f"Weights: {console.size(size.weights)}, {size.float32 / size.weights:.1f}× less than float32. "
        f"{'Flash' if chip else 'Memory'}: {console.size(size.constants)} of constants. RAM: {console.size(size.ram)} "
        f"({_memory(size)}). {size.macs:,} MACs, "
        f"{size.multiplications:,} other multiplications."
    )


def _memory(size: Totals) -> str:
    if size.input_in_arena:
        return f"the arena, the input's {size.input:,} B in it"
    return f"arena {size.arena:,} + input {size.input:,}"
