"""Language model `qwen2_5_vl`: the text model of Qwen2.5-VL and ViLaVT, whose positions have time, row and column."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_components.common import qwen_checkpoint as checkpoint
from vilavt_components.common.quiet import quietly
from vilavt_components.common.weights import fill
from vilavt_components.language_models.causal_base import CausalConfig, CausalModel, check_settings, mended
from vilavt_components.language_models.single_token_attention import single_tokens
from vilavt_components.language_models.tokenizer import CHATML
from vilavt_toolkit.contracts import CacheView, Grid
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import language_models
from vilavt_toolkit.settings import setting

_TEXT = "qwen2_5_vl_text"
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OTHERS = ("model.visual.",)
_NEW_PREFIX = "model.language_model."
_OF_THE_FILE = {"dtype", "architectures", "model_type", "transformers_version"}
_CAUSAL_KERNELS = ("cuda",)
# Of a checkpoint that does not say: positions from one second to the next.
_TOKENS_PER_SECOND = 2


@dataclass(frozen=True)
class Qwen25VLLanguageConfig(CausalConfig):
    """Settings of language model `qwen2_5_vl`: `path` for a pretrained one, or `config` for one from scratch."""

    path: str | None = setting(
        None, help="hub name or local folder of a Qwen2.5-VL or ViLaVT checkpoint", replaces=("config",)
    )
    config: dict[str, Any] = setting(
        factory=dict,
        help="from scratch instead: transformers' settings of the text model",
        replaces=("path", "revision"),
    )
    placeholder: str = setting("<|image_pad|>", help="token that stands where a feature goes; added if missing")
    time_step: float | None = setting(
        None,
        help="positions from one slice of a region (t, h, w) to the next; 0: slices of one moment; null: the "
        "checkpoint's tokens_per_second, as of a video whose slices are a second apart",
        minimum=0,
    )


@language_models.register("qwen2_5_vl", Qwen25VLLanguageConfig)
class Qwen25VLLanguageModel(CausalModel):
    """transformers' text model of Qwen2.5-VL with its head. (Qwen2.5-VL technical report, section 2.1.3.)

    Features of a region stand at one time (or one per slice), at their row and at their column of its grid; text stands
    at the same position on all three axes, one behind the largest before it.
    """

    label = "qwen2_5_vl"
    template = CHATML
    axes = 3

    def __init__(self, config: Qwen25VLLanguageConfig) -> None:
        super().__init__()
        self._check(config)
        self._origin = _origin(config)
        text = _architecture(config, self._origin)
        self._stored_rows: int = text.vocab_size
        self._begin(text)
        self.time_step = text.tokens_per_second if config.time_step is None else config.time_step
        self.tied = bool(text.tie_word_embeddings)
        self.model, self.lm_head = _build(text, config)
        self._windowless(self.model)
        self._tie()

    @classmethod
    def tiny(cls) -> Qwen25VLLanguageConfig:
        """Return settings of a model of two layers from scratch."""
        return Qwen25VLLanguageConfig(config=_SMALL, vocab_size=320)

    @classmethod
    def variants(cls) -> Mapping[str, Qwen25VLLanguageConfig]:
        """Return settings of one with shared embeddings and grouped keys, and of one with windows."""
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
        """Time, row and column of `length` columns with these (column, grid) of features; [3, length].

        As transformers' get_rope_index places images and videos; behind a video that lasts longer than its sides are
        long, as its first versions and the paper's do.
        """
        parts: list[Tensor] = []
        column, free = 0, first
        for start, grid in sorted(regions):
            time, row, place = self._axes_of(grid)
            parts += [_text(free, start - column), _block(time, row, place) + (free + start - column)]
            free += start - column + max(time[-1], row[-1], place[-1]) + 1
            column = start + len(time) * len(row) * len(place)
        return torch.cat([*parts, _text(free, length - column)], dim=1)

    @property
    def head(self) -> nn.Module:
        """The module that turns last hidden states into logits."""
        return self.lm_head

    def _of_single_tokens(self) -> str:
        return single_tokens()

    def _seen(self, cache: CacheView, embeddings: Tensor) -> Any:
        if not cache.kept or embeddings.device.type not in _CAUSAL_KERNELS:
            return super()._seen(cache, embeddings)
        from torch.nn.attention.bias import causal_lower_right  # brings torch's compiler, which takes seconds

        # Kernels for it leave out what is not seen. By layer, or transformers would take it for a mask of padding.
        behind = causal_lower_right(embeddings.shape[1], cache.kept + embeddings.shape[1])
        return dict.fromkeys(self.model.config.layer_types, behind)

    def _family(self) -> Any:
        # transformers does not know the paper's model type, nor that it has Qwen's tokenizer.
        from transformers import Qwen2_5_VLConfig

        return Qwen2_5_VLConfig()

    def _axes_of(self, grid: Grid) -> tuple[list[int], range, range]:
        """Where the slices, rows and columns of a grid stand, from 0."""
        if not 1 <= len(grid) <= 3:
            raise InputError(
                f"qwen2_5_vl places features of a grid (h, w) or (t, h, w), not of {tuple(grid)}; choose another "
                "language model or encoder."
            )
        slices, rows, columns = (1,) * (3 - len(grid)) + tuple(grid)
        return [int(index * self.time_step) for index in range(slices)], range(rows), range(columns)

    def load_weights(self) -> None:
        """Load the language model's weights of `path`, and no others; raises InputError."""
        if self._origin is None:
            return
        weights = checkpoint.read_tensors(self._origin, _language_name, getattr(torch, self.config.dtype))
        if self.tied:
            weights.pop(_HEAD, None)
        for name in {_TABLE, _HEAD} & set(weights):
            weights[name] = self._grown(weights[name])
        if self.tied and _TABLE in weights:
            weights[_HEAD] = weights[_TABLE]
        fill(self, weights, f"'{self._origin.name}'", unused=lambda name: False, assign=True)
        self._tie()

    def _grown(self, rows: Tensor) -> Tensor:
        """Rows for all tokens; of those that the checkpoint does not have, the mean of the others."""
        more = self.vocab_size - self._stored_rows
        if not more or len(rows) != self._stored_rows:
            return rows
        return torch.cat([rows, rows.mean(0, keepdim=True).expand(more, -1)])

    def _tie(self) -> None:
        if self.tied:
            self.lm_head.weight = self.model.get_input_embeddings().weight

    def _logits(self, embeddings: Tensor, positions: Tensor, mask: Any, cache: Any, last: int | None) -> Tensor:
        hidden = self.model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        logits: Tensor = self.lm_head(hidden if last is None else hidden[:, -last:])
        return logits


