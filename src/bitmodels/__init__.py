"""The model zoo. A model is written once, in plain torch; any preset quantizes it."""

import bitmodels.mlp
import bitmodels.netcnn
import bitmodels.resnet_cifar  # noqa: F401  (these register their models)
from bitmodels.auto import AutoBitModel, list_models, register_model
from bitmodels.hub import from_pretrained, push_to_hub, save_pretrained
from bitmodels.io import load_into, load_model, save_model, save_weights

__all__ = [
    "AutoBitModel",
    "from_pretrained",
    "list_models",
    "load_into",
    "load_model",
    "push_to_hub",
    "register_model",
    "save_model",
    "save_pretrained",
    "save_weights",
]
