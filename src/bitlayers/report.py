"""What a conversion did: which layers became bit layers, which stayed, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bitcore.config import FLOAT, BitQuantConfig

ASKED = "it was asked to stay as it is"


@dataclass(frozen=True)
class Entry:
    """One layer with weights.

    Attributes:
        names: Its names in the model; several where it is used in several places.
        layer: The type that it had.
        config: The config that it got, ``None`` where it was left.
        reason: Why it was left, empty where it was converted.
    """

    names: tuple[str, ...]
    layer: str
    config: BitQuantConfig | None = None
    reason: str = ""

    @property
    def title(self) -> str:
        """All its names, as one."""
        return " = ".join(name or "(the model)" for name in self.names)


@dataclass(frozen=True)
class ConversionReport:
    """Every layer that holds weights of two or more dimensions, in the model's order; prints as a table."""

    entries: tuple[Entry, ...]
    hardtanhs: tuple[str, ...] = ()
    """ReLUs that became Hardtanhs because the sign of what a ReLU passes is always +1."""
    half_used: tuple[str, ...] = ()
    """Layers whose inputs are never negative, but have a signed format of a static range: half its levels are idle."""
    signed: tuple[str, ...] = ()
    """Layers whose inputs can be negative, or might: they got a signed format in place of the unsigned one."""
    clipped: tuple[str, ...] = ()
    """Layers whose inputs can be negative, but have the unsigned format that was asked for: they become 0."""
    guessed: str = ""
    """What was guessed because the model's code could not be followed; empty if nothing was."""

    @property
    def converted(self) -> tuple[Entry, ...]:
        """The layers that became bit layers."""
        return tuple(entry for entry in self.entries if entry.config is not None)

    @property
    def left(self) -> tuple[Entry, ...]:
        """The layers that stayed as they were."""
        return tuple(entry for entry in self.entries if entry.config is None)

    @property
    def unexpected(self) -> tuple[Entry, ...]:
        """The layers that stayed float though nobody asked for it."""
        return tuple(entry for entry in self.left if entry.reason != ASKED)

    def __str__(self) -> str:
        """A table: name, layer, what it became or why it was left; then the sums."""
        rows = [("name", "layer", "became")]
        for entry in self.entries:
            became = f"left: {entry.reason}" if entry.config is None else _describe(entry.config)
            rows.append((entry.title, entry.layer, became))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{name:<{widths[0]}}  {layer:<{widths[1]}}  {became}" for name, layer, became in rows]
        kinds = Counter(entry.layer for entry in self.left)
        left = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        lines.append(f"{len(self.converted)} converted, {len(self.left)} left" + (f" ({left})" if left else ""))
        if self.hardtanhs:
            lines.append(f"ReLU became Hardtanh, for binary activations: {', '.join(self.hardtanhs)}")
        if self.half_used:
            lines.append(f"never negative, in signed formats (choose uint ones): inputs of {', '.join(self.half_used)}")
        if self.signed:
            lines.append(
                f"may be negative, so in signed formats in place of unsigned: inputs of {', '.join(self.signed)}"
            )
        if self.clipped:
            lines.append(f"may be negative, in unsigned formats (choose int ones): inputs of {', '.join(self.clipped)}")
        return "\n".join([*lines, self.guessed] if self.guessed else lines)


def _describe(config: BitQuantConfig) -> str:
    def scale(name: str, granularity: str, pow2: bool) -> str:
        return f"{name} {granularity}{', powers of two' if pow2 else ''}"

    weight = activation = FLOAT
    if config.weight_format != FLOAT:
        how = scale(config.weight_scale, config.weight_granularity, config.weight_scale_pow2)
        weight = f"{config.weight_format} ({how})"
    if config.activation_dtype != FLOAT:
        how = scale(config.activation_scale, config.activation_granularity, config.activation_scale_pow2)
        activation = f"{config.activation_dtype} ({how})"
    return f"weights {weight}, inputs {activation}"
