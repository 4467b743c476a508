"""Trains a recipe into a run folder, and continues an interrupted run exactly."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitlayers.fusion import fuse_batchnorm, trains_fused
from bitlayers.shapes import for_shapes
from bitmodels.io import save_model
from bittrain.augment import resize
from bittrain.build import ModelBuilder, build_model, restore, start_from
from bittrain.callbacks import FreshStatistics, StagedQuantization, make_callbacks
from bittrain.checkpoint import AtomicCheckpointIO, load_checkpoint
from bittrain.distill import Distiller
from bittrain.ema import WeightAverage
from bittrain.evaluate import predict_batches
from bittrain.loader import TestLoader
from bittrain.module import Classifier
from bittrain.plots import confusion, draw_confusion, draw_curve
from bittrain.prepare import Prepared, prepare
from bittrain.progress import ProgressBar
from bittrain.recipe import Recipe
from bittrain.record import Recorder, environment
from bittrain.seeds import derive
from bittrain.teachers import load_teacher

_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
__all__ = ["Prepared", "build_model", "fit", "prepare", "restore"]

_MAY_CHANGE = {  # between a run and its continuation
    "name",
    "device",
    "threads",
    "workers",
    "checkpoint_steps",
    "tensorboard",
    "plots",
    "gpu",
}


def fit(
    recipe: Recipe,
    run_dir: Path | str,
    *,
    resume: bool | Path | str = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    build: ModelBuilder = build_model,
) -> Path:
    """Trains a recipe.

    The folder then holds ``recipe.yaml``, ``environment.json``, ``metrics.csv``, ``curve.png``, ``confusion.png`` (of
    the watched images), ``tensorboard/``, ``checkpoints/`` (``last.ckpt``, ``best.ckpt``) and the last weights (or
    their running average) as ``model.safetensors``, with the preprocessing, the dataset's name, the classes and the
    recipe in its header.

    On the CPU a run that was interrupted anywhere, even killed, and continued ends with the same bits as one that
    was not: batches, augmentation and dropout are functions of the seed and the step alone.

    Args:
        recipe: The options.
        run_dir: The run's folder: new or empty, unless resumed.
        resume: ``True`` continues from ``checkpoints/last.ckpt`` (from the start, where there is none yet); a path
            from that checkpoint.
        progress: Whether to show a progress bar.
        callbacks: More Lightning callbacks.
        build: Makes the model.

    Returns:
        The run's folder.

    Raises:
        BitLabError: Anything that the user can change: wrong names, an unusable folder or checkpoint, a recipe that
            differs from the interrupted run's, a loss that is no number.
    """
    run_dir = Path(run_dir)
    checkpoint = _checkpoint(recipe, run_dir, resume)
    _check_hardware(recipe)
    if recipe.start_epoch >= recipe.epochs:
        raise BitLabError(f"start_epoch {recipe.start_epoch} leaves nothing to train of {recipe.epochs} epochs")
    with _surroundings(recipe):
        methods = make_callbacks(recipe.methods)
        average = [WeightAverage(recipe.ema)] if recipe.ema else []
        trainer = _trainer(recipe, run_dir, progress, [*methods, FreshStatistics(), *average, *callbacks], checkpoint)
        rank, processes = trainer.global_rank, trainer.world_size
        stages = [method.name for method in methods if isinstance(method, StagedQuantization)]
        if len(stages) > 1:
            raise BitLabError(f"methods {' and '.join(stages)} both requantize in stages; keep one of them")
        if stages and processes > 1:
            raise BitLabError(f"method {stages[0]} trains in one process; set devices and num_nodes to 1")
        prepared = prepare(recipe, rank, processes)
        classes, shape = prepared.data.classes, prepared.preprocessing.shape
        extra = {
            "preprocessing": prepared.preprocessing.to_dict(),
            "dataset": recipe.dataset,
            "classes": list(classes),
            "recipe": recipe.to_dict(),
        }
        model = build(recipe, shape, len(classes))
        _check_input(model, recipe, shape)
        if recipe.init is not None and checkpoint is None:
            start_from(model, recipe.init)
        distiller = _distiller(recipe, prepared, model)
        loader, watched = prepared.loaders(trainer.strategy.root_device, rank, processes)
        module = Classifier(_as_asked(model, recipe), recipe, len(classes), len(loader), extra, distiller)
        batches = trainer.fit_loop.epoch_loop.batch_progress
        loader.position = lambda: (trainer.current_epoch, batches.current.ready)
        if trainer.is_global_zero:
            recipe.dump(run_dir / "recipe.yaml")
            write_atomically(run_dir / "environment.json", json.dumps(environment(), indent=2) + "\n")
        with _nothing_half_written(run_dir, trainer, resume), _clear_errors():
            trainer.fit(module, loader, watched, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            if average and average[0].average:
                model.load_state_dict(average[0].average)
            if trains_fused(model):
                fuse_batchnorm(model, inplace=True)
            model.cpu().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            save_model(model, run_dir / "model.safetensors", extra)
            if recipe.plots:
                _draw(run_dir, model, watched, classes)
    return run_dir


def _check_hardware(recipe: Recipe) -> None:
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


def _as_asked(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model with its memory format, and compiled, in place."""
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.compile:
        model.compile()
    return model


_REMEDIES = {
    "Connection closed by peer": "another process of this training ended; its error is the one to look at",
    "Expected more than 1 value per channel": "batch norm needs two images a step or more; set a larger batch_size",
    "CUDA out of memory": "the GPU's memory is full; set a smaller batch_size (accumulate adds batches up)",
}
"""What torch's errors mean, by words of theirs."""


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Says in one line what a user can change about an error from within torch."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        for words, meaning in _REMEDIES.items():
            if words in str(error):
                raise BitLabError(meaning) from None
        reason = " ".join(str(error).split("\n\n")[0].split())
        if "does not have a deterministic implementation" in reason:
            raise BitLabError(f"deterministic: {reason.split('.')[0]}; set no deterministic") from None
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise BitLabError(
                f"torch.compile failed ({reason}); on CPUs it needs a C++ compiler; or set no compile"
            ) from None
        raise


