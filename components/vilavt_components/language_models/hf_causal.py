"""Language model `hf_causal`: any transformers causal LM, pretrained or built from a small config."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vilavt_components.language_models import _tokenizer
from vilavt_components.language_models._precision import KeepsFrequencies
from vilavt_toolkit.contracts import Frames, LanguageModel
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import did_you_mean, language_models, setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HFCausalConfig:
    """Settings of language model `hf_causal`: `path` for a pretrained one, or `config` for one from scratch."""

    path: str | None = setting(None, help="hub name or local folder of a pretrained causal LM")
    config: dict[str, Any] = setting(
        factory=dict, help="from scratch instead: `model_type` and that family's transformers settings"
    )
    vocab_size: int = setting(1024, help="from scratch: at most so many tokens, trained on the task", minimum=300)
    tokenizer: str | None = setting(None, help="tokenizer to use instead of `path`'s or a trained one")
    placeholder: str = setting("<|feature|>", help="token that stands where a feature goes; added if missing")
    attention: str | None = setting(None, help="transformers' attention implementation; null: its own choice")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", help="type of pretrained weights")
    revision: str | None = setting(None, help="hub revision of `path`")
    local_files_only: bool = setting(False, help="never ask the hub")


@language_models.register("hf_causal", HFCausalConfig)
class HFCausal(KeepsFrequencies, LanguageModel):
    """Any transformers causal LM, with or without a chat template; tokenizer loaded, or trained on the task."""

    def __init__(self, config: HFCausalConfig) -> None:
        super().__init__()
        if bool(config.path) == bool(config.config):
            raise InputError("hf_causal: set exactly one of `path` (pretrained) and `config` (from scratch).")
        self.config = config
        architecture = _architecture(config)
        source = config.tokenizer or config.path
        if source is not None:
            self._use(_tokenizer.load(source, config.placeholder, config.revision, config.local_files_only))
        text = architecture.get_text_config()
        if source is not None:
            text.vocab_size = max(text.vocab_size, len(self.tokenizer))
        self.width: int = text.hidden_size
        self.vocab_size: int = text.vocab_size
        self.context_length = int(getattr(text, "max_position_embeddings", None) or 1 << 20)
        # transformers slides its windows over columns, padding counted. Within one window there is no sliding.
        self._window: int | None = getattr(text, "sliding_window", None)
        if self._window and self._window < self.context_length:
            log.warning("attention slides over %d tokens; the context ends there.", self._window)
            self.context_length = self._window
        self.model = self._windowless(_build(architecture, config))

    @classmethod
    def tiny(cls) -> HFCausalConfig:
        """Return settings of a two-layer Llama from scratch."""
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return HFCausalConfig(config={"model_type": "llama", **small, "max_position_embeddings": 512}, vocab_size=320)

    @classmethod
    def from_saved(cls, config: HFCausalConfig, folder: Path) -> HFCausal:
        """Build the model with the architecture and tokenizer that `save_assets` wrote; weights come after."""
        return cls(replace(config, path=str(folder), config={}, tokenizer=None, revision=None, local_files_only=True))

    def save_assets(self, folder: Path) -> None:
        """Write the architecture and the tokenizer into `folder`."""
        config = copy.deepcopy(self.model.config)
        if self._window:
            config.get_text_config().sliding_window = self._window
        config.save_pretrained(folder)
        self.tokenizer.backend.save_pretrained(folder)

    def load_weights(self) -> None:
        """Load the pretrained weights of `path`; raises InputError."""
        if self.config.path is None:
            return
        from transformers import AutoModelForCausalLM

        del self.model  # never two copies at once
        with _explained(self.config.path):
            read: Any = AutoModelForCausalLM.from_pretrained  # untyped
            self.model, report = read(
                self.config.path,
                revision=self.config.revision,
                local_files_only=self.config.local_files_only,
                attn_implementation=self.config.attention,
                dtype=getattr(torch, self.config.dtype),
                use_safetensors=True,
                output_loading_info=True,
            )
            # transformers would go on with random ones.
            if missing := sorted(report["missing_keys"]):
                raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} others")
        self._windowless(self.model)
        if self.model.get_input_embeddings().num_embeddings < self.vocab_size:
            self.model.resize_token_embeddings(self.vocab_size)

    def _windowless(self, model: Any) -> Any:
        if self._window:
            model.config.get_text_config().sliding_window = 1 << 30
        return model

    def fit_tokenizer(self, corpus: Iterable[str], fixed: Sequence[str]) -> None:
        """Train the tokenizer, unless one was loaded; `fixed` strings become single tokens."""
        if self.config.path is None and self.config.tokenizer is None:
            trained = _tokenizer.train(corpus, fixed, self.vocab_size, self.config.placeholder)
            if len(trained) > self.vocab_size:
                raise InputError(
                    f"hf_causal: bytes and grammar strings alone are {len(trained)} tokens; set vocab_size to more "
                    f"than its {self.vocab_size}."
                )
            self._use(trained)

    def _use(self, tokenizer: _tokenizer.HFTokenizer) -> None:
        self.tokenizer: _tokenizer.HFTokenizer = tokenizer
        self.frames: Frames = tokenizer.frames
        self.end_of_turn, self.placeholder = tokenizer.end_of_turn, tokenizer.placeholder

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings; [...] -> [..., D]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def forward(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, last: int | None = None
    ) -> Tensor:
        """Logits [B, L, V] of new columns [B, L, D]; see the contract."""
        output = self.model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=last or 0,
        )
        logits: Tensor = output.logits
        # Neither a placeholder nor a row without a token can be said, in sampling or in training.
        logits[..., self.placeholder] = float("-inf")
        logits[..., len(self.tokenizer) :] = float("-inf")
        return logits

    def new_cache(self) -> Any:
        """Return an empty cache."""
        from transformers import DynamicCache

        return DynamicCache()

    def select_cache(self, cache: Any, rows: Tensor) -> None:
        """Keep only `rows` of the cache, in place."""
        cache.batch_select_indices(rows)


def _explained(path: str) -> contextlib.AbstractContextManager[None]:
    advice = "Give a folder with config.json, safetensors weights and a tokenizer, or a hub name in reach or cached."
    return _tokenizer.explained(f"language model {path!r} cannot be loaded", advice)


def _mended() -> contextlib.AbstractContextManager[None]:
    return _tokenizer.explained("hf_causal: `config` builds no causal language model", "Mend `config` or `attention`.")


def _architecture(config: HFCausalConfig) -> Any:
    """Read or build transformers' configuration."""
    from transformers import AutoConfig

    if config.path is not None:
        with _explained(config.path):
            return AutoConfig.from_pretrained(
                config.path, revision=config.revision, local_files_only=config.local_files_only
            )
    settings = {"vocab_size": config.vocab_size, "use_cache": False, **config.config}
    family = settings.pop("model_type", None)
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    with _mended():
        known = AutoConfig.for_model(family)
        # transformers keeps what it does not know, and a misspelt setting would do nothing.
        for key in set(config.config) - {"model_type"}:
            if not hasattr(known, key):
                raise ValueError(f"{family!r} has no setting {key!r}.{did_you_mean(key, tuple(known.to_dict()))}")
        return AutoConfig.for_model(family, **{**special, **settings})


def _build(architecture: Any, config: HFCausalConfig) -> Any:
    """Build the model; weights that will be loaded are not initialised first."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    kept = torch.get_default_dtype() if config.path is None else getattr(torch, config.dtype)
    start = no_init_weights() if config.path is not None else contextlib.nullcontext()
    with _explained(config.path) if config.path is not None else _mended(), start:
        build: Any = AutoModelForCausalLM.from_config  # untyped
        model = build(architecture, attn_implementation=config.attention, dtype=kept)
    model.tie_weights()  # left out where initialisation is
    return model
