"""Inquiry encoder `hf_text`: a text model of transformers, a decoder as Qwen3-Embedding or an encoder as BERT."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vilavt_components.common.hf_errors import as_input_error, check_known_settings, check_sizes
from vilavt_components.common.hf_weights import check_pretrained, load_pretrained, loading_errors
from vilavt_components.common.plain_text import PlainEncoder
from vilavt_components.common.precision import Float32RotaryFrequencies
from vilavt_components.common.token_ids import check_token_ids, check_tokens_have_rows
from vilavt_components.inquiry_encoders.hf_text_masks import choose_mask, encode_padded, keep_encoder
from vilavt_toolkit.contracts import InquiryEncoder, LanguageModel, protect_text
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.packed.tokens import concat_ranges, to_device
from vilavt_toolkit.registry import inquiry_encoders
from vilavt_toolkit.settings import setting

_PART = "text model"
_BAD_CONFIG = "hf_text: `config` builds no text model"


@dataclass(frozen=True)
class HFTextConfig:
    """Settings of inquiry encoder `hf_text`: `path` for a pretrained text model, or `config` for a new one."""

    path: str | None = setting(
        None,
        help="hub name or local folder of a text model and its tokenizer",
        replaces=("config", "end_token"),
        is_path=True,
    )
    config: dict[str, Any] = setting(
        factory=dict,
        help="new instead: `model_type` and that family's transformers settings (reads the language model's tokens)",
        replaces=("path", "revision"),
    )
    tokenizer: str | None = setting(
        None,
        help="folder or hub name of the tokenizer (null: `path`'s, else the language model's, which must then have the "
        "text model's tokens under the same ids)",
        is_path=True,
        replaces=("end_token",),
    )
    end_token: str = setting(
        "",
        help="token added after an inquiry encoded by the language model's tokenizer (Qwen3-Embedding: <|endoftext|>)",
    )
    prefix: str = setting("", help="text before an inquiry (the paper's evaluation with transformers has 'Query: ')")
    frozen: bool = setting(False, help="keep the text model's weights, and train only the linear map after it")
    width: int = setting(0, help="width of the features after a linear map (0: the model's own, no map)", minimum=0)
    max_tokens: int = setting(50, help="most tokens of an inquiry (longer ones are cut)", minimum=1)
    pooling: Literal["mean", "last"] = setting("mean", help="pooled feature of an inquiry: mean or last token")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", help="type of pretrained weights")
    revision: str | None = setting(None, help="hub revision of `path`")
    local_files_only: bool = setting(False, help="never ask the hub")


@inquiry_encoders.register("hf_text", HFTextConfig)
class HFTextInquiryEncoder(Float32RotaryFrequencies, InquiryEncoder):
    """The last hidden states of any text model of transformers, then a linear map (the paper takes Qwen3-Embedding)."""

    def __init__(self, config: HFTextConfig, language_model: LanguageModel) -> None:
        super().__init__()
        if bool(config.path) == bool(config.config):
            raise InputError("hf_text: set exactly one of `path` (pretrained) and `config` (new).")
        self.config = config
        # In a tuple, so that the language model is not registered, and saved, a second time here.
        self._language_model = (language_model,)
        source = config.tokenizer or config.path
        self.tokenizer = None if source is None else _load_tokenizer(source, config)
        self._plain_encoder = None if source is None else PlainEncoder(self.tokenizer, config.prefix)
        self._architecture = architecture = _load_architecture(config, language_model.vocab_size)
        self.max_tokens = min(config.max_tokens, _max_length(architecture), _max_length(self.tokenizer))
        self._takes_mask = choose_mask(architecture, self.max_tokens)
        self.model = _build_model(architecture, config)
        self._check_tokens(self.model.get_input_embeddings().num_embeddings, language_model)
        model_width: int = architecture.hidden_size
        self.width = config.width or model_width
        self.projection = nn.Linear(model_width, config.width) if config.width else nn.Identity()
        self._freeze_model()

    @classmethod
    def from_saved(cls, config: Any, language_model: LanguageModel, folder: Path) -> HFTextInquiryEncoder:
        """Build it with the architecture and tokenizer that `save_assets` wrote, if it did; weights come after."""
        if (folder / "config.json").is_file():
            config = replace(config, path=str(folder), config={}, tokenizer=None, revision=None, local_files_only=True)
        return cls(config, language_model)

    def save_assets(self, folder: Path) -> None:
        """Write architecture and tokenizer, if it has a tokenizer of its own; else the settings are enough."""
        if self.tokenizer is not None:
            self._architecture.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def _check_tokens(self, rows: int, language_model: LanguageModel) -> None:
        """Raise InputError if the tokenizer has tokens that the text model has no row for."""
        if self.tokenizer is not None:
            with as_input_error("hf_text: the text model cannot read its tokens", "Set `tokenizer` to its own."):
                check_tokens_have_rows(self.tokenizer, rows)
            return
        # A tokenizer that is still to be trained has at most as many tokens as the language model has rows.
        known = getattr(language_model, "tokenizer", None)
        tokens = len(known) if isinstance(known, Sized) else language_model.vocab_size
        if rows < tokens:
            raise InputError(
                f"hf_text: the text model has rows for {rows} tokens, and the language model's tokenizer may have "
                f"{tokens}. Set vocab_size in `config` to that, or remove it."
            )

    def _freeze_model(self) -> None:
        if self.config.frozen:
            self.model.requires_grad_(False)

    @classmethod
    def tiny(cls) -> HFTextConfig:
        """Return settings of a decoder of one layer, mapped to width 16."""
        small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        return HFTextConfig(
            config={"model_type": "qwen3", **small, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.2},
            width=16,
        )

    @classmethod
    def variants(cls) -> Mapping[str, HFTextConfig]:
        """Return settings of an encoder that keeps its own width."""
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        bert = {"model_type": "bert", **small, "initializer_range": 0.2, "max_position_embeddings": 64}
        return {"encoder": HFTextConfig(config=bert, pooling="last")}

    def tokenize(self, text: str) -> list[int]:
        """Return token ids of the prefix and the stripped text, at most `max_tokens`; [] for a blank text.

        They have the special tokens of its own tokenizer around them, if it has one, and none for a name in the text.
        """
        text = text.strip()
        if not text:
            return []
        if self._plain_encoder is None:
            return self._encode_with_end(self._language_model[0].tokenizer, self.config.prefix + text)
        return self._plain_encoder.encode(text, self.max_tokens)

    def _encode_with_end(self, tokenizer: Any, text: str) -> list[int]:
        """Return ids by the language model's tokenizer, with `end_token` after them; raises InputError."""
        end = tokenizer.encode(self.config.end_token) if self.config.end_token else []
        if self.config.end_token and len(end) != 1:
            raise InputError(
                f"hf_text: `end_token` {self.config.end_token!r} is {len(end)} tokens to the language model's "
                "tokenizer. Set `tokenizer` to the text model's own, or `end_token` to one of its tokens."
            )
        # The end token stays even if the text is cut, since pooling "last" reads it.
        return [*tokenizer.encode(protect_text(tokenizer, text))[: self.max_tokens - len(end)], *end]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of every token."""
        tokenizer = self.tokenizer or self._language_model[0].tokenizer
        return [tokenizer.decode([token]) for token in ids]

    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return features of all tokens [T, D], and their mean or last per group [G, D], zero for an empty inquiry."""
        device = next(self.model.parameters()).device
        # Models cannot run on an empty text, so only groups with an inquiry are encoded: N of the G.
        groups = [group for group, tokens in enumerate(ids) if tokens]
        if not groups:
            nothing = self._project_hidden(next(self.model.parameters()).new_zeros(0, self.model.config.hidden_size))
            return nothing, nothing.new_zeros(len(ids), self.width)
        lengths = [len(ids[group]) for group in groups]
        hidden = encode_padded(self.model, [ids[group] for group in groups], self._takes_mask)
        features = self._project_hidden(hidden)  # [N, L, D]
        starts = [row * features.shape[1] for row in range(len(groups))]
        packed = features.flatten(0, 1).index_select(0, to_device(concat_ranges(starts, lengths), device))
        if self.config.pooling == "last":
            ends = [start + length - 1 for start, length in zip(starts, lengths, strict=True)]
            pooled = features.flatten(0, 1).index_select(0, to_device(ends, device))
        else:
            count = to_device(lengths, device).unsqueeze(1)
            real = torch.arange(features.shape[1], device=device) < count
            pooled = torch.where(real.unsqueeze(-1), features, 0).sum(1) / count
        return packed, pooled.new_zeros(len(ids), self.width).index_copy(0, to_device(groups, device), pooled)

    def load_weights(self) -> None:
        """Load the weights of `path`, or only check them for a model on the meta device; raises InputError."""
        if self.config.path is None:
            return
        from transformers import AutoModel

        # The pooler is not used here.
        if next(self.model.parameters()).is_meta:
            check_pretrained(AutoModel, _PART, self.config, self._architecture, ignored="pooler.")
            return
        # Memory never holds two copies of the model.
        del self.model
        self.model = keep_encoder(load_pretrained(AutoModel, _PART, self.config, ignored="pooler."))
        self._freeze_model()

    def _project_hidden(self, hidden: Tensor) -> Tensor:
        # The map learns in its own type, mostly float32, while a frozen text model may be bfloat16.
        if isinstance(self.projection, nn.Linear):
            hidden = hidden.to(self.projection.weight.dtype)
        projected: Tensor = self.projection(hidden)
        return projected


