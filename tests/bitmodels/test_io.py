"""Kept models: the same outputs, and nothing but a whole BitLab file is ever loaded."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitcore import BitLabError
from bitcore.formats import FORMATS
from bitcore.presets import PRESETS
from bitlayers import BitLayer, pack, quantize
from bitlayers.packed_weight import PackedWeight
from bitmodels import AutoBitModel, load_model, save_model
from bitmodels.io import load_into, read_header, save_weights
from model_files import KIND, content, write

OPTIONS: dict[str, Any] = {"in_channels": 33, "out_channels": 5, "hidden_dims": (17, 9)}
EXTRA = {"preprocessing": {"size": [16, 16]}, "classes": ["ä", "b"], "accuracy": 0.5}


def trained(quant: Any = "bitnet", overrides: Any = None, **options: Any) -> tuple[nn.Module, Tensor]:
    """A model that saw two batches, and an input."""
    model, x = AutoBitModel.from_name("mlp", quant, overrides, **OPTIONS, **options), torch.randn(4, 33)
    with torch.no_grad():
        model.train()(x)
        model(2 * x)
    return model.eval(), x


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    model, _ = trained()
    save_model(model, tmp_path / "model.safetensors", EXTRA)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("quant", [*PRESETS, None])
@torch.no_grad()
def test_outputs_are_the_same(tmp_path: Path, quant: str | None, batch_norm: bool):
    model, x = trained(quant, batch_norm=batch_norm)
    expected, before = model(x), {n: t.clone() for n, t in model.state_dict().items()}
    path = tmp_path / "new" / "model.safetensors"
    save_model(model, path, EXTRA)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "saving changed the model"
    loaded, extra = load_model(path)
    assert extra == EXTRA
    assert torch.equal(loaded(x), expected)
    assert not loaded.training and loaded.bit_model == model.bit_model
    layers = [m for m in loaded.modules() if isinstance(m, BitLayer)]
    assert all(layer.packed and isinstance(layer.weight, PackedWeight) for layer in layers) and bool(layers) == (
        quant is not None
    )
    again = tmp_path / "again.safetensors"  # a packed model is kept just the same
    save_model(loaded, again, EXTRA)
    assert again.read_bytes() == path.read_bytes()


@torch.no_grad()
def test_overrides_survive(tmp_path: Path):
    overrides = {"last": None, "first": "w8a8", "fc2": {"weight_format": "nf4"}}
    model, x = trained("bitlab", overrides)
    expected = model(x)
    save_model(model, tmp_path / "m")
    loaded, extra = load_model(tmp_path / "m")
    assert torch.equal(loaded(x), expected) and extra == {}
    assert type(loaded.head) is nn.Linear


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_holds_packed_codes(tmp_path: Path, name: str):
    model, _ = trained(PRESETS["bitnet"].replace(weight_format=name))
    save_model(model, tmp_path / "m")
    with safe_open(tmp_path / "m", "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    fmt = FORMATS[name]
    for layer, rows, features in (("fc1", 17, 33), ("fc2", 9, 17), ("head", 5, 9)):
        data = stored[f"{layer}.packed_weight"]
        assert data.dtype == torch.uint8 and data.shape == (rows, fmt.packing.row_bytes(features))
        assert f"{layer}.weight" not in stored and stored[f"{layer}.weight_scale"].dtype == torch.float32


def test_files_do_not_depend_on_the_run(tmp_path: Path):
    model, _ = trained()
    for name in "ab":
        save_model(model, tmp_path / name, EXTRA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tied_weights_are_stored_once(tmp_path: Path):
    """Of layers of one config; with two formats there are two weights."""

    def tied() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(80, 32), nn.Linear(32, 80))
        model[1].weight = model[0].weight
        return model

    index = torch.tensor([[3, 1], [79, 0]])
    same = {"1.packed_weight": "0.packed_weight", "1.weight_scale": "0.weight_scale"}
    for head, expected in (("bitnet-cnn", same), ("bitnet", {})):  # a scale a channel, a scale a layer
        path = tmp_path / f"{head}.safetensors"
        model = quantize(tied(), "bitnet-cnn", {"1": head}).eval()
        save_weights(model, path)
        with safe_open(path, "pt") as file:
            names = set(file.keys())
        assert read_header(path)["same"] == expected
        fields = ("packed_weight", "weight_scale")
        assert names == {"1.bias", *(f"{i}.{field}" for i in "01" for field in fields)} - set(expected)
        loaded = tied()
        load_into(loaded, path)
        with torch.no_grad():
            assert torch.equal(loaded(index), model(index))


def test_only_zoo_models_can_be_kept(tmp_path: Path):
    with pytest.raises(BitLabError, match="only models built by AutoBitModel"):
        save_model(nn.Linear(3, 2), tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float):
    model, _ = trained()
    assert isinstance(model.fc2, nn.Module)
    with torch.no_grad():
        model.get_parameter("fc2.weight")[3, 4] = value
    with pytest.raises(BitLabError, match="layer 'fc2': its weights are NaN or infinite"):
        save_model(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.mkdir"])
def test_a_full_or_read_only_folder(kept: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int):
    before, (model, _) = kept.read_bytes(), trained()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(function, fail)
    with pytest.raises(BitLabError, match=f"cannot write '{kept}': {os.strerror(number)}"):
        save_model(model, kept)
    monkeypatch.undo()
    assert [p.name for p in kept.parent.iterdir()] == [kept.name] and kept.read_bytes() == before


def test_a_missing_file(tmp_path: Path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(BitLabError, match="there is no file"):
            load_model(path)


def test_a_truncated_file(kept: Path):
    whole = kept.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}:
        kept.write_bytes(whole[:length])
        with pytest.raises(BitLabError, match="no intact safetensors file"):
            load_model(kept)
    kept.write_bytes(whole + b"more")
    with pytest.raises(BitLabError, match="no intact safetensors file"):
        load_model(kept)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path):
    path, trace = tmp_path / "model.safetensors", tmp_path / "executed"
    payloads: list[Callable[[], object]] = [
        lambda: path.write_bytes(pickle.dumps(Bomb(trace))),
        lambda: torch.save({"state_dict": {"weight": Bomb(trace)}}, path),
        lambda: torch.save(Bomb(trace), path, _use_new_zipfile_serialization=False),
    ]
    for store in payloads:
        store()
        with pytest.raises(BitLabError, match="no intact safetensors file"):
            load_model(path)
        assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # the payload works: it was really not executed
    assert trace.exists()


def test_a_foreign_safetensors_file(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}, {"kind": "another"}):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        with pytest.raises(BitLabError, match="something else, not of a BitLab model"):
            load_model(path)


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, tensors = content(path)
    change(header)
    write(path, header, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.clear(), "damaged"),
        (lambda h: h.pop("extra"), "damaged"),
        (lambda h: h["model"].pop("options"), "damaged"),
        (lambda h: h["model"].update(options=None), "damaged"),
        (lambda h: h["model"].update(options={}), "in_channels"),
        (lambda h: h["model"]["options"].update(hidden_dims=[17, 10]), "damaged"),
        (lambda h: h["model"]["options"].update(in_channels=40), "damaged"),
        (lambda h: h["model"]["options"].update(in_channels=-1), "at least 1"),
        (lambda h: h["model"]["options"].update(wings=2), "unknown option of model 'mlp' 'wings'"),
        (lambda h: h["model"].update(name="mpl"), "did you mean 'mlp'"),
        (lambda h: h.update(model=None), "not from the zoo; build it in code and use load_into"),
        (lambda h: h.update(configs={}), "damaged"),
        (lambda h: h["configs"][0].update(weight_format="int9"), "unknown weight_format 'int9'"),
        (lambda h: h["configs"][0].update(weight_format="int8"), "damaged"),
        (lambda h: h["configs"][0].update(wings=2), "unknown quantization option 'wings'"),
        (lambda h: h["layers"]["head"].update(config=7), "damaged"),
        (lambda h: h["layers"].pop("head"), "damaged"),
        (lambda h: h["layers"].update(haed=h["layers"].pop("head")), "unknown layer 'haed'; did you mean 'head'"),
        (lambda h: h.update(layers=[]), "damaged"),
    ],
)
def test_a_changed_header_is_refused(kept: Path, change: Callable[[dict[str, Any]], object], message: str):
    rewrite_header(kept, change)
    with pytest.raises(BitLabError, match=message):
        load_model(kept)


@pytest.mark.parametrize("header", ["", "{", "[]", "3", "null", '"x"', '{"model": [], "extra": {}}'])
def test_a_header_that_is_no_description_is_refused(kept: Path, header: str):
    save_file(content(kept)[1], kept, {KIND: header})
    with pytest.raises(BitLabError, match="damaged"):
        load_model(kept)


every_change = pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("fc1.packed_weight"),
        lambda s: s.update({"fc1.weight": torch.zeros(17, 33), "more": s.pop("fc1.packed_weight")}),
        lambda s: s["fc2.weight_scale"].zero_(),
        lambda s: s["fc2.weight_scale"].fill_(torch.nan),
        lambda s: s["fc2.weight_scale"].neg_(),
        lambda s: s.pop("fc2.weight_scale"),
        lambda s: s.pop("head.bias"),
        lambda s: s.update(more=torch.zeros(1)),
        lambda s: s.update({"fc1.weight_scale": torch.ones(17, 1)}),
        lambda s: s.update({"fc1.packed_weight": s["fc1.packed_weight"][:, :-1].contiguous()}),
        lambda s: s.update({"fc1.packed_weight": s["fc1.packed_weight"][:-1].contiguous()}),
        lambda s: s["fc1.packed_weight"].fill_(250),
        lambda s: s["head.packed_weight"][1:2, 1:].fill_(255),
    ],
)


@every_change
def test_changed_tensors_are_refused(kept: Path, change: Callable[[dict[str, Tensor]], object]):
    header, state = content(kept)
    change(state)
    write(kept, header, state)
    with pytest.raises(BitLabError, match="damaged"):
        load_model(kept)


@pytest.mark.parametrize("quant", [None, "bitnet", "packed"])
@every_change
def test_a_model_is_what_it_was_after_a_refused_file(
    kept: Path, change: Callable[[dict[str, Tensor]], object], quant: str | None
):
    header, state = content(kept)
    change(state)
    write(kept, header, state)
    model, x = trained(None if quant is None else "bitnet")
    model = pack(model) if quant == "packed" else model.train()
    with torch.no_grad():
        expected, before = model(x), copy.deepcopy(model.state_dict())
    modules = {name: (module, type(module), module.training) for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    with pytest.raises(BitLabError, match="damaged"):
        load_into(model, kept)
    assert modules == {name: (module, type(module), module.training) for name, module in model.named_modules()}
    now = dict(model.named_parameters())
    assert now.keys() == parameters.keys() and all(now[name] is p for name, p in parameters.items())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_a_header_longer_than_the_file(tmp_path: Path):
    path = tmp_path / "m"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(BitLabError, match="no intact safetensors file"):
        load_model(path)
