"""What is said of torch's functions, that they share memory with what they are of or change it, is true of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.overrides import get_overridable_functions

from bitcore.errors import BitLabError
from bitlayers.tracing import _SHARING, Sharing, Tracer, changed_by, either, name_of

ARGUMENTS: list[tuple[Any, ...]] = [
    *((), (0,), (1,), (2,), (0, 1), (0, 0), (1, 0, 2), (0, 0, 1), ([2, 2, 3],), ([1],), (0, (2, 1))),
    *((torch.float32,), ("cpu",), (torch.ones(2, 2, 3),)),
]
INNER = {"backward", "index", "module_load", "resize_as", "slice_inverse"}  # no operations of a forward


def calls() -> Iterator[tuple[str, bool, bool]]:
    """Names of torch's functions and methods, whether a result shares memory, and whether it was changed."""
    for function in {f for group in get_overridable_functions().values() for f in group}:
        name = name_of(function)
        if name.startswith("_") or name in INNER:
            continue
        for arguments in ARGUMENTS:
            x = torch.rand(2, 2, 3) - 0.5
            before, memory = x.clone(), x.untyped_storage().data_ptr()
            try:
                result = function(x, *arguments)
            except Exception:  # not these arguments
                continue
            if changed_by(function, (x, *arguments), {}) is not None:
                continue
            for y in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(y, Tensor) and y.numel() and y.layout == torch.strided:
                    yield name, y.untyped_storage().data_ptr() == memory, not torch.equal(x, before)


@pytest.mark.filterwarnings("ignore")
def test_what_torch_shares_is_in_the_table():
    shared: dict[str, set[bool]] = {}
    for name, shares, changed in calls():
        shared.setdefault(name, set()).add(shares)
        assert not changed, name
    assert {name for name, seen in shared.items() if True in seen} <= set(_SHARING)
    always = {name for name, seen in shared.items() if False not in seen}
    assert {name for name in shared if _SHARING.get(name) in (Sharing.WHOLE, Sharing.VIEW)} <= always
    assert len(shared) > 300


def test_what_is_not_exact_is_marked_or_refused():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            part = x[:1]
            part.relu_()
            return x + 1

    with pytest.raises(BitLabError, match="'relu_': it changes in place what 'x', which is read later, may share"):
        Tracer().functional(Net())
    graph = Tracer().functional(Net(), exact=False)
    assert either in [node.target for node in graph.nodes]
    with pytest.raises(BitLabError, match="not exact"):
        fx.GraphModule(Net(), graph)(torch.ones(2))
