"""Exporting a model as a ViLaVT or Qwen2.5-VL checkpoint: can it be one, its config.json, and the other files."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vilavt_components.dialogues.vilavt import VilavtDialogue, VilavtDialogueConfig
from vilavt_components.encoders.qwen2_5_vl import vision_weights as vision
from vilavt_components.encoders.qwen2_5_vl.encoder import Qwen25VLEncoder
from vilavt_components.encoders.qwen2_5_vl.tower import QwenVisionConfig
from vilavt_components.formats.vilavt import tensor_names as keys
from vilavt_components.formats.vilavt.recipe_section import BUDGET, TEXT_FOLDERS, TEXT_SETTINGS
from vilavt_components.inquiry_encoders.hf_text import HFTextInquiryEncoder
from vilavt_components.language_models.qwen2_5_vl import Qwen25VLLanguageModel
from vilavt_components.modulators.joint_attention import JointAttention
from vilavt_components.modulators.none import NoModulation
from vilavt_components.projectors.identity import IdentityProjector
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.files import write_json
from vilavt_toolkit.utils.progress import track_progress
from vilavt_toolkit.vision.integration import INTEGRATIONS, named_blocks

log = logging.getLogger(__name__)

SHARD_BYTES = 5_000_000_000
_MIN_PIXELS = 3136
_PLAIN = frozenset({"encoder", "language_model"})
_QUERY_AWARE = _PLAIN | {"modulator", "inquiry_encoder"}
_PREFERRED = ("late", "all")  # in a small tower several names select the same blocks: these are the paper's
_NAMES = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def exported_parts(model: VisualChatModel) -> frozenset[str]:
    """Return the parts that a checkpoint of the model holds; raises InputError naming a part unlike the paper's."""
    encoder, text = model.vision, model.vision.inquiry_encoder
    _require_type("encoder", encoder.backbone, Qwen25VLEncoder)
    _require_type("projector", model.projector, IdentityProjector)
    _require_type("language model", model.language_model, Qwen25VLLanguageModel)
    # A dialogue is no part of a checkpoint, so it does not stop an export. But its words decide what the weights do.
    if not isinstance(model.dialogue, VilavtDialogue):
        log.warning(
            "the model's dialogue is not `vilavt`, so other code prompts it with words that it was not trained with."
        )
    elif model.dialogue.texts != VilavtDialogue(VilavtDialogueConfig()).texts:
        log.warning(
            "the model's dialogue has texts of its own, which this format cannot hold. Set `model.dialogue.template` "
            "where it is loaded, or export with --format native."
        )
    listed = [list(cast(nn.ModuleList, each)) for each in encoder.modulators.values()]
    modulators = [each for block in listed for each in block]
    if all(isinstance(each, NoModulation) for each in modulators):
        return _PLAIN
    for each in modulators:
        _require_type("modulator", each, JointAttention)
    if any(len(block) > 1 for block in listed):
        raise InputError(
            "the model has several modulators in a block, and ViLaVT has one. Export it with --format native."
        )
    _require_type("inquiry encoder", text, HFTextInquiryEncoder)
    read = cast(HFTextInquiryEncoder, text)
    if read.model.config.model_type != "qwen3" or not isinstance(read.projection, nn.Linear):
        raise InputError(
            "the model's inquiry encoder is no Qwen3 with a linear map after it, as ViLaVT's is. Export it with "
            "--format native."
        )
    return _QUERY_AWARE


def _require_type(part: str, found: object, wanted: type[Any]) -> None:
    if not isinstance(found, wanted):
        raise InputError(
            f"the model's {part} is {type(found).__name__}, and ViLaVT has {wanted.__name__}. Export it with --format "
            "native."
        )


