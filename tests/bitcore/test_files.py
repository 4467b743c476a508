"""Atomic writing: either the whole file is there, or what was there before."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bitcore import BitLabError
from bitcore.files import write_atomically

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))
UMASK = os.umask(0)
os.umask(UMASK)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("content", "stored"), [("µ\n", "µ\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_writes_text_and_bytes_into_new_folders(tmp_path: Path, content: str | bytes, stored: bytes):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, content)
    assert contents(path.parent) == {"file": stored}
    assert path.stat().st_mode & 0o777 == 0o666 & ~UMASK


def test_replaces_a_file(tmp_path: Path):
    path = tmp_path / "file"
    for content in ("a long first content", "short"):
        write_atomically(path, content)
    assert contents(tmp_path) == {"file": b"short"}


@pytest.mark.parametrize("function", ["pathlib.Path.open", "os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod"])
@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: OSError
):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
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


def test_an_old_files_permissions_stay_and_a_new_one_follows_the_umask(tmp_path: Path):
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "private", "x")
        (tmp_path / "shared").write_text("old")
        (tmp_path / "shared").chmod(0o664)
        write_atomically(tmp_path / "shared", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o664


def test_a_link_is_written_through(tmp_path: Path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    for target in (tmp_path / "real" / "file", Path("real") / "other"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        for content in ("first", "second"):
            write_atomically(link, content)
            assert link.is_symlink()
            assert link.read_text() == content
    assert contents(tmp_path / "real") == {"file": b"second", "other": b"second"}
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(BitLabError, match="cannot write"):
        write_atomically(link, "new")


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path):
    prefix = f".file.{socket.gethostname()}"
    program = (
        "import os, signal, sys; from pathlib import Path; from bitcore import files;"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); files.write_atomically(Path(sys.argv[1]), 'half')"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(prefix)
    alive = {f"{prefix}.{os.getpid()}.0011aabb": b"alive", ".file.elsewhere.1.0011aabb": b"another machine's"}
    for name, content in alive.items():
        (tmp_path / name).write_bytes(content)
    write_atomically(tmp_path / "file", "whole")
    assert contents(tmp_path) == {"file": b"whole", **alive}


def test_file_and_folder_are_on_the_disk_in_the_order_that_a_power_cut_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The content before the new name, the name before it returns."""
    path, calls = tmp_path / "file", []
    replace, fsync = Path.replace, os.fsync

    def record(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    write_atomically(path, "content")
    assert calls == [7, "rename", "folder"]
