"""The fuzzer finds what it is there to find, keeps it, and repeats itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from fuzz.mutations import mutate
from fuzz.targets import TARGETS

PLANTED = """
import ctypes, sys, time
from pathlib import Path
from bitcore.errors import BitLabError
from fuzz import child, targets
from fuzz import __main__ as driver

driver.MOST = 1
child.SECONDS, child.MEMORY = 1, 64 << 20
kept = []

def raises(): raise KeyError("not ours")
def crashes(): ctypes.string_at(0)
def hangs(): time.sleep(60)
def asks_for_too_much(): bytearray(1 << 40)
def fills_memory(): kept.append(b"x" * (100 << 20))
def has_no_words(): raise BitLabError("")
def refuses(): raise BitLabError("no")

for what in (raises, crashes, hangs, asks_for_too_much, fills_memory, has_no_words, refuses):
    def check(data, folder, what=what):
        if len(data) > 20:
            what()
        return True
    check.__name__ = what.__name__
    targets.target(lambda: [b"x" * 20])(check)
names = [argument for name in targets.TARGETS if name in globals() for argument in ("--only", name)]
sys.exit(driver.main(["--random", "--minutes", "0.4", *names], Path(sys.argv[1])))
"""


def test_every_kind_of_finding_is_found_and_kept(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 1, done.stderr
    for name, word in (
        ("raises", "KeyError: 'not ours'"), ("crashes", "killed by SIGSEGV"), ("hangs", "(it hung)"),
        ("asks_for_too_much", "MemoryError"), ("fills_memory", "MiB for a file"), ("has_no_words", "without a word"),
    ):  # fmt: skip
        assert word in done.stdout
        kept = list((tmp_path / name).glob("found-*"))
        assert kept and all(len(path.read_bytes()) > 20 for path in kept)
    assert not (tmp_path / "refuses").exists()
    assert "refuses: 0 inputs" not in done.stdout


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_many_and_the_same_for_a_seed(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    runs = []
    for _ in range(2):
        rng = Random(0)
        runs.append([mutate(rng, rng.choice(seeds), seeds, target.lie) for _ in range(30)])
    assert runs[0] == runs[1]
    assert len(set(runs[0]) - set(seeds)) > 20
