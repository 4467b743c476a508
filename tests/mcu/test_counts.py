"""What `bitlab measure` counts does not wrap: loops of known length, far beyond the counters of the chips."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitexport.targets.c.chips import CHIPS
from bitexport.targets.c.emulate import emulate
from bitexport.targets.manifest import Manifest

Tool = Callable[[str, str], str]
COUNTED = [name for name, chip in CHIPS.items() if chip.emulator.counter]
HEADER = """\
#include <stdint.h>
#define LOOP_INPUT_SIZE 2
#define LOOP_OUTPUT_SIZE 1
extern int32_t loop_arena[1];
#define LOOP_INPUT ((int8_t *)loop_arena)
void loop_run(const int8_t *input, int32_t *output);
int loop_predict(const int8_t *input);
"""
SOURCE = """\
#include "loop.h"

int32_t loop_arena[1];

/* So many turns of two instructions; of four cycles on AVR. */
static void turn(uint32_t n) {
#if defined(__AVR__)
    for (n >>= 16; n != 0; n--) {
        uint16_t turns = 0;
        __asm__ volatile("1: sbiw %0, 1\\n brne 1b" : "+w"(turns));
    }
#elif defined(__riscv)
    __asm__ volatile("1: addi %0, %0, -1\\n bnez %0, 1b" : "+r"(n));
#else
    __asm__ volatile(".syntax unified\\n 1: subs %0, %0, #1\\n bne 1b" : "+l"(n) : : "cc");
#endif
}

void loop_run(const int8_t *input, int32_t *output) { output[0] = input[0]; }

/* input[0] << input[1] turns. */
int loop_predict(const int8_t *input) {
    turn((uint32_t)(uint8_t)input[0] << (uint8_t)input[1]);
    return 0;
}
"""


def count(target: str, turns: list[tuple[int, int]], folder: Path, require_tool: Tool) -> tuple[np.ndarray, int]:
    """Runs loops of ``a << b`` turns each; returns what was counted of each, and the stack."""
    chip = CHIPS[target]
    require_tool(chip.prefix + chip.compiler, chip.package)
    require_tool(chip.emulator.program, chip.emulator.package)
    (folder / "loop.h").write_text(HEADER)
    (folder / "loop.c").write_text(SOURCE)
    manifest = Manifest("loop", target, files=("loop.h", "loop.c"), sources=("loop.c",))
    codes = np.array(turns)
    found = emulate(chip, folder, manifest, codes)
    assert np.array_equal(found.outputs[:, 0], codes[:, 0])
    return found.counts, found.stack


@pytest.mark.parametrize("target", COUNTED)
def test_long_runs_are_counted_whole(target: str, tmp_path: Path, require_tool: Tool) -> None:
    """Beyond 2**24 ticks of SysTick, and 2**16 of 1,024 cycles of an AVR, several times."""
    each, turns = 2, [(1, 16), (7, 20), (1, 24), (3, 24), (1, 16)]
    if target == "atmega328p":
        each, turns = 4, [(1, 16), (17, 20), (1, 16)]
    counts, stack = count(target, turns, tmp_path, require_tool)
    exact = np.array([each * a << b for a, b in turns])
    assert exact.max() > 2**26
    assert (np.abs(counts - exact) <= 2048 + exact // 2**13).all(), counts - exact
    _, short = count(target, turns[:1], tmp_path, require_tool)
    assert stack == short, "an interrupt's own stack is not the network's"


@pytest.mark.parametrize("target", COUNTED)
def test_short_runs_are_exact(target: str, tmp_path: Path, require_tool: Tool) -> None:
    """Two counts differ by what the loops differ by: to the instruction, and a tick of rounding on Arm and AVR."""
    counts, _ = count(target, [(1, 16), (3, 16), (9, 16)], tmp_path, require_tool)
    each, tick = (4, 1024) if target == "atmega328p" else (2, 2 if target.startswith("cortex") else 0)
    assert np.abs(np.diff(counts) - each * 2**16 * np.array([2, 6])).max() <= tick


@pytest.mark.slow
def test_runs_beyond_32_bits(tmp_path: Path, require_tool: Tool) -> None:
    counts, _ = count("rv32ec", [(3, 30), (1, 16)], tmp_path, require_tool)
    assert counts[0] - counts[1] == 2 * (3 * 2**30 - 2**16)
