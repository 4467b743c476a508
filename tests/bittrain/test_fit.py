"""Training: the run folder, exact resuming after any interruption, checkpoints that cannot harm."""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors import safe_open
from torch import nn

from bitcore.errors import BitLabError
from bittrain.checkpoint import load_checkpoint
from bittrain.data import Split
from bittrain.evaluate import evaluate, load_split
from bittrain.fit import build_model, fit, prepare, restore
from bittrain.module import Classifier
from bittrain.optim import decay_groups, learning_rate
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import OPTIMIZERS, SCHEDULES, Recipe

STEPS = 6  # an epoch of the recipe below
RECIPE = Recipe(
    model_options={"hidden_dims": [24, 16], "dropout": 0.2},
    augment=("affine",),
    augment_probability=0.8,
    epochs=3,
    batch_size=32,
    max_train_samples=32 * STEPS,
    max_test_samples=100,
    checkpoint_steps=4,
    weight_decay=0.01,
    gradient_clip=1.0,
    warmup_epochs=0.5,
    device="cpu",
    threads=1,
    tensorboard=False,
    plots=False,
)


RICH = RECIPE.replace(  # everything that has a state of its own or draws at random
    quant="bnn",
    ema=0.9,
    mixup=0.4,
    cutmix=0.4,
    accumulate=2,
    checkpoint_steps=1,
    regime=["1 optimizer=sgd lr=0.01", "2 lr=0.003"],
    augment=["affine", "erasing", "elastic probability=0.5"],
    methods=["freeze-oscillations", "dampening"],
    eval_ternary=True,
    early_stop=5,
)
"""Three steps an epoch: the gradients of two batches are added up."""


class Interrupted(Exception):
    """Ends a run from within."""


class Stop(Callback):
    """Raises at a place of a run."""

    def __init__(self, step: int, hook: str) -> None:
        """Steps are counted over all epochs."""

        def act(trainer: Any, *_: Any, **__: Any) -> None:
            if trainer.global_step == step:
                raise Interrupted

        setattr(self, hook, act)


def flat(value: Any) -> str:
    """Text that is equal for equal tensors, bit for bit."""
    return json.dumps(
        value, sort_keys=True, default=lambda t: [str(t.dtype), t.shape, t.contiguous().numpy().tobytes().hex()]
    )


def outcome(run: Path) -> tuple[str, str, list[dict[str, str]]]:
    """What has to be equal: the saved model, the training state, and the metrics without the seconds."""
    with safe_open(run / "model.safetensors", "pt") as file:
        model = [file.metadata(), {name: file.get_tensor(name) for name in file.keys()}]  # noqa: SIM118
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    state = load_checkpoint(run / "checkpoints" / "last.ckpt")
    training = [state["optimizer_states"], state["lr_schedulers"], state["state_dict"], state["callbacks"]]
    return flat(model), flat(training), rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    return fit(RECIPE, tmp_path_factory.mktemp("whole") / "run", progress=False)


def test_run_folder(whole: Path) -> None:
    assert {p.name for p in whole.iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "metrics.csv",
        "checkpoints",
        "model.safetensors",
    }  # and tensorboard, curve.png, confusion.png, which this recipe does not want
    assert Recipe.load(whole / "recipe.yaml") == RECIPE
    assert json.loads((whole / "environment.json").read_text())["versions"]["torch"] == torch.__version__
    rows = outcome(whole)[2]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["6", "12", "18"]
    assert set(rows[0]) == {"epoch", "step", "lr", "train_accuracy", "train_loss", "val_accuracy", "val_loss"}
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])


def test_the_saved_checkpoint_is_what_was_measured(whole: Path) -> None:
    model, extra = restore(whole / "checkpoints" / "last.ckpt")
    assert extra["dataset"] == "digits"
    assert extra["classes"] == list("0123456789")
    preprocessing = Preprocessing.from_dict(extra["preprocessing"])
    result = evaluate(model, extra["dataset"], preprocessing, max_samples=100)
    last = outcome(whole)[2][-1]
    assert f"{result['accuracy']:.6f}" == last["val_accuracy"]
    assert f"{result['loss']:.5f}" == last["val_loss"][:-1]
    assert result["correct"] == round(result["accuracy"] * 100)
    assert not model.training


