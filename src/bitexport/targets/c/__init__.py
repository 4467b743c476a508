"""The C target: a network as C99 source, for hosts and microcontrollers."""

from bitexport.targets.c.target import CTarget

__all__ = ["CTarget"]
