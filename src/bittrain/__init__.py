"""Training: data by name, recipes, and runs that resume exactly.

`bittrain.fit` and `bittrain.evaluate` are imported by their own names: Lightning takes seconds to load.
"""

from bittrain.data import ImageData, Split, load_dataset
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe

__all__ = ["ImageData", "Preprocessing", "Recipe", "Split", "load_dataset"]
