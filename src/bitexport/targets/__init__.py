"""Targets: what an integer graph can be turned into. Each is checked against the interpreter, output by output."""

from bitcore.errors import BitLabError, unknown
from bitexport.targets.base import Artifact, Problem, Sizes, Target
from bitexport.targets.c import CTarget
from bitexport.targets.c.chips import CHIPS
from bitexport.targets.c.target import OPTIMIZE
from bitexport.targets.engine import EngineTarget
from bitexport.targets.manifest import Manifest, is_export, open_export

TARGETS: dict[str, Target] = {
    "c": CTarget(),
    "host": CTarget(),
    **{name: CTarget(chip) for name, chip in CHIPS.items()},
    "engine": EngineTarget(),
}

__all__ = [
    "OPTIMIZE",
    "TARGETS",
    "Artifact",
    "CTarget",
    "EngineTarget",
    "Manifest",
    "Problem",
    "Sizes",
    "Target",
    "get_target",
    "is_export",
    "open_export",
]


def get_target(name: str, optimize: str | None = None) -> Target:
    """Returns a target.

    Args:
        name: Its name.
        optimize: One of `OPTIMIZE`, for C; by default the target's own choice.

    Raises:
        BitLabError: There is none of that name, or it has no such choice.
    """
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    target = TARGETS[name]
    if optimize is None:
        return target
    if not isinstance(target, CTarget):
        raise BitLabError(f"target {name} is not optimized for speed or flash; that is for C and chips")
    return CTarget(target.chip, optimize)
