"""Watch timm's own forward pass, to learn in which order a model calls its modules and what it hands on.

If every module gets the very tensor that the one before returned, then running the modules one after another is the
forward pass itself, and something can be done in between. On the meta device this costs no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One call of a module while its model ran, and the calls that it made inside."""

    name: str
    given: Tensor | None
    """Its input, if that is one tensor and nothing else."""
    given_version: int
    output: Any = None
    output_version: int = 0
    inner: list[Call] = field(default_factory=list)

    def continues(self, before: Call | None) -> bool:
        """Return True if its input is what the call before returned, untouched."""
        if self.given is None:
            return False
        # The version counts changes in place: `x += positions` leaves the tensor's identity as it was.
        return before is None or (self.given is before.output and self.given_version == before.output_version)

    def walk(self) -> Iterator[Call]:
        """Yield this call and all calls inside."""
        yield self
        for each in self.inner:
            yield from each.walk()


def watch_forward(model: Any, height: int, width: int) -> Call:
    """Run timm's `forward_features` on two images of the meta device, and return its calls."""
    names = {module: name for name, module in model.named_modules()}
    pixels = torch.zeros(2, 3, height, width, device="meta")
    root = Call("", pixels, 0)
    open_calls, handles = [root], []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        extra = [value for value in kwargs.values() if value is not None]
        # A module with more inputs than one map cannot be run alone, and counts as given nothing.
        given = args[0] if len(args) == 1 and not extra and isinstance(args[0], Tensor) else None
        call = Call(names[module], given, 0 if given is None else given._version)
        open_calls[-1].inner.append(call)
        open_calls.append(call)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = open_calls.pop()
        call.output, call.output_version = output, output._version if isinstance(output, Tensor) else 0

    for module in names:
        if module is not model:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.no_grad():
            root.output = model.forward_features(pixels)
    finally:
        for handle in handles:
            handle.remove()
    root.output_version = root.output._version if isinstance(root.output, Tensor) else 0
    return root


def unroll_chain(call: Call, marks: Sequence[str]) -> list[Call]:
    """Return the calls inside which end at `marks`, if they hand one tensor from each to the next; else the call."""
    inside = [mark for mark in marks if mark.startswith(f"{call.name}.")]
    if not inside or first_gap([*call.inner], call.given, call) is not None:
        return [call]
    return [each for inner in call.inner for each in unroll_chain(inner, inside)]


def first_gap(calls: Sequence[Call], given: Tensor | None, whole: Call | None = None) -> str | None:
    """Return where calls do not hand on one tensor untouched, in words; None if they do.

    The first one gets `given`, and the last one returns what `whole` does.
    """
    before: Call | None = None
    for call in calls:
        if call.given is None:
            return f"'{call.name}' gets more than one tensor"
        if not call.continues(before) or (before is None and given is not None and call.given is not given):
            return f"timm changes the maps before '{call.name}'"
        before = call
    if whole is None or before is None:
        return None if calls else "nothing is called"
    same = whole.output is before.output and whole.output_version == before.output_version
    return None if same else f"timm changes the maps after '{before.name}'"
