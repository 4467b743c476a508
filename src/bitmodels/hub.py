"""Models as folders and on the Hugging Face hub: ``model.safetensors`` and, for people to read, ``config.json``."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitmodels.io import load_into, load_model, read_header, save_weights

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def save_pretrained(model: nn.Module, folder: Path | str, extra: dict[str, Any] | None = None) -> Path:
    """Writes a model, packed, into a folder; the model itself stays as it is.

    Args:
        model: From the zoo, or any other with bit layers (which `from_pretrained` then fills, and cannot build).
        folder: Created if need be. ``model.safetensors`` is all that loading needs; ``config.json`` repeats its header.
        extra: What travels along in the header (JSON-serializable), such as preprocessing and recipe.

    Returns:
        The folder.

    Raises:
        BitLabError: If weights are NaN (the message names the layer), or the folder cannot be written.
    """
    folder = Path(folder)
    save_weights(model, folder / MODEL_FILE, extra)
    header = read_header(folder / MODEL_FILE)
    config = {"library_name": "bitlab", **{key: header[key] for key in ("model", "configs", "extra")}}
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    return folder


def from_pretrained(
    source: Path | str,
    model: nn.Module | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Loads a model from a folder or from the hub. Nothing that was loaded is executed.

    Args:
        source: A folder of `save_pretrained`, or a hub id such as ``"owner/name"``. A folder that exists wins.
        model: The architecture of a model that is not from the zoo, as its own code builds it; it is filled in place.
        revision: A branch, tag or commit on the hub.
        token: As in `huggingface_hub.hf_hub_download`.
        cache_dir: As there.
        local_files_only: Take what was downloaded before, without asking the network.

    Returns:
        The model, packed and in eval mode.

    Raises:
        BitLabError: If there is nothing of that name, no network, or the file is no intact BitLab model.
    """
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    file = find_file(source, **options)
    if model is None:
        return load_model(file)[0]
    load_into(model, file)
    return model


def find_file(source: Path | str, **options: Any) -> Path:
    """Returns the model file of a folder, or of a repository on the hub, fetched if need be.

    Args:
        source: As in `from_pretrained`.
        **options: Those of `huggingface_hub.hf_hub_download`.

    Raises:
        BitLabError: If there is nothing of that name, or no network.
    """
    if Path(source).is_dir():
        return Path(source) / MODEL_FILE
    if not _HUB_ID.fullmatch(str(source)):
        raise BitLabError(f"'{source}' is neither a folder nor a hub id such as 'owner/name'")
    try:
        return Path(huggingface_hub.hf_hub_download(str(source), MODEL_FILE, **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise BitLabError(f"there is no folder '{source}', nor did the hub give it: {_first(error)}") from error


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a BitLab model",
    extra: dict[str, Any] | None = None,
) -> str:
    """Uploads what `save_pretrained` writes, creating the repository if need be.

    Args:
        model: As in `save_pretrained`.
        repo_id: Such as ``"owner/name"``.
        private: Whether a new repository is private; default: the account's.
        token: As in `huggingface_hub.HfApi`; default: the token of ``hf auth login``.
        commit_message: For the hub's history.
        extra: As in `save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        BitLabError: If the model cannot be saved, or the hub refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, extra)
        try:
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message).commit_url)
        except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            raise BitLabError(f"the hub refused '{repo_id}': {_first(error)}") from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
