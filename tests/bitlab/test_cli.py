"""The commands as a user runs them: results, JSON, errors, exit codes."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from bitcore.errors import BitLabError
from bitlab import cli, quickstart
from bitlab.pages import BEGIN, END, with_table
from bitlab.pipeline import export, make_graph, open_checkpoint, verify
from bitlab.results import publish, results_tables, write_result
from bitmodels import AutoBitModel, save_model
from bittrain.fit import fit
from bittrain.recipe import Recipe

ROOT = Path(__file__).parents[2]
SMALL = ["--epochs", "2", "--max-train-samples", "200", "--quiet"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line; returns exit code, standard output, standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bitlab", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return (code if isinstance(code, int) else int(code is not None)), captured.out, captured.err

    return command


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A short run on the digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return fit(quickstart.RECIPE.replace(epochs=3), folder, progress=False)


def one_line_error(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code == 1
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_quickstart_does_the_whole_path(run, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "RECIPE", quickstart.RECIPE.replace(epochs=2))
    out = tmp_path / "quickstart"
    code, text, _ = run("quickstart", "--out", out, "--json")
    result = json.loads(text)
    assert code == 0
    assert result["mismatches"] == 0 and result["samples"] == 355 and result["outputs_compared"] == 3550
    assert result["classes_differing_between_fake_quantized_and_integer"] == 0
    assert result["accuracy"]["c"] == result["accuracy"]["integer"] == result["accuracy"]["fake_quantized"] > 0.5
    assert result["accuracy"]["float"] > 0.5
    assert result["sizes"]["weights"] == (64 * 64 + 64 * 32 + 32 * 10) // 2
    for name in ("digits.c", "digits.h", "README.md"):
        assert (out / "c" / name).is_file()
    code, text, _ = run("quickstart", "--out", out, "--quiet")  # again, in the same folder, for people
    assert code == 0 and "0 mismatches" in text and "8.0× less" in text


def test_quickstart_leaves_foreign_folders_alone(run, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    one_line_error(run("quickstart", "--out", tmp_path), str(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_quickstart_is_the_digits_recipe():
    assert Recipe.load(ROOT / "recipes" / "digits-mlp.yaml") == quickstart.RECIPE


def test_train_evaluate_export_verify_info(run, tmp_path):
    folder, c = tmp_path / "run", tmp_path / "c"
    code, text, _ = run("train", "--out", folder, "--json", "--quant", "mcu-ternary", *SMALL)
    trained = json.loads(text)
    assert code == 0 and trained["folder"] == str(folder)

    code, text, _ = run("evaluate", folder, "--json")
    assert code == 0 and json.loads(text)["accuracy"] == trained["accuracy"]

    code, text, _ = run("export", folder, "--out", c, "--name", "tiny", "--json")
    assert code == 0 and 6464 / 5 < json.loads(text)["sizes"]["weights"] < 6464 / 4

    small = tmp_path / "small"
    code, text, _ = run("export", folder, "--out", small, "--optimize", "flash", "--json")
    assert code == 0 and json.loads(text)["optimize"] == "flash"

    for path in (folder, c, small, folder / "checkpoints" / "last.ckpt"):
        code, text, _ = run("verify", path, "--json")
        report = json.loads(text)
        assert code == 0 and report["mismatches"] == 0 and report["accuracy"]["c"] == trained["accuracy"]

    for path in (folder, c):
        code, text, _ = run("verify", path, "--target", "engine", "--json")
        report = json.loads(text)
        assert code == 0 and report["mismatches"] == 0 and report["accuracy"]["engine"] == trained["accuracy"]

    code, text, _ = run("info", folder, "--json")
    layers = json.loads(text)["layers"]
    assert [layer["name"] for layer in layers] == ["fc1", "fc2", "head"]
    assert layers[0]["weights"] == "ternary" and layers[0]["macs"] == 4096 and layers[0]["bytes"] == 64 * 13
    assert 0 < layers[0]["entropy"] <= 1.585 and 0 < layers[0]["zeros"] < 1
    code, text, _ = run("info", folder, "--graph", "--dot", tmp_path / "graph.dot")
    assert code == 0 and "normshift" in text and "arena" in text
    assert (tmp_path / "graph.dot").read_text().startswith("digraph")
    assert "linear ternary" in run("info", c)[1]


def test_quantize_makes_a_run_of_a_float_one(run, tmp_path):
    twin, folder = tmp_path / "float", tmp_path / "float-mcu-8bit-static"
    code, text, _ = run("train", "--float-twin", "--out", twin, "--epochs", "10", "--quiet", "--json")
    trained = json.loads(text)
    code, text, _ = run("quantize", twin, "--preset", "mcu-8bit-static", "--calibrate", 300, "--json")
    found = json.loads(text)
    assert code == 0 and found["folder"] == str(folder)
    assert found["full_precision"] == trained["accuracy"] > 0.8
    assert found["accuracy"] > trained["accuracy"] - 0.02
    assert Recipe.load(folder / "recipe.yaml").quant == "mcu-8bit-static"
    code, text, _ = run("evaluate", folder, "--json")
    assert code == 0 and json.loads(text)["accuracy"] == found["accuracy"]
    code, text, _ = run("verify", folder, "--json")
    assert code == 0 and json.loads(text)["mismatches"] == 0
    assert run("info", folder)[0] == 0
    assert run("export", folder, "--out", tmp_path / "c")[0] == 0

    other = tmp_path / "other"
    code, text, _ = run(
        "quantize", twin / "checkpoints" / "last.ckpt", "--preset", "w8a8", "--out", other,
        "--quant-overrides", "head={weight_format: int4}", "--json",
    )  # fmt: skip
    layers = json.loads(run("info", other, "--json")[1])["layers"]
    assert code == 0 and [layer["weights"] for layer in layers] == ["int8", "int8", "int4"]
    one_line_error(run("quantize", twin, "--preset", "w8a8", "--out", other), "in use", "--out")
    one_line_error(run("quantize", other, "--preset", "w8a8"), "quantized already", "--float-twin")
    one_line_error(run("quantize", twin, "--preset", "w8a9"), "w8a9", "w8a8")
    assert not (tmp_path / "float-w8a9").exists()


def test_float_twin_cannot_be_exported_and_leaves_nothing(run, tmp_path):
    code, _, _ = run("train", "--float-twin", "--out", tmp_path / "float", *SMALL)
    assert code == 0
    one_line_error(run("export", tmp_path / "float", "--out", tmp_path / "c"), "fc1", "float")
    assert not (tmp_path / "c").exists()


def test_resume_continues_and_a_used_folder_is_refused(run, tmp_path):
    folder = tmp_path / "run"
    assert run("train", "--out", folder, *SMALL)[0] == 0
    one_line_error(run("train", "--out", folder, *SMALL), str(folder))
    assert run("train", "--out", folder, "--resume", *SMALL)[0] == 0


def test_info_lists_what_there_is(run):
    code, text, _ = run("info")
    assert code == 0
    for word in ("fp130", "mcu-4bitsym", "mlp"):
        assert word in text
    data = json.loads(run("info", "--json")[1])
    assert data["formats"]["ternary"]["bits"] == 1.6 and "bitnet" in data["presets"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quant", "mcu-4bitsim"], ["mcu-4bitsym"]),
        (["--dataset", "digit"], ["digit"]),
        (["--model", "mpl"], ["mlp"]),
        (["--model-options", "hiden_dims=[4]"], ["hidden_dims"]),
        (["--quant-overrides", "*={weight_format: tenary}"], ["ternary"]),
        (["--optimizer", "adamv"], ["adam"]),
        (["--epochs", "0"], ["epochs"]),
        (["no-such-recipe.yaml"], ["no-such-recipe.yaml"]),
    ],
)
def test_train_names_what_is_wrong(run, tmp_path, arguments, words):
    one_line_error(run("train", *arguments, "--out", tmp_path / "run", "--quiet"), *words)


def test_help_is_there_for_every_command(run):
    for command in ("quickstart", "train", "evaluate", "export", "verify", "info", "publish"):
        code, text, _ = run(command, "--help")
        assert code == 0 and "Usage" in text
    assert "--hidden" not in run("train", "--help")[1] and "--quant" in run("train", "--help")[1]


def test_bad_checkpoints(run, tmp_path, trained):
    one_line_error(run("verify", tmp_path / "nothing"), "nothing", "bitlab train")
    whole = (trained / "model.safetensors").read_bytes()
    short = tmp_path / "short.safetensors"
    short.write_bytes(whole[: len(whole) // 2])
    one_line_error(run("export", short, "--out", tmp_path / "c"), "short.safetensors")
    marker = tmp_path / "executed"
    pickled = tmp_path / "evil.ckpt"
    torch.save({"x": _Evil(marker)}, pickled)
    for name in ("evil.ckpt", "evil.safetensors"):
        (tmp_path / name).write_bytes(pickled.read_bytes())
        one_line_error(run("evaluate", tmp_path / name), name)
    assert not marker.exists() and not (tmp_path / "c").exists()


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_nan_weights_are_refused_by_name(tmp_path):
    model = AutoBitModel.from_name("mlp", "mcu-ternary", in_channels=4, out_channels=2, bias=False)
    with torch.no_grad():
        model.get_parameter("fc2.weight")[0, 0] = float("nan")
    with pytest.raises(BitLabError, match="fc2.*NaN"):
        save_model(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_no_compiler(run, tmp_path, trained, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    one_line_error(run("verify", trained), "C compiler", "gcc")


def test_unwritable_output(run, tmp_path, trained):
    (tmp_path / "file").write_text("")
    one_line_error(run("export", trained, "--out", tmp_path / "file" / "c"), "file")
    one_line_error(run("export", trained, "--out", tmp_path / "file"), "file")
    if os.geteuid() != 0:  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        one_line_error(run("export", trained, "--out", locked / "c"), "locked")
    one_line_error(run("export", trained, "--out", tmp_path / "c", "--target", "d"), "target")
    one_line_error(run("export", trained, "--out", tmp_path / "c", "--name", "int"), "int")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "locked") == ["file"]


def test_a_planted_difference_fails(run, tmp_path, trained):
    artifact, _ = export(open_checkpoint(trained), tmp_path / "c", "net")
    source = (artifact.folder / "net.c").read_text()
    before, end, after = source.partition("\n}\n\nint32_t net_arena")
    assert end
    (artifact.folder / "net.c").write_text(f"{before}\n    output[3] += 1;{end}{after}")
    code, text, _ = run("verify", artifact.folder)
    assert code == 1 and "FAILED" in text and "355 test images differ" in text
    first = verify(artifact.folder).check.first
    assert first is not None and (first.sample, first.output, first.got) == (0, 3, first.expected + 1)
    assert str(first.expected) in text and str(first.got) in text


def test_verify_takes_the_image_shape_from_the_export(run, tmp_path, trained):
    checkpoint = open_checkpoint(trained)
    graph = make_graph(checkpoint)
    with pytest.raises(BitLabError, match="shape"):
        graph.input.quantize(torch.zeros(2, 1, 9, 9))


def test_publish_and_the_table(tmp_path, trained):
    metrics = trained / "metrics.csv"
    *rest, last = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*rest, last.rpartition(",")[0] + ","]) + "\n")  # an epoch that was interrupted
    path = publish(trained, trained, tmp_path / "results")
    result = json.loads(path.read_text())
    assert result["mismatches"] == 0 and result["seed"] == 0 and result["sizes"]["weights"] == 3232
    table = results_tables(tmp_path / "results")
    assert "digits-mlp" in table and "3,232" in table and f"{100 * result['accuracy']['c']:.2f} %" in table
    assert f"C: 0 of {result['samples']} images differ" in table
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", table) == f"a\n{BEGIN}\n{table}\n{END}\nb"
    path = publish(trained, trained, tmp_path / "results", target="engine", compared=7)
    assert json.loads(path.read_text())["accuracy"]["integer"] == result["accuracy"]["integer"]  # of all images
    assert "engine: 0 of 7 images differ" in results_tables(tmp_path / "results")
    write_result(tmp_path / "results", json.loads(path.read_text()) | {"seed": 2})
    assert sorted(file.name for file in path.parent.iterdir()) == ["digits-mlp-seed2.json", "digits-mlp.json"]
    table = results_tables(tmp_path / "results")
    assert table.index("seed 0") < table.index("seed 2")


def test_the_readme_shows_the_committed_results():
    readme = (ROOT / "README.md").read_text()
    assert readme == with_table(readme, results_tables(ROOT / "results")), "run: python -m bitlab.results"
