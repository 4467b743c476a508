"""What the tables say of operations' signs is true of torch's functions, methods and modules of those names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlayers import signs
from bitlayers.signs import Sign, sign_of, word

# Words that stand for what no call with one tensor and small numbers shows: their results hold no other values.
UNSEEN = {"identity", "get", "constantpad", "getitem", "typeas", "expandas", "gather", "indexselect", "unflatten"}
ARGUMENTS: list[tuple[Any, ...]] = [
    *((), (1,), (2,), (0, 1), (1, 0), (3, 6), (1, 0, 2), (2, 2, 3), (1, 2, 1)),
    *(([1, 1],), ((1,),), ((-1,),), (torch.float64,)),
]


def callables(name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Torch's functions, methods and modules that the tables call by that name."""
    for space in (torch, F, Tensor):
        for attribute in dir(space):
            if word(attribute) == name and not attribute.startswith("_") and callable(getattr(space, attribute)):
                yield attribute, getattr(space, attribute)
    for attribute in dir(nn):
        kind = getattr(nn, attribute)
        if isinstance(kind, type) and issubclass(kind, nn.Module) and word(attribute) == name:
            for options in ARGUMENTS:
                with contextlib.suppress(Exception):
                    yield attribute, kind(*options).eval()


def results(name: str, x: Tensor) -> Iterator[Tensor]:
    """What they make of a tensor, called with all the arguments that they take."""
    for _, function in callables(name):
        for arguments in ARGUMENTS:
            try:
                result = function(x.clone(), *arguments)
            except Exception:  # not these arguments
                continue
            for y in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(y, Tensor) and y.is_floating_point() and y.numel():
                    yield y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(signs.NEVER))
def test_what_is_never_negative(name: str):
    found = [y for x in (torch.randn(2, 4, 6), -torch.rand(2, 3, 4, 4)) for y in results(name, x)]
    assert found and not any(bool((y < 0).any()) for y in found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(signs.KEEPS | signs.FAITHFUL))
def test_what_is_not_negative_stays_so(name: str):
    found = [y for x in (torch.rand(2, 4, 6), torch.rand(2, 4, 4, 4), torch.rand(6)) for y in results(name, x)]
    assert found or name in UNSEEN
    assert not any(bool((y < 0).any()) for y in found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(signs.FAITHFUL))
def test_what_can_become_negative(name: str):
    assert any(bool((y < 0).any()) for y in results(name, torch.randn(2, 4, 6)))
    assert sign_of(name, (), {}, [Sign.UNKNOWN]) is Sign.CAN


def test_the_tables_do_not_overlap():
    tables = [signs.NEVER, signs.CAN, signs.KEEPS, signs.FAITHFUL, signs.OF_ALL, signs.OF_ANY, signs.CLAMPS]
    assert sum(map(len, tables)) == len(frozenset().union(*tables))


N, C, U = Sign.NEVER, Sign.CAN, Sign.UNKNOWN


@pytest.mark.parametrize(
    ("operation", "args", "kwargs", "of", "sign"),
    [
        (torch.add, (), {}, [N, N], N),
        (torch.add, (), {}, [N, C], C),
        (torch.add, (), {}, [N, U], U),
        (torch.add, (None, 2), {}, [N], N),
        (torch.add, (None, -2.0), {}, [N], C),
        (torch.add, (), {"alpha": -1}, [N, N], C),
        (torch.mul, (None, -1), {}, [N], C),
        (torch.mul, ("x", "x"), {}, [C, C], N),
        (torch.sub, (), {}, [N, N], C),
        (torch.cat, (None, -1), {}, [N, N], N),
        (torch.stack, (), {"dim": -1}, [N, N], N),
        (torch.maximum, (), {}, [N, C], N),
        (torch.maximum, (), {}, [U, C], U),
        (torch.minimum, (), {}, [N, C], C),
        (torch.min, (), {}, [N, C], C),
        (torch.clamp, (None, 0, 6), {}, [C], N),
        (torch.clamp, (None, -1, 1), {}, [C], C),
        (torch.clamp, (None, -1, 1), {}, [N], N),
        (torch.clamp, (), {"max": 1}, [C], C),
        (torch.clamp, (), {"max": 1}, [N], N),
        (torch.clamp, (), {"max": -1}, [N], C),
        (torch.clamp, (), {"min": 0.0}, [U], N),
        (torch.clamp, (), {"min": "a tensor"}, [C, U], U),
        ("clamp_min", (None, 0), {}, [C], N),
        ("clamp_max", (None, 0), {}, [C], C),
        (nn.Hardtanh, (), {"min_val": -1.0, "max_val": 1.0}, [C], C),
        (nn.Hardtanh, (), {"min_val": 0.0, "max_val": 6.0}, [C], N),
        (F.hardtanh, (), {}, [C], C),
        (F.interpolate, (), {"mode": "bicubic"}, [N], C),
        (F.interpolate, (), {"mode": "nearest"}, [N], N),
        (F.pad, (None, [1, 1], "constant", -1), {}, [N], C),
        (F.pad, (None, [1, 1]), {}, [N], N),
        (F.scaled_dot_product_attention, (), {}, [C, C, N], N),
        ("a name that nobody knows", (), {}, [N], U),
    ],
)
def test_operations_of_several(operation: Any, args: Any, kwargs: Any, of: list[Sign], sign: Sign):
    assert sign_of(operation, args, kwargs, of) is sign
