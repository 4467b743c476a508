"""Model files from strangers: a lie is refused with one clear message, or means what the page's reader says it does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitcore import BitLabError, BitQuantConfig
from bitcore.formats import FORMATS
from bitcore.presets import PRESETS
from bitlayers import BitLayer, fuse_batchnorm
from bitmodels import AutoBitModel, list_models, load_model, save_model
from bitmodels.auto import find_model
from bitmodels.header import REPEATS
from model_files import Content, content, write
from zoo import TINY, tiny, tiny_options

DOCS = Path(__file__).parents[2] / "docs" / "file-format.md"
LIES: list[Any] = [
    -1, 0, 1, 2, 7, 64, 1.0, 30_000, 10**9, 2**63, 10**400, float("nan"), True, False, None, "", "1", "x", "float32",
    "int8", "ternary", [], [1], [10**9] * 3, {}, {"a": 1}, {"name": "mlp"},
]  # fmt: skip


def models() -> Iterator[nn.Module]:
    """Every format and granularity, every preset, every family, float layers, folded batch norm."""
    for i, name in enumerate(FORMATS):
        granularity = ("per_tensor", "per_channel", "per_group")[i % 3]
        yield tiny("mlp", BitQuantConfig(name, "absmax", granularity, weight_group_size=5))
    for preset in PRESETS:
        yield tiny("mlp", preset, {"head": None})
    for name in TINY:
        yield tiny(name)
    yield fuse_batchnorm(tiny("resnet18", "w8a8"))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> list[Content]:
    path = tmp_path_factory.mktemp("models") / "m"
    contents = []
    for model in models():
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith(("bias", "running_mean")):
                    tensor.normal_()
        save_model(model, path, {"note": [1]})
        contents.append(content(path))
    return contents


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON, but for what the caller of `save_model` gave."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if path or key != "extra":
            yield from spots(item, (*path, key))


def change_header(header: dict[str, Any], rng: np.random.Generator) -> str:
    """Changes, drops or adds one entry anywhere in a header."""
    places = [*spots(header), ("extra",)]
    sections = sorted({place[0] for place in places})
    section = sections[rng.integers(len(sections))]  # configs are long; the other fields shall have their turn
    mine = [place for place in places if place[0] == section]
    *above, key = mine[rng.integers(len(mine))]
    inside: Any = header
    for step in above:
        inside = inside[step]
    lie = LIES[rng.integers(len(LIES))]
    kind = rng.choice(["set", "set", "set", "drop", "add", "near"])
    if kind == "drop":
        inside.pop(key)
    elif kind == "add" and isinstance(inside, dict):
        inside[str(rng.choice(["x", "head", "fc1", "group", "batch_norm", f"{key}"]))] = lie
    elif kind == "near" and type(inside[key]) is int:
        inside[key] += int(rng.choice([-1, 1]))
    else:
        inside[key] = lie
    return f"{kind} {'.'.join(map(str, (*above, key)))} = {lie!r:.40}"


def change_tensor(tensors: dict[str, Tensor], rng: np.random.Generator) -> str:
    """Changes one tensor: its values, type, shape or name."""
    names = sorted(tensors)
    name = names[rng.integers(len(names))]
    old = tensors[name].clone()
    kind = str(rng.choice(["values", "values", "values", "dtype", "shape", "drop", "copy", "swap"]))
    if kind == "values":
        extremes = [0, 1, 255, 242, 243] if not old.is_floating_point() else [0, -1, np.nan, np.inf, -np.inf, 1e-40, 3]
        old.view(-1)[rng.integers(old.numel()) if rng.integers(2) else slice(None)] = extremes[
            rng.integers(len(extremes))
        ]
        tensors[name] = old
    elif kind == "dtype":
        types = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.uint8]
        tensors[name] = old.to(types[rng.integers(len(types))])
    elif kind == "shape":
        shapes = [old[None], old.flatten(), old[..., :0] if old.ndim else old[None], torch.cat([old[None]] * 2)]
        tensors[name] = shapes[rng.integers(len(shapes))]
    elif kind == "drop":
        del tensors[name]
    else:
        other = names[rng.integers(len(names))] if kind == "swap" else f"{name}{rng.choice(['', '_', '.packed_as'])}"
        tensors[name], tensors[other] = tensors.get(other, old), old
    return f"{kind} {name}"


@pytest.fixture(scope="module")
def reader() -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    return space["read"]


def check_message(message: str, path: Path, what: str) -> None:
    assert str(path) in message, what
    assert len(message) < 3000, what


def judge(path: Path, reader: Any, what: str) -> bool:
    """Whether a file is accepted; then the page's reader must decode what the model computes with."""
    try:
        model, extra = load_model(path)
    except BitLabError as error:
        check_message(str(error), path, what)
        return False
    found = reader(path)
    assert isinstance(extra, dict)
    expected = {n: t for n, t in model.state_dict().items() if not n.endswith(("packed_weight", "packed_as"))}
    for name, layer in model.named_modules():
        if isinstance(layer, BitLayer) and layer.packed:
            del expected[f"{name}.weight_scale"]
            expected[f"{name}.weight"] = layer.quantized_weight().dequantize()
    assert found.keys() == expected.keys(), what
    for name, tensor in expected.items():
        if found[name].dtype == np.uint16:  # bfloat16
            bits = torch.from_numpy(found[name].astype(np.int32) << 16)
            found[name] = bits.view(torch.float32).numpy()
        assert np.array_equal(found[name], tensor.numpy(), equal_nan=tensor.is_floating_point()), f"{what}: {name}"
    return True


