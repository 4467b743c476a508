"""What every test in an emulator needs."""

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def toolchain(require_tool: Callable[[str, str], str], require_package: Callable[[str], object]) -> None:
    """The cross compiler and the emulator, or no test."""
    require_tool("riscv64-unknown-elf-gcc", "gcc-riscv64-unknown-elf")
    require_package("unicorn")
