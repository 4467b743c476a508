"""One target in a process of its own, which a crash, a hang or too much memory ends."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from bitcore.errors import BitLabError
from fuzz.mutations import mutate
from fuzz.targets import Target
from lies import seal

SECONDS = 10  # for one input
ADDRESSES = 4 << 30  # bytes, beyond those at the start
MEMORY = 512 << 20  # likewise, of those that are used


class Judge:
    """Gives inputs to a target, and notes what happens where the parent finds it: ``input``, ``what``, ``runs``.

    Args:
        target: The target.
        folder: For these files and the target's own.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.runs = self.accepted = 0
        (folder / "work").mkdir(exist_ok=True)
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __call__(self, data: bytes) -> None:
        """Judges one input; a finding raises, or ends the process."""
        (self.folder / "input").write_bytes(data)
        self.runs += 1
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            self.accepted += self.target.check(data, self.folder / "work")
        except BitLabError as error:
            if not str(error):
                raise AssertionError("an error without a word") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.note()
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._before) << 10
        assert used < MEMORY, f"{used >> 20} MiB for a file of {len(data)} bytes"

    def note(self) -> None:
        """Writes the counts."""
        (self.folder / "runs").write_text(f"{self.runs} {self.accepted}")


def bound() -> None:
    """Bounds memory, and has a hang end the process, whatever it is in."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, used + ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def fuzz(target: Target, pool: Sequence[bytes], seconds: float, seed: str, folder: Path) -> None:
    """Gives a target mutated files for a time; a finding raises, or ends the process."""
    judge, rng, end = Judge(target, folder), Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        judge(mutate(rng, rng.choice(pool), pool, target.lie))


def fuzz_by_coverage(target: Target, pool: Sequence[bytes], seconds: float, seed: str, folder: Path) -> None:
    """The same, guided by the code that inputs reach (atheris); never returns."""
    atheris: Any = importlib.import_module("atheris")
    judge, corpus = Judge(target, folder), folder / "pool"
    corpus.mkdir()
    for i, data in enumerate(pool):
        (corpus / str(i)).write_bytes(data)

    def mutator(data: bytes, largest: int, number: int) -> bytes:
        rng = Random(number)
        blind = rng.random() < 0.3
        return (seal(atheris.Mutate(data, largest)) if blind else mutate(rng, data, pool, target.lie))[:largest]

    options = {
        "max_total_time": max(1, int(seconds)), "seed": sum(seed.encode()), "timeout": SECONDS + 5, "rss_limit_mb": 0,
        "max_len": 16 * max(map(len, pool)), "verbosity": 0, "artifact_prefix": f"{folder}/",
    }  # fmt: skip
    arguments = ["fuzz", *(f"-{name}={value}" for name, value in options.items()), str(corpus)]

    def judge_noted(data: bytes) -> None:
        try:
            judge(data)
        except Exception:
            (folder / "what").write_text(traceback.format_exc())
            raise

    atheris.Setup(arguments, judge_noted, custom_mutator=mutator)
    atheris.Fuzz()


def start(
    work: Callable[[Target, Sequence[bytes], float, str, Path], None],
    target: Target, pool: Sequence[bytes], seconds: float, seed: str, folder: Path,
) -> int:  # fmt: skip
    """Runs one of the above in a child; returns the status that `os.waitstatus_to_exitcode` gives."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            bound()
            torch.set_num_threads(1)
            warnings.simplefilter("ignore")
            with (folder / "words").open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.fsync = lambda fd: None  # power cuts are another test's
            work(target, pool, seconds, seed, folder)
            status = 0
        except BaseException:
            with contextlib.suppress(Exception):
                (folder / "what").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
