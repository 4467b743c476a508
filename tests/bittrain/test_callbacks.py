# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Training methods: their formulas, seen at work in short runs on digits, and exact after an interruption."""

from __future__ import annotations

import csv
import inspect
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bitcore.presets import get_preset
from bitcore.quantizers import Quantizer, Tracked
from bitlayers import quantize
from bitlayers.base import BitLayer
from bitlayers.batchnorm import freeze_batchnorm, reestimate_batchnorm
from bitlayers.fusion import train_fused
from bitmodels import load_model
from bittrain.build import restructure, structure
from bittrain.callbacks import METHODS, Oscillations, ProgressiveQuantization, make_callbacks
from bittrain.callbacks.oscillation import dampening
from bittrain.callbacks.profit import aiwq, gaussian_kl
from bittrain.callbacks.stages import stage_starts
from bittrain.checkpoint import load_checkpoint
from bittrain.fit import fit, prepare, restore
from bittrain.module import Classifier
from bittrain.optim import make_optimizer, regroup
from bittrain.recipe import Recipe

STEPS = 6
RECIPE = Recipe(
    model_options={"hidden_dims": [24, 16], "batch_norm": True},
    quant="lsq-4",
    lr=0.01,
    epochs=3,
    batch_size=32,
    max_train_samples=32 * STEPS,
    max_test_samples=100,
    device="cpu",
    threads=1,
    tensorboard=False,
)


class Watch(Callback):
    """Calls a function after every batch."""

    def __init__(self, act: Callable[[Any, Classifier], None]) -> None:
        self.act = act

    def on_train_batch_end(self, trainer: Any, pl_module: Classifier, *_: Any) -> None:
        self.act(trainer, pl_module)


