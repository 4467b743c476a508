"""Recipes, datasets and descriptions of models from strangers: read, or refused in one line; never more."""

from __future__ import annotations

import json
import math
import random
import resource
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from bitcore.errors import BitLabError
from bittrain.described import check_description, check_same_classes
from bittrain.fields import read_yaml
from bittrain.preprocessing import Preprocessing
from bittrain.recipe import Recipe


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: list[Any] = [
    *(math.nan, math.inf, -math.inf, 10**400, -(10**400), 1 << 20_000, 2**63, -1, True, b"x", object(), {1, 2}),
    *("a\0b", "\x1b[2J", "\ud800", "x" * 100_000, [1], ["a\0"], [[["a"]]], nested(5000)),
    *({"a": math.nan}, {"a": {"b": "\0"}}, {1: 2}, {"a": nested(5000)}, {"a": b"x"}, {"a": 10**400}),
]
"""Values that no field of a recipe can have, but the ones below."""


def possible(kind: Any, value: Any) -> bool:
    """Whether a value of ``HOSTILE`` is one that a field of some type may have."""
    kinds = get_args(kind) or (kind,)
    return (value is True and bool in kinds) or (value == -1 and value is not True and str in kinds)


@pytest.mark.parametrize("field", [spec.name for spec in fields(Recipe)])
def test_no_field_of_a_recipe_takes_what_means_nothing(field: str) -> None:
    kind = get_type_hints(Recipe)[field]
    for value in HOSTILE:
        if possible(kind, value):
            continue
        with pytest.raises(BitLabError) as caught:
            Recipe.from_dict({field: value})
        message = str(caught.value)
        assert field in message
        assert message.isprintable()
        assert len(message) < 1000


@pytest.mark.parametrize("name", [" ", ".", "..", "../../x", "/etc/x", "a/b", "a\\b", ".x", "x.", "x" * 201, "é" * 101])
def test_a_recipes_name_leads_nowhere(name: str) -> None:
    with pytest.raises(BitLabError, match="recipe key name: must be a folder's name"):
        Recipe(name=name)


@pytest.mark.parametrize("name", ["digits-mlp", "ümläut: yes", "a b", "v1.2", "7"])
def test_names_of_folders(name: str) -> None:
    assert Recipe(name=name).full_precision().name == f"{name}-float"