PLACES = [
    (2, "on_train_batch_start"),  # before the first checkpoint
    (4, "on_train_batch_start"),  # right after one
    (5, "on_train_batch_start"),
    (6, "on_validation_start"),  # an epoch's training is over, its validation is not
    (6, "on_train_batch_start"),  # between two epochs
    (7, "on_train_batch_start"),
    (11, "on_train_batch_end"),
    (18, "on_validation_end"),
]


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the rich recipe that nothing interrupted."""
    return fit(RICH, tmp_path_factory.mktemp("rich") / "run", progress=False)


@pytest.mark.parametrize("batch", [3, 6, 7, 13])
def test_everything_resumes_exactly(batch: int, rich: Path, tmp_path: Path) -> None:
    class StopAtBatch(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch * STEPS + trainer.fit_loop.epoch_loop.batch_idx == batch:
                raise Interrupted

    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(RICH, run, progress=False, callbacks=[StopAtBatch()])
    fit(RICH, run, resume=True, progress=False)
    assert outcome(run) == outcome(rich)


@pytest.mark.parametrize(("step", "hook"), PLACES)
def test_resume_is_exact(step: int, hook: str, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(RECIPE, run, progress=False, callbacks=[Stop(step, hook)])
    assert not (run / "model.safetensors").exists()
    torch.manual_seed(random.SystemRandom().randrange(1 << 30))  # the global state must not matter
    fit(RECIPE, run, resume=True, progress=False)
    assert outcome(run) == outcome(whole)


def test_resume_twice_and_when_finished(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (5, 9, 16):
        with pytest.raises(Interrupted):
            fit(RECIPE, run, resume=True, progress=False, callbacks=[Stop(step, "on_train_batch_start")])
    fit(RECIPE, run, resume=True, progress=False)
    assert outcome(run) == outcome(whole)
    (run / "model.safetensors").unlink()
    fit(RECIPE.replace(checkpoint_steps=1), run, resume=True, progress=False)  # nothing is left to do but saving
    assert outcome(run)[1:] == outcome(whole)[1:]


def test_killed_run_resumes_exactly(rich: Path, tmp_path: Path) -> None:
    """SIGKILL in another process, at a random step."""
    run = tmp_path / "run"
    step = random.SystemRandom().randrange(1, 3 * STEPS // RICH.accumulate)
    RICH.dump(tmp_path / "recipe.yaml")
    script = f"""
import os, signal
from lightning.pytorch import Callback
from bittrain.fit import fit
from bittrain.recipe import Recipe

class Kill(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)

fit(Recipe.load({str(tmp_path / "recipe.yaml")!r}), {str(run)!r}, progress=False, callbacks=[Kill()])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -9, f"step {step}: {done.stderr}"
    fit(RICH, run, resume=True, progress=False)
    assert outcome(run) == outcome(rich), f"step {step}"


def test_progress_bar_and_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPE.replace(epochs=2, tensorboard=True)
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run", callbacks=[Stop(STEPS, "on_train_batch_start")])
    fit(recipe, tmp_path / "run", resume=True)
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("Epoch 2/2", "images/s", "left"))
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.*"))) == 2


def test_quiet_runs_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(RECIPE.replace(epochs=1), tmp_path / "run", progress=False)
    assert capsys.readouterr() == ("", "")


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    other = fit(RECIPE.replace(seed=1), tmp_path / "run", progress=False)
    assert outcome(other)[0] != outcome(whole)[0]


