"""Reading a ViLaVT or Qwen2.5-VL checkpoint as the section `model` of a recipe, with every shape spelled out."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vilavt_components.common import qwen_checkpoint_files as files
from vilavt_components.common.quiet import quiet_transformers
from vilavt_components.encoders.qwen2_5_vl import vision_weights as vision
from vilavt_components.encoders.qwen2_5_vl.tower import QwenVisionConfig
from vilavt_components.formats.vilavt.tensor_names import flat_name, modulated_blocks
from vilavt_components.language_models.qwen2_5_vl import text_settings
from vilavt_toolkit.errors import InputError, MissingWeights

log = logging.getLogger(__name__)

BUDGET = 8192 * 28 * 28
"""Pixels that the overviews of a question share, and that a zoom may have. (The paper's evaluation.)"""
TURNS = 10
QUERY_TOKENS = 50
END_TOKEN = "<|endoftext|>"
"""The token that Qwen3-Embedding's tokenizer puts after every text, and pads with."""
TEXT_FOLDERS = ("text_encoder", "text_tokenizer", "inquiry_encoder")
"""Folders of a checkpoint in which the text encoder's own tokenizer may lie."""
TEXT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "attention_bias",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
)
_LANGUAGE_SETTINGS = (
    *(name for name in TEXT_SETTINGS if name not in ("head_dim", "attention_bias")),
    "attention_dropout",
    "bos_token_id",
    "initializer_range",
    "layer_types",
)


def read_section(folder: Path) -> dict[str, Any]:
    """Read the section; raises InputError."""
    with quiet_transformers():
        return _build_section(folder)


def _build_section(folder: Path) -> dict[str, Any]:
    origin = origin_of(folder)
    config = files.read_checkpoint_config(origin)
    _require_tokenizer(folder)
    _require_statistics(origin)
    shape = vision.read_config(origin)
    # `truncate` and `resize: paper` repeat the rounding and the sizes of the code that trained these weights.
    return {
        "source": {"name": "image", "rounding": "truncate"},
        "encoder": _encoder_section(shape),
        **_modulation_section(folder, config, shape),
        "projector": {"name": "identity"},
        "language_model": _language_model_section(folder, config, origin),
        "dialogue": {"name": "vilavt"},
        "stopping": [{"name": "model_decides"}, {"name": "max_turns", "turns": TURNS}],
    }


def origin_of(folder: Path) -> files.CheckpointLocation:
    """Return the folder as the readers of Qwen2.5-VL checkpoints take it."""
    return files.CheckpointLocation(str(folder), None, True, part="checkpoint")


def read_integration(config: Mapping[str, Any], names: Sequence[str]) -> str | list[int] | None:
    """Return the query-aware blocks: as config.json says, else as the names of the weights do; None for none.

    config.json holds the setting in one of two places, or not at all.
    """
    point = (config.get("vision_config") or {}).get("integration_point") or config.get("integration_point")
    return point or modulated_blocks(names) or None


def read_weight_names(folder: Path) -> list[str]:
    """Return the names of the weights in a folder, in the older layout; none if it has no weights yet."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.is_file() and not single.is_file():
        return []
    return [name for key in files.read_tensor_names(origin_of(folder)) if (name := flat_name(key)) is not None]


def _encoder_section(shape: QwenVisionConfig) -> dict[str, Any]:
    settings = {field.name: getattr(shape, field.name) for field in fields(QwenVisionConfig)}
    settings["fullatt_block_indexes"] = list(shape.fullatt_block_indexes)
    budget = dict.fromkeys(("overview_pixels", "overview_total", "zoom_pixels"), BUDGET)
    return {"name": "qwen2_5_vl", "config": settings, "resize": "paper", **budget}


def _modulation_section(folder: Path, config: Mapping[str, Any], shape: QwenVisionConfig) -> dict[str, Any]:
    names = read_weight_names(folder)
    integration = read_integration(config, names)
    # A recipe is also read where only the config files of a checkpoint were fetched. Without weights, the question
    # cannot be answered, and an answer of "none" would train another model.
    if integration is None and not names:
        raise MissingWeights(
            f"{folder / 'config.json'} does not say which blocks are query-aware, and there are no weights to tell it "
            "from. Give the whole checkpoint."
        )
    if integration is None or (names and not modulated_blocks(names)):
        log.warning(
            "%s has no query-aware weights, so inquiries do not change its vision (modulator `none`). A recipe that "
            "names another modulator trains it from new weights.",
            folder,
        )
        return {"modulator": {"name": "none"}}
    return {
        "modulator": {"name": "joint_attention"},
        "integration": integration,
        "inquiry_encoder": _inquiry_encoder_section(folder, config, shape.hidden_size),
    }


def _inquiry_encoder_section(folder: Path, config: Mapping[str, Any], width: int) -> dict[str, Any]:
    from transformers import Qwen3Config

    stored = config.get("text_encoder_config") or _infer_text_encoder_shape(folder)
    with origin_of(folder).as_input_error("read"):
        known = Qwen3Config(**{key: value for key, value in stored.items() if key not in ("model_type", "dtype")})
        if stored.get("model_type", "qwen3") != "qwen3":
            raise ValueError(f"its text encoder is of model type {stored['model_type']!r}, not 'qwen3'")
    found: dict[str, Any] = {
        "name": "hf_text",
        "config": {"model_type": "qwen3", **_pick_settings(known, TEXT_SETTINGS)},
    }
    found |= {"width": width, "max_tokens": QUERY_TOKENS}
    own = [folder / name for name in TEXT_FOLDERS if (folder / name / "tokenizer.json").is_file()]
    if own:
        return {**found, "tokenizer": str(own[0])}
    # Qwen3-Embedding's own tokenizer ends each text with this token, and the language model's does not.
    end = END_TOKEN if _has_token(folder, END_TOKEN) else ""
    log.info("%s: the language model's tokenizer reads inquiries too, with %s after them.", folder, end or "nothing")
    return {**found, "end_token": end}


def _has_token(folder: Path, token: str) -> bool:
    """Return True if the folder's tokenizer has a special token for this text."""
    # A special token stands in one of these files in quotes, so no tokenizer has to be loaded.
    files_with_tokens = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")]
    quoted = json.dumps(token)
    return any(quoted in file.read_text(encoding="utf-8") for file in files_with_tokens if file.is_file())


