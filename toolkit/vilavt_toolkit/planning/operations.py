"""Operations of a run on shapes: multiplications and additions, bytes moved, and the time they take at given rates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from vilavt_toolkit.planning.rates import DeviceRates, Work, WorkKind

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_FUNCTIONS = ("exp", "gelu", "silu", "sigmoid", "tanh", "sin", "cos", "erf", "softmax", "norm", "log", "rsqrt")
"""Parts of the names of operations that compute more than they move."""


@dataclass
class Cost:
    """Sums up what some operations take."""

    operations: Counter[str] = field(default_factory=Counter)
    """Multiplications and additions, by "matrix" or "attention" and the type of their numbers."""
    bytes: int = 0
    """Bytes read and written."""
    launches: int = 0
    """Kernels that were started."""
    seconds: float = 0.0
    waits: Counter[str] = field(default_factory=Counter)
    """Times that the program waited for a number, by the place in the code."""

    @property
    def total_operations(self) -> int:
        """All multiplications and additions."""
        return sum(self.operations.values())

    def add(self, other: Cost, times: float = 1.0) -> None:
        """Add another cost, several times."""
        for name, count in other.operations.items():
            self.operations[name] += round(count * times)
        self.bytes += round(other.bytes * times)
        self.launches += round(other.launches * times)
        self.seconds += other.seconds * times
        for name, count in other.waits.items():
            self.waits[name] += round(count * times)


def measure_operation(
    operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], inputs: list[Tensor], outputs: list[Tensor],
    result: Any, rates: DeviceRates,
) -> Cost | None:  # fmt: skip
    """Return the cost of one operation; None for a view, which runs nothing."""
    if _is_view(operation):
        return None
    count, is_attention = _count_operations(operation, arguments, options, result)
    moved = sum(tensor.numel() * tensor.element_size() for tensor in _moved_tensors(operation, inputs, outputs))
    number_type = str(inputs[0].dtype if inputs else torch.float32).removeprefix("torch.")
    kind = _find_kind(operation, arguments, options, count, is_attention)
    size = _find_size(inputs, kind)
    seconds = rates.seconds(Work(kind, count, moved, number_type, size))
    operations = Counter({f"{'attention' if is_attention else 'matrix'} {number_type}": count} if count else {})
    return Cost(operations, moved, 1, seconds)


def _find_kind(
    operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], count: int, is_attention: bool
) -> WorkKind:
    name = operation._schema.name.removeprefix("aten::")
    if is_attention:
        is_causal = operation._overloadpacket in (_ATTENTION, _ATTENTION_BACKWARD) and _is_causal(
            operation, arguments, options
        )
        if is_causal:
            return "causal attention backward" if name.endswith("backward") else "causal attention"
        return "attention backward" if name.endswith("backward") else "attention"
    if count:
        return "convolution" if "convolution" in name else "matrix"
    return "function" if any(part in name for part in _FUNCTIONS) else "simple"


def _find_size(inputs: list[Tensor], kind: WorkKind) -> int:
    """Return the smallest dimension of a product of the last two tensors, or the numbers of a head of attention."""
    if "attention" in kind:
        # Its backward pass has the gradient first, which is of the query's shape, and the key after the query.
        key = inputs[2 if kind.endswith("backward") else 1]
        return int(key.shape[-2] * key.shape[-1])
    if kind != "matrix":
        return 1
    left, right = inputs[-2:]
    return int(min(*left.shape[-2:], right.shape[-1]))


def _is_view(operation: Any) -> bool:
    # A view of a result that nobody else has.
    if operation._overloadpacket is torch.ops.aten._unsafe_view:
        return True
    returns = operation._schema.returns
    return bool(returns) and any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _count_operations(
    operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any
) -> tuple[int, bool]:
    """Return the multiplications and additions of an operation, and whether they are those of attention."""
    packet = operation._overloadpacket
    # torch counts the attention of every GPU kernel, and not that of the CPU's, which stands for all of them here.
    if packet is _ATTENTION:
        return _count_attention(arguments[0], arguments[1], _is_causal(operation, arguments, options), products=2), True
    if packet is _ATTENTION_BACKWARD:
        # Scores are computed again, then four products give the gradients of query, key and value.
        return _count_attention(arguments[1], arguments[2], _is_causal(operation, arguments, options), products=5), True
    counter = flop_registry.get(packet)
    if counter is None:
        return 0, False
    return int(counter(*arguments, **options, out_val=result)), "attention" in str(packet) or "flex" in str(packet)


def _count_attention(query: Tensor, key: Tensor, is_causal: bool, products: int) -> int:
    """Count products of [B, H, L, d] with [B, H, C, d]; kernels leave out the half that causal attention hides."""
    rows, heads, length, width = query.shape
    columns = key.shape[2]
    seen = 0.5 if is_causal and columns == length else 1.0
    return int(products * 2 * rows * heads * length * columns * width * seen)


def _is_causal(operation: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    names = [argument.name for argument in operation._schema.arguments]
    place = names.index("is_causal")
    return bool(arguments[place] if len(arguments) > place else options.get("is_causal", False))


def _moved_tensors(operation: Any, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    packet = operation._overloadpacket
    # Rows that are looked up or written are moved, and not the whole table.
    if packet in (torch.ops.aten.embedding, torch.ops.aten.index_select, torch.ops.aten.index, torch.ops.aten.gather):
        return [*inputs[1:], *outputs, *outputs]
    if packet in (torch.ops.aten.index_put_, torch.ops.aten.index_copy_, torch.ops.aten.index_add_):
        return [*inputs[1:], *inputs[-1:]]
    if packet in (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided):
        return []
    # What changes its input in place returns it, and it is read and written all the same.
    return [*inputs, *outputs]


def format_operations(count: float) -> str:
    """Return a count of operations with a unit, as `1.33 POP`."""
    if count <= 0:
        return "0"
    power = min(int(math.log10(count) // 3), 6)
    return f"{count / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}OP".replace("  ", " ")
