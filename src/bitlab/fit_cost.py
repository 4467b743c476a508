"""What a network takes on a chip, and what it may take."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from bitcore.errors import BitLabError, unknown
from bitcore.graph import Graph
from bitcore.graph.ops import Ints
from bitexport import lower
from bitexport.targets import OPTIMIZE, CTarget, Manifest
from bitexport.targets.c.chips import CHIPS, Chip
from bitexport.targets.c.emulate import Emulation, emulate
from bitexport.targets.c.firmware import DoesNotFitError
from bitlab.fit_space import parse_count
from bitlayers.fusion import fuse_batchnorm, train_fused
from bittrain.build import build_model
from bittrain.prepare import Prepared
from bittrain.recipe import Recipe

_IMAGES = 4  # that the emulator runs for each candidate


@dataclass(frozen=True)
class Budget:
    """The most that a network may take.

    Attributes:
        flash: Bytes of flash, code and start-up included.
        ram: Bytes of RAM, input and stack included.
        instructions: Instructions of an image (AVR: cycles); ``None`` for any number.
    """

    flash: int
    ram: int
    instructions: int | None = None


@dataclass(frozen=True)
class Cost:
    """What a network takes on a chip, in the units of `Budget`; ``None`` where it is too large to say.

    Attributes:
        flash: See `Budget`; so are ram and instructions.
        optimize: The runtime, one of `bitexport.targets.OPTIMIZE`.
    """

    flash: int | None
    ram: int | None
    instructions: int | None
    optimize: str = OPTIMIZE[0]

    def excess(self, budget: Budget) -> str:
        """Says what exceeds the budget; empty if nothing does."""
        values, words = asdict(self), []
        for name, limit in asdict(budget).items():
            value = values[name]
            if value is not None and limit is not None and value > limit:
                words.append(f"{name} {value:,} > {limit:,}")
        return ", ".join(words)


def find_chip(target: str) -> Chip:
    """Returns a chip with flash and RAM.

    Raises:
        BitLabError: There is none of that name; the nearest is given.
    """
    chips = {name: chip for name, chip in CHIPS.items() if chip.flash}
    if target not in chips:
        raise unknown("target", target, chips)
    return chips[target]


def parse_budget(target: str, flash: str | None, ram: str | None, instructions: str | None) -> Budget:
    """Returns a budget from what a user writes; what is left out is the chip's.

    Raises:
        BitLabError: The chip is unknown or smaller, or a size is none.
    """
    chip = find_chip(target)
    sizes = {}
    for name, text, limit in (("flash", flash, chip.flash), ("ram", ram, chip.ram)):
        sizes[name] = parse_count(text, name) if text else limit
        if sizes[name] > limit:
            raise BitLabError(f"{name} {text} is more than the {chip.chip} ({target}) has; at most {limit}")
    return Budget(**sizes, instructions=parse_count(instructions, "instructions", 1000) if instructions else None)


def measure_cost(model: nn.Module, prepared: Prepared, chip: Chip, budget: Budget) -> Cost:
    """Builds a model for a chip and runs a few training images in the emulator.

    The compact runtime is taken where the fast one exceeds the budget's flash or RAM.

    Raises:
        BitLabError: A tool is missing, the model cannot be lowered, or the chip computes something else.
    """
    shape = prepared.preprocessing.shape
    graph = lower(model, shape)
    codes = graph.input.quantize(prepared.preprocessing(prepared.train.sample(_IMAGES)))
    cost = _cost(graph, chip, codes, OPTIMIZE[0])
    if Cost(cost.flash, cost.ram, None, cost.optimize).excess(budget):
        cost = _cost(graph, chip, codes, OPTIMIZE[1])
    return cost


def _cost(graph: Graph, chip: Chip, codes: Ints, optimize: str) -> Cost:
    for room in (None, chip):  # the second one trades time for RAM where the first does not fit
        try:
            found = _emulate(graph, CTarget(room, optimize), chip, codes)
            break
        except DoesNotFitError as over:
            cost = Cost(
                chip.flash + over.flash if over.flash > 0 else None,
                chip.ram + over.ram if over.ram > 0 else None,
                None,
                optimize,
            )
            if over.flash > 0:
                return cost
    else:
        return cost
    if (found.outputs != graph.run(codes)).any():
        raise BitLabError(f"{chip.name} computes other outputs than the interpreter; please report this network")
    assert found.size is not None  # chips with flash have it
    return Cost(found.size.flash, found.ram, round(float(found.counts.mean())), optimize)


def _emulate(graph: Graph, target: CTarget, chip: Chip, codes: Ints) -> Emulation:
    with tempfile.TemporaryDirectory(prefix="bitlab-") as temporary:
        folder = Path(temporary) / "network"
        target.emit(graph, folder, "network")
        return emulate(chip, folder, Manifest.load(folder), codes)


def untrained(recipe: Recipe, prepared: Prepared) -> nn.Module:
    """Builds a recipe's model, with the ranges of its activations from one batch, and batch norm folded in if asked."""
    shape, classes = prepared.preprocessing.shape, len(prepared.data.classes)
    model = build_model(recipe, shape, classes)
    fused = any(method.split()[0] == "fused-batch-norm" for method in recipe.methods)
    if fused:
        train_fused(model, inplace=True)
    with torch.no_grad():
        model.train()(prepared.preprocessing(prepared.train.sample(256)))
    return (fuse_batchnorm(model, inplace=True) if fused else model).eval()
