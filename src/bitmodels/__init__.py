"""The model zoo. A model is written once, in plain torch; any preset quantizes it."""

# ruff: noqa: F401  (the modules register their models)
import bitmodels.alexnet
import bitmodels.convnext
import bitmodels.mcunet
import bitmodels.mlp
import bitmodels.mobilenet
import bitmodels.netcnn
import bitmodels.resnet
import bitmodels.vgg
from bitmodels.auto import AutoBitModel, data_options, find_model, list_models, register_model, register_variant
from bitmodels.hub import from_pretrained, push_to_hub, save_pretrained
from bitmodels.io import load_into, load_model, save_model, save_weights

__all__ = [
    "AutoBitModel",
    "data_options",
    "find_model",
    "from_pretrained",
    "list_models",
    "load_into",
    "load_model",
    "push_to_hub",
    "register_model",
    "register_variant",
    "save_model",
    "save_pretrained",
    "save_weights",
]
