"""One recipe is everything that a training run depends on. A YAML file and the command line set the same fields."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from bitcore.errors import BitLabError, unknown
from bitcore.files import write_atomically
from bitcore.naming import is_clean, shown
from bitmodels.auto import DEFAULT
from bittrain.fields import (
    canonical,
    check,
    check_file_name,
    convert,
    option,
    parse_pairs,
    read_yaml,
)
from bittrain.losses import LOSSES
from bittrain.preprocessing import MAX_SIDE, NORMALIZATIONS

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step", "one-cycle", "warm-restarts")
_OWN_OPTIONS, _OWN_QUANT = {"hidden_dims": [64, 32], "bias": False}, "mcu-4bitsym"
"""What the default model has, where nothing else is said."""
STRATEGIES = ("auto", "ddp", "fsdp")
LOADING = ("memory", "disk", "stream")
_LARGEST = 1 << 16
"""Letters of a recipe's file; the longest in use have 3,000."""


@dataclass(frozen=True)
class Recipe:
    """Every option of a training run; each field's metadata holds its ``help``, ``panel`` and limits.

    The default trains a small network on the embedded digits. Options and quantization are a model's own, and the name
    follows from model, quantization and dataset: what is empty is filled in.
    """

    name: str = option("", "Name of the run.", "Run", shown="of model, preset and dataset, as resnet20-w8a8-cifar10")

    model: str = option("mlp", "Model (see `bitlab info`).", "Model", also=["-a"])
    model_options: dict[str, Any] = option(
        None, "Options of the model, as KEY=VALUE; repeatable.", "Model", also=["--model-config"]
    )
    quant: str | None = option(
        "",
        "Quantization preset (see `bitlab info`); default: what the model's name implies; none: full precision.",
        "Model",
        shown=f"{_OWN_QUANT} for mlp, default for all others",
    )
    quant_overrides: dict[str, Any] = option(
        dict, "Other quantization for layers: PATTERN=PRESET, or PATTERN={field: value}; repeatable.", "Model"
    )
    scale_op: str | None = option(
        None, "Weight scale by the mean or the median of |w|, in place of the preset's.", "Model", ("mean", "median")
    )
    act_bits: int | None = option(
        None, "Integer activations of so many bits, in place of the preset's.", "Model", low=2, high=8
    )
    init: str | None = option(
        None, "Start from the weights of a run's folder or a .ckpt file, such as the float twin's.", "Model"
    )

    dataset: str = option("digits", "Dataset: a known name, a hub name owner/name, or a local folder.", "Data")
    loading: str = option(
        "memory",
        "memory: decoded once and cached; disk: decoded by threads at every use; stream: from the hub, never stored.",
        "Data",
        LOADING,
    )
    workers: int = option(2, "Threads that decode, with loading disk or stream.", "Data", low=0, high=256, also=["-j"])
    image_size: int | None = option(
        None, "Height and width to resize to.", "Data", low=1, high=MAX_SIDE, also=["--input-size"]
    )
    center_crop: float = option(
        0.0,
        "Share of a picture's shorter side that a square cut from its centre keeps, as 0.875; 0: squeezed, not cut.",
        "Data",
        low=0,
        high=1,
    )
    channels: int | None = option(None, "1 converts to grey, 3 to RGB.", "Data", low=1, high=3)
    normalization: str = option(
        "dataset",
        "dataset: zero mean, unit variance; none: [0, 1]; pow2: int8 code is pixel >> 1.",
        "Data",
        NORMALIZATIONS,
    )
    max_train_samples: int | None = option(None, "Train on this many images only.", "Data", low=1, high=10**9)
    max_test_samples: int | None = option(None, "Measure on this many images only.", "Data", low=1, high=10**9)
    validation: float = option(
        0.0,
        "Share of the training images held out to choose the best checkpoint; 0: the test set is watched.",
        "Data",
        low=0,
        high=0.9,
    )

    augment: tuple[str, ...] = option(
        (), "Augmentation with strengths, as 'affine degrees=10'; repeatable.", "Augmentation"
    )
    augment_probability: float = option(1.0, "Share of the images that are augmented.", "Augmentation", low=0, high=1)
    augment_copies: int = option(
        0, "Augmented copies of each image beside the original.", "Augmentation", low=0, high=64
    )
    augment_size: int | None = option(
        None, "Augment at this size, then resize to image_size.", "Augmentation", low=1, high=MAX_SIDE
    )
    mixup: float = option(
        0.0, "Mix pairs of images, with a share from Beta(a, a); 0: none.", "Augmentation", low=0, high=16
    )
    cutmix: float = option(
        0.0, "Paste a box of another image, its area from Beta(a, a); 0: none.", "Augmentation", low=0, high=16
    )

    epochs: int = option(30, "Passes over the training images.", "Training", low=1)
    batch_size: int = option(64, "Images a step, in each process.", "Training", low=1, also=["-b"])
    optimizer: str = option("adamw", "Optimizer.", "Training", OPTIMIZERS)
    lr: float = option(3e-3, "Highest learning rate.", "Training", low=0, also=["--learning-rate"])
    momentum: float = option(0.9, "Momentum of sgd.", "Training", low=0, high=1)
    nesterov: bool = option(False, "Nesterov momentum of sgd.", "Training")
    weight_decay: float = option(
        0.0,
        "Weight decay of weight matrices (never of biases, norms, scales and latent binary weights).",
        "Training",
        low=0,
        also=["--wd"],
    )
    schedule: str = option("cosine", "How the learning rate falls.", "Training", SCHEDULES, also=["--lr-decay"])
    warmup_epochs: float = option(0.0, "Epochs of linear warm-up.", "Training", low=0, also=["--warmup"])
    lr_final: float = option(0.0, "Last learning rate as a share of lr (cosine, one-cycle).", "Training", low=0, high=1)
    lr_step_epochs: int = option(10, "Epochs between the steps of the schedule step.", "Training", low=1)
    lr_gamma: float = option(0.1, "Factor of each step of the schedule step.", "Training", low=0, high=1)
    lr_restart_epochs: int = option(10, "Epochs of the first period of warm restarts.", "Training", low=1)
    lr_restart_factor: float = option(2.0, "Growth of the periods of warm restarts.", "Training", low=1, high=10)
    regime: tuple[str, ...] = option(
        (),
        "From an epoch on, as '101 lr=1e-3', with lr, optimizer, momentum, weight_decay; repeatable; no schedule then.",
        "Training",
    )
    loss: str = option("cross_entropy", "Loss.", "Training", LOSSES)
    label_smoothing: float = option(0.0, "Label smoothing.", "Training", low=0, high=0.99)
    gradient_clip: float = option(0.0, "Largest gradient norm; 0 for no limit.", "Training", low=0)
    accumulate: int = option(1, "Batches whose gradients are added up to one step.", "Training", low=1)
    ema: float = option(
        0.0,
        "Decay of the running average of the weights that is measured and saved; 0: none.",
        "Training",
        low=0,
        high=1,
    )
    eval_ternary: bool = option(False, "Measure epochs, and choose the best, by the frozen packed model.", "Training")
    early_stop: int = option(0, "Stop after so many epochs without a better result; 0: never.", "Training", low=0)
    start_epoch: int = option(0, "Number of the first epoch, for schedule and data; see init.", "Training", low=0)

    methods: tuple[str, ...] = option(
        (), "Training method with its options, as 'profit bits=8,5,4'; repeatable.", "Methods"
    )
    teacher: str | None = option(
        None,
        "Teacher to distill from: a run's folder, a .ckpt or .safetensors file, a hub name owner/name, or timm:NAME.",
        "Distillation",
        also=["--kd"],
    )
    kd_temperature: float = option(4.0, "Temperature of the logits.", "Distillation", low=0.1, also=["--T"])
    kd_alpha: float = option(
        0.5, "Share of the teacher's logits in the loss.", "Distillation", low=0, high=1, also=["--alpha-kd"]
    )
    hint_weight: float = option(
        0.0, "Weight of the distance of features.", "Distillation", low=0, also=["--alpha-hint"]
    )
    attention_weight: float = option(0.0, "Weight of the distance of attention maps.", "Distillation", low=0)
    hint_layers: tuple[str, ...] = option(
        (), "Layers whose outputs are compared, NAME or NAME:TEACHER_NAME; repeatable.", "Distillation"
    )

    seed: int = option(0, "Seed of everything random.", "Run", low=0)
    device: str = option("auto", "Where to train; auto takes a GPU when there is one.", "Run", ("auto", "cpu", "gpu"))
    devices: int = option(1, "Processes on each machine, one a GPU.", "Run", low=1, high=1024, also=["--ngpu"])
    num_nodes: int = option(1, "Machines.", "Run", low=1, high=65536)
    strategy: str = option("auto", "How processes share the work.", "Run", STRATEGIES)
    sync_batchnorm: bool = option(False, "Batch norm over the batches of all processes.", "Run")
    precision: str = option("32", "Arithmetic of training; bf16 and 16 are mixed.", "Run", ("32", "bf16", "16"))
    compile: bool = option(False, "Compile the model with torch.compile.", "Run")
    channels_last: bool = option(False, "Keep images in the order of channels last.", "Run")
    deterministic: bool = option(False, "Refuse operations that are not deterministic.", "Run")
    threads: int | None = option(None, "CPU threads.", "Run", low=1, high=1024)
    checkpoint_steps: int = option(
        500, "Steps between checkpoints (one follows each epoch anyhow); 0: none.", "Run", low=0
    )
    tensorboard: bool = option(True, "Write TensorBoard logs.", "Run")
    plots: bool = option(True, "Draw the training curve and the confusion matrix.", "Run")
    gpu: bool = option(False, "Made for a GPU: where training finds none, it says how much lies ahead.", "Run")

    def __post_init__(self) -> None:
        """Converts values that mean the right type (1 for 1.0, a list for a tuple) and refuses the others."""
        own = self.model == Recipe.model
        if self.model_options is None:
            object.__setattr__(self, "model_options", _OWN_OPTIONS if own else {})
        if self.quant == "":
            object.__setattr__(self, "quant", _OWN_QUANT if own else DEFAULT)
        kinds = get_type_hints(Recipe)
        for spec in fields(self):
            value = canonical(spec, convert(spec.name, getattr(self, spec.name), kinds[spec.name]))
            check(spec, value)
            object.__setattr__(self, spec.name, value)
        if not self.name:
            object.__setattr__(self, "name", self._implied_name())
        check_file_name("name", self.name)

    def _implied_name(self) -> str:
        """Model, quantization (unless the model's name says it) and dataset."""
        quant = {None: "float", DEFAULT: ""}.get(self.quant, self.quant)
        parts = (self.model, quant, Path(self.dataset).name)
        return "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts if part)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Recipe:
        """Makes a recipe from plain values; what is left out has its default.

        Args:
            values: By key.
            changes: Other values (see `replace`). What neither says follows from both together: without a
                quantization in them it is that of the model in ``changes``.

        Raises:
            BitLabError: An unknown key (the nearest valid one is named) or a value of the wrong type or range.
        """
        if not isinstance(values, Mapping):
            raise BitLabError(f"a recipe is a mapping of keys to values, not {shown(values)}")
        values = _changed(values, changes or {})
        known = [spec.name for spec in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("recipe key", key if isinstance(key, str) and is_clean(key) else shown(key), known)
        return cls(**values)

    @classmethod
    def load(cls, path: Path | str, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Reads a YAML file.

        Args:
            path: The file.
            changes: As in `from_dict`.

        Raises:
            BitLabError: No such file, no YAML mapping, or wrong values (see `from_dict`).
        """
        try:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(_LARGEST + 1)
            if len(text) > _LARGEST:
                raise BitLabError(f"{path} is no recipe: it is larger than {_LARGEST >> 10} KiB")
            values = read_yaml(text)
        except (OSError, ValueError) as error:
            raise BitLabError(f"cannot read the recipe {path}: {error}") from None
        except yaml.YAMLError as error:
            reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
            raise BitLabError(f"{path} is no valid YAML: {reason}") from None
        if not isinstance(values, dict):
            raise BitLabError(f"{path} is no recipe: it must hold lines of the form key: value")
        try:
            recipe = cls.from_dict(values)
        except BitLabError as error:
            raise BitLabError(f"{path}: {error}") from None
        return cls.from_dict(values, changes) if changes else recipe

    def dump(self, path: Path | str) -> None:
        """Writes all fields as YAML, so that a later change of a default does not change the run."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
        write_atomically(Path(path), text)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for YAML and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def full_precision(self) -> Recipe:
        """The recipe of the full-precision twin: the same without quantization, its methods and a teacher."""
        defaults = {spec.name: spec.default for spec in fields(self)}
        plain = {"quant": None, "quant_overrides": {}, **{name: defaults[name] for name in _NOT_OF_TWINS}}
        return self.replace(name=f"{self.name}-float", **plain)

    def replace(self, **values: Any) -> Recipe:
        """A copy with other values.

        A mapping field also takes a list of ``"key=value"`` texts (what a repeatable flag gives; the value is YAML),
        which change these keys only. Another model begins with its own options; a name that was never given follows.

        Raises:
            BitLabError: As `from_dict`.
        """
        merged = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        if self.name == self._implied_name():
            merged["name"] = ""
        return Recipe.from_dict(merged, values)


_NOT_OF_TWINS = (
    *("scale_op", "act_bits", "eval_ternary", "methods", "teacher"),
    *("kd_temperature", "kd_alpha", "hint_weight", "attention_weight", "hint_layers"),
)


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values with others in their place, see `Recipe.replace`."""
    changed = dict(values)
    before = changed.get("model", Recipe.model)
    if changes.get("model", before) != before:
        changed.pop("model_options", None)
    for key, value in changes.items():
        if key in ("model_options", "quant_overrides") and isinstance(value, list | tuple):
            own = Recipe(model=changes.get("model", before)).model_options if key == "model_options" else {}
            value = (changed.get(key) or own) | parse_pairs(value, key)
        changed[key] = value
    return changed
