"""`bitlab bench`: packed layers against torch, onnxruntime and ggml, and against the machine's own limits.

All contestants of a case take turns, a few milliseconds each, round after round, so that what else the machine does
meets all of them. On one thread the thread's processor time counts, else wall time; reported is the median. On several
threads a turn begins when those of the contestant before have stopped waiting for more work (some spin for 50 ms), and
with calls that do not count, in which the system spreads its threads over the cores.
"""

from __future__ import annotations

import json
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitcore import BitQuantConfig
from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitcore.formats import FORMATS
from bitcore.kernels.machine import prepare
from bitcore.kernels.native import library, usable_sets
from bitcore.kernels.simd import FusedLinear
from bitcore.quantizers import PackedTensor
from bitlab import console
from bitlab.pages import BEGIN, END, with_table
from bitlab.rivals import FLOAT, GGML, ONEDNN, RIVALS, Run
from bitlayers import BitLinear

_SLICE = 4e-3  # seconds of a contestant's turn
_REST, _WARM_UP = 20e-3, 12e-3  # seconds without work, and of work that does not count, before turns on several threads
_COLD = 192 * 2**20  # bytes of layers that are cycled, so that each comes from DRAM


@dataclass(frozen=True)
class Case:
    """A linear layer to time.

    Attributes:
        weight: The weights' format.
        rows: Rows of the input.
        size: Outputs and inputs.
        cold: Whether so many layers are cycled that they come from DRAM.
        rivals: Who else runs.
    """

    weight: str
    rows: int
    size: int = 4096
    cold: bool = False
    rivals: tuple[str, ...] = tuple(RIVALS)

    @property
    def name(self) -> str:
        """As in tables."""
        activation = " × binary" if self.weight == "binary" else ""
        return f"{self.weight}{activation} {self.size}², M = {self.rows}{', from DRAM' if self.cold else ''}"


CASES = (
    Case("ternary", 1),
    Case("ternary", 1, cold=True, rivals=(FLOAT, GGML)),
    Case("ternary", 1, 1024),
    Case("ternary", 8),
    Case("ternary", 128, rivals=(FLOAT, ONEDNN, "onnxruntime int8")),
    Case("ternary", 512, rivals=(FLOAT, ONEDNN)),
    Case("binary", 1, rivals=(FLOAT,)),
    Case("binary", 128, rivals=(FLOAT,)),
    Case("int4", 1, rivals=(FLOAT, "onnxruntime 4 bits")),
    Case("int8", 1, rivals=(FLOAT, ONEDNN, "onnxruntime int8")),
)


def packed_layer(case: Case) -> BitLinear:
    """Returns a packed layer for a case, of random weights."""
    config = BitQuantConfig(case.weight, activation_dtype="int8", activation_granularity="per_token")
    if case.weight == "binary":
        config = config.replace(activation_dtype="binary", activation_scale="unit")
    layer = BitLinear(case.size, case.size, bias=False, quant_config=config)
    layer.pack()
    return layer.eval()


def _own(case: Case) -> tuple[Run, int]:
    """Returns a function that applies every layer of the case once, and how many those are."""
    layer, x = packed_layer(case), torch.randn(case.rows, case.size)
    if not case.cold:
        return (lambda: layer(x)), 1
    fmt, scale = FORMATS[case.weight], torch.ones(())
    packed = PackedTensor(layer.packed_tensor().data, scale, layer.weight_shape, fmt)
    count = _COLD // packed.data.numel()
    weights = [prepare(packed, dense=True) for _ in range(count)]  # as in a model that exceeds the cache
    int8 = FORMATS["int8"]
    calls = [FusedLinear(weight, case.size, case.size, int8, scale, None, False) for weight in weights]
    return (lambda: [call(x) for call in calls]), count