def _load_tokenizer(source: str, config: HFTextConfig) -> Any:
    from transformers import AutoTokenizer

    with loading_errors(_PART, source):
        found = AutoTokenizer.from_pretrained(
            source, revision=config.revision, local_files_only=config.local_files_only, trust_remote_code=False
        )
        # For some families transformers builds an empty tokenizer if the file is missing.
        if not found.encode("a", add_special_tokens=False):
            raise ValueError("its tokenizer does not know the letter a")
        check_token_ids(found)
    return found


def _max_length(limited: Any) -> int:
    """Return the most tokens that a configuration or tokenizer allows."""
    found = getattr(limited, "max_position_embeddings", None) or getattr(limited, "model_max_length", None)
    return int(found) if found else 1 << 20


def _load_architecture(config: HFTextConfig, vocab_size: int) -> Any:
    """Read transformers' configuration from `path`, or build it from `config`; raises InputError."""
    from transformers import AutoConfig

    if config.path is not None:
        with loading_errors(_PART, config.path):
            found = AutoConfig.from_pretrained(
                config.path,
                revision=config.revision,
                local_files_only=config.local_files_only,
                trust_remote_code=False,
            )
            check_sizes(found.to_dict())
            if not hasattr(found, "hidden_size"):
                raise ValueError(f"{found.model_type!r} is no text model")
            return found
    # A new model reads the ids of the language model's tokenizer, so its table has as many rows.
    settings = {"vocab_size": vocab_size, "pad_token_id": 0, **config.config}
    family = settings.pop("model_type", None)
    with as_input_error(_BAD_CONFIG, "Correct `config`."):
        check_known_settings(str(family), set(config.config) - {"model_type"}, AutoConfig.for_model(family))
        return AutoConfig.for_model(family, **settings)


def _build_model(architecture: Any, config: HFTextConfig) -> Any:
    """Build the model; weights that will be loaded are not drawn first, which takes minutes for a large one."""
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    is_new = config.path is None
    if config.path is None:
        errors: contextlib.AbstractContextManager[None] = as_input_error(_BAD_CONFIG, "Correct `config`.")
    else:
        errors = loading_errors(_PART, config.path)
    dtype = torch.get_default_dtype() if is_new else getattr(torch, config.dtype)
    with errors, contextlib.nullcontext() if is_new else no_init_weights():
        build: Any = AutoModel.from_config  # untyped
        return keep_encoder(build(architecture, dtype=dtype))