_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def _text(first: int, length: int) -> Tensor:
    return torch.arange(first, first + length, device="cpu").expand(3, -1)


def _block(*axes: Sequence[int]) -> Tensor:
    """Every combination of the axes, the last one fastest; [3, combinations]."""
    return torch.cartesian_prod(*(torch.tensor(list(axis), device="cpu") for axis in axes)).T


def _language_name(key: str) -> str | None:
    """Our name of a checkpoint's tensor, in its older or newer layout; None where it is not the language model's."""
    if key.startswith(_NEW_PREFIX):
        return f"model.{key.removeprefix(_NEW_PREFIX)}"
    return key if key.startswith(("model.", "lm_head.")) and not key.startswith(_OTHERS) else None


def _origin(config: Qwen25VLLanguageConfig) -> checkpoint.Origin | None:
    """Where the checkpoint is; None for a model from scratch."""
    if config.path is None:
        return None
    return checkpoint.Origin(config.path, config.revision, config.local_files_only, part="language model")


def _architecture(config: Qwen25VLLanguageConfig, origin: checkpoint.Origin | None) -> Any:
    """transformers' configuration of the text model, read or made."""
    from transformers import Qwen2_5_VLTextConfig

    if origin is not None:
        found = checkpoint.read_config(origin, (*checkpoint.FAMILIES, _TEXT))
        with origin.explained("read"), quietly():
            return _checked(Qwen2_5_VLTextConfig(**text_settings(found)))
    with mended("qwen2_5_vl"), quietly():
        check_settings(_TEXT, set(config.config) - {"tie_word_embeddings"}, Qwen2_5_VLTextConfig())
        special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 1, "rms_norm_eps": 1e-6}
        return _checked(Qwen2_5_VLTextConfig(**{"vocab_size": config.vocab_size, **special, **config.config}))


def text_settings(found: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the text model: in a section of its own, or beside everything else."""
    from transformers import Qwen2_5_VLTextConfig

    given: Mapping[str, Any] = found.get("text_config") or found
    known = {*Qwen2_5_VLTextConfig().to_dict(), "rope_scaling", "rope_theta"} - _OF_THE_FILE
    tied = found.get("tie_word_embeddings", False) or given.get("tie_word_embeddings", False)
    vision = found.get("vision_config") or found
    return {
        **{key: value for key, value in given.items() if key in known},
        "tie_word_embeddings": tied,
        "tokens_per_second": vision.get("tokens_per_second", _TOKENS_PER_SECOND),
    }


def _checked(text: Any) -> Any:
    """The configuration with what ours adds, if the parts of its heads that turn with time, row and column fit."""
    text.tie_word_embeddings = getattr(text, "tie_word_embeddings", False)  # to some versions no setting of text's
    text.tokens_per_second = getattr(text, "tokens_per_second", _TOKENS_PER_SECOND)
    half = text.hidden_size // text.num_attention_heads // 2
    across = 3 * half // 8
    sections = text.rope_parameters.setdefault("mrope_section", [half - 2 * across, across, across])
    if len(sections) != 3 or sum(sections) != half:
        raise ValueError(
            f"its mrope_section is {sections}, which should be three numbers of sum {half}, half of a head's width"
        )
    return text


def _build(text: Any, config: Qwen25VLLanguageConfig) -> tuple[Any, nn.Linear]:
    """Text model and head; weights that will be loaded are not drawn first."""
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    new = config.path is None
    dtype = torch.get_default_dtype() if new else getattr(torch, config.dtype)
    with mended("qwen2_5_vl"), contextlib.nullcontext() if new else no_init_weights():
        build: Any = AutoModel.from_config  # untyped
        model = build(text, attn_implementation=config.attention, dtype=dtype)
        head = nn.Linear(text.hidden_size, text.vocab_size, bias=False, dtype=dtype)
        if new:
            nn.init.normal_(head.weight, std=text.initializer_range)
    return model, head