def write_config(model: VisualChatModel, parts: frozenset[str], folder: Path) -> None:
    """Write config.json, with the keys that the paper's code and transformers read.

    The two read different keys for the same setting, so several stand there twice.
    """
    language, encoder = cast(Qwen25VLLanguageModel, model.language_model), cast(Qwen25VLEncoder, model.vision.backbone)
    text = _language_settings(language)
    tower = asdict(encoder.shape)
    step = int(language.time_step) if float(language.time_step).is_integer() else language.time_step
    # Several keys for one thing: the paper's code and versions of transformers read different ones.
    channels = {"in_channels": 3, "in_chans": 3, "spatial_patch_size": encoder.shape.patch_size, "hidden_act": "silu"}
    tower |= {"model_type": "qwen2_5_vl", "tokens_per_second": step, **channels}
    found = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **text,
        **_token_ids(language),
        "dtype": _most_common_dtype(model),
        "text_config": {"model_type": "qwen2_5_vl_text", **text},
        "vision_config": tower,
    }
    # A plain model stays a Qwen2.5-VL that transformers opens by itself. `vilavt` needs the paper's code.
    if "modulator" in parts:
        point = _integration_name(model)
        tower["integration_point"] = point
        found |= {
            "architectures": ["Qwen2_5_VLForConditionalGeneration_Vilavt"],
            "model_type": "vilavt",
            "integration_point": point,
            "text_encoder_config": _text_encoder_settings(model),
        }
    write_json(folder / "config.json", found)


def write_tokenizers_and_processors(model: VisualChatModel, parts: frozenset[str], folder: Path) -> None:
    """Write the tokenizers, and the settings of the image processor and of generation."""
    language, encoder = cast(Qwen25VLLanguageModel, model.language_model), cast(Qwen25VLEncoder, model.vision.backbone)
    backend = language.tokenizer.backend
    backend.save_pretrained(folder)
    text = cast(HFTextInquiryEncoder, model.vision.inquiry_encoder)
    if "inquiry_encoder" in parts and text.tokenizer is not None:
        text.tokenizer.save_pretrained(folder / TEXT_FOLDERS[0])
    kept = language.kept_settings
    processor = _processor_settings(encoder.shape, kept.get("preprocessor_config.json"))
    write_json(folder / "preprocessor_config.json", processor)
    write_json(folder / "generation_config.json", _generation_settings(language, kept.get("generation_config.json")))


