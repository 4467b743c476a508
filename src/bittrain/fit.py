"""Trains a recipe into a run folder, and continues an interrupted run exactly."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
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
from bittrain.hardware import check_hardware, is_first_process, warn_without_gpu
from bittrain.interrupts import Interrupted, interruptible, listen, raise_again
from bittrain.loader import TestLoader
from bittrain.module import Classifier
from bittrain.plots import confusion, draw_confusion, draw_curve
from bittrain.prepare import Prepared, prepare
from bittrain.progress import ProgressBar
from bittrain.recipe import Recipe
from bittrain.record import Recorder, environment
from bittrain.run_folder import is_used, lock_folder, nothing_half_written, what_is_kept
from bittrain.seeds import derive
from bittrain.teachers import load_teacher
from bittrain.unused import refuse_unused, without_unused

_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
__all__ = ["Prepared", "build_model", "fit", "is_first_process", "prepare", "restore"]

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
    check_hardware(recipe)
    refuse_unused(recipe)
    if recipe.start_epoch >= recipe.epochs:
        raise BitLabError(f"start_epoch {recipe.start_epoch} leaves nothing to train of {recipe.epochs} epochs")
    writes = is_first_process()  # of those that share the work
    lock = lock_folder(run_dir) if writes else nullcontext()
    tidy = nothing_half_written(run_dir) if writes and not resume else nullcontext()
    with interruptible(), what_is_kept(run_dir), lock, _surroundings(recipe):
        checkpoint = _checkpoint(recipe, run_dir, resume)
        run = _Run(recipe, run_dir, checkpoint, progress, callbacks, build)
        with tidy, _clear_errors(), _children(run.trainer):
            run.train()
        if run.trainer.is_global_zero:
            run.save()
    return run_dir


class _Run:
    """A training, ready to begin."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        checkpoint: Path | None,
        progress: bool,
        callbacks: Sequence[Callback],
        build: ModelBuilder,
    ) -> None:
        """As `fit`."""
        self.recipe, self.run_dir, self.checkpoint = recipe, run_dir, checkpoint
        methods = make_callbacks(recipe.methods)
        self.average = WeightAverage(recipe.ema) if recipe.ema else None
        average = [self.average] if self.average else []
        self.trainer = trainer = _trainer(
            recipe, run_dir, progress, [*methods, FreshStatistics(), *average, *callbacks], checkpoint
        )
        rank, processes = trainer.global_rank, trainer.world_size
        stages = [method.name for method in methods if isinstance(method, StagedQuantization)]
        if len(stages) > 1:
            raise BitLabError(f"methods {' and '.join(stages)} both requantize in stages; keep one of them")
        if stages and processes > 1:
            raise BitLabError(f"method {stages[0]} trains in one process; set devices and num_nodes to 1")
        prepared = prepare(recipe, rank, processes)
        self.classes, shape = prepared.data.classes, prepared.preprocessing.shape
        self.extra = {
            "preprocessing": prepared.preprocessing.to_dict(),
            "dataset": recipe.dataset,
            "classes": list(self.classes),
            "recipe": recipe.to_dict(),
        }
        self.model = build(recipe, shape, len(self.classes))
        _check_input(self.model, recipe, shape)
        if recipe.init is not None and checkpoint is None:
            start_from(self.model, recipe.init)
        distiller = _distiller(recipe, prepared, self.model)
        self.loader, self.watched = prepared.loaders(trainer.strategy.root_device, rank, processes)
        warn_without_gpu(recipe, len(self.loader) * recipe.batch_size * processes)
        model = _as_asked(self.model, recipe)
        self.module = Classifier(model, recipe, len(self.classes), len(self.loader), self.extra, distiller)
        batches = trainer.fit_loop.epoch_loop.batch_progress
        self.loader.position = lambda: (trainer.current_epoch, batches.current.ready)

    def train(self) -> None:
        """Trains to the end."""
        if self.trainer.is_global_zero:
            self.recipe.dump(self.run_dir / "recipe.yaml")
            write_atomically(self.run_dir / "environment.json", json.dumps(environment(), indent=2) + "\n")
        self.trainer.fit(self.module, self.loader, self.watched, ckpt_path=self.checkpoint, weights_only=True)

    def save(self) -> None:
        """Writes the model that was trained, and the run's pictures."""
        model = self.model
        if self.average and self.average.average:
            model.load_state_dict(self.average.average)
        if trains_fused(model):
            fuse_batchnorm(model, inplace=True)
        model.cpu().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        save_model(model, self.run_dir / "model.safetensors", self.extra)
        if self.recipe.plots:
            _draw(self.run_dir, model, self.watched, self.classes)


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


class _Interruptible(Callback):
    """Ends a training when a signal asks for it, with the signal's status."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Comes right after Lightning has set its own handlers."""
        listen()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Misses no signal."""
        raise_again()


@contextmanager
def _children(trainer: Trainer) -> Iterator[None]:
    """Passes an interruption on to the processes that Lightning started."""
    try:
        yield
    except Interrupted as stop:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(stop.signal)
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
        BitLabError: Features are to be compared in a compiled model; or the teacher does not fit.
    """
    if recipe.teacher is None:
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
        if is_first_process() and is_used(run_dir):
            raise BitLabError(f"{run_dir} is not empty; resume that run, or choose another folder")
        return None
    path = run_dir / "checkpoints" / "last.ckpt" if resume is True else Path(resume)
    if resume is True and not path.exists():
        return None
    before = without_unused(Recipe.from_dict(load_checkpoint(path)["bitlab"]["recipe"]))
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
        callbacks=[_Interruptible(), Recorder(run_dir, recipe.checkpoint_steps, recipe.early_stop), *callbacks, *bars],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1 << 30,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )
    first: Any = trainer.fit_loop.epoch_progress.current  # a checkpoint replaces it
    first.ready = first.started = first.processed = first.completed = recipe.start_epoch
    return trainer


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
