"""Tensors of safetensors files, put into a model by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vilavt_toolkit.models.meta import assign_weights, needs_cast, read_as, unfilled_parameters
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.models.weight_types import TYPES_KEY, check_one_type, check_weight_types
from vilavt_toolkit.utils.text import shorten_text

RenameWeight = Callable[[str], str]
"""From the name of a tensor in a file to its name in the state dict of today's model."""


def fill_weights(
    model: VisualChatModel, files: Sequence[Path], dtype: torch.dtype | None, rename: RenameWeight
) -> tuple[list[str], list[str]]:
    """Fill a model from files; return the names that the files lack and those that the model lacks, sorted.

    A model on the meta device gets the files' tensors mapped, in `dtype` or as they are stored. One that has weights
    keeps its tensors and their type, and gets the values. Raises RuntimeError for a tensor of another shape, and
    SafetensorError or OSError for a damaged file, and InputError for types that weights cannot have.
    """
    is_mapped = bool(unfilled_parameters(model))
    kinds: dict[str, str] = {}
    meant: list[str] = []
    for file in files:
        with safe_open(str(file), "pt") as stored:
            kinds |= {rename(name): stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
            meant += (stored.metadata() or {}).get(TYPES_KEY, "").split()
    check_weight_types(kinds, model.state_dict())
    # Weights that are copied or cast all get one type.
    if is_mapped and dtype is None:
        check_one_type(kinds, meant)
    # Mapping replaces parameters, which an optimizer may already hold. Only a model that is being loaded allows it.
    if is_mapped:
        missing, unexpected = _map_weights(model, files, dtype, rename)
    else:
        missing, unexpected = _copy_weights(model, files, rename)
    return sorted(missing), sorted(unexpected)


def _copy_weights(model: VisualChatModel, files: Sequence[Path], rename: RenameWeight) -> tuple[list[str], list[str]]:
    weights = {rename(name): value for file in files for name, value in load_file(str(file)).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # Tensors that share memory are in the files once, under any one of their names, which has filled the others.
    own = model.state_dict()
    filled = {own[name].data_ptr() for name in weights if name in own}
    return [name for name in missing if own[name].data_ptr() not in filled], unexpected


def _map_weights(
    model: VisualChatModel, files: Sequence[Path], dtype: torch.dtype | None, rename: RenameWeight
) -> tuple[list[str], list[str]]:
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for file in files:
        with safe_open(str(file), "pt") as stored:
            # `get_tensor` maps the tensor and reads nothing, so that the model takes no memory until it is used.
            for stored_name in stored.keys():  # noqa: SIM118
                name = rename(stored_name)
                if name not in shapes:
                    unexpected.append(name)
                    continue
                value = stored.get_tensor(stored_name)
                if value.shape != shapes[name]:
                    raise RuntimeError(f"{name} is {list(value.shape)}, where the recipe has {list(shapes[name])}.")
                weights[name] = read_as(file, stored_name, dtype) if needs_cast(value, dtype) else value
    return assign_weights(model, weights), unexpected


def describe_mismatch(model: VisualChatModel, files: Sequence[Path], rename: RenameWeight) -> str:
    """Name the first tensors that files and model do not share, by kind; empty where all fit or one cannot be read."""
    own = {name: list(value.shape) for name, value in model.state_dict().items()}
    given = {}
    try:
        for file in files:
            with safe_open(str(file), "pt") as stored:
                for name in stored.keys():  # noqa: SIM118
                    given[rename(name)] = list(stored.get_slice(name).get_shape())
    except (SafetensorError, OSError):
        return ""
    unexpected = [name for name in given if name not in own]
    wrong_shape = [f"{name} {shape} for {own[name]}" for name, shape in given.items() if own.get(name, shape) != shape]
    # Files also lack tensors that are tied to another one. So what they lack counts only beside another difference.
    missing = [name for name in own if name not in given] if unexpected or wrong_shape else []
    kinds = {"missing": missing, "unexpected": unexpected, "mis-shaped": wrong_shape}
    return "; ".join(f"{kind}: {_first_two(names)}" for kind, names in kinds.items() if names)


def _first_two(names: list[str]) -> str:
    # A name from a damaged file may have any length.
    told = ", ".join(shorten_text(name, 120) for name in names[:2])
    return told + (f" and {len(names) - 2} more" if len(names) > 2 else "")
