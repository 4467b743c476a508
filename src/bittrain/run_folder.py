"""A run's folder: one process at a time writes into it, and nothing half-written stays."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bitcore.errors import BitLabError, BitLabWarning
from bittrain.interrupts import Interrupted

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems that have none
_TRIES = 100  # while other processes come and go


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a folder, which is created; removes it at the end if nothing was written.

    The lock is the kernel's (``flock``; on NFS the server's, for all machines): it ends with its owner, even one that
    was killed, so that nobody has to judge whether a lock that was left behind still counts. The file says who it is.

    Raises:
        BitLabError: Another process uses the folder (the message says which), or nothing can be written there.
    """
    path = folder / LOCK_FILE
    descriptor = _acquire(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock ends: whoever opened the file meanwhile sees that it is gone
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()


def is_used(folder: Path) -> bool:
    """Whether a folder holds anything beside a lock."""
    return folder.is_dir() and any(file.name != LOCK_FILE for file in folder.iterdir())


@contextmanager
def nothing_half_written(run_dir: Path) -> Iterator[None]:
    """Empties a new run's folder if the run ends before there is a checkpoint that it could go on from."""
    try:
        yield
    except (Exception, Interrupted):
        if not any(run_dir.glob("checkpoints/*.ckpt")):
            _empty(run_dir)
        raise


@contextmanager
def what_is_kept(run_dir: Path) -> Iterator[None]:
    """Says after an interruption what the run's folder holds, and how the run goes on."""
    try:
        yield
    except Interrupted as stop:
        last = run_dir / "checkpoints" / "last.ckpt"
        if last.exists():
            stop.add_note(f"{last} is kept; go on with: bitlab train {shlex.quote(str(run_dir))} --resume")
        else:
            stop.add_note(f"there was no checkpoint in {run_dir} yet; start again")
        raise


def missing_run(path: Path | str) -> BitLabError:
    """Returns the error for a run that is not there: it names the recipe that makes it, or the runs that there are.

    Args:
        path: The run's folder, or a file in it.
    """
    folder = Path(path)
    if folder.suffix in (".safetensors", ".ckpt"):
        folder = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    recipes = {file.stem: file for file in sorted(Path("recipes").rglob("*.yaml"))}
    twin = folder.name not in recipes
    if recipe := recipes.get(folder.name.removesuffix("-float")):
        how = f"bitlab train {recipe}{' --float-twin' * twin} --out {folder}"
        return BitLabError(f"there is no run '{folder}'; train it first: {how}")
    runs = [other.parent.name for other in sorted(folder.parent.glob("*/recipe.yaml"))]
    known = f"; known in {folder.parent}: {', '.join(runs)}" if runs else ""
    return BitLabError(f"there is no run '{folder}'{known}; train it first: bitlab train RECIPE --out {folder}")


def known_run(path: Path) -> bool:
    """Whether a path that is not there is surely meant as a run: its folder is there, or a recipe makes it."""
    recipes = {file.stem for file in Path("recipes").rglob("*.yaml")}
    return path.parent.is_dir() or path.name.removesuffix("-float") in recipes


def _empty(folder: Path) -> None:
    """Removes all that a folder holds beside a lock."""
    for file in folder.iterdir():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file, ignore_errors=True)
        elif file.name != LOCK_FILE:
            file.unlink(missing_ok=True)


def _acquire(path: Path) -> int:
    """Returns the open, locked file."""
    for _ in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its last owner has just removed the folder
            continue
        except (OSError, ValueError) as error:
            raise BitLabError(f"cannot write into '{path.parent}': {getattr(error, 'strerror', error)}") from None
        _lock(descriptor, path.parent)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                started = time.strftime("%Y-%m-%d %H:%M:%S")
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {started}\n".encode())
                return descriptor
        os.close(descriptor)  # its last owner has just removed it
    raise BitLabError(f"cannot write into '{path.parent}'; choose another folder")


def _lock(descriptor: int, folder: Path) -> None:
    """Locks an open file, where its file system can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            reason = f"{folder} cannot be locked ({error.strerror}); let no other run write into it"
            warnings.warn(reason, BitLabWarning, stacklevel=2)
            return
        owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        message = f"{folder} is in use by {owner}; wait until that has ended, or choose another folder"
        raise BitLabError(message) from None
