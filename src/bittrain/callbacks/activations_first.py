"""Two-stage binarization: activations first, then weights."""

from __future__ import annotations

from bitcore.config import FLOAT
from bitcore.errors import BitLabError
from bittrain.callbacks.registry import method
from bittrain.callbacks.stages import Change, StagedQuantization


@method("two-stage")
class TwoStageBinarization(StagedQuantization):
    """Trains with quantized activations and float weights, then with both quantized (arXiv:2003.11535, section 4.2).

    Args:
        share: Of the training, that the first stage takes.
        restart: Whether the learning rate's schedule begins anew with the second.
    """

    def __init__(self, *, share: float = 0.5, restart: bool = True) -> None:
        super().__init__("two-stage", restart)
        if not 0 < share < 1:
            raise BitLabError(f"method two-stage: share must lie between 0 and 1, not {share:g}")
        self.share = share

    def plan(self) -> list[tuple[float, Change]]:  # noqa: D102
        return [(self.share, lambda c: c.replace(weight_format=FLOAT)), (1 - self.share, lambda c: c)]
