"""First light: networks trained on real digits run on the chip, emulated, and compute what the interpreter computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bitcore.formats import FORMATS, get_format
from bitcore.graph import Graph, Linear
from bitcore.presets import PRESETS
from bitexport import lower
from bitexport.targets.c import CTarget
from bitexport.targets.c.plan import plan_layers
from bitlayers.fusion import train_fused
from bitmodels import AutoBitModel
from networks import extreme_codes, random_chain

from .rv32ec import CH32V003, ChipOverflowError, Firmware, Result, build, run

IMAGES = 24
TEST = 360
# preset: least accuracy on the 360 test images after a few seconds of training
NETWORKS = {"mcu-4bitsym": 0.93, "mcu-ternary": 0.88}


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 real digits, 8x8 pixels from 0 to 1, shuffled."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.from_numpy(images[order]).float().reshape(-1, 1, 8, 8) / 16
    return x, torch.from_numpy(labels[order])


def train(preset: str, hidden: tuple[int, ...], epochs: int) -> nn.Module:
    """A plain training loop."""
    torch.manual_seed(0)
    model = AutoBitModel.from_name("mlp", preset, in_channels=64, out_channels=10, hidden_dims=hidden, bias=False)
    x, labels = digits()
    x, labels = x[TEST:], labels[TEST:]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for batch in order[: len(x) // 64 * 64].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, folder: Path) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Exports a network; returns its graph, the test images as codes and their labels."""
    graph = lower(model, (1, 8, 8))
    CTarget().emit(graph, folder, "digits")
    x, labels = digits()
    return graph, graph.input.quantize(x[:TEST]), labels[:TEST].numpy()


def as_bytes(codes: np.ndarray) -> list[bytes]:
    return [sample.astype(np.int8).tobytes() for sample in codes]


