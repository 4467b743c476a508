"""Folders, the hub, models that are not from the zoo, the file's size, and the reader in the docs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.formats import FORMATS
from bitcore.presets import PRESETS
from bitlayers import BitLayer, BitTransposedLinear, quantize
from bitlayers.fusion import fuse_batchnorm, train_fused
from bitlayers.storage import PACKED_AS
from bitmodels import (
    AutoBitModel,
    from_pretrained,
    list_models,
    load_into,
    load_model,
    push_to_hub,
    save_model,
    save_pretrained,
    save_weights,
)
from zoo import tiny

SMALL: dict[str, Any] = {"in_channels": 2, "out_channels": 3, "widths": (4, 6, 8)}
DOCS = Path(__file__).parents[2] / "docs" / "file-format.md"


def small(quant: Any = "w8a8", overrides: Any = None) -> tuple[nn.Module, torch.Tensor]:
    """A zoo model that saw a batch, and an input."""
    model, x = AutoBitModel.from_name("netcnn", quant, overrides, **SMALL), torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


class Foreign(nn.Module):
    """No zoo model; every kind of layer, a tied pair, a layer of two names, a float one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv, self.up = nn.Conv1d(8, 8, 3, padding=1), nn.ConvTranspose2d(1, 1, 3, padding=1)
        self.norm, self.left = nn.LayerNorm(8), nn.Linear(8, 8)
        self.again = self.conv
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        y = y + self.attend(y, y, y)[0]
        y = self.again(self.conv(y.mT)).mT
        return self.head(self.left(self.norm(self.up(y[:, None])[:, 0])))


def foreign(quant: Any = "bitnet-cnn") -> tuple[nn.Module, torch.Tensor]:
    model, x = quantize(Foreign(), quant, {"left": None, "up": "w8a8"}), torch.randint(11, (2, 5))
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


@torch.no_grad()
def test_folders(tmp_path: Path):
    model, x = small(overrides={"last": "bitnet"})
    expected = model(x)
    folder = save_pretrained(model, tmp_path / "new" / "model", {"classes": ["a"]})
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = from_pretrained(str(folder))
    assert torch.equal(loaded(x), expected) and loaded.bit_model == model.bit_model
    config = json.loads((folder / "config.json").read_text())
    assert config["library_name"] == "bitlab" and config["extra"] == {"classes": ["a"]}
    assert config["model"]["name"] == "netcnn" and len(config["configs"]) == 2
    (folder / "config.json").unlink()  # it is for people
    assert torch.equal(from_pretrained(folder)(x), expected)
    assert load_model(folder / "model.safetensors")[1] == {"classes": ["a"]}


@pytest.mark.parametrize("preset", ["bitnet", "bitnet-cnn", "w8a8", "ttq", "lsq-4", "mcu-fp130"])
@torch.no_grad()
def test_models_that_are_not_from_the_zoo(tmp_path: Path, preset: str):
    model, x = foreign(preset)
    expected = model(x)
    save_weights(model, tmp_path / "m", {"note": 1})
    plain, quantized = Foreign(), quantize(Foreign(), preset, {"left": None, "up": "w8a8"})
    for other in (plain, quantized):
        assert load_into(other, tmp_path / "m") == {"note": 1}
        assert torch.equal(other(x), expected) and not other.training
        assert type(other.left) is nn.Linear and other.conv is other.again
    folder = save_pretrained(model, tmp_path / "folder")
    filled = Foreign()
    assert from_pretrained(folder, filled) is filled and torch.equal(filled(x), expected)
    with pytest.raises(BitLabError, match="not from the zoo; build it in code and use load_into"):
        from_pretrained(folder)


def test_files_of_other_models_are_refused(tmp_path: Path):
    model, _ = foreign()
    save_weights(model, tmp_path / "m")
    with pytest.raises(BitLabError, match="layer '.*' is quantized otherwise in the file"):
        load_into(quantize(Foreign(), "w8a8"), tmp_path / "m")
    with pytest.raises(BitLabError, match="unknown layer 'embed'"):
        load_into(nn.Sequential(nn.Linear(3, 3)), tmp_path / "m")
    wider = Foreign()
    wider.left = nn.Linear(8, 9)
    with pytest.raises(BitLabError, match=r"of another model: [\s\S]*left"):
        load_into(wider, tmp_path / "m")


