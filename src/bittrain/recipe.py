"""One recipe is everything that a training run depends on. A YAML file and the command line set the same fields."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from bitcore.errors import BitLabError, unknown
from bitcore.files import write_atomically
from bittrain.losses import LOSSES
from bittrain.preprocessing import NORMALIZATIONS

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step", "one-cycle")


def option(
    default: Any,
    help: str,
    panel: str,
    choices: Iterable[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """A field with what a command line shows of it.

    Args:
        default: The value; a callable makes one.
        help: One line, in plain words.
        panel: The group it is listed under.
        choices: The valid values, where there are few.
        low: The smallest valid number.
        high: The largest.
    """
    metadata = {"help": help, "panel": panel, "choices": tuple(choices), "low": low, "high": high}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """Every option of a training run; each field's metadata holds its ``help``, ``panel`` and limits.

    The default trains a small network on the embedded digits.
    """

    name: str = option("digits-mlp", "Name of the run.", "Run")

    model: str = option("mlp", "Model family (see `bitlab info --models`).", "Model")
    model_options: dict[str, Any] = option(
        lambda: {"hidden_dims": [64, 32], "bias": False}, "Options of the model, as KEY=VALUE; repeatable.", "Model"
    )
    quant: str | None = option("mcu-4bitsym", "Quantization preset; none for full precision.", "Model")
    quant_overrides: dict[str, Any] = option(
        dict, "Other quantization for layers: PATTERN=PRESET, or PATTERN={field: value}; repeatable.", "Model"
    )

    dataset: str = option("digits", "Dataset: a known name, a hub name owner/name, or a local folder.", "Data")
    image_size: int | None = option(None, "Height and width to resize to.", "Data", low=1)
    channels: int | None = option(None, "1 converts to grey, 3 to RGB.", "Data", low=1, high=3)
    normalization: str = option(
        "dataset",
        "dataset: zero mean, unit variance; none: [0, 1]; pow2: int8 code is pixel >> 1.",
        "Data",
        NORMALIZATIONS,
    )
    max_train_samples: int | None = option(None, "Train on this many images only.", "Data", low=1)
    max_test_samples: int | None = option(None, "Measure on this many images only.", "Data", low=1)
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
    augment_size: int | None = option(None, "Augment at this size, then resize to image_size.", "Augmentation", low=1)

    epochs: int = option(30, "Passes over the training images.", "Training", low=1)
    batch_size: int = option(64, "Images a step.", "Training", low=1)
    optimizer: str = option("adamw", "Optimizer.", "Training", OPTIMIZERS)
    lr: float = option(3e-3, "Highest learning rate.", "Training", low=0)
    momentum: float = option(0.9, "Momentum of sgd.", "Training", low=0, high=1)
    nesterov: bool = option(False, "Nesterov momentum of sgd.", "Training")
    weight_decay: float = option(
        0.0, "Weight decay of weight matrices (never of biases, norms and scales).", "Training", low=0
    )
    schedule: str = option("cosine", "How the learning rate falls.", "Training", SCHEDULES)
    warmup_epochs: float = option(0.0, "Epochs of linear warm-up.", "Training", low=0)
    lr_final: float = option(0.0, "Last learning rate as a share of lr (cosine, one-cycle).", "Training", low=0, high=1)
    lr_step_epochs: int = option(10, "Epochs between the steps of the schedule step.", "Training", low=1)
    lr_gamma: float = option(0.1, "Factor of each step of the schedule step.", "Training", low=0, high=1)
    loss: str = option("cross_entropy", "Loss.", "Training", LOSSES)
    label_smoothing: float = option(0.0, "Label smoothing.", "Training", low=0, high=0.99)
    gradient_clip: float = option(0.0, "Largest gradient norm; 0 for no limit.", "Training", low=0)

    methods: tuple[str, ...] = option(
        (), "Training method with its options, as 'profit bits=8,5,4'; repeatable.", "Methods"
    )
    teacher: str | None = option(
        None, "Teacher to distill from: a run's folder, a .ckpt or a .safetensors file.", "Distillation"
    )
    kd_temperature: float = option(4.0, "Temperature of the logits.", "Distillation", low=0.1)
    kd_alpha: float = option(0.5, "Share of the teacher's logits in the loss.", "Distillation", low=0, high=1)
    hint_weight: float = option(0.0, "Weight of the distance of features.", "Distillation", low=0)
    attention_weight: float = option(0.0, "Weight of the distance of attention maps.", "Distillation", low=0)
    hint_layers: tuple[str, ...] = option(
        (), "Layers whose outputs are compared, NAME or NAME:TEACHER_NAME; repeatable.", "Distillation"
    )

    seed: int = option(0, "Seed of everything random.", "Run", low=0)
    device: str = option("auto", "Where to train; auto takes a GPU when there is one.", "Run", ("auto", "cpu", "gpu"))
    precision: str = option("32", "Arithmetic of training; bf16 and 16 are mixed.", "Run", ("32", "bf16", "16"))
    threads: int | None = option(None, "CPU threads.", "Run", low=1)
    checkpoint_steps: int = option(
        500, "Steps between checkpoints (one follows each epoch anyhow); 0: none.", "Run", low=0
    )
    tensorboard: bool = option(True, "Write TensorBoard logs.", "Run")

    def __post_init__(self) -> None:
        """Converts values that mean the right type (1 for 1.0, a list for a tuple) and refuses the others."""
        kinds = _kinds()
        for spec in fields(self):
            value = _convert(spec.name, getattr(self, spec.name), kinds[spec.name])
            _check(spec, value)
            object.__setattr__(self, spec.name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Makes a recipe from plain values; what is left out has its default.

        Raises:
            BitLabError: An unknown key (the nearest valid one is named) or a value of the wrong type or range.
        """
        known = [spec.name for spec in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("recipe key", key, known)
        return cls(**values)

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """Reads a YAML file.

        Raises:
            BitLabError: No such file, no YAML mapping, or wrong values (see `from_dict`).
        """
        try:
            values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
        except (OSError, UnicodeDecodeError) as error:
            raise BitLabError(f"cannot read the recipe {path}: {error}") from None
        except yaml.YAMLError as error:
            raise BitLabError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise BitLabError(f"{path} is no recipe: it must hold lines of the form key: value")
        try:
            return cls.from_dict(values)
        except BitLabError as error:
            raise BitLabError(f"{path}: {error}") from None

    def dump(self, path: Path | str) -> None:
        """Writes all fields as YAML, so that a later change of a default does not change the run."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
        write_atomically(Path(path), text)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for YAML and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def replace(self, **values: Any) -> Recipe:
        """A copy with other values.

        A mapping field also takes a list of ``"key=value"`` texts (what a repeatable flag gives; the value is YAML),
        which change these keys only.

        Raises:
            BitLabError: As `from_dict`.
        """
        merged = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        for key, value in values.items():
            if isinstance(merged.get(key), dict) and isinstance(value, list | tuple):
                value = merged[key] | parse_pairs(value, key)
            merged[key] = value
        return Recipe.from_dict(merged)


def parse_pairs(texts: Iterable[str], what: str) -> dict[str, Any]:
    """Reads ``key=value`` texts; a value is YAML, so that lists and numbers work.

    Args:
        texts: For example ``["hidden_dims=[64, 60]"]``.
        what: The option's name, for the error.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, sign, value = str(text).partition("=")
        if not sign or not key:
            raise BitLabError(f"{what}: '{text}' is not of the form KEY=VALUE")
        try:
            values[key.strip()] = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError:
            raise BitLabError(f"{what}: '{value}' is no valid value for {key}") from None
    return values


class _Loader(yaml.SafeLoader):
    """Safe YAML whose numbers are YAML 1.2's (``1e-3`` is a number), and which refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without double keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _kinds() -> dict[str, Any]:
    """The fields' types."""
    return get_type_hints(Recipe)


def _convert(name: str, value: Any, kind: Any) -> Any:
    """Returns ``value`` as ``kind``, where it means that without loss.

    Raises:
        BitLabError: It does not.
    """
    if get_origin(kind) in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return _convert(name, value, next(k for k in get_args(kind) if k is not types.NoneType))
    base = get_origin(kind) or kind
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if base is tuple:
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
    elif base is dict:
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return dict(value)
    elif base is str and type(value) is int:
        return str(value)  # precision: 32
    elif type(value) is base and (base is not float or math.isfinite(value)):
        return value
    wanted = {
        "tuple": "a list of texts",
        "dict": "a mapping",
        "str": "text",
        "int": "a whole number",
        "bool": "true or false",
    }
    raise BitLabError(f"recipe key {name}: must be {wanted.get(base.__name__, 'a number')}, not {value!r}")


def _check(spec: dataclasses.Field[Any], value: Any) -> None:
    """Checks a value against the field's choices and limits."""
    choices, low, high = (spec.metadata[k] for k in ("choices", "low", "high"))
    if choices and value not in choices:
        raise unknown(spec.name, value, choices)
    if isinstance(value, int | float) and not low <= value <= high:
        limits = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
        raise BitLabError(f"recipe key {spec.name}: must be {limits}, not {value:g}")
