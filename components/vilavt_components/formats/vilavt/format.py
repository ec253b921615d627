"""Checkpoint format `vilavt`: the paper's ViLaVT, and Qwen2.5-VL, from which it is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilavt_components.common import qwen_checkpoint_files as files
from vilavt_components.encoders.qwen2_5_vl import vision_weights as vision
from vilavt_components.encoders.qwen2_5_vl.encoder import Qwen25VLConfig
from vilavt_components.formats.vilavt import export
from vilavt_components.formats.vilavt import recipe_section as sections
from vilavt_components.formats.vilavt import tensor_names as keys
from vilavt_components.formats.vilavt.example import build_example
from vilavt_components.formats.vilavt.published import write_description
from vilavt_components.inquiry_encoders.hf_text import HFTextConfig
from vilavt_components.language_models.qwen2_5_vl import Qwen25VLLanguageConfig
from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.contracts import BlockSpec, EncoderSpec
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.formats import CheckpointFormat
from vilavt_toolkit.models.meta import assign_weights
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.registry import formats
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.vision.integration import integrated_blocks

log = logging.getLogger(__name__)


@formats.register("vilavt")
class VilavtFormat(CheckpointFormat):
    """ViLaVT as its code writes it, after SFT (`qwen2_5_vl`) and after RL (`vilavt`), and plain Qwen2.5-VL."""

    def __init__(self, config: NoSettings) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return its settings: there are none."""
        return NoSettings()

    def build_example(self) -> VisualChatModel:
        """Build a query-aware tower of four blocks, two of them modulated, with language models of one layer."""
        return build_example()

    def can_read(self, config: Mapping[str, Any]) -> bool:
        """Return True if the model type is `vilavt` or `qwen2_5_vl`."""
        return config.get("model_type") in files.FAMILIES

    def read_section(self, folder: Path) -> dict[str, Any]:
        """Return the parts with their shapes, the paper's pixel budgets and its limit of turns."""
        return sections.read_section(folder)

    def describe_published(self, name: str, folder: Path) -> bool:
        """Write the shapes of a published Qwen2.5-VL, ViLaVT or Qwen3-Embedding, and a tokenizer of bytes."""
        return write_description(name, folder)

    def filled_parts(self, section: ModelSection, folder: Path) -> frozenset[str]:
        """Return tower and language model and, for a query-aware checkpoint, modulator and inquiry encoder."""
        encoder, language, text = section.encoder.config, section.language_model.config, section.inquiry_encoder.config
        found = set()
        # A recipe may put another component in the place of each part, or give it a path of its own weights.
        if isinstance(encoder, Qwen25VLConfig) and encoder.path is None:
            found.add("encoder")
        if isinstance(language, Qwen25VLLanguageConfig) and language.path is None:
            found.add("language_model")
        if keys.modulated_blocks(sections.read_weight_names(folder)):
            if [part.name for part in section.modulator] == ["joint_attention"]:
                found.add("modulator")
            if isinstance(text, HFTextConfig) and text.path is None and text.width:
                found.add("inquiry_encoder")
        return frozenset(found)

    def check_weights(self, folder: Path) -> None:
        """Raise InputError unless all files of weights exist and are whole."""
        files.check_weight_files(sections.origin_of(folder), keys.flat_name)

    def load(self, model: VisualChatModel, folder: Path, parts: frozenset[str], dtype: torch.dtype | None) -> None:
        """Fill the `parts` of a model with the folder's weights, which are mapped from their files."""
        stored = files.read_tensors(sections.origin_of(folder), keys.flat_name, dtype)
        expected = keys.expected_shapes(model, parts)
        # A head that shares the embeddings may be stored in the folder or left out of it.
        if "lm_head.weight" not in expected:
            stored.pop("lm_head.weight", None)
        held = self._select_parts(stored, folder, parts)
        if wrong := keys.describe_mismatches(expected, held, self._allowed_names(folder, held)):
            raise InputError(
                f"the weights in {folder} do not fit ({wrong}). Give a folder whose config.json describes its weights, "
                "and do not change the shapes of its parts in the recipe."
            )
        used = {name: held[name] for name in expected}
        if mixed := keys.describe_mixed_types(used):
            raise InputError(
                f"the weights in {folder} are of several types within one part of the model ({mixed}). Choose one with "
                "`dtype` (on the command line --dtype)."
            )
        assign_weights(model, keys.to_model_state(model, used, parts))
        log.info("%s: %d tensors loaded.", folder, len(used))

    def save(self, model: VisualChatModel, folder: Path) -> None:
        """Write weights, config.json, tokenizers and processors as the paper's code reads them; raises InputError."""
        # This refuses models that are not the paper's, before anything is written.
        parts = export.exported_parts(model)
        export.write_config(model, parts, folder)
        export.write_tokenizers_and_processors(model, parts, folder)
        export.write_weights(model, parts, folder)

    @staticmethod
    def _select_parts(stored: Mapping[str, Tensor], folder: Path, parts: frozenset[str]) -> dict[str, Tensor]:
        """Return the tensors of the `parts`, and those of no part at all, which are then reported as unexpected."""
        kinds = {name: keys.part_of(name) for name in stored}
        others = sorted({kind for kind in kinds.values() if kind and kind not in parts})
        if others:
            log.warning(
                "%s: its weights of %s are not used, because the recipe has its own.",
                folder,
                ", ".join(others).replace("_", " "),
            )
        return {name: value for name, value in stored.items() if kinds[name] in parts or not kinds[name]}

    @staticmethod
    def _allowed_names(folder: Path, held: Mapping[str, Tensor]) -> set[str]:
        """Return the names of the query-aware weights in the folder.

        A recipe may modulate fewer blocks than the checkpoint does, so these may be there without being expected.
        """
        origin = sections.origin_of(folder)
        point = sections.read_integration(files.read_checkpoint_config(origin), list(held))
        if point is None:
            return set()
        shape = vision.read_config(origin)
        # Names such as `late` depend on the tower's depth, so the folder's own tower is described to resolve them.
        blocks = (BlockSpec(shape.hidden_size, {}),) * shape.depth
        spec = EncoderSpec("image", blocks, shape.out_hidden_size, "rotary", shape.fullatt_block_indexes)
        return keys.instruct_names(point if isinstance(point, list) else integrated_blocks(point, spec))
