"""What the commands do, without the terminal: open a checkpoint, export it, verify it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bitcore.engine import Engine
from bitcore.errors import BitLabError
from bitcore.graph import Graph
from bitexport import lower
from bitexport.targets import TARGETS, Artifact, Manifest, get_target, is_export, open_export
from bitexport.verify import Verification, compare
from bitlab.samples import Samples, find_samples
from bitmodels import load_model
from bittrain.described import check_description
from bittrain.evaluate import evaluate, load_split, predict
from bittrain.fit import restore
from bittrain.preprocessing import Preprocessing
from bittrain.run_folder import missing_run

MODEL_FILE, RECIPE_FILE = "model.safetensors", "recipe.yaml"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what its file says about it.

    Attributes:
        model: In eval mode; packed when it comes from ``model.safetensors``.
        extra: ``preprocessing``, ``dataset``, ``classes``, ``recipe``.
        path: The file it was read from.
    """

    model: nn.Module
    extra: dict[str, Any]
    path: Path

    @property
    def preprocessing(self) -> Preprocessing:
        """How pixels become the model's input."""
        return Preprocessing.from_dict(self.extra["preprocessing"])

    @property
    def classes(self) -> list[str]:
        """The names of its classes; none where the file does not say."""
        return self.extra.get("classes", [])


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a run folder, a ``model.safetensors``, or a training checkpoint (``.ckpt``).

    Raises:
        BitLabError: If there is none, or the file is truncated, foreign or holds anything executable.
    """
    if (path / RECIPE_FILE).is_file() and not (path / MODEL_FILE).exists():
        how = f"bitlab train {path} --resume"
        raise BitLabError(f"the training of '{path}' has not ended; go on with: {how}")
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise missing_run(path)
    model, extra = restore(path) if path.suffix == ".ckpt" else load_model(path)
    missing = {"preprocessing", "dataset"} - check_description(extra, path).keys()
    if missing:
        raise BitLabError(f"'{path}' does not say how its input is made ({', '.join(sorted(missing))} missing)")
    return Checkpoint(model, extra, path)


def find_run(path: Path) -> Path | None:
    """Returns the run's folder that a path names, itself or by one of its checkpoints; ``None`` if it names none."""
    folder = path.parent.parent if path.suffix == ".ckpt" else path
    return folder if (folder / RECIPE_FILE).is_file() else None


def measure(checkpoint: Checkpoint, dataset: str | None = None, max_samples: int | None = None) -> dict[str, Any]:
    """Returns accuracy and loss on the test split (see `bittrain.evaluate.evaluate`)."""
    name, recipe = dataset or checkpoint.extra["dataset"], checkpoint.extra.get("recipe", {})
    where = {key: recipe[key] for key in ("loading", "workers") if key in recipe}
    found = evaluate(
        checkpoint.model, name, checkpoint.preprocessing, max_samples=max_samples, classes=checkpoint.classes, **where
    )
    return {"dataset": name, **found}


def measure_integers(checkpoint: Checkpoint) -> float:
    """Returns the accuracy of a checkpoint's integer graph on the test split, by the engine.

    Raises:
        BitLabError: As `make_graph`.
    """
    graph, preprocessing = make_graph(checkpoint), checkpoint.preprocessing
    network, split = Engine(graph), load_split(checkpoint.extra["dataset"], preprocessing, classes=checkpoint.classes)
    chunks = split.images.split(500)
    scores = np.concatenate([network.run(graph.input.quantize(preprocessing(images))) for images in chunks])
    return float((scores.argmax(1) == split.labels.numpy()).mean())


def make_graph(checkpoint: Checkpoint) -> Graph:
    """Lowers a checkpoint's model; the graph remembers data set and preprocessing.

    Raises:
        BitLabError: If the model cannot be expressed in integers (the layer is named).
    """
    preprocessing = checkpoint.preprocessing
    info = {
        "dataset": checkpoint.extra["dataset"],
        "preprocessing": preprocessing.to_dict(),
        "pixels": preprocessing.formula(),
        "classes": checkpoint.classes,
    }
    return lower(checkpoint.model, preprocessing.shape, info)


