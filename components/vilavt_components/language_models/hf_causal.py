"""Language model `hf_causal`: a causal LM of transformers that keeps keys and values, pretrained or from scratch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vilavt_components.common.hf_errors import check_known_settings, check_sizes
from vilavt_components.common.hf_weights import check_pretrained, load_pretrained, loading_errors
from vilavt_components.language_models.agreement import describe_mixing, find_logit_scaling, refuse_disagreement
from vilavt_components.language_models.causal_base import CausalConfig, CausalModel, config_errors
from vilavt_components.language_models.norms import use_norms
from vilavt_toolkit.registry import language_models

_PART = "language model"


@dataclass(frozen=True)
class HFCausalConfig(CausalConfig):
    """Settings of language model `hf_causal`: `path` for a pretrained one, or `config` for one from scratch."""


@language_models.register("hf_causal", HFCausalConfig)
class HFCausal(CausalModel):
    """A causal LM of transformers whose state is keys and values; its tokenizer is loaded or trained."""

    label = "hf_causal"

    def __init__(self, config: HFCausalConfig) -> None:
        super().__init__()
        self._check_config(config)
        architecture = _load_architecture(config)
        self._load_tokenizer_and_sizes(architecture.get_text_config())
        refuse_disagreement(self.label, architecture, config.attention)
        self.logit_scaling = find_logit_scaling(architecture, config.attention)
        self.model = _build_model(architecture, config)
        use_norms(config.norms, self.label, self.model)

    @classmethod
    def tiny(cls) -> HFCausalConfig:
        """Return settings of a two-layer Llama from scratch."""
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return HFCausalConfig(config={"model_type": "llama", **small, "max_position_embeddings": 512}, vocab_size=320)

    @classmethod
    def variants(cls) -> Mapping[str, HFCausalConfig]:
        """Return settings of a model in which only some layers slide, and of one with sinks of attention."""
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        small |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "sliding_window": 4}
        mixed = {**small, "layer_types": ["sliding_attention", "full_attention"]}
        sinks = {**mixed, "num_local_experts": 4, "num_experts_per_tok": 2}
        return {
            "windows": HFCausalConfig(config={"model_type": "gemma3_text", **mixed}, vocab_size=320),
            "sinks": HFCausalConfig(config={"model_type": "gpt_oss", **sinks}, vocab_size=320),
        }

    def describe_packing_problem(self) -> str:
        """Return why the model takes no row of several dialogues, or an empty text; a small copy of it is tried."""
        return super().describe_packing_problem() or describe_mixing(self.model.config, self.config.attention)

    def load_weights(self) -> None:
        """Load the weights of `path`, or only check them for a model on the meta device; raises InputError."""
        if self.config.path is None:
            return
        from transformers import AutoModelForCausalLM

        if next(self.model.parameters()).is_meta:
            check_pretrained(AutoModelForCausalLM, _PART, self.config, _load_architecture(self.config))
            return
        # Memory never holds two copies of the model.
        del self.model
        self.model = load_pretrained(
            AutoModelForCausalLM, _PART, self.config, attn_implementation=self.config.attention
        )
        # Tokens that the checkpoint has no row for, as a new placeholder.
        if self.model.get_input_embeddings().num_embeddings < self.vocab_size:
            self.model.resize_token_embeddings(self.vocab_size)
        use_norms(self.config.norms, self.label, self.model)


def _load_architecture(config: CausalConfig) -> Any:
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
            return found
    # The special ids are those of the trained tokenizer (`SPECIAL_TOKENS`); a family's own may lie beyond its size.
    settings = {"vocab_size": config.vocab_size, "use_cache": False, **config.config}
    family = settings.pop("model_type", None)
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    with config_errors("hf_causal"):
        known = AutoConfig.for_model(family)
        check_known_settings(str(family), set(config.config) - {"model_type"}, known)
        return AutoConfig.for_model(family, **{**special, **settings})


def _build_model(architecture: Any, config: HFCausalConfig) -> Any:
    """Build the model; weights that will be loaded are not drawn first, which takes minutes for a large one."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    is_new = config.path is None
    dtype = torch.get_default_dtype() if is_new else getattr(torch, config.dtype)
    errors = config_errors("hf_causal") if config.path is None else loading_errors(_PART, config.path)
    with errors, contextlib.nullcontext() if is_new else no_init_weights():
        build: Any = AutoModelForCausalLM.from_config  # untyped
        model = build(architecture, attn_implementation=config.attention, dtype=dtype)
        # transformers checks the settings again when it saves them: a run would fail at its first checkpoint.
        if is_new and hasattr(model.config, "validate"):
            model.config.validate()
    # Tying is a step of initialisation, and skipped with it.
    model.tie_weights()
    return model
