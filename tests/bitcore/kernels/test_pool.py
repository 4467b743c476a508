"""The thread pool under ThreadSanitizer: no two threads touch the same memory unless they say so."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import bitcore.kernels

SIMD = Path(bitcore.kernels.__file__).parent / "csrc" / "simd"
HARNESS = Path(__file__).with_name("pool_harness.c")
OPTIONS = ("-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-fsanitize=thread")


def run(compiler: str, folder: Path, source: Path, jobs: int) -> subprocess.CompletedProcess[str]:
    program = folder / "pool"
    command = [compiler, *OPTIONS, f"-I{SIMD}", str(source), str(HARNESS), "-pthread", "-o", str(program)]
    subprocess.run(command, check=True)
    # Randomized addresses of some kernels are not where the sanitizer expects them.
    fixed = ["setarch", platform.machine(), "--addr-no-randomize"]
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([*fixed, program, str(jobs)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_several_callers_race_for_nothing(compiler: str, tmp_path: Path, require_tool: Callable[[str, str], str]):
    done = run(require_tool(compiler, compiler), tmp_path, SIMD / "bit_pool.c", 20_000)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stdout == "4 callers, 20000 jobs each, 0 failures\n"


@pytest.mark.slow
def test_a_race_is_found(tmp_path: Path, require_tool: Callable[[str, str], str]):
    """Without waiting for the threads that are still inside, a job's memory is touched after its end."""
    source = (SIMD / "bit_pool.c").read_text()
    assert source.count("atomic_load(&pool.inside); i++") == 1
    broken = tmp_path / "bit_pool.c"
    broken.write_text(source.replace("atomic_load(&pool.inside); i++", "i < 0; i++"))
    done = run(require_tool("gcc", "gcc"), tmp_path, broken, 20_000)
    assert done.returncode != 0
    assert "data race" in done.stderr or "failures" in done.stdout or done.returncode < 0