def check_lies(count: int, seed: int, honest: list[Content], reader: Any, path: Path) -> tuple[int, set[str]]:
    rng = np.random.default_rng(seed)
    accepted, kinds = 0, set()
    for i in range(count):
        header, tensors = honest[i % len(honest)]
        header, tensors = json.loads(json.dumps(header)), dict(tensors)
        what = change_header(header, rng) if rng.integers(2) else change_tensor(tensors, rng)
        kinds.add(what)
        write(path, header, tensors)
        accepted += judge(path, reader, f"seed {seed}, {i}: {what}")
    return accepted, kinds


def test_lies_are_refused_or_mean_the_same_to_every_reader(honest: Any, reader: Any, tmp_path: Path) -> None:
    accepted, kinds = check_lies(300, 0, honest, reader, tmp_path / "m")
    assert 10 < accepted < 150  # other weights and options of training are no lies
    assert len(kinds) > 150


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_lies(seed: int, honest: Any, reader: Any, tmp_path: Path) -> None:
    check_lies(2000, seed, honest, reader, tmp_path / "m")


def test_honest_files_are_accepted(honest: Any, reader: Any, tmp_path: Path) -> None:
    for i, (header, tensors) in enumerate(honest):
        write(tmp_path / "m", header, tensors)
        assert judge(tmp_path / "m", reader, str(i))


