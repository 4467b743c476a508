"""The native library: found, missing or broken, the same results."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bitcore
from bitcore import BitLabError, get_preset
from bitcore.kernels import KernelRegistry
from bitcore.kernels.native import library
from bitlayers import BitLinear


@pytest.fixture
def native_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of the installed library's; the real one comes back afterwards."""
    folder = tmp_path / "_native"
    folder.mkdir()
    monkeypatch.setattr(bitcore, "__path__", [str(tmp_path)])
    library.cache_clear()
    yield folder
    library.cache_clear()


def test_the_library_is_installed():
    if library() is None:
        if os.environ.get("BITLAB_REQUIRE_TOOLS") == "1":
            pytest.fail("bitlab was installed without its native kernels")
        pytest.skip("bitlab is installed without its native kernels: it had no C compiler")
    assert "PortableLinear" in KernelRegistry.list_available_kernels()
    assert KernelRegistry.get_kernel_for_config(get_preset("bitnet")).has_cpp_backend


def falls_back() -> None:
    """Torch stands in, with the same bits."""
    kernel = KernelRegistry.get_kernel_for_config(get_preset("bitnet"))
    assert kernel.name == "TorchLinear" and not kernel.has_cpp_backend
    assert "PortableLinear" not in KernelRegistry.list_available_kernels()
    layer, x = BitLinear(33, 5, quant_config=get_preset("bitnet")).eval(), torch.randn(3, 33)
    expected = layer(x)
    layer.pack()
    assert torch.equal(layer(x), expected)


@pytest.mark.usefixtures("native_folder")
def test_without_a_library_torch_stands_in_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library() is None
        falls_back()


@pytest.mark.usefixtures("native_folder")
def test_the_operator_itself_says_what_is_missing():
    with pytest.raises(BitLabError, match="install a C compiler"):
        torch.ops.bitcore.linear_portable(
            torch.zeros(1, 5, dtype=torch.int8), torch.zeros(1, 1, dtype=torch.uint8), "ternary"
        )


def test_a_file_that_is_no_library_gives_one_warning(native_folder: Path):
    (native_folder / "libbitcore.so").write_bytes(b"no library")
    with pytest.warns(RuntimeWarning, match="native kernels cannot be used, torch stands in") as warned:
        falls_back()
    assert len(warned) == 1 and library() is None


def test_a_library_without_our_functions_gives_one_warning(native_folder: Path):
    """As one of another version would be."""
    shutil.copy(torch._C.__file__, native_folder / "libbitcore.so")
    with pytest.warns(RuntimeWarning, match="bit_linear_int8_portable") as warned:
        falls_back()
    assert len(warned) == 1
