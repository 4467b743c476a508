"""What a recipe may ask for besides: mixing, averages, regimes, accumulation, frozen evaluation, pictures, …"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor, nn

from bitcore.errors import BitLabError
from bitlayers import BitLinear
from bitlayers.base import BitLayer
from bittrain.build import build_model, restore, start_from
from bittrain.checkpoint import load_checkpoint
from bittrain.ema import WeightAverage
from bittrain.evaluate import evaluate
from bittrain.fit import fit
from bittrain.losses import LOSSES
from bittrain.mixing import mix
from bittrain.module import Classifier
from bittrain.optim import decay_groups, learning_rate, regime_at
from bittrain.plots import confusion
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe

RECIPE = Recipe(
    model_options={"hidden_dims": [16]},
    epochs=2,
    batch_size=16,
    max_train_samples=64,
    max_test_samples=50,
    device="cpu",
    tensorboard=False,
    plots=False,
)


def rows(run: Path) -> list[dict[str, str]]:
    """A run's metrics."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.4, 0.4)])
def test_mixing(mixup: float, cutmix: float) -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 10, 12).contiguous()
    labels = torch.arange(6)
    seen = set()
    for seed in range(30):
        mixed = mix(images, labels, mixup, cutmix, seed)
        assert torch.equal(mixed.images, mix(images, labels, mixup, cutmix, seed).images)
        assert torch.equal(mixed.labels, labels)
        assert 0 < mixed.share <= 1
        values = mixed.others.view(-1, 1, 1, 1).to(images.dtype)
        pure = ((mixed.images == images) | (mixed.images == values)).all()
        expected = mixed.share * labels + (1 - mixed.share) * mixed.others
        assert torch.allclose(mixed.images.mean((1, 2, 3)), expected, atol=1e-5)  # the labels' shares are the images'
        seen.add(bool(pure))
    assert seen == {not mixup, bool(cutmix)}  # a box is cut out, and pixels are left as they are
    assert torch.equal(images[:, 0, 0, 0], torch.arange(6.0))  # the input is left alone


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_a_mixed_batch(loss: str) -> None:
    mixed = mix(torch.rand(5, 1, 8, 8), torch.arange(5), 1.0, 0.0, 3)
    logits = torch.randn(5, 5)
    a, b = LOSSES[loss](logits, mixed.labels), LOSSES[loss](logits, mixed.others)
    assert mixed.loss(LOSSES[loss], logits) == mixed.share * a + (1 - mixed.share) * b
    plain = mix(torch.rand(5, 1, 8, 8), torch.arange(5), 0.0, 0.0, 3)
    assert plain.loss(LOSSES[loss], logits) == LOSSES[loss](logits, torch.arange(5))


def test_regimes() -> None:
    recipe = Recipe(optimizer="adam", lr=5e-3, epochs=10, regime=("2 lr=1e-3", "5 optimizer=sgd lr=0.1 momentum=0.5"))
    factor = learning_rate(recipe, 4)
    rates = [recipe.lr * factor(step) for step in range(40)]
    assert rates == pytest.approx([5e-3] * 8 + [1e-3] * 12 + [0.1] * 20)
    assert regime_at(recipe, 0) is recipe
    assert (regime_at(recipe, 4).optimizer, regime_at(recipe, 9).optimizer) == ("adam", "sgd")
    assert regime_at(recipe, 9).momentum == 0.5
    for wrong, message in {
        "lr=1": "begin with an epoch",
        "1 rate=3": "unknown key of a regime 'rate'",
        "1 lr": "not of the form KEY=VALUE",
        "1": "begin with an epoch",
        "": "begin with an epoch",
        "1 optimizer=adm": "did you mean 'adam'",
    }.items():
        with pytest.raises(BitLabError, match=message):
            regime_at(recipe.replace(regime=[wrong]), 0)