def test_a_used_folder_or_another_recipe_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(BitLabError, match="is not empty; resume that run, or choose another folder"):
        fit(RECIPE, whole, progress=False)
    with pytest.raises(BitLabError, match=r"was trained with lr = 0.003, not 0.1"):
        fit(RECIPE.replace(lr=0.1), whole, resume=True, progress=False)
    for wrong in ({"dataset": "digit"}, {"quant": "mcu-4bitsim"}, {"model": "mpl"}, {"augment": ["afine"]}):
        with pytest.raises(BitLabError, match="did you mean"):
            fit(RECIPE.replace(**wrong), tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


class Payload:
    """Would write a file when unpickled."""

    def __init__(self, path: Path) -> None:
        """Takes the file."""
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The attack."""
        return os.mkdir, (str(self.path),)


def test_harmful_and_foreign_checkpoints(whole: Path, tmp_path: Path) -> None:
    good = (whole / "checkpoints" / "last.ckpt").read_bytes()
    bad = tmp_path / "bad.ckpt"

    def refused(message: str) -> None:
        with pytest.raises(BitLabError, match=message):
            fit(RECIPE, tmp_path / "run", resume=bad, progress=False)
        with pytest.raises(BitLabError, match=message):
            restore(bad)
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "harm").exists()

    refused("there is no checkpoint")
    for size in (0, 10, len(good) // 2, len(good) - 1):
        bad.write_bytes(good[:size])
        refused("truncated or no checkpoint|damaged")
    torch.save({"bitlab": Payload(tmp_path / "harm")}, bad)
    refused("holds Python objects beyond tensors; it was refused and nothing of it was executed")
    bad.write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
    refused("truncated or no checkpoint")
    torch.save({"state_dict": {}}, bad)
    refused("is no checkpoint of BitLab")
    torch.save([torch.zeros(2)], bad)
    refused("is no checkpoint of BitLab")


def test_weights_of_another_model_are_refused(whole: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(whole / "checkpoints" / "last.ckpt")
    checkpoint["bitlab"]["recipe"]["model_options"]["hidden_dims"] = [3]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(BitLabError, match="does not fit its own description"):
        restore(tmp_path / "other.ckpt")


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    class Nan(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.flatten(1)) * torch.nan

    with pytest.raises(BitLabError, match="the loss is not finite in epoch 1; try a lower lr"):
        fit(RECIPE, tmp_path / "run", progress=False, build=lambda *_: Nan(64, 10))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_weights_are_a_function_of_the_seed() -> None:
    a, b = build_model(RECIPE, (1, 8, 8), 10), build_model(RECIPE, (1, 8, 8), 10)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_held_out_images_are_no_training_images() -> None:
    prepared = prepare(RECIPE.replace(validation=0.25, augment_size=12))
    assert isinstance(prepared.train, Split) and isinstance(prepared.source, Split)
    assert isinstance(prepared.watched, Split)
    assert len(prepared.watched) == 48
    assert len(prepared.train) == len(prepared.source) == 144
    assert prepared.source.images.shape[-1] == 12
    assert torch.equal(prepared.train.labels, prepared.source.labels)
    watched = {i.numpy().tobytes() for i in prepared.watched.images}
    assert not watched & {i.numpy().tobytes() for i in prepared.train.images}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: str) -> None:
    recipe = Recipe(schedule=schedule, epochs=40, warmup_epochs=0, lr_final=0.01)
    factors = [learning_rate(recipe, 10)(step) for step in range(400)]
    assert all(0 < f <= 1 for f in factors)
    assert max(factors) == pytest.approx(1, abs=0.01)
    if schedule == "constant":
        assert set(factors) == {1.0}
    elif schedule == "step":
        assert factors[99] == 1
        assert factors[100] == pytest.approx(0.1)
        assert factors[399] == pytest.approx(1e-3)
    elif schedule != "warm-restarts":  # these have a test of their own
        assert factors[-1] == pytest.approx(0.01, abs=1e-3)
        peak = factors.index(max(factors))
        assert peak == (0 if schedule == "cosine" else 120)
        assert factors[peak:] == sorted(factors[peak:], reverse=True)
    warm = [learning_rate(recipe.replace(warmup_epochs=2), 10)(step) for step in range(21)]
    assert warm == sorted(warm)
    assert warm[0] < 0.1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_learn(optimizer: str) -> None:
    recipe = RECIPE.replace(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.01, nesterov=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module = Classifier(model, recipe, 10, 10, {})
    made = module.configure_optimizers()
    images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    losses = []
    for _ in range(20):
        made.zero_grad()
        loss = module.training_step((images, labels), 0)
        loss.backward()
        made.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_weight_decay_spares_vectors() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.PReLU(3))
    decayed, rest = decay_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert decayed["params"] == [model[0].weight]
    assert rest["weight_decay"] == 0
    assert rest["params"] == [model[0].bias, model[1].weight, model[1].bias, model[2].weight]


def test_evaluate_refuses_data_of_more_classes() -> None:
    preprocessing = Preprocessing.create("none", (8, 8), 1)
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(BitLabError, match="the data has a label 9, the model only 5 outputs"):
        evaluate(small, "digits", preprocessing)
    assert small.training
    assert load_split("digits", Preprocessing.create("none", (16, 16), 3)).images.shape == (355, 3, 16, 16)
