"""Signals and locks, with processes of their own: a status, one line, the last checkpoint, one run a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from bitcore.errors import BitLabError
from bitlab import cli
from bittrain.fit import fit
from bittrain.interrupts import Interrupted, interruptible
from bittrain.recipe import Recipe
from bittrain.run_folder import LOCK_FILE, lock_folder

RECIPE = Recipe(
    epochs=2,
    batch_size=16,
    max_train_samples=64,
    max_test_samples=50,
    checkpoint_steps=1,
    device="cpu",
    tensorboard=False,
    plots=False,
)
COMMAND = """
import os, signal, sys
from bitlab import cli
from bittrain import fit

class Signalled(fit._Interruptible):
    def on_train_batch_start(self, trainer, *rest):
        super().on_train_batch_start(trainer, *rest)
        if trainer.global_step == {step}:
            os.kill(os.getpid(), {number})
            os.kill(os.getpid(), {number})  # launchers repeat themselves

if {step} >= 0:
    fit._Interruptible = Signalled
sys.argv = ["bitlab", *sys.argv[1:]]
cli.main()
"""


def bitlab(*arguments: object, step: int = -1, number: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, which gets a signal at a step."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    code = COMMAND.format(step=step, number=number)
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_training_which_then_goes_on_exactly(
    number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RECIPE.dump(tmp_path / "recipe.yaml")
    run = tmp_path / "run"
    done = bitlab("train", tmp_path / "recipe.yaml", "--out", run, "--quiet", step=5, number=number)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    name = signal.Signals(number).name
    last = run / "checkpoints" / "last.ckpt"
    how = f"bitlab train {run} --resume"
    assert done.stderr == f"error: interrupted by {name}: {last} is kept; go on with: {how}\n"
    assert not (run / LOCK_FILE).exists() and not (run / "model.safetensors").exists()
    monkeypatch.setattr(sys, "argv", [*how.split(), "--quiet"])  # as it was recommended
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    whole = fit(RECIPE, tmp_path / "whole", progress=False)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_signal_before_the_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    class Signalled(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        fit(RECIPE, tmp_path / "run", progress=False, callbacks=[Signalled()])
    assert str(stop.value) == f"interrupted by SIGTERM: there was no checkpoint in {tmp_path / 'run'} yet; start again"
    assert not list(tmp_path.iterdir())


def test_an_interruption_that_python_dropped_is_not_lost(tmp_path: Path) -> None:
    class Dropped(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                except Interrupted:  # as Python does with an exception in a __del__
                    self.dropped = True

    callback = Dropped()
    with pytest.raises(Interrupted) as stop:
        fit(RECIPE, tmp_path / "run", progress=False, callbacks=[callback])
    assert callback.dropped and stop.value.code == 143
    fit(RECIPE, tmp_path / "run", resume=True, progress=False)  # and the next training is not interrupted by it


def test_handlers_are_given_back_and_what_is_ignored_stays_ignored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with pytest.raises(Interrupted, match="SIGTERM"), interruptible(), interruptible():
            any(os.kill(os.getpid(), number) for number in (signal.SIGHUP, signal.SIGTERM))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


HOLD = """
import sys, time
from pathlib import Path
from bittrain.run_folder import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """A process that holds the lock of ``run``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_is_told_who_has_the_folder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for resume in (False, True):
        with pytest.raises(BitLabError, match=rf"run is in use by process {holder.pid} on \S+, since .*; wait until"):
            fit(RECIPE, run, resume=resume, progress=False)
    assert [path.name for path in run.iterdir()] == [LOCK_FILE]
    holder.kill()
    holder.wait()
    assert (run / LOCK_FILE).exists()  # what a killed process leaves behind is no lock
    fit(RECIPE.replace(epochs=1), run, progress=False)
    assert not (run / LOCK_FILE).exists()


def test_locks_that_come_and_go_never_meet(tmp_path: Path) -> None:
    """Files and folders vanish between the steps of those that wait for them; threads lock as processes do."""
    folder, end = tmp_path / "run", time.monotonic() + 1

    def take_turns(_: int) -> int:
        turns = 0
        while time.monotonic() < end:
            with suppress(BitLabError), lock_folder(folder):
                mark = folder / "mark"
                mark.touch(exist_ok=False)  # another one in here would have made it
                mark.unlink()
                turns += 1
        return turns

    with ThreadPoolExecutor(4) as pool:
        assert min(pool.map(take_turns, range(4))) > 0
    assert not folder.exists()


def test_an_unlockable_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    warns = pytest.warns(UserWarning, match="cannot be locked .No locks available.; let no other run write")
    with warns, lock_folder(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).exists()
