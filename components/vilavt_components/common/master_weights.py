"""Weights in bfloat16 that an optimizer updates in float32: from a master copy, or rounded at random."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Master = Literal["float32", "stochastic", "none"]
_REMAINDER = "remainder"
"""Key of a weight's state under which the half of its number in float32 is that bfloat16 does not hold."""
_COPY = "master"
"""Key of a copy in float32, which checkpoints of earlier versions have in its place."""
_MOST_AT_ONCE = 1 << 26
"""Weights whose gradients, and copies, are in float32 at the same time."""


def update_in_float32(optimizer: torch.optim.Optimizer, master: Master) -> torch.optim.Optimizer:
    """Return an optimizer that takes a new one's steps in float32, or the same if no weight is in bfloat16."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if master == "none" or not any(weight.dtype == torch.bfloat16 for weight in weights):
        return optimizer
    return Float32Updates(optimizer, keeps_master=master == "float32")


class Float32Updates(torch.optim.Optimizer):
    """Takes the steps of another optimizer in float32, with its state in float32, for weights kept in bfloat16.

    A step of less than 1/256 of a weight would round to nothing. With `keeps_master` the other 16 bits of each weight's
    number in float32 are kept beside it, so that all steps are those of float32 and the weight is their result, rounded
    (Split-SGD: Kalamkar et al. 2020, arXiv 2005.04680, section V). Without it the weight moves by a whole bfloat16 step
    now and then, so that its expected value is right (stochastic rounding: Zamirai et al. 2020, arXiv 2010.06192,
    section 4). `plain` is a new optimizer over the weights, which gives their groups and takes no step of its own.
    """

    def __init__(self, plain: torch.optim.Optimizer, keeps_master: bool) -> None:
        super().__init__([dict(group) for group in plain.param_groups], plain.defaults)
        self._plain, self._keeps_master = plain, keeps_master
        # It gets a few weights at a time, and their state comes and goes with them.
        plain.param_groups, plain.state = [], defaultdict(dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient; returns what `closure` returns, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in _split([weight for weight in group["params"] if weight.grad is not None]):
                self._step_weights(group, weights)
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over groups and state, which stays in float32: torch would give it the type of the weights."""
        super().load_state_dict({**state_dict, "state": {}})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        weights = [(group, weight) for group in self.param_groups for weight in group["params"]]
        for number, (group, weight) in zip(numbers, weights, strict=True):
            found = state_dict["state"].get(number)
            if found is None:
                continue
            # As torch has it: the number of steps is on the CPU, except for kernels that read it.
            on_device = group.get("fused") or group.get("capturable")
            self.state[weight] = {
                key: _load_value(value, weight.device if key != "step" or on_device else None)
                for key, value in found.items()
            }
            if _COPY in self.state[weight]:
                copy = self.state[weight].pop(_COPY).clone()
                self.state[weight][_REMAINDER] = _store_rounded(weight, copy)

    def _step_weights(self, group: dict[str, Any], weights: Sequence[nn.Parameter]) -> None:
        """Let the plain optimizer update copies of some weights of a group, and give them back."""
        copies = [self._copy_weight(weight) for weight in weights]
        states = [
            {key: value for key, value in self.state[weight].items() if key != _REMAINDER}
            if weight in self.state
            else {}
            for weight in weights
        ]
        plain = self._plain
        plain.param_groups = [{**group, "params": copies}]
        plain.state = defaultdict(dict, zip(copies, states, strict=True))
        plain.step()
        # The state goes back under the weights: checkpoints and other groups know no copies.
        for weight, copy in zip(weights, copies, strict=True):
            state = plain.state[copy]
            if weight.dtype != copy.dtype:
                if self._keeps_master:
                    state[_REMAINDER] = _store_rounded(weight, copy)
                else:
                    _local(weight).copy_(round_at_random(_local(copy)))
            self.state[weight] = state
        plain.param_groups, plain.state = [], defaultdict(dict)

    def _copy_weight(self, weight: nn.Parameter) -> nn.Parameter:
        """Return a weight in float32, with its gradient; one that is in float32 is its own copy."""
        assert weight.grad is not None
        # A parameter of its own that shares the memory of what is in float32 already.
        copy = nn.Parameter(weight.detach().float())
        if weight in self.state and _REMAINDER in self.state[weight]:
            add_remainder(_local(copy), _local(self.state[weight][_REMAINDER]))
        copy.grad = weight.grad.float()
        return copy


def round_at_random(values: Tensor) -> Tensor:
    """Round float32 to bfloat16, up or down, so that the expected value is the value itself."""
    # bfloat16 is the upper half of float32. A random lower half carries over as often as the lower half is large.
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    rounded = (values.contiguous().view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
    # The carry would make other numbers of infinity and NaN.
    return torch.where(values.isfinite(), rounded, values).bfloat16()


def cut_remainder(values: Tensor) -> Tensor:
    """Round float32 in place to what bfloat16 holds, halves away from zero, and return the remainder as int16.

    `add_remainder` gives every number back with all its bits. NaN stays NaN.
    """
    is_nan = values.isnan()
    bits = values.view(torch.int32)
    # bfloat16 is the upper half of float32. The lower half, with a sign, says how far off its nearest number is.
    remainder = ((bits << 16) >> 16).to(torch.int16).masked_fill_(is_nan, 0)
    bits.add_(1 << 15).bitwise_and_(-(1 << 16))
    # The carry would make other numbers of some NaN.
    values.masked_fill_(is_nan, float("nan"))
    return remainder


def add_remainder(values: Tensor, remainder: Tensor) -> None:
    """Add in place what `cut_remainder` has cut off."""
    values.view(torch.int32).add_(remainder)


@torch.no_grad()
def _store_rounded(weight: nn.Parameter, copy: Tensor) -> Tensor:
    """Give a weight the value of its copy in float32, rounded, and return the remainder; the copy is used up."""
    remainder = torch.empty_like(weight, dtype=torch.int16, requires_grad=False)
    _local(remainder).copy_(cut_remainder(_local(copy)))
    weight.copy_(copy)
    return remainder


def _split(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield weights in their order, so many at a time that their copies take little memory."""
    part: list[nn.Parameter] = []
    size = 0
    for weight in weights:
        if part and size + weight.numel() > _MOST_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(weight)
        size += weight.numel()
    if part:
        yield part


def _load_value(value: Any, device: torch.device | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    # An optimizer without copies has its state in the type of the weights.
    return value.to(device, torch.float32 if value.dtype == torch.bfloat16 else value.dtype)


def _local(weight: Tensor) -> Tensor:
    """Return the part of a sharded weight that is on this device; any other weight as it is."""
    part: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return part
