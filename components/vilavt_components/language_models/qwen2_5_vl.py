"""Language model `qwen2_5_vl`: the text model of Qwen2.5-VL and ViLaVT, with M-RoPE positions (time, row, column)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_components.common.hf_errors import check_known_settings
from vilavt_components.common.quiet import quiet_transformers
from vilavt_components.common.qwen_checkpoint_files import (
    FAMILIES,
    CheckpointLocation,
    read_checkpoint_config,
    read_shapes,
    read_tensors,
)
from vilavt_components.common.weights import load_weights_into
from vilavt_components.language_models.causal_base import CausalConfig, CausalModel, config_errors
from vilavt_components.language_models.chat_templates import CHATML
from vilavt_components.language_models.norms import use_norms
from vilavt_components.language_models.single_token_attention import register_single_token_attention
from vilavt_toolkit.contracts import CacheView, Grid
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import language_models
from vilavt_toolkit.settings import setting
from vilavt_toolkit.utils.files import read_json, write_json

_TEXT = "qwen2_5_vl_text"
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Newer checkpoints hold the text model under this prefix; in older ones the vision tower lies beside its tensors.
_NEW_PREFIX = "model.language_model."
_OTHERS = ("model.visual.",)
# Keys of a config.json that describe the file, and not the text model.
_OF_THE_FILE = {"dtype", "architectures", "model_type", "transformers_version"}
# Devices with attention kernels that take a causal bias instead of a mask.
_CAUSAL_KERNELS = ("cuda",)
# Files beside a tokenizer that no part here reads, and that an export of the model repeats.
_KEPT_FILES = ("generation_config.json", "preprocessor_config.json")
# Positions from one second to the next, for a checkpoint that does not say.
_TOKENS_PER_SECOND = 2


@dataclass(frozen=True)
class Qwen25VLLanguageConfig(CausalConfig):
    """Settings of language model `qwen2_5_vl`: `path` for a pretrained one, or `config` for one from scratch."""

    path: str | None = setting(
        None, help="hub name or local folder of a Qwen2.5-VL or ViLaVT checkpoint", replaces=("config",), is_path=True
    )
    config: dict[str, Any] = setting(
        factory=dict,
        help="from scratch instead: transformers' settings of the text model",
        replaces=("path", "revision"),
    )
    placeholder: str = setting("<|image_pad|>", help="token in place of each feature (added if missing)")
    time_step: float | None = setting(
        None,
        help="positions from one slice of a region (t, h, w) to the next. 0: all slices at one time. Null: the "
        "checkpoint's tokens_per_second, right for a video whose slices are a second apart",
        minimum=0,
    )


@language_models.register("qwen2_5_vl", Qwen25VLLanguageConfig)
class Qwen25VLLanguageModel(CausalModel):
    """transformers' text model of Qwen2.5-VL with its head. (Qwen2.5-VL technical report, section 2.1.3.)

    Features of a region have the time of the region (or of their slice), and their row and column of its grid. Text has
    the same position on all three axes, one after the largest before it.
    """

    label = "qwen2_5_vl"
    template = CHATML
    axes = 3

    def __init__(self, config: Qwen25VLLanguageConfig) -> None:
        super().__init__()
        self._check_config(config)
        self._location = _checkpoint_location(config)
        text = _load_architecture(config, self._location)
        # Kept before the tokenizer may enlarge it: the number of rows that the checkpoint's table has.
        self._stored_rows: int = text.vocab_size
        self._load_tokenizer_and_sizes(text)
        self.time_step = text.tokens_per_second if config.time_step is None else config.time_step
        self.is_tied = bool(text.tie_word_embeddings)
        self.kept_settings = _read_kept_settings(config.tokenizer or config.path)
        self.model, self.lm_head = _build_model(text, config)
        use_norms(config.norms, self.label, self.model)
        self._tie_head()

    @classmethod
    def tiny(cls) -> Qwen25VLLanguageConfig:
        """Return settings of a model of two layers from scratch."""
        return Qwen25VLLanguageConfig(config=_SMALL, vocab_size=320)

    @classmethod
    def variants(cls) -> Mapping[str, Qwen25VLLanguageConfig]:
        """Return settings of a model with tied embeddings and grouped queries, and of one with sliding windows."""
        windows = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
        changes: dict[str, dict[str, Any]] = {
            "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
            "windows": windows,
        }
        return {
            name: Qwen25VLLanguageConfig(config={**_SMALL, **change}, vocab_size=320)
            for name, change in changes.items()
        }

    def positions(self, length: int, regions: Sequence[tuple[int, Grid]], first: int = 0) -> Tensor:
        """Return time, row and column of `length` columns with features at `regions` (column, grid); [3, length].

        Follows transformers' `get_rope_index`. After a video that lasts longer than its sides are long, text goes on
        after the largest position, as in the first versions of `get_rope_index` and in the paper's code.
        """
        parts: list[Tensor] = []
        # The next column to place, and the first position that is still free.
        column, free = 0, first
        for start, grid in sorted(regions):
            times, rows, columns = self._axis_positions(grid)
            text_length = start - column
            origin = free + text_length
            parts += [_text_positions(free, text_length), _grid_positions(times, rows, columns) + origin]
            # Positions grow by the region's longest axis, not by its number of features.
            free = origin + max(times[-1], rows[-1], columns[-1]) + 1
            column = start + len(times) * len(rows) * len(columns)
        return torch.cat([*parts, _text_positions(free, length - column)], dim=1)

    def save_assets(self, folder: Path) -> None:
        """Write the architecture, the tokenizer and the settings that lay beside it into `folder`."""
        super().save_assets(folder)
        for name, settings in self.kept_settings.items():
            write_json(folder / name, settings)

    @property
    def head(self) -> nn.Module:
        """Return the module that turns last hidden states into logits."""
        return self.lm_head

    def _single_token_attention(self) -> str:
        return register_single_token_attention()

    def _attention_mask(self, cache: CacheView, embeddings: Tensor) -> Any:
        # Where padding gives the prefix no one length, or there is none, the base's mask is right. Under autocast too:
        # the bias is dispatched before autocast gives q, k and v one type.
        kind = embeddings.device.type
        if not cache.prefix_length or kind not in _CAUSAL_KERNELS or torch.is_autocast_enabled(kind):
            return super()._attention_mask(cache, embeddings)
        # Imported here, since it brings torch's compiler, which takes seconds.
        from torch.nn.attention.bias import causal_lower_right

        # With this bias the kernels skip what is masked, instead of computing it and adding -inf. As a dict by layer
        # type, since transformers would take a single tensor for a mask of padding.
        after_prefix = causal_lower_right(embeddings.shape[1], cache.prefix_length + embeddings.shape[1])
        return dict.fromkeys(self.model.config.layer_types, after_prefix)

    def _tokenizer_config(self) -> Any:
        # transformers does not know the paper's model type, nor that it has Qwen's tokenizer.
        from transformers import Qwen2_5_VLConfig

        return Qwen2_5_VLConfig()

    def _axis_positions(self, grid: Grid) -> tuple[list[int], range, range]:
        """Return the positions of a grid's slices, rows and columns, from 0; raises InputError for other grids."""
        if not 1 <= len(grid) <= 3:
            raise InputError(
                f"qwen2_5_vl has positions for a grid (h, w) or (t, h, w), not for {tuple(grid)}. Choose another "
                "language model, such as hf_causal."
            )
        # Grids are padded with leading 1s: an image has one slice, a list of features one slice and one row.
        slices, rows, columns = (1,) * (3 - len(grid)) + tuple(grid)
        return [int(index * self.time_step) for index in range(slices)], range(rows), range(columns)

    def load_weights(self) -> None:
        """Load the language model's weights of `path`, and no others; raises InputError.

        If the model is on the meta device, the weights of a folder are checked and not read.
        """
        if self._location is None:
            return
        if not self.lm_head.weight.is_meta:
            weights = read_tensors(self._location, _language_name, getattr(torch, self.config.dtype))
        elif Path(self._location.name).is_dir():
            weights = read_shapes(self._location, _language_name)
        else:
            return
        # A tied head may be stored beside the table or be missing; the table is right in both cases.
        if self.is_tied:
            weights.pop(_HEAD, None)
        for name in {_TABLE, _HEAD} & set(weights):
            weights[name] = self._add_token_rows(weights[name])
        if self.is_tied and _TABLE in weights:
            weights[_HEAD] = weights[_TABLE]
        load_weights_into(self, weights, f"'{self._location.name}'", is_unused=lambda name: False, assign=True)
        # Assigning has made two parameters of them, which are one again after this.
        self._tie_head()

    def _add_token_rows(self, rows: Tensor) -> Tensor:
        """Return rows for all tokens; those that the checkpoint lacks get the mean of its rows."""
        more = self.vocab_size - self._stored_rows
        if not more or len(rows) != self._stored_rows:
            return rows
        return torch.cat([rows, rows.mean(0, keepdim=True).expand(more, -1)])

    def _tie_head(self) -> None:
        if self.is_tied:
            self.lm_head.weight = self.model.get_input_embeddings().weight

    def _compute_logits(
        self, embeddings: Tensor, positions: Tensor, mask: Any, cache: Any, last: int | None, **options: Any
    ) -> Tensor:
        hidden = self._run_layers(embeddings, positions, mask, cache, **options)
        logits: Tensor = self.lm_head(hidden if last is None else hidden[:, -last:])
        return logits

    def _run_layers(
        self, embeddings: Tensor, positions: Tensor, mask: Any, cache: Any = None, **options: Any
    ) -> Tensor:
        hidden: Tensor = self.model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        ).last_hidden_state
        return hidden


