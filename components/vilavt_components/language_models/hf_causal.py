"""Language model `hf_causal`: any transformers causal LM, pretrained or built from a small config."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilavt_components.common.hf_errors import explained
from vilavt_components.language_models.causal_base import CausalConfig, CausalModel, check_settings, mended
from vilavt_toolkit.registry import language_models


@dataclass(frozen=True)
class HFCausalConfig(CausalConfig):
    """Settings of language model `hf_causal`: `path` for a pretrained one, or `config` for one from scratch."""


@language_models.register("hf_causal", HFCausalConfig)
class HFCausal(CausalModel):
    """Any transformers causal LM, with or without a chat template; tokenizer loaded, or trained on the task."""

    label = "hf_causal"

    def __init__(self, config: HFCausalConfig) -> None:
        super().__init__()
        self._check(config)
        architecture = _architecture(config)
        self._begin(architecture.get_text_config())
        self.model = self._windowless(_build(architecture, config))

    @classmethod
    def tiny(cls) -> HFCausalConfig:
        """Return settings of a two-layer Llama from scratch."""
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return HFCausalConfig(config={"model_type": "llama", **small, "max_position_embeddings": 512}, vocab_size=320)

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
                trust_remote_code=False,
                output_loading_info=True,
            )
            # transformers would go on with random ones.
            if missing := sorted(report["missing_keys"]):
                raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} others")
        self._windowless(self.model)
        if self.model.get_input_embeddings().num_embeddings < self.vocab_size:
            self.model.resize_token_embeddings(self.vocab_size)

    def _logits(self, embeddings: Tensor, positions: Tensor, mask: Any, cache: Any, last: int | None) -> Tensor:
        output = self.model(
            inputs_embeds=embeddings,
            position_ids=positions[0],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=last or 0,
        )
        logits: Tensor = output.logits
        return logits


def _explained(path: str) -> contextlib.AbstractContextManager[None]:
    advice = "give a folder with config.json, safetensors weights and a tokenizer, or a hub name in reach or cached."
    return explained(f"language model {path!r} cannot be loaded", advice, path)


def _architecture(config: HFCausalConfig) -> Any:
    """Read or build transformers' configuration."""
    from transformers import AutoConfig

    if config.path is not None:
        with _explained(config.path):
            return AutoConfig.from_pretrained(
                config.path,
                revision=config.revision,
                local_files_only=config.local_files_only,
                trust_remote_code=False,
            )
    settings = {"vocab_size": config.vocab_size, "use_cache": False, **config.config}
    family = settings.pop("model_type", None)
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    with mended("hf_causal"):
        known = AutoConfig.for_model(family)
        check_settings(str(family), set(config.config) - {"model_type"}, known)
        return AutoConfig.for_model(family, **{**special, **settings})


def _build(architecture: Any, config: HFCausalConfig) -> Any:
    """Build the model; weights that will be loaded are not initialised first."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    kept = torch.get_default_dtype() if config.path is None else getattr(torch, config.dtype)
    start = no_init_weights() if config.path is not None else contextlib.nullcontext()
    with _explained(config.path) if config.path is not None else mended("hf_causal"), start:
        build: Any = AutoModelForCausalLM.from_config  # untyped
        model = build(architecture, attn_implementation=config.attention, dtype=kept)
    model.tie_weights()  # left out where initialisation is
    return model