def test_a_regime_changes_the_optimizer_and_resumes(tmp_path: Path) -> None:
    recipe = RECIPE.replace(
        epochs=4, optimizer="adam", regime=["2 optimizer=sgd lr=0.05 weight_decay=0.1", "3 lr=0.01 momentum=0.2"]
    )
    whole = fit(recipe, tmp_path / "whole", progress=False)
    last = load_checkpoint(whole / "checkpoints" / "last.ckpt")
    groups = last["optimizer_states"][0]["param_groups"]
    assert [g["momentum"] for g in groups] == [0.2, 0.2]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [float(row["lr"]) for row in rows(whole)] == [3e-3, 3e-3, 0.05, 0.01]


def test_warm_restarts() -> None:
    recipe = Recipe(schedule="warm-restarts", epochs=7, lr_restart_epochs=1, lr_restart_factor=2, lr_final=0.1)
    factors = [learning_rate(recipe, 10)(step) for step in range(70)]
    assert [i for i in range(70) if factors[i] == 1] == [0, 10, 30]
    assert factors[5] == pytest.approx(0.55)
    assert factors[20] == pytest.approx(0.55)
    assert factors[50] == pytest.approx(0.55)


def test_binary_latent_weights_do_not_decay() -> None:
    model = build_model(Recipe(model="mlp", quant="bnn", quant_overrides={"head": "bitnet"}), (1, 8, 8), 10)
    decayed, rest = ({id(p) for p in group["params"]} for group in decay_groups(model, 0.1))
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BitLayer)}
    assert {name for name, m in layers.items() if id(m.weight) in decayed} == {"head"}
    assert {name for name, m in layers.items() if id(m.weight) in rest} == set(layers) - {"head"}


def test_accumulated_gradients_are_those_of_larger_batches(tmp_path: Path) -> None:
    plain = RECIPE.replace(quant=None, optimizer="sgd", momentum=0.9, epochs=1, checkpoint_steps=1)
    large = fit(plain.replace(batch_size=32), tmp_path / "large", progress=False)
    small = fit(plain.replace(batch_size=16, accumulate=2), tmp_path / "small", progress=False)
    a, b = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (large, small))
    assert a["global_step"] == b["global_step"] == 2
    for name, value in a["state_dict"].items():
        if name.startswith("model."):
            assert torch.allclose(value, b["state_dict"][name], atol=1e-6), name


def test_average_is_the_formula() -> None:
    class Trainer:
        global_step = 0

    class Module:
        model = nn.BatchNorm1d(2)

    trainer: Any = Trainer()
    module: Any = Module()
    average = WeightAverage(0.6)
    average.on_train_start(trainer, module)
    expected = module.model.weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            module.model.weight.copy_(torch.randn(2))
        module.model.num_batches_tracked.fill_(step)
        average.on_train_batch_end(trainer, module, None, None, 0)  # no optimizer step: nothing
        trainer.global_step += 1
        average.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.model.weight.detach()
    assert torch.allclose(average.average["weight"], expected)
    assert average.average["num_batches_tracked"] == 19
    weight = module.model.weight.detach().clone()
    average.on_validation_start(trainer, module)
    assert torch.equal(module.model.weight, average.average["weight"])
    average.on_validation_end(trainer, module)
    assert torch.equal(module.model.weight, weight)


def test_average_is_what_is_measured_and_saved(tmp_path: Path) -> None:
    run = fit(RECIPE.replace(ema=0.9, quant=None), tmp_path / "run", progress=False)
    checkpoint = load_checkpoint(run / "checkpoints" / "last.ckpt")
    model, extra = restore(run / "checkpoints" / "last.ckpt")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in checkpoint["average"]["state"].items())
    assert not torch.equal(checkpoint["state_dict"]["model.fc1.weight"], model.state_dict()["fc1.weight"])
    found = evaluate(model, "digits", Preprocessing.from_dict(extra["preprocessing"]), max_samples=50)
    assert f"{found['accuracy']:.6f}" == rows(run)[-1]["val_accuracy"]


def test_frozen_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[bool] = []
    step = Classifier.validation_step

    def watch(self: Classifier, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        packed.append(all(m.packed for m in self._measured[0].modules() if isinstance(m, BitLinear)))
        assert not any(m.packed for m in self.model.modules() if isinstance(m, BitLinear))
        step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "validation_step", watch)
    runs = [fit(RECIPE.replace(eval_ternary=on), tmp_path / str(on), progress=False) for on in (True, False)]
    assert packed == [True, True, False, False]
    assert [r["val_accuracy"] for r in rows(runs[0])] == [r["val_accuracy"] for r in rows(runs[1])]