def _rival(name: str, case: Case, threads: int) -> tuple[Run, int] | None:
    arguments = (case.rows, case.size, case.size, threads)
    first = RIVALS[name](*arguments)
    if first is None:
        return None
    runs = [first]
    if case.cold:
        stored = case.size**2 * (4 if name == FLOAT else 0.26)
        runs += [run for run in (RIVALS[name](*arguments) for _ in range(int(_COLD / stored) - 1)) if run]
    return (lambda: [run() for run in runs]), len(runs)


def measure(case: Case, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns the median and the least time in microseconds of each contestant."""
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    runs = {"bitlab": _own(case)}
    runs |= {name: run for name in case.rivals if (run := _rival(name, case, threads)) is not None}
    repeats: dict[str, int] = {}
    for name, (run, _) in runs.items():
        run()
        start = clock()
        run()
        repeats[name] = max(1, int(_SLICE / max(clock() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (run, layers) in runs.items():
            if threads > 1:
                _rest()
                _warm_up(run)
            start = clock()
            for _ in range(repeats[name]):
                run()
            times[name].append((clock() - start) / repeats[name] / layers * 1e6)
    return {name: {"median": statistics.median(taken), "least": min(taken)} for name, taken in times.items()}


def _rest() -> None:
    """Waits until no thread of this process works or spins."""
    worked = _REST
    while worked > _REST / 10:
        before = time.process_time()
        time.sleep(_REST)
        worked = time.process_time() - before


def _warm_up(run: Run) -> None:
    end = time.perf_counter() + _WARM_UP
    while time.perf_counter() < end:
        run()


def limits(threads: int) -> dict[str, float]:
    """Returns the machine's limits: GB/s of reading from L2, L3 and DRAM, 1e9 products a second of bytes and signs.

    Empty without AVX-512.
    """
    native = library()
    if native is None or "avx512" not in usable_sets():
        return {}
    native.bit_limit_read.argtypes = [native.bit_linear_float_simd.argtypes[0], native.bit_prepare.argtypes[3]]
    native.bit_limit_dot.argtypes = native.bit_limit_count.argtypes = [native.bit_prepare.argtypes[3]]
    found = {}
    for name, size in (("L2", 2**19), ("L3", 2**22), ("DRAM", 2**28)):
        memory = [torch.ones(size, dtype=torch.uint8) for _ in range(threads)]
        count = 2**29 // size

        def read(i: int, memory: list[torch.Tensor] = memory, size: int = size, count: int = count) -> None:
            for _ in range(count):
                native.bit_limit_read(memory[i].data_ptr(), size)

        found[name] = size * count * threads / _best_time(read, threads) / 1e9
    rounds = 1_000_000  # several milliseconds, next to which starting a thread is nothing
    found["dot"] = rounds * 1024 * threads / _best_time(lambda i: native.bit_limit_dot(rounds), threads) / 1e9
    found["count"] = rounds * 8192 * threads / _best_time(lambda i: native.bit_limit_count(rounds), threads) / 1e9
    return found


def _best_time(work: Callable[[int], object], threads: int, rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        if threads == 1:
            start = time.thread_time()
            work(0)
            times.append(time.thread_time() - start)
            continue
        workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        times.append(time.perf_counter() - start)
    return min(times)


def roof(case: Case, limit: dict[str, float], stored: int) -> tuple[float, str]:
    """Returns the least time in microseconds that a case can take here, and what it is bound by."""
    level = "DRAM" if case.cold else "L2" if stored < 2**19 else "L3"
    products = case.rows * case.size**2 / limit["count" if case.weight == "binary" else "dot"] / 1e3
    reading = stored / limit[level] / 1e3
    return max((products, "arithmetic"), (reading, level))


def run(threads: Sequence[int] = (1, 2), rounds: int = 15, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """Measures everything; returns plain data."""
    before, results = torch.get_num_threads(), []
    try:
        for count in threads:
            limit = limits(count)
            for case in cases:
                taken = measure(case, count, rounds if case.rows <= 128 else max(3, rounds // 3))
                layer = packed_layer(case)
                assert layer.machine_weight is not None
                stored = layer.machine_weight.numel() if not case.cold else int(case.size**2 / 5)
                row: dict[str, Any] = {"case": case.name, "rows": case.rows, "size": case.size, "threads": count}
                row |= {"us": taken, "bytes": stored}
                if limit:
                    row["roof_us"], row["bound_by"] = roof(case, limit, stored)
                results.append(row)
                console.out.print(_line(row))
            results.append({"threads": count, "limits": limit})
    finally:
        torch.set_num_threads(before)
    return {"machine": platform.machine(), "kernels": list(usable_sets()), "torch": torch.__version__, "rows": results}


def _line(row: dict[str, Any]) -> str:
    own = row["us"]["bitlab"]["median"]
    rivals = ", ".join(f"{n} {t['median'] / own:.1f}×" for n, t in row["us"].items() if n != "bitlab")
    share = f", {100 * row['roof_us'] / own:.0f} % of the limit ({row['bound_by']})" if "roof_us" in row else ""
    return f"{row['case']}, {row['threads']} threads: {own:.1f} µs{share}; {rivals}"


def table(results: dict[str, Any]) -> str:
    """Returns the results as a Markdown table."""
    lines = ["| layer | threads | µs | of the limit | times faster than |", "|---|---|---|---|---|"]
    for row in results["rows"]:
        if "case" not in row:
            continue
        own = row["us"]["bitlab"]["median"]
        share = f"{100 * row['roof_us'] / own:.0f} % ({row['bound_by']})" if "roof_us" in row else "–"
        rivals = ", ".join(f"{n} {t['median'] / own:.1f}" for n, t in row["us"].items() if n != "bitlab")
        lines.append(f"| {row['case']} | {row['threads']} | {own:.1f} | {share} | {rivals} |")
    limit = [row for row in results["rows"] if row.get("limits")]
    if limit:
        lines += ["", "| limits of this machine | L2 GB/s | L3 GB/s | DRAM GB/s | int8 GMAC/s | binary GMAC/s |"]
        lines += ["|---|---|---|---|---|---|"]
    for row in limit:
        figures = " | ".join(f"{row['limits'][name]:.0f}" for name in ("L2", "L3", "DRAM", "dot", "count"))
        lines.append(f"| {row['threads']} threads | {figures} |")
    return "\n".join(lines)


def check_page(page: Path) -> None:
    """Checks, before anything is timed, that a page has a place for the table.

    Raises:
        BitLabError: There is no such page, or it has no marks.
    """
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    if BEGIN not in text or END not in text:
        raise BitLabError(f"'{page}' must be a page with the lines {BEGIN} and {END}: the table goes between them")


def publish(results: dict[str, Any], out: Path, page: Path | None) -> None:
    """Writes the results as JSON, and the table between the marks of a page."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(results, indent=1) + "\n")
    if page is not None:
        write_atomically(page, with_table(page.read_text(), table(results)))


def draw(results: dict[str, Any], path: Path, threads: int = 1) -> None:
    """Draws the roofline: products a second over products a byte of weights, under the machine's limits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    limit = next(row["limits"] for row in results["rows"] if row["threads"] == threads and row.get("limits"))
    figure, axes = pyplot.subplots(figsize=(8, 5))
    intensities = [2.0**i for i in range(-1, 13)]
    for level in ("L2", "L3", "DRAM"):
        axes.plot(intensities, [min(limit["dot"], limit[level] * i) for i in intensities], label=f"{level}, int8")
    axes.plot(intensities, [min(limit["count"], limit["L3"] * i) for i in intensities], "--", label="L3, binary")
    for row in results["rows"]:
        if row["threads"] == threads and "case" in row:
            products = row["size"] ** 2 * row["rows"]
            speed = products / row["us"]["bitlab"]["median"] / 1e3
            axes.plot(products / row["bytes"], speed, "ko", markersize=4)
            axes.annotate(row["case"], (products / row["bytes"], speed), fontsize=6, xytext=(4, -8),
                          textcoords="offset points")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="products per byte of weights", ylabel="10⁹ products per second")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
