"""Writing files so that nothing half-written is ever seen, whenever the process is killed or the power fails."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from bitcore.errors import BitLabError


def write_atomically(path: Path, content: bytes | bytearray | str) -> None:
    """Writes a file through a temporary one beside it and a rename; creates the folder.

    File and folder are on the disk when it returns. A symbolic link stays one: the file that it names is written. A
    new file has the permissions that the process's umask gives, an old one keeps its own.

    Raises:
        BitLabError: If the folder is full, read-only or no folder.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        target = path.resolve() if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary = target.with_name(f"{_prefix(target)}{os.getpid()}.{os.urandom(4).hex()}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                if target.exists():
                    temporary.chmod(target.stat().st_mode & 0o777)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        raise BitLabError(f"cannot write '{path}': {reason}") from error


def sync_folder(folder: Path) -> None:
    """Waits until a folder's entries (not what the files hold) are on the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def process_runs(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _prefix(target: Path) -> str:
    """What the names of a file's temporary files begin with, on this machine."""
    return f".{target.name[:100]}.{socket.gethostname()[:60]}."


def _sweep(target: Path) -> None:
    """Removes the temporary files that killed processes left."""
    prefix = _prefix(target)
    for entry in os.scandir(target.parent):
        if entry.name.startswith(prefix):
            pid = entry.name.removeprefix(prefix).partition(".")[0]
            if pid.isdecimal() and not process_runs(int(pid)):
                Path(entry.path).unlink(missing_ok=True)
