"""Language model `hf_causal`: any transformers causal LM, pretrained or built from a small config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vilavt_components.language_models import _tokenizer
from vilavt_toolkit.contracts import Frames, LanguageModel
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import language_models, setting


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
    attention: str = setting("sdpa", help="transformers' attention implementation")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", help="type of pretrained weights")
    revision: str | None = setting(None, help="hub revision of `path`")
    local_files_only: bool = setting(False, help="never ask the hub")


@language_models.register("hf_causal", HFCausalConfig)
class HFCausal(LanguageModel):
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
            architecture.vocab_size = max(architecture.vocab_size, len(self.tokenizer))
        text = architecture.get_text_config()
        self.width: int = text.hidden_size
        self.vocab_size: int = architecture.vocab_size
        self.context_length = int(getattr(text, "max_position_embeddings", None) or 1 << 20)
        self.model = _build(architecture, config)

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
        self.model.config.save_pretrained(folder)
        self.tokenizer.backend.save_pretrained(folder)

    def load_weights(self) -> None:
        """Load the pretrained weights of `path`; raises InputError."""
        if self.config.path is None:
            return
        from transformers import AutoModelForCausalLM

        del self.model  # never two copies at once
        with _explained(self.config.path):
            self.model = AutoModelForCausalLM.from_pretrained(
                self.config.path,
                revision=self.config.revision,
                local_files_only=self.config.local_files_only,
                attn_implementation=self.config.attention,
                dtype=getattr(torch, self.config.dtype),
                use_safetensors=True,
            )
        if self.model.config.vocab_size < self.vocab_size:
            self.model.resize_token_embeddings(self.vocab_size)

    def fit_tokenizer(self, corpus: Iterable[str], fixed: Sequence[str]) -> None:
        """Train the tokenizer, unless one was loaded; `fixed` strings become single tokens."""
        if self.config.path is None and self.config.tokenizer is None:
            self._use(_tokenizer.train(corpus, fixed, self.vocab_size, self.config.placeholder))

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


@contextlib.contextmanager
def _explained(path: str) -> Any:
    """Turn transformers' many ways to fail at loading into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"language model {path!r} cannot be loaded: {reason} Give a folder with config.json, safetensors "
            "weights and a tokenizer, or a hub name that is cached or reachable."
        ) from error


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
    try:
        return AutoConfig.for_model(family, **{**special, **settings})
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error).split("\n")[0][:200]
        raise InputError(f"hf_causal: `config` does not build a {family!r} model: {reason}") from error


def _build(architecture: Any, config: HFCausalConfig) -> Any:
    """Build the model; weights that will be loaded are not initialised first."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    kept = torch.get_default_dtype() if config.path is None else getattr(torch, config.dtype)
    with no_init_weights() if config.path is not None else contextlib.nullcontext():
        model = AutoModelForCausalLM.from_config(architecture, attn_implementation=config.attention, dtype=kept)
    return model