def _infer_text_encoder_shape(folder: Path) -> dict[str, Any]:
    """Infer the shape of a Qwen3-Embedding from its weights; config.json does not have it straight after SFT."""
    wanted = {
        "embed_tokens.weight": ("vocab_size", "hidden_size"),
        "layers.0.mlp.gate_proj.weight": ("intermediate_size", ""),
        "layers.0.self_attn.q_norm.weight": ("head_dim",),
        "layers.0.self_attn.q_proj.weight": ("num_attention_heads", ""),
        "layers.0.self_attn.k_proj.weight": ("num_key_value_heads", ""),
    }
    if not any(folder.glob("*.safetensors")):
        raise MissingWeights(
            f"{folder / 'config.json'} has no text_encoder_config, and there are no weights to tell the text encoder's "
            "shape from. Give the whole checkpoint."
        )
    found = files.read_tensors(origin_of(folder), lambda key: _text_encoder_name(key))
    if missing := [name for name in wanted if name not in found]:
        raise InputError(
            f"{folder / 'config.json'} has no text_encoder_config, and its weights hold no text encoder "
            f"({missing[0]} is missing). Give the whole checkpoint."
        )
    shape: dict[str, Any] = {}
    for name, settings in wanted.items():
        shape |= {key: size for key, size in zip(settings, found[name].shape, strict=True) if key}
    for key in ("num_attention_heads", "num_key_value_heads"):
        shape[key] //= shape["head_dim"]
    layers = 1 + max(int(name.split(".")[1]) for name in found if name.startswith("layers."))
    # These are equal in Qwen3-Embedding of every size.
    same = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768, "attention_bias": False}
    return {**shape, "num_hidden_layers": layers, "max_window_layers": layers, **same}


def _text_encoder_name(key: str) -> str | None:
    name = flat_name(key) or ""
    return name.removeprefix("text_encoder.") if name.startswith("text_encoder.") else None


def _language_model_section(
    folder: Path, config: Mapping[str, Any], origin: files.CheckpointLocation
) -> dict[str, Any]:
    from transformers import Qwen2_5_VLTextConfig

    with origin.as_input_error("read"):
        stored = text_settings(config)
        known, step = Qwen2_5_VLTextConfig(**stored), float(stored["tokens_per_second"])
    # Through transformers' own class, which fills in every default of the version that reads the checkpoint.
    settings = {**_pick_settings(known, _LANGUAGE_SETTINGS), "tie_word_embeddings": stored["tie_word_embeddings"]}
    return {
        "name": "qwen2_5_vl",
        "config": settings,
        "tokenizer": str(folder),
        "time_step": step,
    }


def _pick_settings(config: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of these names from a config of transformers, as plain data."""
    found = json.loads(config.to_json_string(use_diff=False))
    return {name: found[name] for name in names if found.get(name) is not None}


def _require_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt). Copy these files from the "
            "model that it was trained from."
        )


def _require_statistics(origin: files.CheckpointLocation) -> None:
    """Raise InputError unless pixels are normalised as in our encoder: a recipe has no setting for it."""
    if vision.read_statistics(origin) != vision.read_statistics(None):
        raise InputError(
            f"{origin.name}: preprocessor_config.json: image_mean and image_std are not those of Qwen2.5-VL, with "
            "which encoder 'qwen2_5_vl' normalises. Set them back, or name the folder in `model.encoder.path`."
        )
