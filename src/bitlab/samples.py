"""What an exported network is run on: test images, arrays of the user's, or random inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitcore.errors import BitLabError
from bitcore.formats import get_format
from bitcore.graph import Graph
from bitcore.graph.ops import Ints
from bittrain.described import check_description
from bittrain.evaluate import load_split
from bittrain.preprocessing import Preprocessing

RANDOM = 1000
"""Random inputs, where nobody says how many."""
_SEED = 0


@dataclass(frozen=True)
class Samples:
    """Inputs of a network.

    Attributes:
        codes: Integer inputs, int64 ``[samples, *shape]``.
        noun: What they are, for people: "test images", "inputs" or "random inputs".
        source: The data set or the file they are from; how random ones were drawn.
        labels: The true classes, if known.
        images: The pictures they were made from, uint8 ``[samples, channels, height, width]``.
    """

    codes: Ints
    noun: str
    source: str
    labels: NDArray[np.int64] | None = None
    images: Tensor | None = None


def find_samples(
    graph: Graph,
    dataset: str | None = None,
    inputs: Path | None = None,
    labels: Path | None = None,
    most: int | None = None,
) -> Samples:
    """Finds what a network is run on.

    Args:
        graph: The network.
        dataset: Another data set than the one it was trained on.
        inputs: An array ``[samples, *shape]`` (.npy) instead: integers as the network takes them, or floats that its
            input's scale turns into integers.
        labels: Their classes (.npy), integers ``[samples]``.
        most: The first so many; ``None`` for all, or `RANDOM` random ones.

    Returns:
        Test images if the graph says how pixels become its input; else random inputs over the whole range.

    Raises:
        BitLabError: A file is missing or holds something else, or the graph takes no pictures.
    """
    if inputs is not None:
        if dataset is not None:
            raise BitLabError("give --inputs or --dataset, not both")
        return _from_file(graph, inputs, labels, most)
    if labels is not None:
        raise BitLabError("--labels are the classes of --inputs; give both")
    known = dataset or graph.info.get("dataset")
    if "preprocessing" in graph.info and known:
        return _from_dataset(graph, known, most)
    if dataset is not None:
        raise BitLabError("this network does not say how pixels become its input; give --inputs FILE.npy")
    return _random(graph, most or RANDOM)


def _from_dataset(graph: Graph, dataset: str, most: int | None) -> Samples:
    preprocessing = Preprocessing.from_dict(check_description(graph.info, "the graph")["preprocessing"])
    split = load_split(dataset, preprocessing, classes=graph.info.get("classes", ()))
    images, labels = split.images[:most], split.labels[:most].numpy()
    return Samples(graph.input.quantize(preprocessing(images)), "test images", dataset, labels, images)


def _from_file(graph: Graph, inputs: Path, labels: Path | None, most: int | None) -> Samples:
    values = _read(inputs)
    shape = tuple(graph.input.shape)
    if tuple(values.shape[1:]) != shape or not len(values):
        wanted = ", ".join(["samples", *map(str, shape)])
        raise BitLabError(f"'{inputs}' has shape {values.shape}; this network takes [{wanted}]")
    values = values[:most]
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise BitLabError(f"'{inputs}' holds NaN or infinity")
        codes = graph.input.quantize(torch.from_numpy(values.astype(np.float32)))
    elif np.issubdtype(values.dtype, np.integer):
        codes = values.astype(np.int64)
    else:
        raise BitLabError(f"'{inputs}' holds {values.dtype}; give integers as the network takes them, or floats")
    low, high = graph.input.type.low, graph.input.type.high
    if codes.min() < low or codes.max() > high:
        raise BitLabError(f"'{inputs}' holds {codes.min()}…{codes.max()}; this network takes integers {low}…{high}")
    classes = None
    if labels is not None:
        classes = _read(labels)
        if not np.issubdtype(classes.dtype, np.integer) or classes.ndim != 1 or len(classes) < len(codes):
            raise BitLabError(f"'{labels}' has {classes.dtype} {classes.shape}; give an integer for each of the inputs")
        classes = classes[: len(codes)].astype(np.int64)
    return Samples(codes, "inputs", str(inputs), classes)


def _read(path: Path) -> NDArray[np.generic]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BitLabError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise BitLabError(f"'{path}' is no array; write it with numpy.save")
    return array


def _random(graph: Graph, count: int) -> Samples:
    spec = graph.input
    levels = np.array(get_format(spec.format).levels, dtype=np.int64)
    codes = np.random.default_rng(_SEED).choice(levels, (count, *spec.shape))
    return Samples(codes, "random inputs", f"random {spec.format}, seed {_SEED}")
