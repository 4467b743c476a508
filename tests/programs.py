"""Programs for tests: many exported networks compiled into one, each run with buffers of exactly its sizes."""

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitexport.targets import Artifact
from bitexport.targets.c.host import STRICT, input_bytes

SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MAIN = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

%(includes)s
typedef struct {
    void (*run)(const int8_t *, int32_t *);
    void (*run_in)(const int8_t *, int32_t *, void *);
    int (*predict)(const int8_t *);
    size_t input, output, arena;
} Network;

static const Network networks[] = {
%(networks)s};

/* Reads samples, writes the outputs of NAME_run_in in the caller's arena, those of NAME_run, NAME_predict's class. */
int main(int argc, char **argv) {
    const Network *n = &networks[argc > 1 ? atoi(argv[1]) : 0];
    int8_t *input = malloc(n->input);
    int32_t *output = malloc(n->output * sizeof *output);
    void *arena = malloc(n->arena);
    memset(arena, 0x5a, n->arena);
    while (fread(input, 1, n->input, stdin) == n->input) {
        n->run_in(input, output, arena);
        fwrite(output, sizeof *output, n->output, stdout);
        n->run(input, output);
        fwrite(output, sizeof *output, n->output, stdout);
        const int32_t class = n->predict(input);
        fwrite(&class, sizeof class, 1, stdout);
    }
    free(input);
    free(output);
    free(arena);
    return 0;
}
"""


@dataclass(frozen=True)
class Program:
    """A compiled program that holds several networks."""

    path: Path
    names: tuple[str, ...]

    def run(self, name: str, codes: np.ndarray) -> np.ndarray:
        """Runs a network; `NAME_run_in`, `NAME_run` and `NAME_predict` agree, or this fails."""
        data = input_bytes(codes)
        command = [str(self.path), str(self.names.index(name))]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        rows = np.frombuffer(done.stdout, dtype="=i4").astype(np.int64).reshape(len(codes), -1)
        outputs = (rows.shape[1] - 1) // 2
        assert np.array_equal(rows[:, :outputs], rows[:, outputs:-1]), "NAME_run_in and NAME_run differ"
        assert np.array_equal(rows[:, :outputs].argmax(1), rows[:, -1]), "NAME_predict is another class"
        return rows[:, :outputs]


def compile_all(jobs: Sequence[Sequence[str]]) -> None:
    """Runs compilers two at a time; any word of theirs fails."""

    def one(command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, jobs))


def build(artifacts: Sequence[Artifact], out: Path, compiler: str, flags: Sequence[str]) -> Program:
    """Compiles networks, and each runtime file once, without a single warning, into one program."""
    out.mkdir(parents=True)
    names = tuple(artifact.name for artifact in artifacts)
    runtime = {path.name: path for a in artifacts for path in a.folder.glob("bit_*.c")}
    sources = [*runtime.values(), *(a.folder / f"{a.name}.c" for a in artifacts)]
    rows = [f"    {{{n}_run, {n}_run_in, {n}_predict, {n.upper()}_INPUT_SIZE, " for n in names]
    rows = [f"{row}{n.upper()}_OUTPUT_SIZE, {n.upper()}_ARENA_SIZE}},\n" for row, n in zip(rows, names, strict=True)]
    includes = "".join(f'#include "{a.folder / a.name}.h"\n' for a in artifacts)
    (out / "main.c").write_text(MAIN % {"includes": includes, "networks": "".join(rows)})
    options = [compiler, *STRICT, *flags]
    objects = [str(out / f"{source.stem}.o") for source in sources]
    jobs = [[*options, "-c", str(s), "-o", o] for s, o in zip(sources, objects, strict=True)]
    compile_all([*jobs, [*options, "-c", str(out / "main.c"), "-o", str(out / "main.o")]])
    compile_all([[*options, *objects, str(out / "main.o"), "-o", str(out / "program")]])
    return Program(out / "program", names)
