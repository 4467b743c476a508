"""What every test shares: one thread, fixed seeds, real data, tools.

Locally a missing tool or data set skips a test and says how to get it. With BITLAB_REQUIRE_TOOLS=1, as in CI, it fails.
"""

import importlib
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the network

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("bitlab", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("bitlab")


def _missing(message: str) -> NoReturn:
    if os.environ.get("BITLAB_REQUIRE_TOOLS") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries that use the global generator)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets (mnist/, cifar10/, ... as parquet files), from BITLAB_DATA."""
    folder = os.environ.get("BITLAB_DATA")
    if not folder:
        _missing("BITLAB_DATA is not set: point it to the folder that holds mnist/ and the other data sets")
    if not Path(folder).is_dir():
        _missing(f"BITLAB_DATA={folder} is no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def require_package() -> Callable[[str], ModuleType]:
    """`require_package("transformers")` is the module."""

    def require(name: str) -> ModuleType:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return importlib.import_module(name)
        except ImportError:
            _missing(f"{name} is not installed: pip install {name}")

    return require


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str, str], str]:
    """`require_tool("clang", "clang")` is the tool's path; the second name is the Debian package that has it."""

    def require(name: str, package: str) -> str:
        path = shutil.which(name)
        if path is None:
            _missing(f"{name} is not installed: apt-get install {package}")
        return path

    return require


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows the figures that tests have left in their `user_properties`."""
    reports = terminalreporter.getreports("passed")
    figures = [figure for report in reports if report.when == "call" for figure in report.user_properties]
    if figures:
        terminalreporter.section("figures")
        for name, value in figures:
            terminalreporter.write_line(f"{name}: {value}")