@torch.no_grad()
def test_what_was_changed_after_building_is_kept(tmp_path: Path):
    """The file's layers say how they are quantized, not the preset that the model was built with."""
    model, x = small(None)
    model = quantize(model, "bitnet-cnn", {"head": "bitnet"})
    expected = model(x)
    save_model(model, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m")[0](x), expected)


@pytest.mark.parametrize("fuse", [train_fused, fuse_batchnorm])
@torch.no_grad()
def test_fused_batch_norm(tmp_path: Path, fuse: Callable[[nn.Module], nn.Module]):
    model, x = small()
    fuse(model)(x)
    expected, before = model(x), set(model.state_dict())
    save_model(model, tmp_path / "m")
    assert set(model.state_dict()) == before, "saving changed the model"
    loaded, _ = load_model(tmp_path / "m")
    assert torch.equal(loaded(x), expected)
    save_model(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()


@torch.no_grad()
def test_half_precision(tmp_path: Path):
    model, x = quantize(Foreign().to(torch.bfloat16), "bitnet-cnn").eval(), torch.randint(11, (2, 5))
    expected = model(x)
    save_weights(model, tmp_path / "m")
    other = Foreign().to(torch.bfloat16)
    load_into(other, tmp_path / "m")
    assert expected.dtype == torch.bfloat16 and torch.equal(other(x), expected)


# ---- the hub ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    class Api:
        def __init__(self, token: Any) -> None:
            calls.append(("token", token))

        def create_repo(self, *arguments: Any, **options: Any) -> None:
            calls.append(("create", arguments, options))

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
            for file in Path(folder_path).iterdir():
                (tmp_path / file.name).write_bytes(file.read_bytes())
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}: {commit_message}")

    def download(repo: str, file: str, **options: Any) -> str:
        calls.append((repo, options["revision"], options["token"], options["local_files_only"]))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model, x = small()
    url = push_to_hub(model, "me/net", private=True, token="secret", commit_message="new", extra={"a": 1})
    assert url == "https://hub/me/net: new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = from_pretrained("me/net", revision="v1", token="secret")
    assert torch.equal(loaded(x), model(x))
    assert calls == [
        ("token", "secret"),
        ("create", ("me/net",), {"private": True, "exist_ok": True}),
        ("me/net", "v1", "secret", False),
    ]


def _refused() -> HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    return HfHubHTTPError("404: no such repository\nmore", response=response)


@pytest.mark.parametrize(
    "error",
    [_refused, lambda: LocalEntryNotFoundError("none"), lambda: OfflineModeIsEnabled("off"), lambda: OSError("no net")],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]):
    def fail(*_: Any, **__: Any) -> None:
        raise error()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "HfApi", fail)
    with pytest.raises(BitLabError, match=r"there is no folder 'me/net', nor did the hub give it: [^\n]+$"):
        from_pretrained("me/net")
    with pytest.raises(BitLabError, match=r"the hub refused 'me/net': [^\n]+$"):
        push_to_hub(small()[0], "me/net")


@pytest.mark.parametrize("name", ["folder", "runs/my/model", "/tmp/none/x", "../x", "a b/c", "", "me/net/"])
def test_names_that_are_neither_folders_nor_hub_ids(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("it asked the network"))
    with pytest.raises(BitLabError, match=r"neither a folder nor a hub id|there is no file"):
        from_pretrained(name)


# ---- the file --------------------------------------------------------------------------------------------------------


def resnet18() -> nn.Module:
    """The layers of ResNet-18 (11.7 million parameters), without their order."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
    width = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            shapes = [(width, out, 3), (out, out, 3)] + ([(width, out, 1)] if width != out and block == 0 else [])
            for a, b, kernel in shapes:
                layers += [nn.Conv2d(a, b, kernel, bias=False), nn.BatchNorm2d(b)]
            width = out
    return nn.Sequential(*layers, nn.Linear(512, 1000))


def test_a_ternary_resnet18_is_18_times_smaller(tmp_path: Path):
    model = resnet18()
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones are all alike, and equal tensors are kept once
            for tensor in module.state_dict().values():
                tensor.copy_(torch.rand(tensor.shape))
    save_weights(model, tmp_path / "float")
    save_weights(quantize(model, "bitnet-cnn"), tmp_path / "ternary")
    sizes = [(tmp_path / name).stat().st_size for name in ("float", "ternary")]
    assert sizes[0] > 4 * 11_689_512
    assert sizes[1] * 18 <= sizes[0], sizes


@pytest.fixture(scope="module")
def reader() -> Callable[[Path], dict[str, np.ndarray]]:
    """The page's program."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 40
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) == {"json", "struct", "pathlib", "numpy"}
    space: dict[str, Any] = {}
    exec(code, space)
    return space["read"]


def compare(found: dict[str, np.ndarray], model: nn.Module) -> None:
    """The model's own decoding is the page's, bit for bit."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if "packed_weight" not in name}
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, BitLayer) and layer.packed:
            prefix = f"{name}." if name else ""
            del expected[f"{prefix}weight_scale"], expected[f"{prefix}{PACKED_AS}"]
            expected[f"{prefix}weight"] = layer.quantized_weight().dequantize()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(found[name], tensor.numpy()), name
        assert found[name].dtype == tensor.numpy().dtype, name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_pages_reader(reader: Any, tmp_path: Path, preset: str):
    model, _ = foreign(preset)
    save_weights(model, tmp_path / "m")
    load_into(model, tmp_path / "m")
    compare(reader(tmp_path / "m"), model)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_pages_reader_knows_every_format(reader: Any, tmp_path: Path, name: str, granularity: str):
    config = BitQuantConfig(name, "absmax", granularity, weight_group_size=5)
    layers = [nn.Linear(n, 3) for n in (1, 7, 33)]
    model = quantize(nn.Sequential(*layers, BitTransposedLinear(9, 4, quant_config=config)), config)
    save_weights(model, tmp_path / "m")
    load_into(model, tmp_path / "m")
    compare(reader(tmp_path / "m"), model)


@pytest.mark.parametrize("name", list_models())
def test_the_pages_reader_reads_what_load_model_does(reader: Any, tmp_path: Path, name: str):
    save_model(tiny(name, "bitnet-cnn"), tmp_path / "m")
    compare(reader(tmp_path / "m"), load_model(tmp_path / "m")[0])
