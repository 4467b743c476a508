"""Verification: the emitted network against the interpreter, every output of every sample, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitcore.errors import BitLabError
from bitcore.graph import Graph
from bitcore.graph.ops import Ints
from bitexport.targets import Artifact, Target


@dataclass(frozen=True)
class Mismatch:
    """The first difference that was found.

    Attributes:
        sample: The sample's index.
        output: The output's index.
        expected: The interpreter's value.
        got: The target's value.
    """

    sample: int
    output: int
    expected: int
    got: int

    def __str__(self) -> str:
        """Returns one line."""
        return (
            f"sample {self.sample}, output {self.output}: the interpreter says {self.expected}, the network {self.got}"
        )


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        samples: How many samples ran.
        outputs: Outputs of a sample.
        mismatches: Samples with any difference.
        first: The first difference, ``None`` when there is none.
        scores: The interpreter's outputs, ``[samples, outputs]``.
        target_scores: The target's.
    """

    samples: int
    outputs: int
    mismatches: int
    first: Mismatch | None
    scores: Ints
    target_scores: Ints


def compare(graph: Graph, target: Target, artifact: Artifact, codes: Ints) -> Verification:
    """Runs the interpreter and the emitted network on the same integer inputs and compares every output.

    Args:
        graph: The reference.
        target: The target that emitted the network.
        artifact: The network.
        codes: int64 ``[samples, *shape]``.

    Raises:
        BitLabError: If there is no sample, or the network cannot be built or run.
    """
    if not len(codes):
        raise BitLabError("there are no samples to verify on")
    expected = graph.run(codes)
    got = target.run(artifact, codes)
    if got.shape != expected.shape:
        raise BitLabError(f"the network has {got.shape[1]} outputs, its graph {expected.shape[1]}; export it again")
    differs = got != expected
    first = None
    if differs.any():
        sample, output = map(int, np.argwhere(differs)[0])
        first = Mismatch(sample, output, int(expected[sample, output]), int(got[sample, output]))
    bad = int(differs.any(axis=1).sum())
    return Verification(len(codes), expected.shape[1], bad, first, expected, got)
