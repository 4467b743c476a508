"""The one Lightning module: loss, accuracy, optimizer and schedule of a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from bitcore.errors import BitLabError
from bitlayers.clipping import clip_latent_weights
from bittrain.build import UNCHANGED, restructure, structure
from bittrain.distill import Distiller
from bittrain.loader import Batch
from bittrain.losses import make_loss
from bittrain.optim import learning_rate, make_optimizer
from bittrain.recipe import Recipe
from bittrain.seeds import derive


class Classifier(LightningModule):
    """Trains a model to classify.

    Args:
        model: Maps float images ``[B, C, H, W]`` to logits ``[B, classes]``.
        recipe: The options.
        classes: The number of classes.
        steps_per_epoch: Batches an epoch, for the schedule.
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
        self.train_loss, self.val_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        accuracies = [MulticlassAccuracy(classes, average="micro", validate_args=False) for _ in range(2)]
        self.train_accuracy, self.val_accuracy = accuracies
        self.train_loss.persistent(True)  # in the checkpoint, so that a resumed epoch's averages are exact too
        self.train_accuracy.persistent(True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]``."""
        return self.model(x)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout and everything else that draws inside the model, as a function of the step."""
        torch.manual_seed(derive(self.recipe.seed, "step", self.current_epoch, batch_idx))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        if self.distiller is None:
            logits = self.model(images)
            loss = self.loss(logits, labels)
        else:
            logits, loss = self.distiller(self.model, images, lambda y: self.loss(y, labels))
        for penalty in self.penalties:
            loss = loss + penalty()
        self.train_loss.update(loss.detach(), len(labels))
        self.train_accuracy.update(logits.detach(), labels)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts one batch in eval mode, that is, with the weights' codes."""
        images, labels = batch
        logits = self.model(images)
        self.val_loss.update(nn.functional.cross_entropy(logits, labels), len(labels))
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
        """The recipe's optimizer, its schedule stepped after every batch."""
        optimizer = make_optimizer(self, self.recipe)
        schedule = LambdaLR(optimizer, learning_rate(self.recipe, self.steps_per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

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

    def _report(self, split: str, loss: MeanMetric, accuracy: MulticlassAccuracy) -> None:
        """Logs a split's averages and starts new ones."""
        values = {f"{split}_loss": float(loss.compute()), f"{split}_accuracy": float(accuracy.compute())}
        loss.reset()
        accuracy.reset()
        self.epoch_metrics |= values
        self.log_dict(values, prog_bar=True)
