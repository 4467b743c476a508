"""Checkpoints: written atomically, read without ever executing what a file holds."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from bitcore.errors import BitLabError
from bitcore.files import write_atomically


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Reads a training checkpoint: tensors and plain values only, on the CPU.

    Args:
        path: The ``.ckpt`` file.

    Raises:
        BitLabError: It is missing, truncated, altered, from another program, or holds a pickle payload (which is not
            executed).
    """
    path = Path(path)
    if not path.is_file():
        raise BitLabError(f"there is no checkpoint {path}")
    try:
        if not zipfile.is_zipfile(path):
            raise BitLabError(f"{path} is truncated or no checkpoint; use another one or train again")
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums that it writes
            if (altered := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {altered} is not that of its content")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BitLabError(
            f"{path} holds Python objects beyond tensors; it was refused and nothing of it was executed"
        ) from None
    except BitLabError:
        raise
    except Exception as error:  # what torch's reader meets in a stranger's pickle can be of any kind
        reason = (str(error).splitlines() or [""])[0]
        raise BitLabError(f"{path} is damaged ({reason}); use another checkpoint or train again") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("bitlab"), dict):
        raise BitLabError(f"{path} is no checkpoint of BitLab; it lacks the description of the model")
    return checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to the disk, through `load_checkpoint` and an atomic write."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint; a reader sees the old one or the new one."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, see the function of the same name."""
        return load_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)
