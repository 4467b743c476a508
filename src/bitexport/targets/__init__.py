"""Targets: what an integer graph can be turned into. Each is checked against the interpreter, output by output."""

from bitexport.targets.base import Artifact, Problem, Target
from bitexport.targets.c import CTarget
from bitexport.targets.c.chips import CHIPS
from bitexport.targets.engine import EngineTarget

TARGETS: dict[str, Target] = {
    "c": CTarget(),
    "host": CTarget(),
    **{name: CTarget(chip) for name, chip in CHIPS.items()},
    "engine": EngineTarget(),
}

__all__ = ["TARGETS", "Artifact", "CTarget", "EngineTarget", "Problem", "Target"]
