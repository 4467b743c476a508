"""Names of modules, for errors."""

from __future__ import annotations

import sys

from torch import nn


def name_in_call(module: nn.Module) -> str:
    """Returns ``"layer 'PATH'"``, the module's path in the outermost module that is being called.

    A module does not know its own name. The call stack knows: it holds every module on the way. Only errors and
    warnings ask, so that nothing has to be kept up to date for them.
    """
    name, frame = f"a {type(module).__name__}", sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner is not module:
            name = next((f"layer '{path}'" for path, child in owner.named_modules() if child is module), name)
        frame = frame.f_back
    return name