def test_scale_op_and_act_bits() -> None:
    def configs(**options: Any) -> set[Any]:
        model = build_model(RECIPE.replace(quant="bitnet", **options), (1, 8, 8), 10)
        return {
            (m.quant_config.weight_scale, m.quant_config.activation_dtype)
            for m in model.modules()
            if isinstance(m, BitLayer)
        }

    assert configs() == {("absmean", "int8")}
    assert {scale for scale, _ in configs(scale_op="median")} == {"absmedian"}
    assert "int4" in {dtype for _, dtype in configs(act_bits=4)}


def test_the_quantization_that_a_name_implies() -> None:
    options = ["features=[4, pool]", "hidden_dims=[8]"]
    recipe = RECIPE.replace(model="vgg_cifar10_binary", quant="default", model_options=options)
    model = build_model(recipe, (3, 8, 8), 10)
    assert {m.quant_config.weight_format for m in model.modules() if isinstance(m, BitLayer)} == {"binary"}


def test_early_stop(tmp_path: Path) -> None:
    recipe = RECIPE.replace(lr=0.0, epochs=9, early_stop=2)  # nothing ever gets better after the first epoch
    run = fit(recipe, tmp_path / "run", progress=False)
    assert len(rows(run)) == 3
    fit(recipe, run, resume=True, progress=False)
    assert len(rows(run)) == 3


def test_start_epoch(tmp_path: Path) -> None:
    run = fit(
        RECIPE.replace(epochs=4, start_epoch=2, schedule="step", lr_step_epochs=3), tmp_path / "run", progress=False
    )
    assert [row["epoch"] for row in rows(run)] == ["3", "4"]
    assert [float(row["lr"]) for row in rows(run)] == pytest.approx([3e-3, 3e-4])
    with pytest.raises(BitLabError, match="start_epoch 4 leaves nothing"):
        fit(RECIPE.replace(epochs=4, start_epoch=4), tmp_path / "other", progress=False)


def test_init_takes_the_twin_s_weights(tmp_path: Path) -> None:
    twin = fit(RECIPE.replace(quant=None), tmp_path / "twin", progress=False)
    theirs = restore(twin / "checkpoints" / "best.ckpt")[0].state_dict()
    model = build_model(RECIPE.replace(quant="lsq-4"), (1, 8, 8), 10)
    start_from(model, twin)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in theirs.items())
    other = build_model(RECIPE.replace(model_options=["hidden_dims=[8]"]), (1, 8, 8), 10)
    with pytest.raises(BitLabError, match=r"another model: fc1.weight is \[16, 64\], not \[8, 64\]"):
        start_from(other, twin)
    with pytest.raises(BitLabError, match="may be packed; give the run's folder"):
        start_from(other, twin / "model.safetensors")


