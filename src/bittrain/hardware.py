"""What a recipe asks of the machine, and which of its processes this one is."""

from __future__ import annotations

import os
import warnings

import torch
from lightning.pytorch.utilities import rank_zero_only

from bitcore.errors import BitLabError, BitLabWarning
from bittrain.recipe import Recipe


def is_first_process() -> bool:
    """Whether this is the one, among those that share the work, that writes and reports."""
    return not getattr(rank_zero_only, "rank", None)


def check_hardware(recipe: Recipe) -> None:
    """Refuses what the machine cannot do, before anything else happens.

    Raises:
        BitLabError: Too few GPUs, an option that needs one where there is none, or another number of processes.
    """
    processes = recipe.devices * recipe.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ and (started := int(os.environ["WORLD_SIZE"])) != processes:
        raise BitLabError(
            f"torchrun started {started} processes, devices times num_nodes is {processes}; make it equal"
        )
    gpus = 0 if recipe.device == "cpu" else torch.cuda.device_count()
    if recipe.device == "gpu" and not gpus:
        raise BitLabError("device gpu: torch sees no GPU here; use device cpu or auto")
    if gpus and recipe.devices > gpus:
        raise BitLabError(f"devices {recipe.devices}: torch sees {gpus} GPUs here; set devices to at most {gpus}")
    needs = {
        "strategy fsdp": (recipe.strategy == "fsdp", "strategy ddp"),
        "sync_batchnorm": (recipe.sync_batchnorm, "no sync_batchnorm"),
        "precision 16": (recipe.precision == "16", "precision bf16"),
    }
    for option, (asked, instead) in needs.items():
        if asked and not gpus:
            raise BitLabError(f"{option} needs a GPU, and training is on the CPU here; use {instead}")


def warn_without_gpu(recipe: Recipe, images: int) -> None:
    """Says how much lies ahead of a recipe that is made for a GPU where there is none; ``device: cpu`` accepts it.

    Args:
        recipe: The recipe.
        images: Those of an epoch.
    """
    if recipe.gpu and recipe.device == "auto" and not torch.cuda.is_available() and is_first_process():
        warnings.warn(
            f"{recipe.name} is made for a GPU, and torch sees none here: {recipe.epochs} epochs of {images:,} images "
            "lie ahead on the CPU; --epochs and --max-train-samples make it shorter",
            BitLabWarning,
            stacklevel=2,
        )
