"""The vision tower in Qwen2.5-VL checkpoints: its configuration, and its weights in our keys and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.common import qwen_checkpoint as files
from vilavt_components.common.qwen_checkpoint import Origin as Origin
from vilavt_components.encoders.qwen2_5_vl.tower import QwenVisionConfig
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.errors import BadConfig, InputError, RecipeErrors

log = logging.getLogger(__name__)

_PREFIXES = ("visual.", "model.visual.")
_PROCESSOR = "preprocessor_config.json"
_MODULATION = ".attn.instruct_"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Ours: the checkpoint's tensors that lie in it one after another, and their dimension that padding makes longer.
_MLP: Mapping[str, tuple[tuple[str, ...], int]] = {
    "mlp.gate_up.weight": (("mlp.gate_proj.weight", "mlp.up_proj.weight"), 0),
    "mlp.gate_up.bias": (("mlp.gate_proj.bias", "mlp.up_proj.bias"), 0),
    "mlp.down_proj.weight": (("mlp.down_proj.weight",), 1),
}


def from_checkpoint(
    weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], width: int, origin: str
) -> dict[str, Tensor]:
    """The tower's state dict of a checkpoint's vision tensors, MLPs of `width` padded with zeros to fit `shapes`.

    Keys of `weights` come without `visual.`. Raises InputError where they do not fit.
    """
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    wrong: list[str] = []
    for key, shape in shapes.items():
        names, dimension = sources(key)
        expected = list(shape)
        if dimension is not None:
            expected[dimension] = width
        used.update(names)
        missing = [f"{name} is missing" for name in names if name not in weights]
        bad = [
            f"{name} is {list(weights[name].shape)}, not {expected}"
            for name in names
            if name in weights and list(weights[name].shape) != expected
        ]
        wrong += missing + bad
        if not missing and not bad:
            parts = [_padded(weights[name], dimension, shape[dimension or 0] // len(names)) for name in names]
            state[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
    wrong += [f"{name} is unknown" for name in weights if name not in used]
    if wrong:
        more = f" and {len(wrong) - 3} more faults" if len(wrong) > 3 else ""
        raise InputError(
            f"The weights of '{origin}' do not fit the encoder: {', '.join(wrong[:3])}{more}; "
            "give a Qwen2.5-VL checkpoint whose config.json describes its weights."
        )
    return state


def to_checkpoint(state: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """The inverse of `from_checkpoint`: the checkpoint's tensors without `visual.`, padding cut off."""
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        names, dimension = sources(key)
        for name, part in zip(names, value.chunk(len(names)), strict=True):
            weights[name] = part if dimension is None else part.narrow(dimension, 0, width)
    return weights


def read_config(origin: Origin) -> QwenVisionConfig:
    """The shape of the checkpoint's vision tower; raises InputError."""
    found = files.read_config(origin)
    with origin.explained("read"):
        if "vision_config" not in found:
            raise ValueError("its config.json has no vision_config")
        vision: dict[str, Any] = found["vision_config"]
        if vision.get("hidden_act", "silu") != "silu" or vision.get("in_chans", vision.get("in_channels", 3)) != 3:
            raise ValueError("its tower was not made for three channels and silu")
    known = {field.name: vision[field.name] for field in fields(QwenVisionConfig) if field.name in vision}
    try:
        shape = parse_config(QwenVisionConfig, known, "vision_config")
        shape.check()
    except RecipeErrors as errors:
        wrong = " ".join(str(error) for error in errors.errors)
        raise InputError(f"The configuration of '{origin.name}' makes no tower: {wrong}") from errors
    except BadConfig as error:
        raise InputError(f"The configuration of '{origin.name}' makes no tower: {error}") from error
    return shape


def read_statistics(origin: Origin | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels (0 to 1) that the checkpoint was trained with; else the family's."""
    if origin is None:
        return _MEAN, _STD
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(origin.name, **origin.options)
    except OSError as error:
        if (Path(origin.name) / _PROCESSOR).exists():
            raise InputError(f"{origin.name}: {_PROCESSOR} cannot be read ({error}); copy the file again.") from error
        log.info("'%s' has no image processor; its pixels are normalised as the family's.", origin.name)
        return _MEAN, _STD
    if not isinstance(found, dict):
        raise InputError(f"{origin.name}: {_PROCESSOR} holds no mapping; copy the file again.")
    given = found.get("image_mean", _MEAN), found.get("image_std", _STD)
    if not all(isinstance(each, list | tuple) and len(each) == 3 for each in given):
        raise InputError(f"{origin.name}: {_PROCESSOR}: image_mean and image_std are not three numbers each.")
    return tuple(given[0]), tuple(given[1])


def read_weights(origin: Origin) -> dict[str, Tensor]:
    """The checkpoint's vision tensors without `visual.`, its modulation left out; raises InputError."""
    found = files.read_tensors(origin, _vision_name)
    weights = {name: value for name, value in found.items() if _MODULATION not in name}
    if left := len(found) - len(weights):
        log.warning("'%s' holds %d tensors of a modulation, which the encoder does not load.", origin.name, left)
    return weights


def check_weights(origin: Origin) -> None:
    """Hold that a folder has its weights, reading no tensor; raises InputError. The hub is not asked."""
    files.check_files(origin, _vision_name)


def sources(key: str) -> tuple[tuple[str, ...], int | None]:
    """The checkpoint's names of what lies in our tensor `key`, and the dimension along which it may be padded."""
    for ending, (names, dimension) in _MLP.items():
        if key.endswith(ending):
            return tuple(key.removesuffix(ending) + name for name in names), dimension
    return (key,), None


def _padded(value: Tensor, dimension: int | None, length: int) -> Tensor:
    if dimension is None:
        return value
    behind = [0, 0] * (value.dim() - 1 - dimension)
    return F.pad(value, [*behind, 0, length - value.shape[dimension]])


def _vision_name(key: str) -> str | None:
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return None
