"""A two-layer ternary network with the interface of an exported one, to test the harness without the exporter."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INPUTS, HIDDEN, OUTPUTS, SHIFT = 64, 16, 10, 4

_HEADER = """\
#ifndef {upper}_H
#define {upper}_H
#include <stdint.h>
#define {upper}_INPUT_SIZE {inputs}
#define {upper}_OUTPUT_SIZE {outputs}
#define {upper}_ARENA_SIZE ({hidden} + {inputs})
#define {upper}_INPUT_OFFSET {hidden}
extern int32_t {name}_arena[{upper}_ARENA_SIZE / 4];
#define {upper}_INPUT ((int8_t *){name}_arena + {upper}_INPUT_OFFSET)
void {name}_run_in(const int8_t *input, int32_t *output, void *arena);
void {name}_run(const int8_t *input, int32_t *output);
int {name}_predict(const int8_t *input);
#endif
"""

_SOURCE = """\
#include "{name}.h"
static const int8_t hidden_weights[{hidden}][{inputs}] = {{{w1}}};
static const int8_t output_weights[{outputs}][{hidden}] = {{{w2}}};
int32_t {name}_arena[{upper}_ARENA_SIZE / 4];
static int32_t dot(const int8_t *weights, const int8_t *x, int n) {{
    int32_t sum = 0;
    for (int i = 0; i < n; i++) {{
        if (weights[i] > 0) sum += x[i];
        if (weights[i] < 0) sum -= x[i];
    }}
    return sum;
}}
void {name}_run_in(const int8_t *input, int32_t *output, void *arena) {{
    int8_t *hidden = arena;
    for (int i = 0; i < {hidden}; i++) {{
        int32_t y = (dot(hidden_weights[i], input, {inputs}) + {half}) >> {shift};
        hidden[i] = (int8_t)(y < 0 ? 0 : y > 127 ? 127 : y);
    }}
    for (int i = 0; i < {outputs}; i++) output[i] = dot(output_weights[i], hidden, {hidden});
}}
void {name}_run(const int8_t *input, int32_t *output) {{ {name}_run_in(input, output, {name}_arena); }}
int {name}_predict(const int8_t *input) {{
    int32_t output[{outputs}];
    int best = 0;
    {name}_run(input, output);
    for (int i = 1; i < {outputs}; i++) {{
        if (output[i] > output[best]) best = i;
    }}
    return best;
}}
"""


def weights() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The two layers' ternary weights, [HIDDEN, INPUTS] and [OUTPUTS, HIDDEN]."""
    rng = np.random.default_rng(0)
    return rng.integers(-1, 2, (HIDDEN, INPUTS)), rng.integers(-1, 2, (OUTPUTS, HIDDEN))


def reference(images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Computes what the C does: codes [B, INPUTS] to outputs [B, OUTPUTS]."""
    first, second = weights()
    hidden = np.clip((images @ first.T + (1 << SHIFT >> 1)) >> SHIFT, 0, 127)
    return hidden @ second.T


def write(folder: Path, name: str = "tiny") -> Path:
    """Writes the network's directory and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = (", ".join("{" + ", ".join(map(str, row)) + "}" for row in layer) for layer in weights())
    values = {
        "name": name,
        "upper": name.upper(),
        "inputs": INPUTS,
        "hidden": HIDDEN,
        "outputs": OUTPUTS,
        "shift": SHIFT,
        "half": 1 << SHIFT >> 1,
        "w1": first,
        "w2": second,
    }
    (folder / f"{name}.h").write_text(_HEADER.format(**values))
    (folder / f"{name}.c").write_text(_SOURCE.format(**values))
    return folder
