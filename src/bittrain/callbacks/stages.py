"""Training in stages: the model's quantization changes at the beginning of some epochs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError
from bitlayers.base import BitLayer
from bittrain.callbacks.registry import require_quantized
from bittrain.module import Classifier
from bittrain.optim import regroup

Change = Callable[[BitQuantConfig], BitQuantConfig]


class StagedQuantization(Callback, ABC):
    """Requantizes every bit layer when a stage begins; the last stage is the model's own quantization.

    Until then the model counts as provisional: none of its checkpoints is the best one.

    Args:
        name: The method's, for errors.
        restart: Whether the learning rate's schedule begins anew with every stage, as in the papers: a function of the
            epoch, so a resumed run has the same.

    Attributes:
        stage: The present stage; -1 before the first.
    """

    def __init__(self, name: str, restart: bool) -> None:
        super().__init__()
        self.name = name
        self.restart = restart
        self.stage = -1
        self._final: dict[str, BitQuantConfig] = {}
        self._starts: list[int] = []

    @abstractmethod
    def plan(self) -> list[tuple[float, Change]]:
        """Returns each stage's length, as a share of the training, and what it makes of a layer's own config."""

    def entered(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Called when a stage has begun (see `leaving`)."""

    def leaving(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Called before a new stage begins, with the model still as it was."""

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Remembers the model's own quantization; a checkpoint's is loaded after this.

        Raises:
            BitLabError: Fewer epochs than stages, or no layer has quantized weights.
        """
        require_quantized(pl_module, self.name)
        self._final = {n: m.quant_config for n, m in pl_module.model.named_modules() if isinstance(m, BitLayer)}
        self._starts = stage_starts([length for length, _ in self.plan()], trainer.max_epochs or 1, self.name)
        if self.restart:
            pl_module.restart_schedule(self._starts)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:
        """Begins the stage that the epoch belongs to."""
        wanted = sum(start <= trainer.current_epoch for start in self._starts) - 1
        pl_module.provisional = wanted + 1 < len(self._starts)
        if wanted == self.stage:
            return
        self.leaving(trainer, pl_module)
        self.stage = wanted
        change = self.plan()[wanted][1]
        for name, config in self._final.items():
            layer = pl_module.model.get_submodule(name)
            assert isinstance(layer, BitLayer)
            layer.requantize(change(config))
        for optimizer in trainer.optimizers:
            regroup(optimizer, pl_module, pl_module.recipe.weight_decay)
        self.entered(trainer, pl_module)

    def ends_stage(self, trainer: Trainer) -> bool:
        """Whether the present batch is the stage's last."""
        following = trainer.current_epoch + 1
        return trainer.is_last_batch and (following in self._starts or following == trainer.max_epochs)

    def state_dict(self) -> dict[str, Any]:
        """The present stage; the layers' quantization is in the checkpoint already."""
        return {"stage": self.stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.stage = state_dict["stage"]


def stage_starts(lengths: list[float], epochs: int, name: str) -> list[int]:
    """Returns the first epoch of each stage; each has at least one epoch.

    Args:
        lengths: Shares of the training, whose sum is 1.
        epochs: The training's.
        name: The method's, for the error.
    """
    starts = [0]
    for i in range(1, len(lengths)):
        starts.append(max(starts[-1] + 1, round(sum(lengths[:i]) * epochs)))
    excess = max(0, starts[-1] - (epochs - 1))  # stages of one epoch may push the last ones beyond the end
    starts = [min(start, epochs - len(starts) + i) for i, start in enumerate(starts)] if excess else starts
    if epochs < len(lengths):
        raise BitLabError(f"method {name} has {len(lengths)} stages and needs as many epochs; the recipe has {epochs}")
    return starts
