"""What torch.compile needs to know, without importing the compiler: that alone would take most of `import bitlab`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable[..., object])


def constant(function: _Function) -> _Function:
    """Marks a function whose results a compiled graph may hold, as ``torch.compiler.assume_constant_result`` does.

    That function imports ``torch._dynamo`` in order to set the same attribute.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
