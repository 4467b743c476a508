"""`bitlab fit`: searches the most accurate network for a chip and budgets of flash, RAM and instructions."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bitcore.errors import BitLabError
from bitcore.files import write_atomically
from bitlab.fit_cost import Budget, Cost, find_chip, measure_cost, untrained
from bitlab.fit_space import DEFAULT_FORMATS, Smallest, candidate, check_space, describe
from bitmodels import load_model
from bittrain.fit import fit
from bittrain.interrupts import Interrupted
from bittrain.prepare import prepare
from bittrain.recipe import Recipe
from bittrain.run_folder import is_used

RECIPE = Recipe(
    normalization="pow2",
    methods=("fused-batch-norm freeze=40", "freeze-scales epochs=40"),
    batch_size=128,
    lr=5e-3,
    epochs=60,
    warmup_epochs=1,
)
"""How networks are trained where no recipe says it."""
_PROPOSALS = 20  # candidates over budget, at most, for each one that is trained
_REDUCTION = 3  # one of so many networks trains on behind each rung
_EPOCHS = re.compile(r"\b(start|freeze|epochs)=([\d.]+)")  # options of methods that count epochs
_PASSED_ON = {"tensorboard": False, "plots": False, "checkpoint_steps": 0}  # of the short trainings


@dataclass(frozen=True)
class Search:
    """A search.

    Attributes:
        target: A chip.
        budget: What its networks may take.
        recipe: Everything but the network, at full length.
        epochs: Of the longest training in the search.
        family: The networks' family.
        formats: Their weight formats.
        validation: Share of the training images that the search is judged by; the test images never are.
        max_train_samples: Search on so many training images only.
    """

    target: str
    budget: Budget
    recipe: Recipe
    epochs: int = 18
    family: str = "mcunet"
    formats: tuple[str, ...] = DEFAULT_FORMATS
    validation: float = 0.1
    max_train_samples: int | None = None

    @property
    def short(self) -> Recipe:
        """The recipe of the trainings in the search."""
        return self.recipe.replace(
            epochs=self.epochs,
            warmup_epochs=min(self.recipe.warmup_epochs, self.epochs / 4),
            methods=tuple(_EPOCHS.sub(self._shortened, method) for method in self.recipe.methods),
            validation=self.validation,
            max_train_samples=self.max_train_samples,
            **_PASSED_ON,
        )

    def _shortened(self, option: re.Match[str]) -> str:
        """A method's epochs, as early in the shorter training; 0 stays 0, a share of a training what it is."""
        epochs = float(option[2])
        return f"{option[1]}={max(1, round(epochs * self.epochs / self.recipe.epochs)) if epochs >= 1 else option[2]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return {**asdict(self), "recipe": self.recipe.to_dict(), "formats": list(self.formats)}


def fit_image_size(dataset: str, image_size: int | None) -> int:
    """Returns the size of the images: as asked, or at most 16, which is what small chips hold.

    Raises:
        BitLabError: The dataset is unknown.
    """
    return image_size or min(16, *prepare(Recipe(dataset=dataset)).data.shape[1:])