ANCHORS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ANCHORS, "the alias *a; write the value itself"),
        ("lr: 1\nlr: 2", "the key 'lr' is given twice"),
        ("model_options: {a: 1, a: 2}", "the key 'a' is given twice"),
        ("? [a]\n: 1", "a key that is no text"),
        ("? {a: 1}\n: 1", "a key that is no text"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("seed: " + "9" * 5000, "an impossible value"),
        ("seed: " + "9" * 400, "recipe key seed: at most"),
        ("lr: 0x" + "f" * 9000, "recipe key lr: at most"),
        ("init: 2020-13-45", "an impossible value"),
        ("init: 2020-12-04", "recipe key init: must be plain text or a number"),
        ('init: "a\\0b"', "recipe key init: too long or not printable"),
        ("init: a\0b", "is no valid YAML"),
        ("init: !!binary aGk=", "recipe key init: must be plain text"),
        ("init: !!set {a}", "recipe key init: must be plain text"),
        ("x" * 70_000, "larger than 64 KiB"),
        ("1: 2", "unknown recipe key '1'"),
        ('"\\e[2J": 2', "unknown recipe key"),
        ("", "is no recipe"),
    ],
)
def test_yaml(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(BitLabError, match=r"recipe\.yaml") as caught:
        Recipe.load(tmp_path / "recipe.yaml")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert time.monotonic() - start < 5


def test_endless_files_and_foreign_bytes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "recipe.yaml", Path("/dev/zero"), tmp_path, tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(BitLabError, match="cannot read the recipe|larger than 64 KiB"):
            Recipe.load(path)


def test_a_recipe_that_repeats_a_value_is_read_again(tmp_path: Path) -> None:
    shared = {"weight_dtype": "int4", "list": [1, 2]}
    Recipe(quant_overrides={"a": shared, "b": shared}).dump(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml").quant_overrides == {"a": shared, "b": shared}


GOOD = Preprocessing((8, 6), 1, (0.5,), (0.25,)).to_dict()
NEVER = [math.nan, math.inf, 10**400, -(10**400), 1 << 20_000, "x", b"x", None, True, {}, {"a": 1}, nested(5000)]
PIXELS = [
    [],
    [8],
    [8, 8, 8],
    [0, 8],
    [8, -1],
    [8.0, 8],
    [8, 8193],
    [8, math.nan],
    [8, 10**400],
    ["8", "8"],
    [[8], [8]],
    8,
]
NUMBERS = [[], [0.5, 0.5], [math.nan], [math.inf], ["0.5"], [None], [[0.5]], [10**400], [1e39], 0.5]
BAD: dict[str, list[Any]] = {
    "image_size": PIXELS,
    "channels": [0, -1, 2, 4, 1.0, 3],  # three channels have three means
    "mean": NUMBERS,
    "std": [*NUMBERS, [0.0], [-1.0], [1e-40]],
    "pixel_range": [0, -255, 1e-40, 1e39, [255.0]],
    "drop_bits": [-1, 8, 1.0, [1]],
    "center_crop": [-0.1, 1.1, [0.5]],
}


@pytest.mark.parametrize("field", GOOD)
def test_no_field_of_the_preprocessing_takes_what_means_nothing(field: str) -> None:
    assert Preprocessing.from_dict(GOOD).to_dict() == GOOD
    for value in NEVER + BAD[field]:
        with pytest.raises(BitLabError, match="preprocessing needs") as caught:
            Preprocessing.from_dict({**GOOD, field: value})
        assert str(caught.value).isprintable()
        with pytest.raises(BitLabError, match=r"'x.ckpt' is damaged or not from BitLab: preprocessing needs"):
            check_description({"preprocessing": {**GOOD, field: value}}, "x.ckpt")


@pytest.mark.parametrize("values", [{}, {"mean": [0.5]}, {**GOOD, "x": 1}, {**GOOD, 1: 1}, [], None, "x"])
def test_preprocessing_of_other_fields(values: Any) -> None:
    with pytest.raises(BitLabError, match="unreadable preprocessing"):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize(
    "described",
    [
        *([], None, "x", {"preprocessing": []}, {"classes": 3}, {"classes": "ab"}, {"classes": [1]}, {"classes": [[]]}),
        *({"classes": ["a\x1b"]}, {"classes": [""]}, {"classes": ["a"] * 70_000}, {"dataset": 3}, {"dataset": "a\0"}),
        *({"dataset": None}, {"recipe": []}, {"recipe": {"loading": "x"}}, {"recipe": {"loading": []}}),
        *({"recipe": {"workers": "2"}}, {"recipe": {"workers": 10**9}}, {"recipe": {"workers": []}}),
    ],
)
def test_descriptions_of_models(described: Any) -> None:
    with pytest.raises(BitLabError, match="'m' is damaged"):
        check_description(described, "m")


def test_a_models_classes_are_those_of_the_data() -> None:
    for model, data in (
        ("ab", "ab"),
        ("", "ab"),
        ("ab", "01"),
        ("01", "ab"),
    ):  # no names beside numbers: no contradiction
        check_same_classes(list(model), tuple(data), "x")
    for model, data, difference in (
        ("ab", "ba", "in another order"),
        ("ab", "ac", "others"),
        ("0123", "123", "others"),
    ):
        with pytest.raises(BitLabError, match=f"the classes of x .* are {difference} than those of the model"):
            check_same_classes(list(model), tuple(data), "x")


COUNT = 60
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
PIECES = [
    "&a ",
    "*a",
    "<<: ",
    "[",
    "{",
    "]",
    "}",
    "? ",
    "!!python/name:os.system ",
    "!!int ",
    "\0",
    "\x1b",
    "\ud7ff",
    "'",
]
PIECES += [
    "9" * 500,
    "-",
    ".nan",
    ".inf",
    "1e999",
    "0x" + "f" * 50,
    "null",
    "\t",
    "\n- ",
    ": ",
    "|",
    ">",
    "%",
    "@",
    "../",
]


def test_mutated_recipes_are_read_or_refused() -> None:
    source = random.Random(0)
    texts = [path.read_text() for path in RECIPES]
    read, refused = 0, []
    for _ in range(200):
        letters = list(source.choice(texts))
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(letters))
            letters[at : at + source.choice([0, 0, 1, 5, 40])] = source.choice([*PIECES, source.choice(letters)])
        try:
            values = read_yaml("".join(letters))
            read += isinstance(values, dict) and Recipe.from_dict(values) is not None
        except (BitLabError, yaml.YAMLError) as error:
            refused.append(str(error))
    assert max(map(len, refused)) < 2000
    assert read > 10
    assert len(refused) > 10


def limit_memory() -> None:
    """At most 6 GiB of addresses: libraries take 4."""
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))


def test_random_datasets_are_read_or_refused(tmp_path: Path) -> None:
    """In a process of its own, of bounded memory: no crash, no hang, no other error than ours."""
    script = Path(__file__).with_name("hostile_datasets.py")
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(script), str(tmp_path), "0", str(COUNT)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit_memory,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["read"] > 5
    assert found["refused"] > 20
    assert found["read"] + found["refused"] == COUNT