def test_single_flipped_bits_are_found(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_model(tiny("mlp"), path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.choice(8 * len(whole), 1000, replace=False):
        altered = bytearray(whole)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(BitLabError):
            load_model(path)


def mlp(tmp_path: Path, quant: Any = "bitnet") -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    path = tmp_path / "m"
    save_model(tiny("mlp", quant), path)
    return path, *content(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("name", ["fc1.weight_scale", "bn1.running_var", "fc1.activation_quantizer.source.range"])
def test_scales_ranges_and_variances_are_checked(tmp_path: Path, name: str, value: float) -> None:
    config = PRESETS["w8a8"].replace(activation_scale="tracked")
    path, header, tensors = mlp(tmp_path, config)
    tensors[name] = torch.full_like(tensors[name], value)
    write(path, header, tensors)
    if (name, value) == ("bn1.running_var", 0.0):
        load_model(path)
        return
    with pytest.raises(BitLabError, match=f"'{name}'"):
        load_model(path)


def test_types_that_lose_nothing_are_taken(tmp_path: Path) -> None:
    path, header, tensors = mlp(tmp_path)
    for name, dtype, fits in (
        ("head.bias", torch.bfloat16, True), ("head.bias", torch.float16, True), ("head.bias", torch.float64, False),
        ("head.weight_scale", torch.float16, False), ("head.packed_weight", torch.int8, False),
        ("bn1.num_batches_tracked", torch.int32, False),
    ):  # fmt: skip
        write(path, header, {**tensors, name: tensors[name].to(dtype)})
        if fits:
            assert torch.equal(load_model(path)[0].state_dict()[name], tensors[name].to(dtype).float())
        else:
            with pytest.raises(BitLabError, match=f"'{name}' is torch"):
                load_model(path)


def test_rows_are_padded_with_code_0(tmp_path: Path) -> None:
    path, header, tensors = mlp(tmp_path)
    data = tensors["head.packed_weight"].clone()  # 8 codes of a row, 5 in a byte
    data[0, -1] += 27 if data[0, -1] < 200 else 0
    write(path, header, {**tensors, "head.packed_weight": data})
    with pytest.raises(BitLabError, match="padded with other codes"):
        load_model(path)


def test_tensors_repeat_stored_ones_a_few_times(tmp_path: Path) -> None:
    path = tmp_path / "m"
    model = tiny("mlp", None, hidden_dims=(16,) * 25, batch_norm=False)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    save_model(model, path)
    header, tensors = content(path)
    weights = [name for name in tensors if re.fullmatch(r"fc\d+\.weight", name)]
    assert len(weights) == 1 + -(-24 // (REPEATS + 1))
    load_model(path)
    last = tensors.pop(weights[-1])
    assert not last.any()
    for name, source in header["same"].items():
        if source == weights[-1]:
            header["same"][name] = weights[-2]
    header["same"][weights[-1]] = weights[-2]
    write(path, header, tensors)
    with pytest.raises(BitLabError, match="more than 8 times"):
        load_model(path)
    for same in ({"a": "a"}, {weights[1]: weights[0]}, {"a": "b"}, {"b": "head.bias", "a": "b"}):
        write(path, {**header, "same": same}, tensors)
        with pytest.raises(BitLabError, match="repeat"):
            load_model(path)


CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
from bitcore.errors import BitLabError
from bitmodels import load_model
for path in sys.argv[2:]:
    try:
        load_model(path)
    except BitLabError as error:
        print(len(str(error)))
"""


def test_small_files_cannot_ask_for_large_models(tmp_path: Path) -> None:
    """Every number of every family's options, made huge: refused at once, in little memory."""
    paths = []
    for name in [name for name in list_models() if find_model(name).family.name == name]:
        save_model(tiny(name, "bitnet"), tmp_path / "m")
        header, tensors = content(tmp_path / "m")
        for field in fields(find_model(name).family.config):
            for huge in (10**6, 10**9):
                old = header["model"]["options"][field.name]
                lie: Any = huge
                if isinstance(old, list):
                    lie = [[huge] * len(part) if isinstance(part, list) else huge for part in old]
                elif isinstance(old, (str, bool, float)):
                    continue
                changed = json.loads(json.dumps(header))
                changed["model"]["options"] |= {"hidden_dims": None} if field.name in ("n_layers", "hidden_dim") else {}
                changed["model"]["options"][field.name] = lie
                paths.append(tmp_path / f"{len(paths)}")
                write(paths[-1], changed, tensors)
    save_model(tiny("mlp", "bitnet"), tmp_path / "m")
    header, tensors = content(tmp_path / "m")
    header["model"]["options"]["hidden_dims"] = [30_000, 30_000]
    header["model"]["options"]["in_channels"] = 30_000
    paths.append(tmp_path / "large")
    write(paths[-1], header, tensors)
    arguments = [str(4 * 2**30), *map(str, paths)]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(paths)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "1", 10**400])
def test_options_that_are_no_numbers_are_refused(name: str, value: Any) -> None:
    for field in fields(find_model(name).family.config):
        if field.type == "float":
            with pytest.raises(BitLabError):
                AutoBitModel.from_name(name, **{**tiny_options(name), field.name: value})


@pytest.mark.parametrize("extra", [{"a": float("nan")}, {"a": {1}}, {1: 2, "1": 3}])
def test_what_is_no_json_is_not_written(tmp_path: Path, extra: Any) -> None:
    with pytest.raises(BitLabError, match="JSON"):
        save_model(tiny("mlp"), tmp_path / "m", extra)
    assert not list(tmp_path.iterdir())