def figures(firmware: Firmware, graph: Graph, accuracy: float, result: Result) -> str:
    """One line for the summary at the end of the tests."""
    instructions = sorted(result.instructions)[len(result.instructions) // 2]
    return (
        f"{accuracy:.1%} correct, flash {firmware.flash_bytes} bytes, RAM {result.ram_bytes} bytes (stack "
        f"{result.stack_bytes}), {instructions} instructions an image, {instructions / graph.macs():.1f} a MAC"
    )


@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize("preset", NETWORKS)
def test_trained_digits_run_on_the_chip(preset: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    graph, codes, labels = export(train(preset, (32,), 12), tmp_path / "export")
    expected = graph.run(codes)
    accuracy = float((expected.argmax(1) == labels).mean())
    assert accuracy >= NETWORKS[preset]

    firmware = build(tmp_path / "export", "digits", tmp_path / "firmware")
    assert firmware.libgcc == (), "no multiplication, no division"
    assert not CH32V003.multiplier
    assert firmware.input_bytes == 64
    result = run(firmware, as_bytes(codes[:IMAGES]))
    assert np.array_equal(result.outputs, expected[:IMAGES])
    assert result.classes == expected[:IMAGES].argmax(1).tolist()
    assert (np.array(result.classes) == labels[:IMAGES]).mean() >= 0.75

    product = build(tmp_path / "export", "digits", tmp_path / "product", "-O2", entry="predict")
    assert run(product, as_bytes(codes[:3])).classes == result.classes[:3]
    assert product.libgcc == ()

    request.node.user_properties.append(
        (f"{CH32V003.chip}, digits, {preset}", figures(firmware, graph, accuracy, result))
    )
    assert firmware.flash_bytes <= 16 * 1024
    assert result.ram_bytes <= 2 * 1024
    # Weights, and 4 KiB for all code and start-up.
    weights = sum(
        len(n.op.levels) * get_format(n.op.format).packing.row_bytes(n.op.levels.shape[1])
        for n in graph.nodes
        if isinstance(n.op, Linear)
    )
    assert weights < firmware.flash_bytes <= weights + 4096


@pytest.mark.usefixtures("toolchain")
def test_no_weight_format_needs_a_multiplier(tmp_path: Path) -> None:
    """One network with a layer of each format, and dynamic ranges, shifts and thresholds in turn."""
    formats = list(FORMATS)
    folds = [["normshift", "channel shift", "threshold", "relu normshift"][i % 4] for i in range(len(formats) - 1)]
    graph = random_chain(np.random.default_rng(5), formats, folds, [7] * (len(formats) + 1), "int8")
    CTarget().emit(graph, tmp_path / "export", "all")
    firmware = build(tmp_path / "export", "all", tmp_path / "firmware")
    assert firmware.libgcc == ()
    codes = extreme_codes(graph, 12)
    assert np.array_equal(run(firmware, as_bytes(codes)).outputs, graph.run(codes))


@pytest.mark.usefixtures("toolchain")
def test_static_ranges_with_biases_need_no_multiplier_either(tmp_path: Path) -> None:
    """Power-of-two scales: shifts; few levels: thresholds."""
    for activation in ("uint8", "uint4"):
        config = PRESETS["mcu-4bitsym"].replace(activation_scale="tracked", activation_dtype=activation)
        model = AutoBitModel.from_name("mlp", config, in_channels=64, out_channels=10, hidden_dims=(24,), bias=True)
        x, _ = digits()
        model(x[TEST : TEST + 64])
        graph, codes, _ = export(model.eval(), tmp_path / activation)
        firmware = build(tmp_path / activation, "digits", tmp_path / f"{activation}-firmware")
        assert firmware.libgcc == ()
        assert np.array_equal(run(firmware, as_bytes(codes[:8])).outputs, graph.run(codes[:8]))


@pytest.mark.usefixtures("toolchain")
def test_scales_of_any_value_run_too(tmp_path: Path) -> None:
    """w8a8 multiplies, in 64 bits, by shifts and additions: still no multiplication from libgcc."""
    model = AutoBitModel.from_name("mlp", "w8a8", in_channels=64, out_channels=10, hidden_dims=(24,))
    x, _ = digits()
    model(x[TEST : TEST + 64])
    graph, codes, _ = export(model.eval(), tmp_path / "export")
    firmware = build(tmp_path / "export", "digits", tmp_path / "firmware")
    assert np.array_equal(run(firmware, as_bytes(codes[:8])).outputs, graph.run(codes[:8]))
    assert not {name for name in firmware.libgcc if "mul" in name or "div" in name}


@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize("pow2", [True, False])
def test_convolutions_need_no_multiplier(pow2: bool, tmp_path: Path) -> None:
    """Convolutions, a depthwise one, pools, batch norm; scales of any value multiply by shifts."""
    config = PRESETS["mcu-ternary-static"].replace(
        weight_granularity="per_channel", weight_scale_pow2=pow2, activation_scale_pow2=pow2
    )
    features = (4, "pool", "depthwise", 6, "pool")
    model = AutoBitModel.from_name("mcunet", config, {"last": "mcu-4bitsym-static"}, image_size=8, features=features)
    if pow2:
        model = train_fused(model)
    x, _ = digits()
    model.train()(x[TEST : TEST + 64])
    graph, codes, _ = export(model.eval(), tmp_path / "export")
    assert {"conv2d", "maxpool2d", "linear"} <= {node.op.kind for node in graph.nodes}
    assert (graph.multiplications() == 0) == pow2
    firmware = build(tmp_path / "export", "digits", tmp_path / "firmware")
    assert not {name for name in firmware.libgcc if "mul" in name or "div" in name}
    assert np.array_equal(run(firmware, as_bytes(codes[:6])).outputs, graph.run(codes[:6]))


@pytest.mark.usefixtures("toolchain")
def test_a_network_too_big_for_the_chip_does_not_link(tmp_path: Path) -> None:
    model = AutoBitModel.from_name(
        "mlp", "mcu-8bit", in_channels=256, out_channels=10, hidden_dims=(200, 200), bias=False
    )
    graph = lower(model.eval(), (256,))
    CTarget().emit(graph, tmp_path / "export", "big")
    with pytest.raises(ChipOverflowError) as caught:
        build(tmp_path / "export", "big", tmp_path / "firmware")
    weights = graph.macs()
    assert set(caught.value.overflow) == {"FLASH"}
    flash = caught.value.overflow["FLASH"]
    assert weights - 16 * 1024 < flash < weights - 16 * 1024 + 4096
    assert f"FLASH by {flash} bytes" in str(caught.value)


@pytest.mark.usefixtures("toolchain")
def test_a_network_too_wide_for_the_chip_does_not_link(tmp_path: Path) -> None:
    sizes = {"in_channels": 64, "out_channels": 10, "hidden_dims": (1200,)}
    model = AutoBitModel.from_name("mlp", "mcu-binary", **sizes, bias=False)
    graph = lower(model.eval(), (64,))
    CTarget().emit(graph, tmp_path / "export", "wide")
    with pytest.raises(ChipOverflowError) as caught:
        build(tmp_path / "export", "wide", tmp_path / "firmware", stack=256)
    arena = plan_layers(graph).arena
    assert arena >= 1200 * 3  # sums in int16, activations
    assert caught.value.overflow == {"RAM": arena + 10 * 4 + 4 + 256 - 2048}  # outputs, class, stack
