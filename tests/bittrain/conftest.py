"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps decoded test data out of the user's cache."""
    monkeypatch.setenv("BITLAB_CACHE", str(tmp_path / "cache"))