@contextmanager
def _nothing_half_written(run_dir: Path, trainer: Trainer, resume: bool | Path | str) -> Iterator[None]:
    """Removes a new run's folder if the run fails before there is a checkpoint that it could go on from."""
    try:
        yield
    except Exception:
        if trainer.is_global_zero and not resume and not (run_dir / "checkpoints").exists():
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _check_input(model: nn.Module, recipe: Recipe, shape: tuple[int, int, int]) -> None:
    """Runs a new model once, in eval mode, which leaves it as it is.

    Raises:
        BitLabError: It cannot take such images: most often they are too small.
    """
    try:
        with torch.no_grad(), for_shapes(model):
            model(torch.zeros(1, *shape))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        images = "×".join(map(str, shape))
        raise BitLabError(
            f"model '{recipe.model}' cannot take images of {images} ({reason}); set another image_size or model_options"
        ) from None


def _draw(run_dir: Path, model: nn.Module, watched: TestLoader, classes: Sequence[str]) -> None:
    """Draws the run's pictures."""
    if (run_dir / "metrics.csv").is_file():
        draw_curve(run_dir / "metrics.csv", run_dir / "curve.png")
    counts = confusion(*predict_batches(model, TestLoader(watched.split, watched.preprocessing)), len(classes))
    draw_confusion(counts, classes, run_dir / "confusion.png")


def _distiller(recipe: Recipe, prepared: Prepared, model: nn.Module) -> Distiller | None:
    """The recipe's teacher, ready to teach the model; ``None`` without one.

    Raises:
        BitLabError: Features are to be compared without a teacher, or in a compiled model; or the teacher does not fit.
    """
    if recipe.teacher is None:
        if recipe.hint_weight or recipe.attention_weight or recipe.hint_layers:
            raise BitLabError(
                "hint_weight, attention_weight and hint_layers need a teacher; name one, or leave them out"
            )
        return None
    if recipe.hint_layers and recipe.compile:
        raise BitLabError("hint_layers look into the model, which compile does not allow; use one of the two")
    teacher = load_teacher(recipe.teacher, prepared.data.classes, prepared.preprocessing)
    images = resize(prepared.train.sample(2), prepared.preprocessing.image_size)
    distiller = Distiller(
        teacher,
        temperature=recipe.kd_temperature,
        alpha=recipe.kd_alpha,
        hint_weight=recipe.hint_weight,
        attention_weight=recipe.attention_weight,
        layers=recipe.hint_layers,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed, "projections"))
        distiller.prepare(model, prepared.preprocessing(images))
    return distiller


def _checkpoint(recipe: Recipe, run_dir: Path, resume: bool | Path | str) -> Path | None:
    """The checkpoint to continue from, checked; ``None`` to start.

    Raises:
        BitLabError: The folder is in use, or the checkpoint is unusable or of another recipe.
    """
    if not resume:
        if is_first_process() and run_dir.is_dir() and any(run_dir.iterdir()):
            raise BitLabError(f"{run_dir} is not empty; resume that run, or choose another folder")
        return None
    path = run_dir / "checkpoints" / "last.ckpt" if resume is True else Path(resume)
    if resume is True and not path.exists():
        return None
    before = Recipe.from_dict(load_checkpoint(path)["bitlab"]["recipe"])
    for spec in fields(Recipe):
        old, new = getattr(before, spec.name), getattr(recipe, spec.name)
        if old != new and spec.name not in _MAY_CHANGE:
            raise BitLabError(f"{path} was trained with {spec.name} = {old}, not {new}; resume with the same recipe")
    return path


def _trainer(
    recipe: Recipe, run_dir: Path, progress: bool, callbacks: Sequence[Callback], checkpoint: Path | None
) -> Trainer:
    """Lightning's trainer without what costs time at every step."""
    logger: Any = False
    if recipe.tensorboard:
        step = load_checkpoint(checkpoint)["global_step"] if checkpoint else None
        logger = TensorBoardLogger(run_dir, name="tensorboard", version="", purge_step=step)
    images = recipe.batch_size * recipe.devices * recipe.num_nodes
    bars: list[Callback] = [ProgressBar(images)] if progress else []
    trainer = Trainer(
        accelerator=recipe.device,
        devices=recipe.devices,
        num_nodes=recipe.num_nodes,
        strategy=recipe.strategy,
        sync_batchnorm=recipe.sync_batchnorm,
        accumulate_grad_batches=recipe.accumulate,
        deterministic=recipe.deterministic,
        precision=_PRECISION[recipe.precision],
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.gradient_clip or None,
        logger=logger,
        callbacks=[Recorder(run_dir, recipe.checkpoint_steps, recipe.early_stop), *callbacks, *bars],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1 << 30,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )
    first: Any = trainer.fit_loop.epoch_progress.current  # a checkpoint replaces it
    first.ready = first.started = first.processed = first.completed = recipe.start_epoch
    return trainer


def is_first_process() -> bool:
    """Whether this is the one, among those that share the work, that writes and reports."""
    return not getattr(rank_zero_only, "rank", None)


@contextmanager
def _surroundings(recipe: Recipe) -> Iterator[None]:
    """Sets threads, keeps Lightning quiet, and leaves the process as it was."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    try:
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        for log in logs:
            log.setLevel(logging.ERROR)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*log_every_n_steps.*")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
