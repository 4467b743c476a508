"""Targets: what an integer graph can be turned into. Each is checked against the interpreter, output by output."""

from bitexport.targets.base import Artifact, Problem, Target
from bitexport.targets.c import CTarget

TARGETS: dict[str, Target] = {target.name: target for target in (CTarget(),)}

__all__ = ["TARGETS", "Artifact", "CTarget", "Problem", "Target"]
