"""Named quantization settings. A preset is an instance of `BitQuantConfig`; any model runs with any preset."""

from __future__ import annotations

from bitcore.config import BitQuantConfig
from bitcore.errors import unknown

_TERNARY_CNN = BitQuantConfig(weight_scale="absmedian", weight_granularity="per_channel")

# Microcontrollers: one power-of-two scale a layer, activations shifted by the sample's own maximum. The integer
# network then needs no multiplication, and fake quantization equals it exactly.
_MCU = BitQuantConfig(
    weight_scale="octav",
    weight_scale_pow2=True,
    activation_dtype="int8",
    activation_granularity="per_token",
    activation_scale_pow2=True,
)

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
    "mcu-binary": _MCU.replace(weight_format="binary", weight_scale="absmean"),
    "mcu-ternary": _MCU.replace(weight_scale="absmean"),
    **{f"mcu-{name}": _MCU.replace(weight_format=name) for name in ("2bitsym", "4bitsym", "5bitsym", "4bit", "8bit")},
    "mcu-fp130": _MCU.replace(weight_format="fp130"),
    "mcu-nf4": _MCU.replace(weight_format="nf4", weight_scale="absmax"),
}


def get_preset(name: str) -> BitQuantConfig:
    """Returns the preset of that name.

    Raises:
        BitLabError: If there is none; the message holds the nearest name.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
