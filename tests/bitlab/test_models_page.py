"""Sizes of the zoo: as published, and as docs/models.md shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitlab.pages import with_table
from bitlab.zoo import models_table, size
from bitmodels import list_models

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# Millions of parameters and of multiply-accumulates, at the resolution of the paper.
PUBLISHED: dict[str, tuple[float, float]] = {
    "resnet18": (11.69, 1814),
    "resnet34": (21.80, 3664),
    "resnet50": (25.56, 4089),
    "resnet20": (0.27, 40.8),
    "resnet32": (0.46, 69.1),
    "resnet56": (0.85, 125.7),
    "mobilenetv1": (4.23, 569),
    "mobilenetv2": (3.50, 301),
    "convnextv2_atto": (3.7, 550),
    "convnextv2_femto": (5.2, 780),
    "convnextv2_pico": (9.1, 1370),
    "convnextv2_nano": (15.6, 2450),
    "convnextv2_tiny": (28.6, 4470),
    "convnextv2_base": (88.7, 15400),
    "alexnet": (61.1, 714),
    "vgg16_bn": (138.37, 15470),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str):
    parameters, macs = PUBLISHED[name]
    found = size(name)
    assert found.parameters / 1e6 == pytest.approx(parameters, rel=0.008, abs=0.01)
    assert found.macs / 1e6 == pytest.approx(macs, rel=0.006)


def test_the_page_is_up_to_date():
    text = PAGE.read_text()
    assert with_table(text, models_table()) == text, "run python -m bitlab.zoo"
    assert all(f"| {name} |" in text for name in list_models())
