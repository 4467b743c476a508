"""Every file that ever broke something, again: ``refused-…`` are refused, ``any-…`` and ``found-…`` harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitcore.errors import BitLabError
from fuzz.__main__ import CORPUS
from fuzz.targets import TARGETS

FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def accepted(target: str, data: bytes, folder: Path) -> bool:
    try:
        return TARGETS[target].check(data, folder)
    except BitLabError as error:
        words = str(error)
    assert words
    assert len(words) < 3000
    return False


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_accepted(target: str, tmp_path: Path) -> None:
    for data in TARGETS[target].seeds()[:5]:
        assert accepted(target, data, tmp_path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_broke_something_breaks_nothing(path: Path, tmp_path: Path) -> None:
    taken = accepted(path.parent.name, path.read_bytes(), tmp_path)
    assert not (taken and path.name.startswith("refused-"))


def test_the_corpus_is_small_and_of_known_targets() -> None:
    assert {path.parent.name for path in FILES} <= set(TARGETS)
    assert all(path.stat().st_size < 10_000 for path in FILES)
    assert len(FILES) > 80
