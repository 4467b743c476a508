"""PACT's penalty on the clips."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from bitcore.quantizers.learned import Pact, pact_penalty
from bittrain.callbacks.registry import method, require
from bittrain.module import Classifier


@method("pact-penalty")
class PactPenalty(Callback):
    """Adds ``weight Σ α²`` over all learned clips to the loss (PACT, arXiv:1805.06085, section 3.1).

    Args:
        weight: λ.
    """

    def __init__(self, *, weight: float = 1e-4) -> None:
        super().__init__()
        self.weight = weight

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Adds the penalty to the loss.

        Raises:
            BitLabError: No layer learns a clip.
        """
        clips = [module for module in pl_module.model.modules() if isinstance(module, Pact)]
        require(clips, "pact-penalty", "no layer learns PACT's clip")
        pl_module.penalties.append(lambda: self.weight * pact_penalty(pl_module.model))