def _processor_settings(shape: QwenVisionConfig, kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of the image processor: those of the source, or the paper's, with the model's own shapes."""
    # The same numbers that our encoder normalises with, so that other code prepares the same pixels.
    mean, std = vision.read_statistics(None)
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        **({"min_pixels": _MIN_PIXELS, "max_pixels": BUDGET} if kept is None else kept),
        "patch_size": shape.patch_size,
        "temporal_patch_size": shape.temporal_patch_size,
        "merge_size": shape.spatial_merge_size,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _generation_settings(language: Qwen25VLLanguageModel, kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of generation: those of the source, with the end of a turn among the ends."""
    backend, given = language.tokenizer.backend, dict(kept or {})
    ends = given.get("eos_token_id", backend.eos_token_id)
    ends = ends if isinstance(ends, list) else [ends]
    # Generation must stop at the end of a turn, which need not be the tokenizer's end of text.
    ends = ends if language.end_of_turn in ends else [language.end_of_turn, *ends]
    ends = [token for token in ends if token is not None]
    return {"pad_token_id": backend.pad_token_id, **given, "eos_token_id": ends}


def write_weights(model: VisualChatModel, parts: frozenset[str], folder: Path) -> None:
    """Write model.safetensors, or several files and their index if it would be large; shows progress."""
    from safetensors.torch import save_file

    shards = list(_plan_shards(model, parts))
    is_sharded = len(shards) > 1
    places: dict[str, str] = {}
    for number, names in enumerate(track_progress(shards, len(shards), "weights") if is_sharded else shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if is_sharded else "model.safetensors"
        held = {name: value for name, value in keys.checkpoint_tensors(model, parts) if name in names}
        # On the CPU one file at a time, and each tensor with its own storage: safetensors refuses shared memory.
        save_file(
            {name: _own_storage(value) for name, value in held.items()}, str(folder / file), metadata={"format": "pt"}
        )
        places |= dict.fromkeys(held, file)
    if is_sharded:
        size = sum(value.nbytes for _, value in keys.checkpoint_tensors(model, parts))
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def _own_storage(value: Tensor) -> Tensor:
    """Return a contiguous tensor on the CPU that shares its storage with no other."""
    value = value.cpu().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _plan_shards(model: VisualChatModel, parts: frozenset[str]) -> Iterator[set[str]]:
    """Yield the names of the tensors of each file. Only a tensor that is too large alone makes a file too large."""
    names: set[str] = set()
    size = 0
    for name, value in keys.checkpoint_tensors(model, parts):
        if names and size + value.nbytes > SHARD_BYTES:
            yield names
            names, size = set(), 0
        names.add(name)
        size += value.nbytes
    yield names


def _most_common_dtype(model: VisualChatModel) -> str:
    """Return the type that most weights have: config.json has one `dtype`, and parts may differ."""
    counts: Counter[torch.dtype] = Counter()
    for weight in model.parameters():
        counts[weight.dtype] += weight.numel()
    return str(counts.most_common(1)[0][0]).removeprefix("torch.")


def _integration_name(model: VisualChatModel) -> str:
    """Return the paper's name for the modulated blocks; raises InputError if it has none for them."""
    blocks = tuple(sorted(map(int, model.vision.modulators)))
    spec = model.vision.backbone.spec
    for name in (*_PREFERRED, *INTEGRATIONS):
        if named_blocks(name, spec) == blocks:
            return name
    raise InputError(
        f"the model's integration, blocks {list(blocks)}, has no name in ViLaVT's config.json "
        f"({', '.join(INTEGRATIONS)}). Export it with --format native."
    )


def _language_settings(language: Qwen25VLLanguageModel) -> dict[str, Any]:
    """Return the text model's settings, with RoPE in the keys of the transformers version that the paper used."""
    settings: dict[str, Any] = json.loads(language.model.config.to_json_string(use_diff=False))
    # Facts about the file that was read, not about the model.
    dropped = ("dtype", "architectures", "transformers_version", "model_type", "_name_or_path", "tokens_per_second")
    settings = {key: value for key, value in settings.items() if key not in dropped and value is not None}
    settings |= {"tie_word_embeddings": language.is_tied, "eos_token_id": language.end_of_turn}
    settings.setdefault("bos_token_id", None)
    return _legacy_rope_keys(settings, sections=True)


def _text_encoder_settings(model: VisualChatModel) -> dict[str, Any]:
    config: Any = cast(HFTextInquiryEncoder, model.vision.inquiry_encoder).model.config
    settings = json.loads(config.to_json_string(use_diff=False))
    found = {key: settings[key] for key in TEXT_SETTINGS if settings.get(key) is not None}
    return {"model_type": "qwen3", **_legacy_rope_keys(found), "tie_word_embeddings": True}


def _legacy_rope_keys(settings: dict[str, Any], sections: bool = False) -> dict[str, Any]:
    """Return settings with RoPE in the keys of older transformers; newer versions have one key, `rope_parameters`.

    With `sections`, it is the multimodal RoPE with its sections of time, height and width.
    """
    rotary = dict(settings.pop("rope_parameters", {}))
    found = {**settings, "rope_theta": rotary.pop("rope_theta", 1e6)}
    if sections:
        found["rope_scaling"] = {"type": "mrope", **rotary}
    elif rotary.get("rope_type", "default") != "default":
        found["rope_scaling"] = rotary
    return found


def _token_ids(language: Qwen25VLLanguageModel) -> dict[str, int]:
    known = language.tokenizer.backend.get_vocab()
    found = {key: known[token] for key, token in _NAMES.items() if token in known}
    return {**found, "image_token_id": language.placeholder, "eos_token_id": language.end_of_turn}
