"""The one Lightning module: loss, accuracy, optimizer and schedule of a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from bitcore.errors import BitLabError
from bitlayers import pack
from bitlayers.clipping import clip_latent_weights
from bittrain.build import UNCHANGED, restructure, structure
from bittrain.distill import Distiller
from bittrain.loader import Batch
from bittrain.losses import make_loss
from bittrain.mixing import mix
from bittrain.optim import learning_rate, make_optimizer, regime_at, restarting
from bittrain.recipe import Recipe
from bittrain.seeds import derive


class Classifier(LightningModule):
    """Trains a model to classify.

    Args:
        model: Maps float images ``[B, C, H, W]`` to logits ``[B, classes]``.
        recipe: The options.
        classes: The number of classes.
        steps_per_epoch: Batches an epoch.
        extra: What describes the model beside its weights; written into every checkpoint.
        distiller: The teacher, if there is one.

    Attributes:
        penalties: What callbacks add to the loss.
        provisional: Whether a callback will still change the model's quantization: no checkpoint is the best one then.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        classes: int,
        steps_per_epoch: int,
        extra: dict[str, Any],
        distiller: Distiller | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.extra = extra
        self.steps_per_epoch = steps_per_epoch
        self.epoch_metrics: dict[str, float] = {}
        self.loss = make_loss(recipe.loss, recipe.label_smoothing)
        self.distiller = distiller
        self.penalties: list[Callable[[], Tensor]] = []
        self.provisional = False
        self._measured = (model,)  # in a tuple: not registered
        self._lr = learning_rate(recipe, -(-steps_per_epoch // recipe.accumulate))
        self._regime = recipe
        self._format = torch.channels_last if recipe.channels_last else torch.preserve_format
        self.train_loss, self.val_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        accuracies = [MulticlassAccuracy(classes, average="micro", validate_args=False) for _ in range(2)]
        self.train_accuracy, self.val_accuracy = accuracies
        self.train_loss.persistent(True)  # in the checkpoint, so that a resumed epoch's averages are exact too
        self.train_accuracy.persistent(True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]``."""
        return self.model(x)

    def on_train_epoch_start(self) -> None:
        """Enters the epoch's regime: a new optimizer where its kind changes, else new values."""
        regime, before = regime_at(self.recipe, self.current_epoch), self._regime
        if regime == before:
            return
        self._regime = regime
        if regime.optimizer != before.optimizer:
            self.trainer.strategy.optimizers = [make_optimizer(self, regime)]
        groups = self.trainer.optimizers[0].param_groups
        groups[0]["weight_decay"] = regime.weight_decay  # the other group has none, see `decay_groups`
        for group in groups:
            if "momentum" in group:
                group["momentum"] = regime.momentum

    def restart_schedule(self, epochs: Sequence[int]) -> None:
        """Makes the learning rate's schedule begin anew at these epochs; the first one is 0."""
        self._lr = restarting(self.recipe, -(-self.steps_per_epoch // self.recipe.accumulate), epochs)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout and everything else that draws inside the model, and sets the rate: functions of the step."""
        torch.manual_seed(self._seed("step", batch_idx))
        steps = -(-self.steps_per_epoch // self.recipe.accumulate)
        lr = self.recipe.lr * self._lr(self.current_epoch * steps + batch_idx // self.recipe.accumulate)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        recipe = self.recipe
        mixed = mix(images, labels, recipe.mixup, recipe.cutmix, self._seed("mix", batch_idx))
        images = mixed.images.contiguous(memory_format=self._format)
        if self.distiller is None:
            logits = self.model(images)
            loss = mixed.loss(self.loss, logits)
        else:
            logits, loss = self.distiller(self.model, images, lambda y: mixed.loss(self.loss, y))
        for penalty in self.penalties:
            loss = loss + penalty()
        self.train_loss.update(loss.detach().expand(len(labels)))  # a mean over images: weights would be ignored
        self.train_accuracy.update(logits.detach(), labels)
        return loss

    def on_validation_start(self) -> None:
        """Freezes and packs a copy of the model, where the recipe wants that measured."""
        self._measured = (pack(self.model) if self.recipe.eval_ternary else self.model,)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts one batch in eval mode, that is, with the weights' codes."""
        images, labels = batch
        logits = self._measured[0](images.contiguous(memory_format=self._format))
        self.val_loss.update(nn.functional.cross_entropy(logits, labels, reduction="none"))
        self.val_accuracy.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Logs the watched split."""
        self._report("val", self.val_loss, self.val_accuracy)

    def on_train_epoch_end(self) -> None:
        """Logs the training images.

        Raises:
            BitLabError: The loss is no longer a number.
        """
        self._report("train", self.train_loss, self.train_accuracy)
        if not math.isfinite(self.epoch_metrics["train_loss"]):
            epoch = self.current_epoch + 1
            raise BitLabError(f"the loss is not finite in epoch {epoch}; try a lower lr or a gradient_clip")

    def configure_optimizers(self) -> Any:
        """The optimizer, of the regime that a checkpoint was saved in; `on_train_batch_start` sets the rate."""
        return make_optimizer(self, self._regime)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then clips the latent weights of the layers whose config says so."""
        super().optimizer_step(*args, **kwargs)
        clip_latent_weights(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Marks the checkpoint as ours and says what is in it."""
        checkpoint["bitlab"] = self.extra | {"structure": structure(self.model)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Brings the model into the form it had, before its weights are loaded."""
        restructure(self.model, checkpoint["bitlab"].get("structure", UNCHANGED))
        self._regime = regime_at(self.recipe, checkpoint["epoch"])

    def _seed(self, use: str, batch_idx: int) -> int:
        """A seed for this batch of this process; the first process has the one of a process alone."""
        rank = (self.global_rank,) if self.global_rank else ()
        return derive(self.recipe.seed, use, self.current_epoch, batch_idx, *rank)

    def _report(self, split: str, loss: MeanMetric, accuracy: MulticlassAccuracy) -> None:
        """Logs a split's averages and starts new ones."""
        values = {f"{split}_loss": float(loss.compute()), f"{split}_accuracy": float(accuracy.compute())}
        loss.reset()
        accuracy.reset()
        self.epoch_metrics |= values
        self.log_dict(values, prog_bar=True)
