"""Read the vision tower of Qwen2.5-VL checkpoints: its configuration, and its weights in our keys and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.common.qwen_checkpoint_files import (
    CheckpointLocation,
    check_weight_files,
    read_checkpoint_config,
    read_tensors,
)
from vilavt_components.encoders.qwen2_5_vl.tower import QwenVisionConfig
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.errors import BadConfig, InputError, RecipeErrors

log = logging.getLogger(__name__)

_PREFIXES = ("visual.", "model.visual.")
_PROCESSOR = "preprocessor_config.json"
_MODULATION = ".attn.instruct_"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# For our tensors of an MLP: the checkpoint's tensors that each holds one after another, and the dimension that
# padding makes longer. All other tensors are as in the checkpoint.
_MLP: Mapping[str, tuple[tuple[str, ...], int]] = {
    "mlp.gate_up.weight": (("mlp.gate_proj.weight", "mlp.up_proj.weight"), 0),
    "mlp.gate_up.bias": (("mlp.gate_proj.bias", "mlp.up_proj.bias"), 0),
    "mlp.down_proj.weight": (("mlp.down_proj.weight",), 1),
}


def from_checkpoint(
    weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], width: int, origin: str
) -> dict[str, Tensor]:
    """Convert a checkpoint's vision tensors to the tower's state dict, MLPs of `width` padded with zeros.

    `weights` has keys without `visual.`, `shapes` those of the tower's tensors. `origin` names the checkpoint in
    errors. Raises InputError for tensors that are missing, unknown or of another shape.
    """
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    wrong: list[str] = []
    for key, shape in shapes.items():
        names, dimension = checkpoint_names(key)
        expected = list(shape)
        if dimension is not None:
            expected[dimension] = width
        used.update(names)
        # All faults are collected first, since the first one alone rarely tells what is wrong with a checkpoint.
        missing = [f"{name} is missing" for name in names if name not in weights]
        bad = [
            f"{name} is {list(weights[name].shape)}, not {expected}"
            for name in names
            if name in weights and list(weights[name].shape) != expected
        ]
        wrong += missing + bad
        if not missing and not bad:
            parts = [_pad_to_length(weights[name], dimension, shape[dimension or 0] // len(names)) for name in names]
            state[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
    wrong += [f"{name} is unknown" for name in weights if name not in used]
    if wrong:
        more = f" and {len(wrong) - 3} more faults" if len(wrong) > 3 else ""
        raise InputError(
            f"The weights of '{origin}' do not fit the encoder: {', '.join(wrong[:3])}{more}. "
            "Give a Qwen2.5-VL checkpoint whose config.json describes its weights."
        )
    return state


def to_checkpoint(state: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Convert the tower's state dict to a checkpoint's tensors without `visual.`; the inverse of `from_checkpoint`.

    `width` is that of the checkpoint's MLPs; the padding beyond it is cut off.
    """
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        names, dimension = checkpoint_names(key)
        for name, part in zip(names, value.chunk(len(names)), strict=True):
            weights[name] = part if dimension is None else part.narrow(dimension, 0, width)
    return weights


def read_config(location: CheckpointLocation) -> QwenVisionConfig:
    """Read the shape of the checkpoint's vision tower; raises InputError."""
    found = read_checkpoint_config(location)
    with location.as_input_error("read"):
        if "vision_config" not in found:
            raise ValueError("its config.json has no vision_config")
        vision: dict[str, Any] = found["vision_config"]
        if vision.get("hidden_act", "silu") != "silu" or vision.get("in_chans", vision.get("in_channels", 3)) != 3:
            # The encoder computes these two alone, and no setting could say otherwise.
            raise ValueError("its tower was not made for three channels and silu")
    known = {field.name: vision[field.name] for field in fields(QwenVisionConfig) if field.name in vision}
    try:
        shape = parse_config(QwenVisionConfig, known, "vision_config")
        shape.check_shape()
    except RecipeErrors as errors:
        wrong = " ".join(str(error) for error in errors.errors)
        raise InputError(f"The configuration of '{location.name}' makes no tower: {wrong}") from errors
    except BadConfig as error:
        raise InputError(f"The configuration of '{location.name}' makes no tower: {error}") from error
    return shape


def read_statistics(location: CheckpointLocation | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read mean and standard deviation of the checkpoint's training pixels (0 to 1); raises InputError.

    Without a checkpoint, or without an image processor in it, they are those of all Qwen2.5-VL models.
    """
    if location is None:
        return _MEAN, _STD
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(location.name, **location.hub_options)
    except OSError as error:
        # transformers raises the same for a file that is missing, which is fine, and for one that is damaged.
        if (Path(location.name) / _PROCESSOR).exists():
            raise InputError(f"{location.name}: {_PROCESSOR} cannot be read ({error}). Copy the file again.") from error
        log.info("'%s' has no image processor; its pixels are normalised as the family's.", location.name)
        return _MEAN, _STD
    if not isinstance(found, dict):
        raise InputError(f"{location.name}: {_PROCESSOR} holds no mapping. Copy the file again.")
    given = found.get("image_mean", _MEAN), found.get("image_std", _STD)
    if not all(isinstance(each, list | tuple) and len(each) == 3 for each in given):
        raise InputError(
            f"{location.name}: {_PROCESSOR}: image_mean and image_std are not three numbers each. Copy it again."
        )
    return tuple(given[0]), tuple(given[1])


def read_weights(location: CheckpointLocation) -> dict[str, Tensor]:
    """Read the checkpoint's vision tensors under keys without `visual.`; raises InputError."""
    # ViLaVT's checkpoints keep the modulation inside the tower; here modulators load it, through format `vilavt`.
    found = read_tensors(location, _vision_name)
    weights = {name: value for name, value in found.items() if _MODULATION not in name}
    if left := len(found) - len(weights):
        log.warning("'%s' holds %d tensors of a modulation, which the encoder does not load.", location.name, left)
    return weights


def check_weights(location: CheckpointLocation) -> None:
    """Check that a folder has its weights, without reading a tensor; raises InputError. The hub is not asked."""
    check_weight_files(location, _vision_name)


def checkpoint_names(key: str) -> tuple[tuple[str, ...], int | None]:
    """Return the checkpoint's names for our tensor `key`, in order, and the dimension that padding makes longer."""
    for ending, (names, dimension) in _MLP.items():
        if key.endswith(ending):
            return tuple(key.removesuffix(ending) + name for name in names), dimension
    return (key,), None


def _pad_to_length(value: Tensor, dimension: int | None, length: int) -> Tensor:
    if dimension is None:
        return value
    # F.pad counts dimensions from the last one.
    later_dimensions = [0, 0] * (value.dim() - 1 - dimension)
    return F.pad(value, [*later_dimensions, 0, length - value.shape[dimension]])


def _vision_name(key: str) -> str | None:
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return None
