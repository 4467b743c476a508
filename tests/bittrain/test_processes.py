"""Two processes (gloo, on the CPU) share the work: each image once an epoch, and the same end as one process.

They add up the gradients of two batches, the one process does not.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bittrain.checkpoint import load_checkpoint
from bittrain.data import Split
from bittrain.fit import fit
from bittrain.loader import TestLoader, TrainLoader
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe

RECIPE = Recipe(
    model_options={"hidden_dims": [16]},
    quant=None,  # a code may flip where sums are rounded in another order
    optimizer="sgd",
    lr=0.05,
    weight_decay=1e-3,
    epochs=2,
    batch_size=32,
    max_train_samples=200,
    max_test_samples=51,
    checkpoint_steps=4,
    device="cpu",
    tensorboard=False,
    plots=False,
)


def rows(count: int) -> Split:
    """Images that show nothing, and labels that are their numbers."""
    return Split(torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.arange(count))


WORKER = """
import json, sys
from pathlib import Path
from lightning.pytorch import Callback
from bittrain import loader
from bittrain.fit import fit
from bittrain.recipe import Recipe

folder, rank = Path(sys.argv[1]), sys.argv[2]
recipe = Recipe.load(folder / "recipe.yaml")
seen = []
read = loader.Split.read

def watched(self, batches, epoch, start):
    seen.append([int(i) for rows in batches for i in rows])
    return read(self, batches, epoch, start)

loader.Split.read = watched
fit(recipe, folder / "whole", progress=False)
(folder / f"seen-{rank}.json").write_text(json.dumps(seen))

class Stop(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 7:
            raise KeyError

try:
    fit(recipe, folder / "resumed", progress=False, callbacks=[Stop()])
except KeyError:
    fit(recipe, folder / "resumed", resume=True, progress=False)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes have trained the recipe, without a break and with one."""
    folder = tmp_path_factory.mktemp("shared")
    RECIPE.replace(batch_size=8, accumulate=2, devices=2, strategy="ddp").dump(folder / "recipe.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    common |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(rank)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder


def weights(run: Path) -> dict[str, Any]:
    """The trained weights."""
    state = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("model.")}


def test_each_image_once_an_epoch(shared: Path) -> None:
    seen = [json.loads((shared / f"seen-{rank}.json").read_text()) for rank in range(2)]
    train = [[rows for rows in calls if len(rows) == 96] for calls in seen]  # 12 batches of 8 of 200 images
    for first, second in zip(*train, strict=True):
        assert len(set(first) | set(second)) == 192
    assert len(train[0]) == RECIPE.epochs
    assert train[0][0] != train[0][1]
    measured = [next(rows for rows in calls if len(rows) in (25, 26)) for calls in seen]
    assert sorted(measured[0] + measured[1]) == list(range(51))


def test_the_result_is_that_of_one_process_with_as_many_images_a_step(shared: Path, tmp_path: Path) -> None:
    alone = fit(RECIPE, tmp_path / "run", progress=False)
    one, two = weights(alone), weights(shared / "whole")
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name
    metrics = [(run / "metrics.csv").read_text().splitlines() for run in (alone, shared / "whole")]
    columns = metrics[0][0].split(",")
    assert columns == metrics[1][0].split(",")
    for a, b in zip(metrics[0][1:], metrics[1][1:], strict=True):
        for column, x, y in zip(columns, a.split(","), b.split(","), strict=True):
            assert column == "seconds" or float(x) == pytest.approx(float(y), abs=1e-4), column


def test_two_processes_resume_exactly(shared: Path) -> None:
    whole, resumed = weights(shared / "whole"), weights(shared / "resumed")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert (shared / "resumed" / "model.safetensors").is_file()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_parts_make_up_the_whole(processes: int) -> None:
    preprocessing = Preprocessing.create("none", (8, 8), 1)
    whole = list(TrainLoader(rows(100), preprocessing, 4 * processes, 3).epoch(1, 2))
    parts = [
        TrainLoader(rows(100), preprocessing, 4, 3, rank=r, processes=processes).epoch(1, 2) for r in range(processes)
    ]
    for (_, labels), *others in zip(whole, *parts, strict=True):
        assert torch.equal(labels, torch.cat([part for _, part in others]))
    tests = [TestLoader(rows(25), preprocessing, 10, rank=r, processes=processes) for r in range(processes)]
    assert torch.equal(torch.cat([labels for test in tests for _, labels in test]), torch.arange(25))
