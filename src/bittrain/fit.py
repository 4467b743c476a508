"""Trains a recipe into a run folder, and continues an interrupted run exactly."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitlayers.fusion import fuse_batchnorm, trains_fused
from bitmodels.io import save_model
from bittrain.augment import Augment
from bittrain.build import ModelBuilder, build_model, restore
from bittrain.callbacks import make_callbacks
from bittrain.checkpoint import AtomicCheckpointIO, load_checkpoint
from bittrain.data import ImageData, Split, load_dataset
from bittrain.distill import Distiller, load_teacher
from bittrain.loader import TestLoader, TrainLoader
from bittrain.module import Classifier
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe
from bittrain.record import Recorder, environment
from bittrain.seeds import derive, generator

_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
__all__ = ["Prepared", "build_model", "fit", "prepare", "restore"]

_MAY_CHANGE = {"name", "device", "threads", "checkpoint_steps", "tensorboard"}  # between a run and its continuation


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, ready to train on.

    Attributes:
        data: The dataset at the network's size.
        train: The images to train on.
        source: The same images at the size that is augmented.
        watched: The images measured after each epoch: the held-out ones, or the test split.
        preprocessing: Pixels to input.
        augment: The augmentation, if any.
    """

    data: ImageData
    train: Split
    source: Split
    watched: Split
    preprocessing: Preprocessing
    augment: Augment | None


def prepare(recipe: Recipe) -> Prepared:
    """Loads what a recipe trains and measures on.

    Raises:
        BitLabError: As `load_dataset` and `Augment`.
    """
    data = load_dataset(recipe.dataset, recipe.image_size, recipe.channels)
    train = source = data.train
    if recipe.augment and recipe.augment_size is not None:
        source = load_dataset(recipe.dataset, recipe.augment_size, recipe.channels).train
    watched = data.test.take(torch.arange(min(len(data.test), recipe.max_test_samples or len(data.test))))
    if recipe.max_train_samples or recipe.validation:
        order = torch.randperm(len(train), generator=generator(recipe.seed, "samples"))[: recipe.max_train_samples]
        held_out = int(len(order) * recipe.validation)
        if held_out:
            watched = train.take(order[:held_out])
        train, source = train.take(order[held_out:]), source.take(order[held_out:])
    if not len(train) or not len(watched):
        raise BitLabError("no images are left to train or to measure on; raise max_train_samples or max_test_samples")
    height, width = source.images.shape[2:]
    augment = Augment(recipe.augment, (height, width)) if recipe.augment else None
    return Prepared(data, train, source, watched, data.preprocessing(recipe.normalization), augment)


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

    The folder then holds ``recipe.yaml``, ``environment.json``, ``metrics.csv``, ``tensorboard/``, ``checkpoints/``
    (``last.ckpt``, ``best.ckpt``) and the last weights as ``model.safetensors``, with the preprocessing, the dataset's
    name, the classes and the recipe in its header.

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
    if recipe.device == "gpu" and not torch.cuda.is_available():
        raise BitLabError("device gpu: torch sees no GPU here; use device cpu or auto")
    with _surroundings(recipe):
        methods = make_callbacks(recipe.methods)
        prepared = prepare(recipe)
        data = prepared.data
        extra = {
            "preprocessing": prepared.preprocessing.to_dict(),
            "dataset": recipe.dataset,
            "classes": list(data.classes),
            "recipe": recipe.to_dict(),
        }
        model = build(recipe, data.shape, len(data.classes))
        loader = TrainLoader(
            prepared.train,
            prepared.preprocessing,
            recipe.batch_size,
            recipe.seed,
            prepared.augment,
            prepared.source,
            recipe.augment_probability,
            recipe.augment_copies,
        )
        distiller = _distiller(recipe, prepared, model)
        module = Classifier(model, recipe, len(data.classes), len(loader), extra, distiller)
        recipe.dump(run_dir / "recipe.yaml")
        write_atomically(run_dir / "environment.json", json.dumps(environment(), indent=2) + "\n")
        trainer = _trainer(recipe, run_dir, progress, [*methods, *callbacks], checkpoint)
        batches = trainer.fit_loop.epoch_loop.batch_progress
        loader.position = lambda: (trainer.current_epoch, batches.current.ready)
        watched = TestLoader(prepared.watched, prepared.preprocessing)
        trainer.fit(module, loader, watched, ckpt_path=checkpoint, weights_only=True)
        if trains_fused(model):
            fuse_batchnorm(model)
        save_model(model.cpu(), run_dir / "model.safetensors", extra)
    return run_dir


def _distiller(recipe: Recipe, prepared: Prepared, model: nn.Module) -> Distiller | None:
    """The recipe's teacher, ready to teach the model; ``None`` without one."""
    if recipe.teacher is None:
        return None
    teacher = load_teacher(recipe.teacher, prepared.data.classes, prepared.preprocessing)
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
        distiller.prepare(model, prepared.preprocessing(prepared.train.images[:2]))
    return distiller


def _checkpoint(recipe: Recipe, run_dir: Path, resume: bool | Path | str) -> Path | None:
    """The checkpoint to continue from, checked; ``None`` to start.

    Raises:
        BitLabError: The folder is in use, or the checkpoint is unusable or of another recipe.
    """
    if not resume:
        if run_dir.is_dir() and any(run_dir.iterdir()):
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
    bars: list[Callback] = [RichProgressBar(refresh_rate=20)] if progress else []
    return Trainer(
        accelerator=recipe.device,
        devices=1,
        precision=_PRECISION[recipe.precision],
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.gradient_clip or None,
        logger=logger,
        callbacks=[Recorder(run_dir, recipe.checkpoint_steps), *callbacks, *bars],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1 << 30,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )


@contextmanager
def _surroundings(recipe: Recipe) -> Iterator[None]:
    """Sets threads, keeps Lightning quiet, and leaves the process as it was."""
    threads = torch.get_num_threads()
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
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
