"""Atomic writing: either the whole file is there, or what was there before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bitcore import BitLabError
from bitcore.files import write_atomically

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("content", "stored"), [("µ\n", "µ\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_writes_text_and_bytes_into_new_folders(tmp_path: Path, content: str | bytes, stored: bytes):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, content)
    assert contents(path.parent) == {"file": stored}
    assert path.stat().st_mode & 0o777 == 0o644


def test_replaces_a_file(tmp_path: Path):
    path = tmp_path / "file"
    for content in ("a long first content", "short"):
        write_atomically(path, content)
    assert contents(tmp_path) == {"file": b"short"}


@pytest.mark.parametrize("function", ["os.fdopen", "pathlib.Path.replace", "pathlib.Path.chmod", "tempfile.mkstemp"])
@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: OSError
):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
        if function == "os.fdopen":
            os.close(int(args[0]))  # type: ignore[call-overload]
        raise error

    monkeypatch.setattr(function, fail)
    with pytest.raises(BitLabError, match=rf"cannot write '{path}': {error.strerror}"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"file": b"old"}


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(BitLabError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", "new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_folder_is_not_replaced(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(BitLabError, match="cannot write"):
        write_atomically(tmp_path / "folder", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