def export(
    checkpoint: Checkpoint, out: Path, name: str, target: str = "c", optimize: str | None = None
) -> tuple[Artifact, Graph]:
    """Exports a checkpoint to a folder, all or nothing.

    Args:
        checkpoint: What to export.
        out: The folder.
        name: The network's name in C.
        target: One of `TARGETS`.
        optimize: The runtime of a C target, see `CTarget`.

    Raises:
        BitLabError: As `make_graph` and `Target.emit`; or the target has no choice of runtimes.
    """
    chosen = get_target(target, optimize)
    graph = make_graph(checkpoint)
    return chosen.emit(graph, out, name), graph


@dataclass(frozen=True)
class Report:
    """What `verify` found on a test set.

    Attributes:
        samples: What was run.
        check: Interpreter against the target.
        fake_quantized: The model's own classes, ``None`` when only an export was given.
        float_accuracy: The full-precision twin's accuracy, if one was given.
        target: What was compared with the interpreter, ``"c"`` or ``"engine"``.
    """

    samples: Samples
    check: Verification
    fake_quantized: np.ndarray | None
    float_accuracy: float | None
    target: str = "c"

    @property
    def differing_classes(self) -> int | None:
        """Samples that the fake-quantized model and the integer graph put into different classes."""
        if self.fake_quantized is None:
            return None
        return int((self.fake_quantized != self.check.scores.argmax(1)).sum())

    def accuracy(self, classes: np.ndarray) -> float | None:
        """The share of right classes, ``None`` if nobody knows them."""
        labels = self.samples.labels
        return None if labels is None else float((classes == labels).mean())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        check = self.check
        return {
            "dataset": self.samples.source,
            "inputs": self.samples.noun,
            "samples": check.samples,
            "outputs_compared": check.samples * check.outputs,
            "mismatches": check.mismatches,
            "first_mismatch": str(check.first) if check.first else None,
            "accuracy": {
                "float": self.float_accuracy,
                "fake_quantized": None if self.fake_quantized is None else self.accuracy(self.fake_quantized),
                "integer": self.accuracy(check.scores.argmax(1)),
                self.target: self.accuracy(check.target_scores.argmax(1)),
            },
            "classes_differing_between_fake_quantized_and_integer": self.differing_classes,
        }


def verify(
    path: Path,
    twin: Path | None = None,
    dataset: str | None = None,
    max_samples: int | None = None,
    target: str | None = None,
    inputs: Path | None = None,
    labels: Path | None = None,
) -> Report:
    """Compares the C code (or another target) with the interpreter on the test set, every output of every image.

    A network that does not say how pixels become its input runs on the caller's inputs, or on random ones.

    Args:
        path: An export folder (its C is taken as it is), a run folder or a checkpoint (exported first).
        twin: The checkpoint of the full-precision twin.
        dataset: Another data set than the one the model was trained on.
        max_samples: Only so many images.
        target: What is compared: a name of `TARGETS`; by default what an export was made for, else ``c``.
        inputs: Other inputs, see `bitlab.samples.find_samples`; so are labels their classes.
        labels: See there.

    Raises:
        BitLabError: If something cannot be read, exported, compiled or run. A mismatch is no error here.
    """
    if twin is not None and inputs is not None:
        raise BitLabError("--float-twin is measured on test images; leave --inputs out")

    def find(graph: Graph) -> Samples:
        return find_samples(graph, dataset, inputs, labels, max_samples)

    if is_export(path):
        artifact, graph = open_export(path)
        made_for = Manifest.load(path).target
        chosen = target or ("engine" if made_for == "engine" else "c")
        return _verify(artifact, graph, find(graph), None, twin, dataset, max_samples, chosen)
    checkpoint, chosen = open_checkpoint(path), target or "c"
    with tempfile.TemporaryDirectory(prefix="bitlab-") as folder:
        artifact, graph = export(checkpoint, Path(folder) / "network", "network", chosen)
        return _verify(artifact, graph, find(graph), checkpoint, twin, dataset, max_samples, chosen)


def _verify(
    artifact: Artifact,
    graph: Graph,
    samples: Samples,
    checkpoint: Checkpoint | None,
    twin: Path | None,
    dataset: str | None,
    max_samples: int | None,
    target: str,
) -> Report:
    check = compare(graph, TARGETS[target], artifact, samples.codes)
    fake = None
    if checkpoint is not None and samples.images is not None:
        fake = predict(checkpoint.model, samples.images, checkpoint.preprocessing).argmax(1).numpy()
    accuracy = None if twin is None else measure(open_checkpoint(twin), dataset, max_samples)["accuracy"]
    return Report(samples, check, fake, accuracy, "engine" if target == "engine" else "c")
