"""Fuzzes every target in turn: ``python -m fuzz [--minutes N] [--only TARGET] [--seed N]``.

With atheris (``pip install atheris``) mutations are guided by the code of ``bitcore`` and ``bitmodels`` that they
reach; without it they are random, and the same for the same seed. Findings are written to ``tests/corpus/TARGET/``;
then the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parents[1] / "corpus"
MOST = 3  # findings of a target, then the next one's turn comes


def instrumented(wanted: bool) -> Any:
    """The context in which modules are imported so that atheris sees which code runs."""
    if not wanted:
        return nullcontext()
    atheris: Any = importlib.import_module("atheris")
    return atheris.instrument_imports(include=["bitcore", "bitmodels"])


def fuzz_target(name: str, seconds: float, seed: int, guided: bool, corpus: Path) -> tuple[int, int, list[str]]:
    """Fuzzes one target; returns how many inputs ran, how many were accepted, and what was found."""
    from fuzz import child
    from fuzz.targets import TARGETS

    work: Callable[..., None] = child.fuzz_by_coverage if guided else child.fuzz
    target, found, runs, accepted = TARGETS[name], [], 0, 0
    pool = [*target.seeds(), *(file.read_bytes() for file in sorted((corpus / name).glob("*")))]
    end = time.monotonic() + seconds
    while len(found) < MOST and (left := end - time.monotonic()) > min(1, seconds / 2):
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            folder = Path(scratch)
            status = child.start(work, target, pool, left, f"{name} {seed} {len(found)}", folder)
            counts = (folder / "runs").read_text().split() if (folder / "runs").exists() else (0, 0)
            runs, accepted = runs + int(counts[0]), accepted + int(counts[1])
            if status:
                found.append(keep(folder, status, corpus / name))
    return runs, accepted, found


def keep(folder: Path, status: int, corpus: Path) -> str:
    """Writes the input that ended a child to the corpus; returns what happened."""
    what = (folder / "what").read_text() if (folder / "what").exists() else ""
    if not what:
        words = (folder / "words").read_text(errors="replace")[-2000:] if (folder / "words").exists() else ""
        died = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        what = f"{died}{' (it hung)' if status == -signal.SIGALRM else ''}\n{words}"
    if not (folder / "input").exists():
        raise RuntimeError(f"a child ended before its first input: {what}")
    data = (folder / "input").read_bytes()
    corpus.mkdir(parents=True, exist_ok=True)
    path = corpus / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return f"{path}\n{what}"


def main(arguments: list[str], corpus: Path = CORPUS) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="TARGET")
    parser.add_argument("--random", action="store_true", help="even where atheris is installed")
    chosen = parser.parse_args(arguments)
    guided = not chosen.random and importlib.util.find_spec("atheris") is not None
    with instrumented(guided):
        from fuzz.targets import TARGETS
    names = chosen.only or list(TARGETS)
    print(f"{'guided by coverage (atheris)' if guided else 'random'}, seed {chosen.seed}", flush=True)
    failed = False
    for name in names:
        runs, accepted, found = fuzz_target(name, 60 * chosen.minutes / len(names), chosen.seed, guided, corpus)
        print(f"{name}: {runs} inputs, {accepted} accepted, {len(found)} findings", flush=True)
        for what in found:
            print(what, flush=True)
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