class _Rungs(Callback):
    """Reports the validation accuracy after each epoch, and stops a training that the pruner gives up."""

    def __init__(self, trial: Any, epochs: int, show: Callable[[str], None]) -> None:
        super().__init__()
        self.trial, self.epochs, self.show = trial, epochs, show
        self.accuracy, self.epoch, self.pruned = 0.0, 0, False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports."""
        metrics: dict[str, float] = pl_module.epoch_metrics  # pyright: ignore[reportAssignmentType]
        self.accuracy, self.epoch = metrics["val_accuracy"], trainer.current_epoch + 1
        self.trial.report(self.accuracy, self.epoch)
        self.show(f"epoch {self.epoch} of {self.epochs}, {100 * self.accuracy:.2f} %")
        self.pruned = self.epoch < self.epochs and self.trial.should_prune()
        trainer.should_stop |= self.pruned


class Fitter:
    """A search in a folder: Optuna's journal, ``study.json``, ``pareto.png``, ``best.yaml``.

    Args:
        search: What is searched.
        out: The folder: new or empty, unless resumed.
        resume: Whether to continue the search in the folder.
        report: Called with each trial's row when it has ended.
        status: Called with a line on what is going on.

    Raises:
        BitLabError: Optuna is missing, a name is unknown, the folder is in use or holds another search.
    """

    def __init__(
        self,
        search: Search,
        out: Path,
        resume: bool = False,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
        status: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.search, self.out, self.report, self.status = search, out, report, status
        self.chip = find_chip(search.target)
        check_space(search.family, search.formats)
        optuna = _optuna()
        self.prepared = prepare(search.short)
        journal = out / "journal.log"
        if resume and not journal.is_file():
            raise BitLabError(f"'{out}' holds no search to resume; leave --resume out")
        if not resume and (is_used(out) or (out.exists() and not out.is_dir())):
            raise BitLabError(f"'{out}' is not empty; continue its search with --resume, or choose another folder")
        if not resume:
            self._require_a_candidate()
        out.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(journal))
        self.study = optuna.create_study(
            study_name="fit",
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=max(1, search.epochs // _REDUCTION**2), reduction_factor=_REDUCTION
            ),
        )
        self.study.sampler = optuna.samplers.TPESampler(seed=search.recipe.seed + len(self.study.trials))
        before, now = self.study.user_attrs.get("search"), json.loads(json.dumps(search.to_dict()))
        if before not in (None, now):
            names = [name for name in now if before.get(name) != now[name]]
            raise BitLabError(f"'{out}' holds a search with another {', '.join(names)}; use another folder")
        self.study.set_user_attr("search", now)
        self.pruned = optuna.trial.TrialState.PRUNED
        self.failed = optuna.trial.TrialState.FAIL

    def _require_a_candidate(self) -> None:
        """Refuses budgets that even the smallest network exceeds, whatever its format."""
        found = []
        for name in self.search.formats:
            self.status(f"the smallest network, {name}")
            recipe = candidate(Smallest(name), self.search.short, self.search.family, self.search.formats)
            cost = measure_cost(untrained(recipe, self.prepared), self.prepared, self.chip, self.search.budget)
            if not cost.excess(self.search.budget):
                return
            found.append((cost.flash or self.chip.flash, cost, recipe))
        _, cost, recipe = min(found, key=lambda entry: entry[0])
        raise BitLabError(
            f"no network meets the budget on {self.chip.name}; the smallest ({describe(recipe)}) exceeds it: "
            f"{cost.excess(self.search.budget)}"
        )

    def run(self, trials: int) -> None:
        """Trains so many more networks that fit; what was found is written even where it is interrupted.

        Networks over budget are not counted, but 20 of them for each that is counted end the search too.
        """
        trained = 0
        try:
            for _ in range(trials * _PROPOSALS):
                trained += self._trial()
                self._write_study()
                if trained == trials:
                    break
        except Interrupted as stop:
            again = Interrupted(stop.signal)  # without what the training says of its own folder
            again.add_note(f"what was found is kept; go on with the same options, --resume and --out {self.out}")
            raise again from None
        finally:
            self._write_results()

    def _trial(self) -> bool:
        """Proposes, measures and trains a network; returns whether it was trained."""
        search, trial = self.search, self.study.ask()
        recipe = candidate(trial, search.short, search.family, search.formats)
        full = candidate(trial, search.recipe, search.family, search.formats)
        row: dict[str, Any] = {
            "number": trial.number,
            "network": describe(recipe),
            "state": "interrupted",
            "recipe": full.replace(name=f"fit-{search.recipe.dataset}-{search.target}").to_dict(),
        }

        def end(state: str, cost: Cost, reason: str = "") -> None:
            row.update(state=state, reason=reason, **asdict(cost))
            trial.set_user_attr("row", row)
            if state == "finished":
                self.study.tell(trial, row["accuracy"])
            else:
                self.study.tell(trial, state=self.pruned)
            self.report(row)

        try:
            self.status(f"network {trial.number}: {row['network']}")
            model = untrained(recipe, self.prepared)
            row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            cost = measure_cost(model, self.prepared, self.chip, search.budget)
            if over := cost.excess(search.budget):
                end("over budget", cost, over)
                return False
            rungs = _Rungs(trial, search.epochs, lambda line: self.status(f"network {trial.number}: {line}"))
            with tempfile.TemporaryDirectory(prefix="bitlab-") as temporary:
                try:
                    folder = fit(recipe, Path(temporary) / "run", progress=False, callbacks=[rungs])
                except BitLabError as error:  # such as a loss that is no number
                    end("failed", cost, str(error))
                    return True
                row |= {"accuracy": rungs.accuracy, "epochs": rungs.epoch}
                if rungs.pruned:
                    end("stopped", cost, f"after epoch {rungs.epoch}: others are better")
                    return True
                trained = load_model(folder / "model.safetensors")[0]
                cost = measure_cost(trained, self.prepared, self.chip, search.budget)
            over = cost.excess(search.budget)
            end("over budget" if over else "finished", cost, over and f"trained: {over}")
        except BaseException:
            if "reason" not in row:
                trial.set_user_attr("row", row)
                self.study.tell(trial, state=self.failed)
            raise
        return True

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All trials as plain values."""
        return [trial.user_attrs["row"] for trial in self.study.trials if "row" in trial.user_attrs]

    @property
    def best(self) -> dict[str, Any] | None:
        """The most accurate network, of equals the one with less flash."""
        finished = [row for row in self.rows if row["state"] == "finished"]
        return max(finished, key=lambda row: (row["accuracy"], -row["flash"]), default=None)

    def _write_study(self) -> None:
        best, rows = self.best, self.rows
        front = [row["number"] for row in pareto_front(rows)]
        data = {"search": self.search.to_dict(), "best": best and best["number"], "front": front, "trials": rows}
        write_atomically(self.out / "study.json", json.dumps(data, indent=1) + "\n")

    def _write_results(self) -> None:
        self._write_study()
        if self.best is not None:
            Recipe.from_dict(self.best["recipe"]).dump(self.out / "best.yaml")
            draw_pareto(self.rows, self.search.budget, self.out / "pareto.png")


