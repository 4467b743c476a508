"""The model zoo. A model is written once, in plain torch; any preset quantizes it."""

import bitmodels.mlp  # noqa: F401  (registers its models)
from bitmodels.auto import AutoBitModel, list_models, register_model
from bitmodels.io import load_model, save_model

__all__ = ["AutoBitModel", "list_models", "load_model", "register_model", "save_model"]
