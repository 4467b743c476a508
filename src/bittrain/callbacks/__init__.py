"""Training methods as Lightning callbacks; `METHODS` lists them, a recipe's ``methods`` names them."""

from bittrain.callbacks.activations_first import TwoStageBinarization
from bittrain.callbacks.norms import BatchNormReestimation, FreshStatistics, FusedBatchNorm
from bittrain.callbacks.oscillation import OscillationDampening, OscillationFreezing, Oscillations
from bittrain.callbacks.penalty import PactPenalty
from bittrain.callbacks.profit import ProgressiveQuantization
from bittrain.callbacks.registry import METHODS, make_callbacks, method
from bittrain.callbacks.scales import FreezeScales
from bittrain.callbacks.stages import StagedQuantization
from bittrain.callbacks.temperature import EstimatorTemperature

__all__ = [
    "METHODS",
    "BatchNormReestimation",
    "EstimatorTemperature",
    "FreezeScales",
    "FreshStatistics",
    "FusedBatchNorm",
    "OscillationDampening",
    "OscillationFreezing",
    "Oscillations",
    "PactPenalty",
    "ProgressiveQuantization",
    "StagedQuantization",
    "TwoStageBinarization",
    "make_callbacks",
    "method",
]