def test_init_resumes_exactly_and_without_the_run_it_began_with(tmp_path: Path) -> None:
    twin = fit(RECIPE.replace(quant=None), tmp_path / "twin", progress=False)
    recipe = RECIPE.replace(quant="lsq-4", init=str(twin), checkpoint_steps=3)
    whole = fit(recipe, tmp_path / "whole", progress=False)

    class Stop(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                raise KeyError

    with pytest.raises(KeyError):
        fit(recipe, tmp_path / "run", progress=False, callbacks=[Stop()])
    twin.rename(tmp_path / "away")
    run = fit(recipe, tmp_path / "run", resume=True, progress=False)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_memory_format_determinism_and_precision_train(tmp_path: Path) -> None:
    recipe = RECIPE.replace(model="resnet20", model_options=["width=4"], quant="bitnet-cnn", epochs=1)
    fancy = recipe.replace(channels_last=True, deterministic=True, precision="bf16", mixup=0.5, cutmix=0.5)
    run = fit(fancy, tmp_path / "run", progress=False)
    weights = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert any(
        w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous()
        for w in weights.values()
        if w.ndim == 4
    )
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device gpu: torch sees no GPU here; use device cpu or auto"),
        ({"strategy": "fsdp", "devices": 2}, "strategy fsdp needs a GPU, .*; use strategy ddp"),
        ({"sync_batchnorm": True}, "sync_batchnorm needs a GPU"),
        ({"precision": "16"}, "precision 16 needs a GPU, .*; use precision bf16"),
    ],
)
def test_what_needs_a_gpu(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BitLabError, match=message):
        fit(RECIPE.replace(**{"device": "auto", **options}), tmp_path / "run", progress=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BitLabError, match="devices 3: torch sees 2 GPUs here; set devices to at most 2"):
        fit(RECIPE.replace(device="gpu", devices=3), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_number_of_processes_must_be_that_of_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    with pytest.raises(BitLabError, match="started 2 processes, devices times num_nodes is 1; make it equal"):
        fit(RECIPE, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, in tracing
def test_compiled_training(tmp_path: Path) -> None:
    """The compiled step is the plain one but for the order of sums; what is saved is no compiled model."""
    recipe = RECIPE.replace(quant="w8a8", epochs=1, checkpoint_steps=0)
    runs = [fit(recipe.replace(compile=on), tmp_path / str(on), progress=False) for on in (False, True)]
    plain, compiled = (load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs)
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(value.float(), compiled[name].float(), atol=1e-3) for name, value in plain.items())
    assert [r["val_accuracy"] for r in rows(runs[0])] == [r["val_accuracy"] for r in rows(runs[1])]


def test_errors_from_within_torch(tmp_path: Path) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def fails_with(error: Exception, message: str | None) -> None:
        class Failing(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                if self.training:
                    raise error
                return super().forward(input.flatten(1))

        with pytest.raises(BitLabError if message else type(error), match=message):
            fit(RECIPE, tmp_path / "run", progress=False, build=lambda *_: Failing(64, 10))
        assert not (tmp_path / "run").exists()

    fails_with(InvalidCxxCompiler(), r"torch.compile failed \(.*\); on CPUs it needs a C\+\+ compiler")
    fails_with(RuntimeError("[gloo/pair.cc:553] Connection closed by peer"), "another process of this training ended")
    fails_with(torch.OutOfMemoryError("CUDA out of memory. Tried to"), "set a smaller batch_size")
    reason = "max_backward does not have a deterministic implementation, but you set"
    fails_with(RuntimeError(reason), "deterministic: max_backward .*; set no deterministic")
    fails_with(RuntimeError("anything else"), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "convnextv2_atto", "quant": "w8a8"}, "cannot take images of 1×8×8 .*; set another image_size"),
        (
            {"batch_size": 1, "model_options": {"batch_norm": True}},
            "two images a step or more; set a larger batch_size",
        ),
        (
            {"hint_weight": 0.1, "hint_layers": ["fc1"]},
            "hint_weight does nothing here: it needs a teacher",
        ),
        ({"teacher": "x.ckpt", "hint_layers": ["fc1"], "compile": True}, "which compile does not allow"),
        ({"augment_copies": 1}, "augment_copies does nothing here: it needs augmentations"),
        ({"augment_size": 12}, "augment_size does nothing here: it needs augmentations"),
        ({"validation": 0.01}, "validation 0.01 holds out none of 64 images; set a larger one"),
        ({"lr": 1e20, "optimizer": "sgd", "quant": None}, "the loss is not finite in epoch 1; try a lower lr"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BitLabError, match=message):
        fit(RECIPE.replace(**options), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_confusion_counts() -> None:
    logits = torch.eye(3)[torch.tensor([0, 1, 1, 2, 0])]
    assert confusion(logits, torch.tensor([0, 1, 2, 2, 2]), 3).tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 1]]


def test_pictures(tmp_path: Path) -> None:
    run = fit(RECIPE.replace(plots=True), tmp_path / "run", progress=False)
    for name in ("curve.png", "confusion.png"):
        with Image.open(run / name) as image:
            assert len(set(image.convert("L").get_flattened_data())) > 10
