"""How the words behind a command are read: the spellings of other projects, and values that were forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from typer.core import TyperCommand

from bitcore.errors import BitLabError
from bitlab import console


def dashes(name: str) -> str:
    """``results_dir`` is ``results-dir``, for every flag and command."""
    return name.replace("_", "-")


class Command(TyperCommand):
    """A command that does not take the next flag for the value of one that lacks its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `typer`.

        Raises:
            BitLabError: A flag has no value.
        """
        options = {name: param for param in self.params for name in (*param.opts, *param.secondary_opts)}
        for word, following in pairwise(args):
            if word == "--":
                break
            option: Any = options.get(word if "=" in word else _flag(word))
            if option is not None and not getattr(option, "is_flag", True) and _flag(following) in options:
                raise BitLabError(f"{word} needs a value before {following}: {option.help}")
        return super().parse_args(ctx, args)


class TrainCommand(Command):
    """A command that also takes the flags of BitNetCNN, BitNetMCU, BBN and BNFusionTrain."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `Command`."""
        return super().parse_args(ctx, list(translate(args)))


def _flag(word: str) -> str:
    """A flag as it is written here, without what stands behind ``=``."""
    return dashes(word.split("=")[0]) if word.startswith("--") else word


def _of_type(kind: str) -> list[str]:
    """BBN's tensor types."""
    device = "gpu" if ".cuda." in kind else "cpu"
    precision = {"HalfTensor": "16", "BFloat16Tensor": "bf16", "FloatTensor": "32"}.get(kind.rpartition(".")[2])
    if precision is None:
        raise BitLabError(f"--type {kind} is not known here; say --device cpu or gpu, and --precision 32, bf16 or 16")
    return ["--device", device, "--precision", precision]


_ALONE = {
    "--amp": ["--precision", "16"],
    "--cpu": ["--device", "cpu"],
    "--bn-fuse": ["--methods", "fused-batch-norm"],
    "--stabilize": ["--methods", "bn-reestimation"],
}
"""Flags without a value: what they are here."""

_WITH_VALUE: dict[str, Callable[[str], list[str]]] = {
    "--params": lambda file: [file],
    "--type": _of_type,
    "--gpus": lambda gpus: ["--devices", str(len(gpus.split(",")))],
    "--channel-wise": lambda on: ["--quant-overrides", "*={weight_granularity: per_channel}"] * (on != "0"),
    "--a-lambda": lambda weight: ["--methods", f"pact-penalty weight={weight}"],
}
"""Flags with a value: what they are here, given it."""

_NEEDLESS = {
    "-p": "the progress bar shows every step",
    "--print-freq": "the progress bar shows every step",
    "--log-file": "metrics.csv in the run's folder is the log",
    "--alpha-init": "PACT starts at the first batch's range",
    "--clp": "PACT learns it",
}
"""Flags with a value that have nothing to do here: why."""

OTHERWISE = {
    "--mix-alpha": "--mixup ALPHA and --cutmix ALPHA",
    "--gammas": '--regime "EPOCH lr=…", once for each step',
    "--fine-tune": "--init RUN",
    "--wbit": "--quant PRESET, such as pact-sawb-4",
    "--abit": "--quant PRESET, such as pact-sawb-4",
    "--w-bit": '--methods "profit bits=8,5,4"',
    "--a-bit": '--methods "profit bits=8,5,4"',
    "--w-profit": '--methods "profit bits=8,5,4"',
    "--ft-epoch": '--methods "profit bits=8,5,4 share=…"',
    "--bn-epoch": '--methods "bn-reestimation batches=…"',
    "--use-ema": "--ema DECAY, such as 0.999",
}
"""Flags that mean several things at once: how they are said here."""


def translate(args: list[str]) -> Iterator[str]:
    """Yields the words of a command, other projects' flags in ours; says which of them have nothing to do here.

    Raises:
        BitLabError: A flag has to be said otherwise; the message says how.
    """
    words = iter(args)
    for word in words:
        flag, sign, value = word.partition("=")
        flag = _flag(flag)
        if flag in OTHERWISE:
            raise BitLabError(f"{word.split('=')[0]} is said otherwise here: {OTHERWISE[flag]}")
        if flag in _ALONE:
            yield from _ALONE[flag]
        elif flag in _WITH_VALUE or flag in _NEEDLESS:
            value = value if sign else next(words, "")
            if not value or value.startswith("--"):
                raise BitLabError(f"{flag} needs a value")
            if flag in _NEEDLESS:
                console.note(f"ignored: {flag} {value} ({_NEEDLESS[flag]})")
            else:
                yield from _WITH_VALUE[flag](value)
        else:
            yield word
