"""The packaging: what an installed BitLab carries and how its parts are declared."""

import tomllib
from importlib import import_module, metadata, resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [Path(path).name for path in PYPROJECT["tool"]["scikit-build"]["wheel"]["packages"]]


def test_the_version_is_the_declared_one():
    assert metadata.version("bitlab") == PYPROJECT["project"]["version"] == import_module("bitlab").__version__


def test_every_package_is_installed_and_under_contract():
    assert sorted(PACKAGES) == sorted(path.parent.name for path in (ROOT / "src").glob("*/__init__.py"))
    assert sorted(PACKAGES) == sorted(PYPROJECT["tool"]["importlinter"]["root_packages"])


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_a_docstring(package):
    assert import_module(package).__doc__


def test_the_c_runtime_travels_with_the_package():
    """The C exporter copies these files; they must be found wherever BitLab is installed."""
    portable = resources.files("bitcore").joinpath("kernels", "csrc", "portable")
    names = [file.name for file in portable.iterdir()]
    assert any(name.endswith(".c") for name in names)
    assert any(name.endswith(".h") for name in names)
