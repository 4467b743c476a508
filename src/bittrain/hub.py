"""Datasets of the Hugging Face hub, through its own library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitcore.errors import BitLabError, unknown
from bittrain.folders import TEST_NAMES
from bittrain.tables import Home, Reader, find_classes, find_columns


@dataclass(frozen=True)
class Known:
    """What is known about a dataset beyond its files.

    Attributes:
        hub: Its name on the Hugging Face hub; empty for embedded data.
        mean: Mean a channel of the training pixels in [0, 1].
        std: Standard deviation a channel.
    """

    hub: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


KNOWN: dict[str, Known] = {
    "digits": Known(),
    "mnist": Known("ylecun/mnist", (0.1307,), (0.3081,)),
    "fashion_mnist": Known("zalando-datasets/fashion_mnist", (0.2860,), (0.3530,)),
    "cifar10": Known("uoft-cs/cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Known("uoft-cs/cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": Known("ILSVRC/imagenet-1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def hub_name(name: str) -> str:
    """A name's dataset on the hub.

    Raises:
        BitLabError: It is none.
    """
    if (known := KNOWN.get(name)) is not None and known.hub:
        return known.hub
    if "/" not in name:
        raise unknown("dataset", name, KNOWN)
    if name.startswith((".", "/", "~")):
        raise BitLabError(f"no folder {name}; a dataset is a folder, a hub name owner/name or {', '.join(KNOWN)}")
    return name


def fetch_hub(hub: str, streaming: bool = False) -> dict[str, Any]:
    """Returns the train and the test split of a dataset of the Hugging Face hub, through its own cache or as streams.

    Args:
        hub: ``owner/name`` or ``owner/name:config``.
        streaming: Whether to stream.

    Raises:
        BitLabError: It cannot be fetched, or has not these splits.
    """
    import datasets

    path, _, config = hub.partition(":")
    try:
        options: dict[str, Any] = {"streaming": True} if streaming else {}
        splits: Any = datasets.load_dataset(path, config or None, **options)
    except Exception as error:  # the library raises many kinds, most of them undocumented
        name = next((name for name, known in KNOWN.items() if known.hub == hub), hub)
        raise BitLabError(
            f"dataset {hub} cannot be fetched ({type(error).__name__}: {reason_of(error)}); check the name and the "
            f"network, or put its parquet files into a folder {name} and set BITLAB_DATA to the folder above"
        ) from None
    test = next((t for t in TEST_NAMES if t in splits), None)
    if test is None or "train" not in splits:
        raise BitLabError(f"{hub}: needs the splits train and test, has {', '.join(splits)}")
    return {"train": splits["train"], "test": splits[test]}


def reason_of(error: BaseException) -> str:
    """What an error of a library says, on one line."""
    return " ".join(str(error).split())[:300]


def hub_reader(hub: str, tables: Mapping[str, Any]) -> Reader:
    """Makes values of a hub dataset's tables what they mean.

    Args:
        hub: Its name.
        tables: The splits ``train`` and ``test``, whose labels are read where no class names are known.

    Raises:
        BitLabError: As `find_columns` and `find_classes`, or the splits differ.
    """
    from datasets import config
    from huggingface_hub import constants

    found = {split: find_columns(t.features.arrow_schema, f"{hub} ({split})") for split, t in tables.items()}
    columns, other = found["train"], found["test"]
    if columns != other:
        raise BitLabError(f"{hub}: train and test differ in columns or classes: {columns.both} and {other.both}")

    def labels() -> Any:
        rows = tables["train"].select_columns([columns.label]).with_format("arrow")
        for piece in rows.iter(1 << 16):
            for chunk in piece.column(columns.label).chunks:
                yield chunk, f"{hub} (train)"

    classes = find_classes(columns, labels(), hub)
    kept = Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)
    return Reader(columns, classes, Home(kept, absolute=True))