_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def _text_positions(first: int, length: int) -> Tensor:
    """Return consecutive positions, the same on all three axes; [3, length]."""
    return torch.arange(first, first + length, device="cpu").expand(3, -1)


def _grid_positions(*axes: Sequence[int]) -> Tensor:
    """Return every combination of the axes' positions, the last axis fastest; [3, combinations]."""
    return torch.cartesian_prod(*(torch.tensor(list(axis), device="cpu") for axis in axes)).T


def _read_kept_settings(source: str | None) -> dict[str, dict[str, Any]]:
    """Return the content of the files in the tokenizer's folder that exports repeat, by name; raises InputError."""
    found = {}
    for name in _KEPT_FILES:
        # A tokenizer of the hub comes alone.
        if source is None or not (file := Path(source) / name).is_file():
            continue
        try:
            settings = read_json(file)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read ({error}). Copy the file again.") from error
        if not isinstance(settings, dict):
            raise InputError(f"{file} holds no mapping. Copy the file again.")
        found[name] = settings
    return found


def _language_name(key: str) -> str | None:
    """Return our name of a checkpoint's tensor of either layout, or None if it is not the language model's."""
    if key.startswith(_NEW_PREFIX):
        return f"model.{key.removeprefix(_NEW_PREFIX)}"
    return key if key.startswith(("model.", "lm_head.")) and not key.startswith(_OTHERS) else None


