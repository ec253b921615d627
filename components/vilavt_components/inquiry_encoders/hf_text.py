"""Inquiries read by a text model of transformers: decoders such as Qwen3-Embedding, or encoders such as BERT."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vilavt_components.common.hf_errors import explained
from vilavt_components.common.precision import KeepsFrequencies
from vilavt_toolkit.contracts import InquiryEncoder, LanguageModel
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.packed.tokens import runs, to_device
from vilavt_toolkit.registry import inquiry_encoders
from vilavt_toolkit.settings import did_you_mean, setting


@dataclass(frozen=True)
class HFTextConfig:
    """Settings of inquiry encoder `hf_text`: `path` for a pretrained text model, or `config` for a new one."""

    path: str | None = setting(
        None, help="hub name or local folder of a text model and its tokenizer", replaces=("config", "end_token")
    )
    config: dict[str, Any] = setting(
        factory=dict,
        help="new instead: `model_type` and that family's transformers settings; reads the language model's tokens",
        replaces=("path", "revision"),
    )
    tokenizer: str | None = setting(
        None,
        help="folder or hub name of the tokenizer; null: `path`'s, else the language model's, which should then know "
        "the text model's tokens by the same ids",
        replaces=("end_token",),
    )
    end_token: str = setting(
        "",
        help="token put behind an inquiry read by the language model's tokenizer; Qwen3-Embedding's is <|endoftext|>",
    )
    frozen: bool = setting(False, help="leave the text model as it is, and train the linear map behind it alone")
    width: int = setting(0, help="width of the features after a linear map; 0: the model's own, no map", minimum=0)
    max_tokens: int = setting(50, help="tokens of an inquiry that are read; longer ones are cut", minimum=1)
    pooling: Literal["mean", "last"] = setting("mean", help="what stands for the whole inquiry: mean or last token")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", help="type of pretrained weights")
    revision: str | None = setting(None, help="hub revision of `path`")
    local_files_only: bool = setting(False, help="never ask the hub")


@inquiry_encoders.register("hf_text", HFTextConfig)
class HFTextInquiryEncoder(KeepsFrequencies, InquiryEncoder):
    """Last hidden states of any transformers text model, then a linear map (the paper's: Qwen3-Embedding)."""

    def __init__(self, config: HFTextConfig, language_model: LanguageModel) -> None:
        super().__init__()
        if bool(config.path) == bool(config.config):
            raise InputError("hf_text: set exactly one of `path` (pretrained) and `config` (new).")
        self.config = config
        # In a tuple, so that the language model is not registered, and saved, a second time here.
        self._language_model = (language_model,)
        source = config.tokenizer or config.path
        self.tokenizer = None if source is None else _tokenizer(source, config)
        self._architecture = architecture = _architecture(config, language_model.vocab_size)
        self.model = _build(architecture, config)
        self._causal = _is_causal(self.model)
        self.max_tokens = min(config.max_tokens, _longest(architecture), _longest(self.tokenizer))
        own: int = architecture.hidden_size
        self.width = config.width or own
        self.projection = nn.Linear(own, config.width) if config.width else nn.Identity()
        self._freeze()

    @classmethod
    def from_saved(cls, config: Any, language_model: LanguageModel, folder: Path) -> HFTextInquiryEncoder:
        """Build it with the architecture and tokenizer that `save_assets` wrote, if it did; weights come after."""
        if (folder / "config.json").is_file():
            config = replace(config, path=str(folder), config={}, tokenizer=None, revision=None, local_files_only=True)
        return cls(config, language_model)

    def save_assets(self, folder: Path) -> None:
        """Write architecture and tokenizer where it has a tokenizer of its own; else the settings say all."""
        if self.tokenizer is not None:
            self._architecture.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def _freeze(self) -> None:
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
        """Return settings of an encoder, with its own width."""
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        bert = {"model_type": "bert", **small, "initializer_range": 0.2, "max_position_embeddings": 64}
        return {"encoder": HFTextConfig(config=bert, pooling="last")}

    def tokenize(self, text: str) -> list[int]:
        """Token ids of the stripped text, at most `max_tokens`; with the marks that the model's own tokenizer sets."""
        text = text.strip()
        if not text:
            return []
        if self.tokenizer is None:
            return self._with_end(self._language_model[0].tokenizer, text)
        ids: list[int] = self.tokenizer.encode(text, truncation=True, max_length=self.max_tokens)
        return ids

    def _with_end(self, tokenizer: Any, text: str) -> list[int]:
        """Ids by the language model's tokenizer, `end_token` behind them."""
        end = tokenizer.encode(self.config.end_token) if self.config.end_token else []
        if self.config.end_token and len(end) != 1:
            raise InputError(
                f"hf_text: `end_token` {self.config.end_token!r} is {len(end)} tokens to the language model's "
                "tokenizer; name one that it has, or give the text model's own in `tokenizer`."
            )
        return [*tokenizer.encode(text)[: self.max_tokens - len(end)], *end]

    def words(self, ids: Sequence[int]) -> list[str]:
        """The text of every token."""
        tokenizer = self.tokenizer or self._language_model[0].tokenizer
        return [tokenizer.decode([token]) for token in ids]

    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Features of all tokens [T, D] and their mean, or last, per group [G, D], zero where empty."""
        device = next(self.model.parameters()).device
        groups = [group for group, tokens in enumerate(ids) if tokens]
        if not groups:
            nothing = self._project(next(self.model.parameters()).new_zeros(0, self.model.config.hidden_size))
            return nothing, nothing.new_zeros(len(ids), self.width)
        lengths = [len(ids[group]) for group in groups]
        features = self._project(self._read([ids[group] for group in groups], device))  # [N, L, D]
        starts = [row * features.shape[1] for row in range(len(groups))]
        packed = features.flatten(0, 1).index_select(0, to_device(runs(starts, lengths), device))
        if self.config.pooling == "last":
            ends = [start + length - 1 for start, length in zip(starts, lengths, strict=True)]
            pooled = features.flatten(0, 1).index_select(0, to_device(ends, device))
        else:
            count = to_device(lengths, device).unsqueeze(1)
            real = torch.arange(features.shape[1], device=device) < count
            pooled = torch.where(real.unsqueeze(-1), features, 0).sum(1) / count
        return packed, pooled.new_zeros(len(ids), self.width).index_copy(0, to_device(groups, device), pooled)

    def load_weights(self) -> None:
        """Load the pretrained weights of `path`; raises InputError."""
        if self.config.path is None:
            return
        from transformers import AutoModel

        del self.model  # never two copies at once
        with _explained(self.config.path):
            read: Any = AutoModel.from_pretrained  # untyped
            model, report = read(
                self.config.path,
                revision=self.config.revision,
                local_files_only=self.config.local_files_only,
                dtype=getattr(torch, self.config.dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            # transformers would go on with random ones. The pooler is not used here.
            missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
            if missing:
                raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} others")
        self.model = _reader(model)
        self._freeze()

    def _project(self, hidden: Tensor) -> Tensor:
        if isinstance(self.projection, nn.Linear):
            hidden = hidden.to(self.projection.weight.dtype)
        projected: Tensor = self.projection(hidden)
        return projected

    def _read(self, ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Last hidden states of N inquiries, none of them empty; [N, longest, D]."""
        longest = max(len(tokens) for tokens in ids)
        pad = self.model.config.pad_token_id or 0
        padded = torch.tensor([[*tokens, *[pad] * (longest - len(tokens))] for tokens in ids], device="cpu")
        dtype = next(self.model.parameters()).dtype
        mask = _mask([len(tokens) for tokens in ids], longest, self._causal, dtype)
        output = self.model(
            input_ids=padded.to(device, non_blocking=True), attention_mask=mask.to(device, non_blocking=True)
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def _mask(lengths: Sequence[int], longest: int, causal: bool, dtype: torch.dtype) -> Tensor:
    """What is added to attention logits; [N, 1, L, L]. A mask of two axes transformers would look into, and wait."""
    places = torch.arange(longest, device="cpu")
    seen = (places < torch.tensor(lengths, device="cpu").unsqueeze(1)).view(-1, 1, 1, longest)
    if causal:
        seen = seen & (places <= places.unsqueeze(1))
    hidden = torch.zeros((), dtype=dtype, device="cpu").masked_fill(~seen, torch.finfo(dtype).min)
    return hidden.expand(-1, -1, longest, -1)


def _is_causal(model: Any) -> bool:
    """Whether tokens see only those before them: as the configuration says, else as the attention modules do."""
    told = getattr(model.config, "is_causal", None)
    return any(getattr(module, "is_causal", False) for module in model.modules()) if told is None else bool(told)


def _explained(path: str) -> contextlib.AbstractContextManager[None]:
    advice = "give a folder with config.json, safetensors weights and a tokenizer, or a hub name in reach or cached."
    return explained(f"text model {path!r} cannot be loaded", advice, path)


def _tokenizer(source: str, config: HFTextConfig) -> Any:
    from transformers import AutoTokenizer

    with _explained(source):
        found = AutoTokenizer.from_pretrained(
            source, revision=config.revision, local_files_only=config.local_files_only, trust_remote_code=False
        )
        # Without a file transformers makes an empty one for some families.
        if not found.encode("a", add_special_tokens=False):
            raise ValueError("its tokenizer does not know the letter a")
    return found


def _longest(limited: Any) -> int:
    """Most tokens that a configuration or tokenizer allows."""
    found = getattr(limited, "max_position_embeddings", None) or getattr(limited, "model_max_length", None)
    return int(found) if found else 1 << 20


def _architecture(config: HFTextConfig, vocab_size: int) -> Any:
    """Read or build transformers' configuration."""
    from transformers import AutoConfig

    if config.path is not None:
        with _explained(config.path):
            found = AutoConfig.from_pretrained(
                config.path,
                revision=config.revision,
                local_files_only=config.local_files_only,
                trust_remote_code=False,
            )
            if not hasattr(found, "hidden_size"):
                raise ValueError(f"{found.model_type!r} is no text model")
            return found
    settings = {"vocab_size": vocab_size, "pad_token_id": 0, **config.config}
    family = settings.pop("model_type", None)
    with explained("hf_text: `config` builds no text model", "mend `config`."):
        known = AutoConfig.for_model(family)
        # transformers keeps what it does not know, and a misspelt setting would do nothing.
        for key in set(config.config) - {"model_type"}:
            if not hasattr(known, key):
                raise ValueError(f"{family!r} has no setting {key!r}.{did_you_mean(key, tuple(known.to_dict()))}")
        return AutoConfig.for_model(family, **settings)


def _build(architecture: Any, config: HFTextConfig) -> Any:
    """Build the model; weights that will be loaded are not initialised first."""
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    new = config.path is None
    why = explained("hf_text: `config` builds no text model", "mend `config`.") if new else _explained(str(config.path))
    dtype = torch.get_default_dtype() if new else getattr(torch, config.dtype)
    with why, contextlib.nullcontext() if new else no_init_weights():
        build: Any = AutoModel.from_config  # untyped
        return _reader(build(architecture, dtype=dtype))


def _reader(model: Any) -> Any:
    """The part of a model that reads: the encoder of a pair, without what pools for other purposes."""
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.config.use_cache = False
    return model