class Stop(Callback):
    """Ends a run from within."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyError("interrupted")


# ---- by name ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_defaults_and_a_docstring(name: str) -> None:
    (callback,) = make_callbacks([name])
    assert type(callback).__doc__


def test_the_page_names_every_method_and_option() -> None:
    rows = (Path(__file__).parents[2] / "docs" / "training.md").read_text().split("## Methods")[1].split("##")[0]
    page = {
        row[0].strip("` "): row[2].split(",")
        for line in rows.splitlines()
        if len(row := line.strip("|").split("|")) == 3
    }
    for name, method in METHODS.items():
        options = [p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert [option.strip() for option in page[name]] == options


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["dampning"], "unknown method 'dampning'; did you mean 'dampening'"),
        (["dampening wieght=1"], "unknown option of method dampening 'wieght'; did you mean 'weight'"),
        (["dampening weight=much"], "method dampening: weight must be a number, not 'much'"),
        (["freeze-scales epochs=1.5"], "epochs must be a whole number, not '1.5'"),
        (["profit teacher=1"], "teacher must be true or false, not '1'"),
        (["profit bits=8,x"], "bits are widths from 2 to 8 such as 8,5,4"),
        (["two-stage share=1"], "share must lie between 0 and 1"),
        (["ede low=0"], "needs 0 < low <= high"),
        (["dampening weight=-1"], "method dampening: weight must be at least 0, not -1"),
        (["bn-reestimation batches=0"], "batches must be at least 1"),
        (["profit batches=0"], "batches must be at least 1"),
        (["ede", "ede high=3"], "method ede is listed twice"),
    ],
)
def test_wrong_entries(entries: list[str], message: str) -> None:
    with pytest.raises(BitLabError, match=message):
        make_callbacks(entries)


NEED_QUANTIZATION = sorted(set(METHODS) - {"bn-reestimation"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["ede"]}, "no layer has the estimator ede .use the preset irnet"),
        *(
            ({"methods": [name], "quant": None, "epochs": 9}, f"method {name}: no (bit )?layer")
            for name in NEED_QUANTIZATION
        ),
        ({"methods": ["profit", "two-stage"], "epochs": 9}, "methods profit and two-stage both requantize"),
        ({"methods": ["bn-reestimation"], "early_stop": 2}, "which early_stop skips; keep one of them"),
        ({"methods": ["bn-reestimation"], "model_options": {}}, "the model has no batch norm"),
        ({"methods": ["fused-batch-norm"], "model_options": {}}, "no bit layer has a batch norm behind it"),
        ({"methods": ["fused-batch-norm", "freeze-oscillations"]}, "use the method dampening with it"),
        ({"methods": ["profit"], "epochs": 7}, "method profit has 8 stages and needs as many epochs; the recipe has 7"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing does nothing here: it needs loss cross_entropy"),
        ({"loss": "hinges"}, "unknown loss 'hinges'; did you mean 'hinge'"),
        ({"teacher": "nowhere.ckpt"}, "there is no (checkpoint|run)"),
    ],
)
def test_methods_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BitLabError, match=message):
        fit(RECIPE.replace(**changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists(), "half a run is left"


# ---- formulas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["bitnet", "bitnet-cnn", "mcu-4bitsym", "lsq-4", "irnet"])
def test_dampening_gradient_is_the_papers(preset: str) -> None:
    quantizer = get_preset(preset).weight_quantizer((4, 6))
    assert isinstance(quantizer, Quantizer)
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    quantizer = quantizer.double().eval()
    values = quantizer.transform(weight)
    loss = dampening(weight, quantizer)
    (grad,) = torch.autograd.grad(loss, weight, retain_graph=True)
    q = quantizer.quantize(weight)
    inside = (values >= q.format.low * q.scale) & (values <= q.format.high * q.scale)
    expected = (2 * (values - q.dequantize()) * inside).detach()
    (through,) = torch.autograd.grad(values, weight, expected)
    torch.testing.assert_close(grad, through)
    clipped = torch.minimum(torch.maximum(values, q.format.low * q.scale), q.format.high * q.scale)
    torch.testing.assert_close(loss, (q.dequantize() - clipped).square().sum())


def test_oscillations_by_hand() -> None:
    seen = Oscillations(torch.tensor([0.0, 0.0, 0.0]), momentum=0.5)
    steps = [[1, 0, 1], [0, 0, 1], [1, 0, 2], [1, 0, 1], [0, 0, 1]]
    oscillated = [seen.update(torch.tensor(s, dtype=torch.float32)).tolist() for s in steps]
    assert oscillated == [
        [False, False, False],
        [True, False, False],
        [True, False, False],
        [False, False, True],
        [True, False, False],
    ]
    frequency = 0.0
    for o in (0, 1, 1, 0, 1):
        frequency = 0.5 * o + 0.5 * frequency
    assert seen.frequency[0].item() == frequency
    average = 0.0
    for level in (1, 1, 2, 1, 1):
        average = 0.5 * level + 0.5 * average
    assert seen.average[2].item() == average


def test_gaussian_kl_against_torch() -> None:
    p, q = torch.randn(3, 50, dtype=torch.float64), 2 * torch.randn(3, 70, dtype=torch.float64) + 1
    normal = [torch.distributions.Normal(x.mean(1), x.std(1, correction=0)) for x in (p, q)]
    torch.testing.assert_close(gaussian_kl(p, q), torch.distributions.kl_divergence(*normal))


def test_aiwq_finds_the_layer_that_quantization_hurts() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model = quantize(model, "w8a8", {"2": {"weight_format": "ternary", "weight_scale": "absmean"}})
    model.train()(torch.randn(64, 8))
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = aiwq(model, [torch.randn(64, 8) for _ in range(3)])
    assert set(found) == {"0", "2", "4"}
    assert max(found, key=lambda name: found[name]) == "2"
    assert min(found.values()) >= 0
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    model.compile(backend="eager")
    with torch.no_grad():
        model.eval()(torch.randn(64, 8))
    assert set(aiwq(model, [torch.randn(64, 8)])) == set(found)  # what is compiled already calls no hooks


def test_the_average_of_the_weights_has_its_own_statistics(tmp_path: Path) -> None:
    recipe = RECIPE.replace(quant="w8a8", ema=0.99, epochs=2, plots=False, methods=["bn-reestimation batches=3"])
    run = fit(recipe, tmp_path / "run", progress=False)
    model, _ = restore(run / "checkpoints" / "last.ckpt")
    batches = prepare(recipe).loaders(torch.device("cpu"), 0, 1)[0].epoch(1)
    found = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_batchnorm(model, [images for images, _ in itertools.islice(batches, 3)])
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("fused", [False, True])
def test_reestimated_statistics_are_those_of_the_batches(fused: bool) -> None:
    model = quantize(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), "w8a8")
    model.train()(torch.randn(32, 5))
    if fused:
        model = train_fused(model)
    layer, norm = model[0], model[0].batch_norm if fused else model[1]
    batches = [torch.randn(16, 5) for _ in range(4)]
    tracked = layer.activation_quantizer.source.range.clone()
    reestimate_batchnorm(model, batches)
    assert all(m.training for m in model.modules())
    assert norm.momentum == 0.1
    assert torch.equal(layer.activation_quantizer.source.range, tracked)  # type: ignore[union-attr]
    weight = layer.weight if fused else layer.quantized_weight().dequantize()
    outputs = []
    for x in batches:
        q = layer.activation_quantizer.eval().quantize(x).dequantize()
        outputs.append(q @ weight.T + layer.bias)
    # An unfused layer's bias is on the accumulator's grid, hence the tolerance.
    torch.testing.assert_close(norm.running_mean, torch.stack([y.mean(0) for y in outputs]).mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(norm.running_var, torch.stack([y.var(0) for y in outputs]).mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quant", ["w8a8", "lsq-4", "bnn"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_short_training_is_measured_as_it_is(quant: str, ema: float, tmp_path: Path) -> None:
    """Statistics that lag behind the weights would say less: here they are those of the final weights."""
    short = {"epochs": 1, "batch_size": 64, "lr": 0.02, "max_train_samples": 64 * 12, "plots": False}
    recipe = RECIPE.replace(quant=quant, ema=ema, schedule="constant", **short)
    run = fit(recipe, tmp_path / "run", progress=False)
    model, _ = restore(run / "checkpoints" / "best.ckpt")
    batches = list(prepare(recipe).loaders(torch.device("cpu"), 0, 1)[0].epoch(0))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def accuracy() -> float:
        with torch.no_grad():
            return float((model(images).argmax(1) == labels).float().mean())

    measured = accuracy()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train()  # by the batch at hand: the network as it is in training
    assert measured >= accuracy() - 0.03
    assert measured > (0.2 if quant == "bnn" else 0.5)


def test_long_trainings_and_frozen_statistics_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setattr("bittrain.callbacks.norms.reestimate", lambda *_: called.append(1))
    recipe = RECIPE.replace(quant="w8a8", plots=False)
    fit(recipe, tmp_path / "short", progress=False)
    assert len(called) == recipe.epochs  # before each is measured
    monkeypatch.setattr("bittrain.callbacks.norms._SHORT", STEPS * 1.5 / 10)  # an epoch and a half: torch remembers 10
    called.clear()
    fit(recipe, tmp_path / "longer", progress=False)
    assert len(called) == 1
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    freeze_batchnorm(model)
    before = model[1].get_buffer("running_mean").clone()
    reestimate_batchnorm(model, [torch.randn(9, 3)])
    assert torch.equal(model[1].get_buffer("running_mean"), before)


def test_statistics_that_are_no_numbers_are_estimated_anew_too() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    model.train()(torch.full((3, 4), math.nan))
    batches = [torch.randn(50, 4) + 3 for _ in range(3)]
    reestimate_batchnorm(model, batches)
    torch.testing.assert_close(model[0].running_mean, torch.cat(batches).mean(0))


def test_stage_starts() -> None:
    assert stage_starts([0.25] * 4, 100, "x") == [0, 25, 50, 75]
    assert stage_starts([0.05, 0.05, 0.9], 10, "x") == [0, 1, 2]
    assert stage_starts([0.9, 0.05, 0.05], 10, "x") == [0, 8, 9]
    assert stage_starts([0.1] * 5 + [0.5], 6, "x") == [0, 1, 2, 3, 4, 5]


def test_profits_plan() -> None:
    plan = ProgressiveQuantization(bits="8,5,4", share=0.4).plan()
    assert sum(length for length, _ in plan) == pytest.approx(1)
    seen = []
    for _, change in plan:
        config = change(get_preset("pact-sawb-4"))
        seen.append((config.weight_format, config.activation_dtype, config.weight_scale))
    assert seen == [
        ("float32", "uint8", "sawb"),
        ("float32", "uint5", "sawb"),
        ("float32", "uint4", "sawb"),
        ("int8", "uint4", "sawb"),
        ("int5", "uint4", "octav"),  # the paper of SAWB has no coefficients for 5 bits
        *[("4bitsym", "uint4", "sawb")] * 3,
    ]
    binary = [change(get_preset("irnet")) for _, change in plan]  # methods for binary alone give way
    assert [c.weight_format for c in binary[3:6]] == ["int8", "int5", "binary"]
    assert binary[-1] == get_preset("irnet")


def test_structure_brings_a_model_back() -> None:
    def build() -> nn.Module:
        return quantize(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), "lsq-4")

    model = train_fused(build())
    model[0].requantize(model[0].quant_config.replace(weight_format="int8"))
    model(torch.randn(8, 5))
    other = build()
    saved = json.loads(json.dumps(structure(model)))
    restructure(other, saved)
    other.load_state_dict(model.state_dict())
    x = torch.rand(6, 5)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_regroup_is_the_order_of_a_new_optimizer() -> None:
    model = quantize(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), "lsq-4")
    recipe = RECIPE.replace(optimizer="sgd", weight_decay=0.1)
    model[0].requantize(model[0].quant_config.replace(weight_format="float32", activation_dtype="float32"))
    optimizer = make_optimizer(model, recipe)
    model(torch.randn(8, 5)).sum().backward()
    optimizer.step()
    kept = optimizer.state[model[0].get_parameter("weight")]["momentum_buffer"].clone()
    model[0].requantize(get_preset("lsq-4"))
    regroup(optimizer, model, 0.1)
    fresh = make_optimizer(model, recipe)
    for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in new["params"]]
        assert group["weight_decay"] == new["weight_decay"]
    assert torch.equal(optimizer.state[model[0].get_parameter("weight")]["momentum_buffer"], kept)
    gone = model[2].weight_quantizer.source.step
    model[2].requantize(get_preset("w8a8"))
    regroup(optimizer, model, 0.1)
    assert gone not in optimizer.state


# ---- at work on digits ------------------------------------------------------------------------------------------


def test_temperature_reaches_its_ends(tmp_path: Path) -> None:
    seen: list[float] = []

    def note(_: Any, module: Classifier) -> None:
        seen.extend({q.temperature for q in module.model.modules() if isinstance(q, Quantizer)})

    fit(RECIPE.replace(quant="irnet", methods=["ede"]), tmp_path / "run", progress=False, callbacks=[Watch(note)])
    assert len(seen) == 3 * STEPS  # one value at a time, in all layers
    assert seen[0] == pytest.approx(0.1)
    assert seen[-1] == pytest.approx(10)
    ratios = [b / a for a, b in itertools.pairwise(seen)]
    assert ratios == pytest.approx([100 ** (1 / (3 * STEPS - 1))] * len(ratios))


def count_oscillations(recipe: Recipe, run: Path) -> int:
    """All oscillations of the last two thirds of a run."""
    trackers: dict[str, Oscillations] = {}
    total = 0

    def note(trainer: Any, module: Classifier) -> None:
        nonlocal total
        for name, layer in module.model.named_modules():
            if isinstance(layer, BitLayer):
                levels = layer.quantized_weight().levels.detach()
                if name not in trackers:
                    trackers[name] = Oscillations(levels, 0.01)
                count = int(trackers[name].update(levels).sum())
                total += count if trainer.current_epoch * 3 >= recipe.epochs else 0

    fit(recipe, run, progress=False, callbacks=[Watch(note)])
    return total


def test_oscillations_are_dampened_and_frozen(tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=12, schedule="constant", optimizer="sgd", lr=0.05)
    counts = {}
    for name, methods in {
        "plain": [],
        "dampened": ["dampening weight=0.3"],
        "frozen": ["freeze-oscillations start=0.03 end=0.01 momentum=0.02"],
    }.items():
        counts[name] = count_oscillations(recipe.replace(methods=methods), tmp_path / name)
        accuracy = float(last_row(tmp_path / name)["val_accuracy"])
        assert accuracy > 0.6, (name, accuracy)
    assert counts["dampened"] < 0.7 * counts["plain"], counts
    assert counts["frozen"] < 0.9 * counts["plain"], counts
    state = load_checkpoint(tmp_path / "frozen" / "checkpoints" / "last.ckpt")["callbacks"]["OscillationFreezing"]
    model, _ = restore(tmp_path / "frozen" / "checkpoints" / "last.ckpt")
    frozen = 0
    for name, saved in state.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, BitLayer)
        mask = saved["frozen"]
        frozen += int(mask.sum())
        q = layer.quantized_weight()
        assert torch.equal(q.levels[mask], saved["average"][mask])  # at the level that they were frozen at
        torch.testing.assert_close(layer.weight[mask], q.dequantize()[mask])  # in the middle of the bin
    assert frozen > 0


def last_row(run: Path) -> dict[str, str]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))[-1]


@pytest.mark.parametrize("preset", ["bitnet-cnn", "lsq-4", "twn", "mcu-ternary-static"])
def test_frozen_scales_stay(preset: str, tmp_path: Path) -> None:
    scales: list[list[Tensor]] = []

    def note(_: Any, module: Classifier) -> None:
        layers = [m for m in module.model.modules() if isinstance(m, BitLayer)]
        ranges = [m.range.clone() for m in module.model.modules() if isinstance(m, Tracked)]
        scales.append([layer.quantized_weight().scale.clone() for layer in layers] + ranges)

    recipe = RECIPE.replace(quant=preset, methods=["freeze-scales epochs=1"])
    fit(recipe, tmp_path / "run", progress=False, callbacks=[Watch(note)])
    same = [all(torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in itertools.pairwise(scales)]
    assert not any(same[: STEPS - 1])
    assert all(same[STEPS:])
    assert_saved_as_trained(tmp_path / "run")


def assert_saved_as_trained(run: Path) -> None:
    x = torch.randn(20, 1, 8, 8)
    assert torch.equal(load_model(run / "model.safetensors")[0](x), restore(run / "checkpoints" / "last.ckpt")[0](x))


def test_two_stages(tmp_path: Path) -> None:
    seen = []

    def note(trainer: Any, module: Classifier) -> None:
        layer = module.model.get_submodule("fc2")
        seen.append((trainer.current_epoch, layer.quant_config.weight_format, layer.quant_config.activation_dtype))

    recipe = RECIPE.replace(epochs=4, methods=["two-stage share=0.5"])
    fit(recipe, tmp_path / "run", progress=False, callbacks=[Watch(note)])
    assert list(dict.fromkeys(seen)) == [(e, "float32" if e < 2 else "int4", "uint4") for e in range(4)]
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best["epoch"] >= 2  # a model of float weights is no candidate
    assert_saved_as_trained(tmp_path / "run")


@pytest.mark.parametrize("method", ["two-stage share=0.5", "profit bits=4 share=0.25 batches=1"])
def test_every_stage_has_the_whole_schedule(method: str, tmp_path: Path) -> None:
    rates: list[float] = []
    watch = Watch(lambda trainer, _: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    for restart in ("true", "false"):
        recipe = RECIPE.replace(epochs=4, schedule="cosine", methods=[f"{method} restart={restart}"])
        fit(recipe, tmp_path / restart, progress=False, callbacks=[watch])
    stages = 2 if method.startswith("two") else 4
    restarted, once = torch.tensor(rates).chunk(2)
    length = len(restarted) // stages
    first = restarted[:length]
    assert torch.equal(restarted, first.repeat(stages)) and first[0] == RECIPE.lr and bool((first.diff() < 0).all())
    assert bool((once.diff() < 0).all())


def test_profit_freezes_in_the_order_of_instability(tmp_path: Path) -> None:
    callback = ProgressiveQuantization(bits="8,5,4", share=0.5, batches=3)
    weights: dict[tuple[int, str], list[Tensor]] = {}
    teachers = []

    def note(trainer: Any, module: Classifier) -> None:
        for name, layer in module.model.named_modules():
            if isinstance(layer, BitLayer):
                weights.setdefault((callback.phase, name), []).append(layer.weight.detach().clone())
        teachers.append(None if module.distiller is None else module.distiller.teacher)  # kept, or memory is used again

    fit(RECIPE.replace(epochs=10), tmp_path / "run", progress=False, callbacks=[callback, Watch(note)])
    order = sorted(callback.instability, key=lambda name: callback.instability[name], reverse=True)
    assert len(order) == 3
    assert callback.frozen == order[:2]
    for phase, frozen in ((0, 0), (1, 1), (2, 2)):
        for i, name in enumerate(order):
            trajectory = weights[phase, name]
            assert all(torch.equal(trajectory[0], w) for w in trajectory) == (i < frozen), (phase, name)
    assert teachers[0] is None
    assert len(set(teachers)) == 8  # none, then every stage's own
    assert_saved_as_trained(tmp_path / "run")
    assert float(last_row(tmp_path / "run")["val_accuracy"]) > 0.5


def test_fused_training(tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=6, methods=["fused-batch-norm freeze=4"], quant="w8a8")
    means = []

    def note(_: Any, module: Classifier) -> None:
        means.append(module.model.get_submodule("fc1").batch_norm.running_mean.clone())

    run = fit(recipe, tmp_path / "run", progress=False, callbacks=[Watch(note)])
    same = [torch.equal(a, b) for a, b in itertools.pairwise(means)]
    assert not any(same[: 4 * STEPS - 1])
    assert all(same[4 * STEPS :])
    assert_saved_as_trained(run)
    model, _ = load_model(run / "model.safetensors")
    assert not any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
    assert float(last_row(run)["val_accuracy"]) > 0.6


def test_distillation_from_a_run(tmp_path: Path) -> None:
    teacher = fit(RECIPE.replace(quant=None, epochs=4), tmp_path / "teacher", progress=False)
    options = {"teacher": str(teacher), "kd_alpha": 0.7, "hint_weight": 0.1, "hint_layers": ["relu1"]}
    student = {"model_options": {"hidden_dims": [12, 8], "batch_norm": True}}
    run = fit(RECIPE.replace(**options, **student), tmp_path / "run", progress=False)
    state = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["distiller.projections.0.weight"].shape == (24, 12)
    assert not any("teacher" in name for name in state)
    assert_saved_as_trained(run)
    other = tmp_path / "other.ckpt"
    checkpoint = load_checkpoint(teacher / "checkpoints" / "last.ckpt")
    checkpoint["bitlab"]["classes"] = ["cat"] * 10
    torch.save(checkpoint, other)
    with pytest.raises(BitLabError, match="knows the 10 classes cat, .* the data has the 10 classes 0, 1"):
        fit(RECIPE.replace(teacher=str(other)), tmp_path / "new", progress=False)
    with pytest.raises(BitLabError, match="was trained on other input"):
        fit(RECIPE.replace(teacher=str(teacher), normalization="none"), tmp_path / "new", progress=False)


def flat(value: Any) -> str:
    """Text that is equal for equal tensors, bit for bit."""
    return json.dumps(
        value, sort_keys=True, default=lambda t: [str(t.dtype), t.shape, t.contiguous().numpy().tobytes().hex()]
    )


RESUMED = {
    "profit": (["profit bits=5,4 batches=2", "dampening", "bn-reestimation batches=2"], 6, (3, 9, 25, 32)),
    "freezing": (["freeze-oscillations start=0.01 end=0.002 momentum=0.05", "freeze-scales epochs=2"], 3, (8, 15)),
    "fused": (["fused-batch-norm freeze=2", "two-stage", "dampening"], 4, (7, 16)),
}


@pytest.mark.parametrize("name", sorted(RESUMED))
def test_resume_is_exact(name: str, tmp_path: Path) -> None:
    methods, epochs, stops = RESUMED[name]
    recipe = RECIPE.replace(methods=methods, epochs=epochs, checkpoint_steps=4, weight_decay=0.01)
    whole = fit(recipe, tmp_path / "whole", progress=False)
    run = tmp_path / "run"
    for step in stops:
        with pytest.raises(KeyError, match="interrupted"):
            fit(recipe, run, resume=True, progress=False, callbacks=[Stop(step)])
    fit(recipe, run, resume=True, progress=False)
    states = [load_checkpoint(r / "checkpoints" / "last.ckpt") for r in (whole, run)]
    for part in ("state_dict", "optimizer_states", "callbacks", "lr_schedulers"):
        assert flat(states[0][part]) == flat(states[1][part]), part
    assert (whole / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert math.isfinite(float(last_row(run)["train_loss"]))
