"""Named quantization settings. A preset is an instance of `BitQuantConfig`; any model runs with any preset."""

from __future__ import annotations

from bitcore.config import BitQuantConfig
from bitcore.errors import BitLabError, unknown

Quant = BitQuantConfig | str | None

_TERNARY_CNN = BitQuantConfig(weight_scale="absmedian", weight_granularity="per_channel")

# Microcontrollers: one power-of-two scale a layer, activations shifted by the sample's own maximum. The integer
# network then needs no multiplication, and fake quantization equals it exactly. For layers without biases.
_MCU = BitQuantConfig(
    weight_scale="octav",
    weight_scale_pow2=True,
    activation_dtype="int8",
    activation_granularity="per_token",
    activation_scale_pow2=True,
)
_MCU_FORMATS = {
    "binary": {"weight_scale": "absmean"},
    "ternary": {"weight_scale": "absmean"},
    "2bitsym": {},
    "4bitsym": {},
    "5bitsym": {},
    "4bit": {},
    "8bit": {},
    "fp130": {},
    "nf4": {"weight_scale": "absmax"},
}
# The same with fixed power-of-two ranges, so that biases and batch norm fold into the requantization.
_STATIC = {"activation_dtype": "uint8", "activation_scale": "tracked"}

# Sign activations; what is learned about them besides (RSign, RPReLU) are modules of `bitlayers.activations`.
_SIGNS = BitQuantConfig(weight_format="binary", activation_dtype="binary", activation_scale="unit")
_BNN = _SIGNS.replace(weight_scale="unit", estimator="clipped_ste", weight_clip=True)
_SIGNS_PER_CHANNEL = _SIGNS.replace(weight_granularity="per_channel")
_SAWB_FORMATS = {2: "2bitsym", 3: "int3", 4: "4bitsym", 8: "int8"}
_LSQ = BitQuantConfig(
    weight_scale="learned", activation_scale="learned", estimator="open_ste", activation_estimator="open_ste"
)
_LSQ_PLUS = _LSQ.replace(weight_scale="learned_plus", activation_scale="learned_plus")
_DOREFA = BitQuantConfig(weight_transform="tanh", weight_scale="absmax", activation_scale="unit")

_PAPERS = {
    "bnn": _BNN,
    "bnn-stochastic": _BNN.replace(weight_rounding="stochastic"),
    "xnor": _SIGNS_PER_CHANNEL,
    "bireal": _SIGNS_PER_CHANNEL.replace(activation_estimator="approx_sign"),  # and ReActNet, see docs/training.md
    "irnet": _SIGNS_PER_CHANNEL.replace(
        weight_scale="libra",
        weight_scale_pow2=True,
        weight_transform="standardize",
        estimator="ede",
        activation_estimator="ede",
    ),
    "twn": BitQuantConfig(weight_scale="twn"),
    "ttq": BitQuantConfig(weight_scale="ttq"),
    **{
        f"pact-sawb-{bits}": BitQuantConfig(
            weight_format=name, weight_scale="sawb", activation_dtype=f"uint{bits}", activation_scale="pact"
        )
        for bits, name in _SAWB_FORMATS.items()
    },
    **{f"lsq-{b}": _LSQ.replace(weight_format=f"int{b}", activation_dtype=f"uint{b}") for b in (2, 3, 4, 8)},
    **{f"lsq-plus-{b}": _LSQ_PLUS.replace(weight_format=f"int{b}", activation_dtype=f"uint{b}") for b in (2, 4)},
    **{f"dorefa-{b}": _DOREFA.replace(weight_format=f"{b}bitsym", activation_dtype=f"uint{b}") for b in (2, 4)},
}

PRESETS: dict[str, BitQuantConfig] = {
    "bitlab": BitQuantConfig(),
    "bitnet": BitQuantConfig(activation_dtype="int8", activation_granularity="per_token"),
    "bitnet-cnn": _TERNARY_CNN,
    "bitnet-cnn-p2": _TERNARY_CNN.replace(weight_scale_pow2=True),
    "w8a8": BitQuantConfig(
        weight_format="int8",
        weight_scale="absmax",
        weight_granularity="per_channel",
        activation_dtype="int8",
        activation_scale="tracked",
    ),
    **_PAPERS,
    **{f"mcu-{name}": _MCU.replace(weight_format=name, **rest) for name, rest in _MCU_FORMATS.items()},
    **{
        f"mcu-{name}-static": _MCU.replace(weight_format=name, **rest, **_STATIC) for name, rest in _MCU_FORMATS.items()
    },
}


def get_preset(name: str) -> BitQuantConfig:
    """Returns the preset of that name.

    Raises:
        BitLabError: If there is none; the message holds the nearest name.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def resolve(quant: Quant) -> BitQuantConfig | None:
    """Returns the config that a preset's name stands for; configs and ``None`` pass through.

    Raises:
        BitLabError: If the name is unknown, or it is neither a name nor a config.
    """
    if isinstance(quant, str):
        return get_preset(quant)
    if quant is not None and not isinstance(quant, BitQuantConfig):
        raise BitLabError(f"a BitQuantConfig or the name of a preset is needed, not {quant!r}")
    return quant
