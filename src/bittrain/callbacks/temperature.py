"""The temperature of gradient estimators (IR-Net's error decay estimator)."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from bitcore.errors import BitLabError
from bitcore.quantizers import Quantizer
from bitcore.quantizers.estimators import ede, ede_temperature
from bittrain.callbacks.registry import method, progress, require
from bittrain.module import Classifier


@method("ede")
class EstimatorTemperature(Callback):
    """Raises the estimators' temperature exponentially, ``low * (high / low)**progress`` (arXiv:1909.10788, eq. 10).

    At first gradients reach all weights, in the end they are those of the sign function.

    Args:
        low: At the first batch.
        high: At the last batch.
    """

    def __init__(self, *, low: float = 0.1, high: float = 10.0) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise BitLabError(f"method ede: needs 0 < low <= high, not {low:g} and {high:g}")
        self.low, self.high = low, high

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:
        """Checks that there is something to do.

        Raises:
            BitLabError: No quantizer has the estimator.
        """
        found = [m for m in pl_module.model.modules() if isinstance(m, Quantizer) and m.estimator is ede]
        require(found, "ede", "no layer has the estimator ede (use the preset irnet, or estimator=ede)")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:
        """Sets the temperature."""
        temperature = ede_temperature(progress(trainer, pl_module, batch_idx), self.low, self.high)
        for quantizer in pl_module.model.modules():
            if isinstance(quantizer, Quantizer):
                quantizer.temperature = temperature
