"""`bitlab doctor` and `bitlab bench`: healthy here, and a wrong kernel is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor
from typer.testing import CliRunner

from bitcore.engine.convolution import EngineConv2d
from bitcore.kernels import KernelRegistry
from bitcore.kernels.native import usable_sets
from bitlab import bench, rivals
from bitlab.cli import app
from bitlab.doctor import examine


def test_this_machine_is_healthy():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["healthy"] and all(k["tested"] for k in found["kernels"] if k["available"])
    assert {"linear", "conv2d"} <= {k["op"] for k in found["kernels"] if k["available"]}
    assert "Used for linear layers" in CliRunner().invoke(app, ["doctor"]).output


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch):
    kernel = KernelRegistry.find("linear", "ternary", "int8", "cpu")
    right: Callable[..., Tensor] = type(kernel).__call__
    monkeypatch.setattr(type(kernel), "__call__", lambda self, *a: right(self, *a) + (a[2].format.name == "nf4"))
    result = examine()
    failed = {k["name"]: k["failed"] for k in result["kernels"] if k["failed"]}
    assert not result["healthy"] and failed[kernel.name] == ["nf4 × int8", "nf4 × uint8"]
    monkeypatch.undo()
    right = EngineConv2d.__call__
    monkeypatch.setattr(EngineConv2d, "__call__", lambda self, *a: right(self, *a) + (a[2].format.name == "int3"))
    failed = {k["name"]: k["failed"] for k in examine()["kernels"] if k["failed"]}
    assert failed == {"EngineConv2d": ["int3 × int8", "int3 × uint8"]}
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1 and "WRONG" in shown.output


@pytest.mark.skipif(not usable_sets(), reason="there are no vector kernels here")
def test_the_benchmark_runs_and_its_table_lands_in_a_page(tmp_path: Path):
    cases = [bench.Case("ternary", 1, 256, rivals=(rivals.FLOAT,)), bench.Case("binary", 2, 256, rivals=())]
    results = bench.run((1, 2), 3, cases)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    bench.publish(results, tmp_path / "results" / "bench.json", page)
    assert json.loads((tmp_path / "results" / "bench.json").read_text()) == results
    text = page.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert text.count("ternary 256², M = 1") == 2 and "torch float32" in text