def _checkpoint_location(config: Qwen25VLLanguageConfig) -> CheckpointLocation | None:
    """Return where the checkpoint is, or None for a model from scratch."""
    if config.path is None:
        return None
    return CheckpointLocation(config.path, config.revision, config.local_files_only, part="language model")


def _load_architecture(config: Qwen25VLLanguageConfig, location: CheckpointLocation | None) -> Any:
    """Read transformers' configuration of the text model, or build it from `config`; raises InputError."""
    from transformers import Qwen2_5_VLTextConfig

    if location is not None:
        found = read_checkpoint_config(location, (*FAMILIES, _TEXT))
        with location.as_input_error("read"), quiet_transformers():
            return _complete_config(Qwen2_5_VLTextConfig(**text_settings(found)))
    with config_errors("qwen2_5_vl"), quiet_transformers():
        check_known_settings(_TEXT, set(config.config) - {"tie_word_embeddings"}, Qwen2_5_VLTextConfig())
        # The special ids are those of the trained tokenizer; the epsilon is that of the published models.
        special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 1, "rms_norm_eps": 1e-6}
        return _complete_config(Qwen2_5_VLTextConfig(**{"vocab_size": config.vocab_size, **special, **config.config}))


def text_settings(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text model's settings in a config.json, as transformers' text configuration takes them."""
    from transformers import Qwen2_5_VLTextConfig

    # Newer files have a section for the text model, older ones hold its settings beside everything else. A section may
    # have some of them only.
    given: Mapping[str, Any] = {**found, **(found.get("text_config") or {})}
    known = {*Qwen2_5_VLTextConfig().to_dict(), "rope_scaling", "rope_theta"} - _OF_THE_FILE
    tied = found.get("tie_word_embeddings", False) or given.get("tie_word_embeddings", False)
    vision = found.get("vision_config") or found
    return {
        **{key: value for key, value in given.items() if key in known},
        "tie_word_embeddings": tied,
        "tokens_per_second": vision.get("tokens_per_second", _TOKENS_PER_SECOND),
    }


def _complete_config(text: Any) -> Any:
    """Add the settings that some versions of transformers leave out; raises ValueError for sections that do not fit."""
    text.tie_word_embeddings = getattr(text, "tie_word_embeddings", False)
    text.tokens_per_second = getattr(text, "tokens_per_second", _TOKENS_PER_SECOND)
    # M-RoPE splits the d / 2 pairs of a head into sections for time, row and column. Published models of d = 128 have
    # 16, 24 and 24; other widths get the same shares.
    half = text.hidden_size // text.num_attention_heads // 2
    across = 3 * half // 8
    sections = text.rope_parameters.setdefault("mrope_section", [half - 2 * across, across, across])
    if len(sections) != 3 or sum(sections) != half:
        raise ValueError(
            f"its mrope_section is {sections}, which should be three numbers of sum {half}, half of a head's width"
        )
    return text


def _build_model(text: Any, config: Qwen25VLLanguageConfig) -> tuple[Any, nn.Linear]:
    """Build text model and head; weights that will be loaded are not drawn first."""
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    is_new = config.path is None
    dtype = torch.get_default_dtype() if is_new else getattr(torch, config.dtype)
    # transformers' class with a head would build the vision tower too, so the head is built here.
    with config_errors("qwen2_5_vl"), contextlib.nullcontext() if is_new else no_init_weights():
        build: Any = AutoModel.from_config  # untyped
        model = build(text, attn_implementation=config.attention, dtype=dtype)
        head = nn.Linear(text.hidden_size, text.vocab_size, bias=False, dtype=dtype)
        if is_new:
            nn.init.normal_(head.weight, std=text.initializer_range)
    return model, head
