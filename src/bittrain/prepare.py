"""From a recipe to its data, ready to train on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bitcore.errors import BitLabError
from bittrain.augment import Augment
from bittrain.bigdata import at_size, first, open_dataset
from bittrain.data import ImageData, Rows, Split, load_dataset
from bittrain.loader import TestLoader, TrainLoader
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe
from bittrain.seeds import generator


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, ready to train on.

    Attributes:
        recipe: The recipe.
        data: The dataset, in memory at the network's size.
        train: The images to train on.
        source: The same images at the size that is augmented.
        watched: The images measured after each epoch: the held-out ones, or the test split.
        preprocessing: Pixels to input.
        augment: The augmentation, if any.
    """

    recipe: Recipe
    data: ImageData[Rows]
    train: Rows
    source: Rows
    watched: Rows
    preprocessing: Preprocessing
    augment: Augment | None

    def loaders(self, device: torch.device, rank: int, processes: int) -> tuple[TrainLoader, TestLoader]:
        """Returns the batches to train on and those to measure, of one of several processes.

        Args:
            device: Where training images are augmented.
            rank: The process.
            processes: How many there are.
        """
        recipe = self.recipe
        train = TrainLoader(
            self.train,
            self.preprocessing,
            recipe.batch_size,
            recipe.seed,
            self.augment,
            self.source,
            recipe.augment_probability,
            recipe.augment_copies,
            rank=rank,
            processes=processes,
            device=device,
        )
        return train, TestLoader(self.watched, self.preprocessing, rank=rank, processes=processes)


def prepare(recipe: Recipe, rank: int = 0, processes: int = 1) -> Prepared:
    """Loads what a recipe trains and measures on.

    Args:
        recipe: The options.
        rank: This process.
        processes: How many share the work (they share streams).

    Raises:
        BitLabError: As `bittrain.bigdata.open_dataset` and `Augment`.
    """
    big = recipe.loading != "memory"
    if big and recipe.augment_copies:
        raise BitLabError("augment_copies needs loading memory; augment every image instead, and raise epochs")
    loading, part = (recipe.loading, recipe.workers, recipe.seed), (rank, processes)
    data = open_dataset(recipe.dataset, recipe.image_size, recipe.channels, *loading, part, recipe.center_crop)
    train = source = data.train
    if recipe.augment and recipe.augment_size is not None:
        whole = float(recipe.center_crop > 0)  # augmentations get all of the centre
        if isinstance(train, Split):
            source = load_dataset(recipe.dataset, recipe.augment_size, recipe.channels, whole).train
        else:
            train = source = at_size(train, recipe.augment_size, whole)
    watched = first(data.test, recipe.max_test_samples) if recipe.max_test_samples else data.test
    if recipe.max_train_samples or recipe.validation:
        if recipe.loading == "stream" and recipe.validation:
            raise BitLabError("validation holds images out, which a stream cannot; use loading disk")
        order = torch.randperm(_rows(train, recipe), generator=generator(recipe.seed, "samples"))
        order = order[: recipe.max_train_samples]
        held_out = int(len(order) * recipe.validation)
        if recipe.validation and not held_out:
            raise BitLabError(
                f"validation {recipe.validation:g} holds out none of {len(order)} images; set a larger one"
            )
        if held_out:
            watched = data.train.take(order[:held_out])
        shared = source is train
        train = train.take(order[held_out:])
        source = train if shared else source.take(order[held_out:])
    if not len(train) or not len(watched):
        raise BitLabError("no images are left to train or to measure on; raise max_train_samples or max_test_samples")
    height, width = source.sample(1).shape[2:]
    augment = Augment(recipe.augment, (height, width)) if recipe.augment else None
    preprocessing = data.preprocessing(recipe.normalization, recipe.center_crop)
    return Prepared(recipe, data, train, source, watched, preprocessing, augment)


def _rows(train: Rows, recipe: Recipe) -> int:
    """How many rows there are to choose from; of a stream, as many as are wanted."""
    if recipe.loading == "stream" and recipe.max_train_samples:
        return len(first(train, recipe.max_train_samples))
    return len(train)