def pareto_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the finished networks that no other one beats in flash and accuracy, the smallest first."""
    front: list[dict[str, Any]] = []
    finished = (row for row in rows if row["state"] == "finished")
    for row in sorted(finished, key=lambda row: (row["flash"], -row["accuracy"])):
        if not front or row["accuracy"] > front[-1]["accuracy"]:
            front.append(row)
    return front


def draw_pareto(rows: list[dict[str, Any]], budget: Budget, path: Path) -> None:
    """Draws accuracy over flash, coloured by instructions, with the front and the budget.

    Args:
        rows: The trials, one of them finished.
        budget: The budget.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    finished, front = [row for row in rows if row["state"] == "finished"], pareto_front(rows)
    axes.step(
        [row["flash"] for row in front],
        [100 * row["accuracy"] for row in front],
        where="post",
        marker="o",
        markersize=12,
        markerfacecolor="none",
        label="front",
    )
    points = axes.scatter(
        [row["flash"] for row in finished],
        [100 * row["accuracy"] for row in finished],
        c=[row["instructions"] for row in finished],
        cmap="viridis",
        zorder=3,
    )
    figure.colorbar(points, label="instructions an image")
    axes.axvline(budget.flash, linestyle="--", color="grey", label="budget")
    axes.set(xlabel="flash, bytes", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise BitLabError("fit needs Optuna, which is not installed: pip install bitlab[fit]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
