"""The number types of stored weights: those that a weight can have, and one for all that compute with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from vilavt_toolkit.errors import InputError

FLOAT_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""Types that a weight can be stored in, as safetensors and as torch call them."""
_QUANTISED = ("I8", "U8", "F8", "I4", "U4", "F4", "F6", "INT8", "UINT8", "FLOAT8", "INT4", "UINT4", "FLOAT4")
TYPES_KEY = "float_types"
"""Key of a file's metadata with the types that its writer meant, which may be several."""


def check_weight_types(stored: Mapping[str, str], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError if a tensor of a file cannot be the weight of that name; both by the names of the model.

    `stored` has types as safetensors or torch write them. Copied blindly, the codes of quantised weights would become
    their values.
    """
    for name, kind in stored.items():
        own = expected.get(name)
        is_float = kind in FLOAT_TYPES or kind in FLOAT_TYPES.values()
        if own is None or is_float == own.is_floating_point():
            continue
        if own.is_floating_point() and kind.upper().startswith(_QUANTISED):
            raise InputError(
                f"{name} is stored as {kind}: quantised weights hold codes in place of values. Give a file of weights "
                f"in {', '.join(FLOAT_TYPES.values())}"
            )
        wanted = "a floating-point number" if own.is_floating_point() else str(own.dtype).removeprefix("torch.")
        raise InputError(f"{name} is stored as {kind}, where the model has {wanted}. Give a file of such numbers")


def check_tensor_types(stored: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError as `check_weight_types` does, for tensors that have been read."""
    check_weight_types({name: str(value.dtype).removeprefix("torch.") for name, value in stored.items()}, expected)


def check_one_type(stored: Mapping[str, str], meant: Iterable[str]) -> None:
    """Raise InputError if tensors are stored in several floating-point types that their writer did not mean."""
    counts = Counter(FLOAT_TYPES[kind] for kind in stored.values() if kind in FLOAT_TYPES)
    if len(counts) < 2 or set(counts) <= set(meant):
        return
    rarest = counts.most_common()[-1][0]
    name = next(name for name, kind in stored.items() if FLOAT_TYPES.get(kind) == rarest)
    listed = ", ".join(f"{number} in {kind}" for kind, number in counts.most_common())
    raise InputError(
        f"weights are stored in several types ({listed}: {name}), which cannot compute with each other. Choose one "
        "with `dtype` (--dtype float32)"
    )


def list_float_types(tensors: Iterable[torch.Tensor]) -> str:
    """Return the floating-point types of tensors, for a file's metadata."""
    return " ".join(sorted({str(each.dtype).removeprefix("torch.") for each in tensors if each.is_floating_point()}))
