"""The tensors of ViLaVT and Qwen2.5-VL checkpoints: their names there and in our model, and back.

There are two layouts. The older one has `model.` for the language model and `visual.` at the top; newer versions of
transformers nest all under `model.`. All names here are those of the older layout, which the paper's code reads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vilavt_components.encoders.qwen2_5_vl import vision_weights as vision
from vilavt_components.encoders.qwen2_5_vl.encoder import Qwen25VLEncoder
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.text import shorten_list

_INSTRUCT = re.compile(r"visual\.blocks\.(\d+)\.attn\.instruct_(key|value)_proj\.(weight|bias)")
_TOWER, _TEXT, _PROJ = "visual.", "text_encoder.", "text_proj."
_HEAD = "lm_head.weight"
# Prefixes of the newer layout.
_NESTED = ("model.visual.", "model.text_encoder.", "model.text_proj.")
_NESTED_LANGUAGE = "model.language_model."
_PARTS = {_TOWER: "encoder", _TEXT: "inquiry_encoder", _PROJ: "inquiry_encoder", "model.": "language_model"}


def flat_name(key: str) -> str | None:
    """Return a tensor's name in the older layout; None for buffers that modules compute themselves."""
    if key.endswith("inv_freq"):
        return None
    if key.startswith(_NESTED_LANGUAGE):
        return f"model.{key.removeprefix(_NESTED_LANGUAGE)}"
    return key.removeprefix("model.") if key.startswith(_NESTED) else key


def part_of(name: str) -> str:
    """Return the kind of part that a tensor belongs to; empty if it belongs to none."""
    if _INSTRUCT.fullmatch(name):
        return "modulator"
    if name == _HEAD:
        return "language_model"
    return next((kind for start, kind in _PARTS.items() if name.startswith(start)), "")


def modulated_blocks(names: Sequence[str]) -> list[int]:
    """Return the blocks that have query-aware weights."""
    return sorted({int(found[1]) for name in names if (found := _INSTRUCT.fullmatch(name))})


def instruct_names(blocks: Sequence[int]) -> set[str]:
    """Return the names of the query-aware weights of these blocks."""
    ends = [f"instruct_{part}_proj.{what}" for part in ("key", "value") for what in ("weight", "bias")]
    return {f"visual.blocks.{block}.attn.{end}" for block in blocks for end in ends}


def expected_shapes(model: VisualChatModel, parts: frozenset[str]) -> dict[str, list[int]]:
    """Return the shape of every tensor of a checkpoint of these parts of a model, by its name there."""
    found = {name: list(value.shape) for name, (_, value) in _unchanged_tensors(model, parts).items()}
    if "encoder" in parts:
        tower, width = _tower_state(model)
        for key, value in tower.items():
            # Our MLPs are padded for speed, so one side of theirs is shorter.
            names, dimension = vision.checkpoint_names(key)
            shape = list(value.shape)
            if dimension is not None:
                shape[dimension] = width
            found |= {_TOWER + name: shape for name in names}
    return found


def to_model_state(model: VisualChatModel, stored: Mapping[str, Tensor], parts: frozenset[str]) -> dict[str, Tensor]:
    """Convert a checkpoint's tensors, which must have the expected shapes, to the state dict of a model's `parts`."""
    # The tensors themselves, not copies: they are mapped from the files, and a large model must not be in memory twice.
    state = {own: stored[name] for name, (own, _) in _unchanged_tensors(model, parts).items()}
    if "encoder" in parts:
        tower, width = _tower_state(model)
        theirs = {name.removeprefix(_TOWER): value for name, value in stored.items() if part_of(name) == "encoder"}
        sizes = {key: value.shape for key, value in tower.items()}
        merged = vision.from_checkpoint(theirs, sizes, width, "checkpoint")
        state |= {f"vision.backbone.tower.{key}": value for key, value in merged.items()}
    return state


def checkpoint_tensors(model: VisualChatModel, parts: frozenset[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of every tensor of a checkpoint of these parts of a model."""
    # One after another: the tower's tensors are made on the way, and all of them at once would double its memory.
    tower, width = _tower_state(model)
    for name, value in vision.to_checkpoint(tower, width).items():
        yield _TOWER + name, value.detach()
    for name, (_, value) in _unchanged_tensors(model, parts - {"encoder"}).items():
        yield name, value.detach()


def describe_mismatches(expected: Mapping[str, Sequence[int]], stored: Mapping[str, Tensor], allowed: set[str]) -> str:
    """Describe which tensors do not fit, by group with counts and first names; empty if all fit.

    Names in `allowed` may be there or not.
    """
    # In groups, since a checkpoint of another model differs in hundreds of names.
    known = [name for name in expected if name in stored]
    groups = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [name for name in stored if name not in expected and name not in allowed],
        "mis-shaped": [
            f"{name} {list(stored[name].shape)} for {list(expected[name])}"
            for name in known
            if list(stored[name].shape) != list(expected[name])
        ],
    }
    return "; ".join(f"{len(names)} {group}: {shorten_list(names)}" for group, names in groups.items() if names)


def describe_mixed_types(stored: Mapping[str, Tensor]) -> str:
    """Describe which groups of tensors that compute with each other have several types; empty if none has."""
    together = {"visual": "vision tower", "text_proj": "vision tower", "text_encoder": "text encoder"}
    # Groups may differ from each other, but the tensors of one group are multiplied with each other.
    counts: dict[str, Counter[torch.dtype]] = {}
    for name, value in stored.items():
        group = together.get(name.split(".")[0], "language model")
        counts.setdefault(group, Counter())[value.dtype] += 1
    mixed = {group: count for group, count in counts.items() if len(count) > 1}
    return "; ".join(
        f"{group}: " + ", ".join(f"{number} {_dtype_name(dtype)}" for dtype, number in each.most_common())
        for group, each in mixed.items()
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tower_state(model: VisualChatModel) -> tuple[dict[str, Tensor], int]:
    """Return the tower's state dict, and the width of its MLPs without padding."""
    encoder = cast(Qwen25VLEncoder, model.vision.backbone)
    return encoder.tower.state_dict(), encoder.shape.intermediate_size


def _unchanged_tensors(model: VisualChatModel, parts: frozenset[str]) -> dict[str, tuple[str, Tensor]]:
    """Return our key and tensor by the name there, for all tensors that are stored unchanged: all but the tower's."""
    found: dict[str, tuple[str, Tensor]] = {}
    text: Any = model.vision.inquiry_encoder
    if "modulator" in parts:
        modulators: Any = model.vision.modulators
        for index, of_block in modulators.items():
            for key, value in of_block[0].named_parameters():
                name = f"visual.blocks.{index}.attn.instruct_{key.replace('.', '_proj.')}"
                found[name] = f"vision.modulators.{index}.0.{key}", value
    if "inquiry_encoder" in parts:
        own = "vision.inquiry_encoder"
        found |= {_TEXT + key: (f"{own}.model.{key}", value) for key, value in text.model.named_parameters()}
        found |= {_PROJ + key: (f"{own}.projection.{key}", value) for key, value in text.projection.named_parameters()}
    if "language_model" in parts:
        # `named_parameters` names a head that shares the embeddings once, as a checkpoint does.
        language = model.language_model.named_parameters()
        found |= {key: (f"language_model.{key}", value) for key, value in language}
    return found
