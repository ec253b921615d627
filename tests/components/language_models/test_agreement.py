"""Architectures that the toolkit cannot read with are refused by name; the others give transformers' own logits."""

from __future__ import annotations

import pytest
import torch

from vilavt_components.common.small_copies import shrink_config
from vilavt_components.language_models.agreement import _build_copy, find_logit_scaling, refuse_disagreement
from vilavt_components.language_models.hf_causal import HFCausal, HFCausalConfig
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.meta import build_on_meta
from vilavt_toolkit.models.saved_activations import recompute_blocks

CONV = ["conv", "conv", "full_attention"]
ROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.1] * 48}
# Settings of published models, as far as they decide how a model reads.
RIGHT = {
    "deepseek_v3": {"n_routed_experts": 256, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3},
    "falcon": {"hidden_size": 4544, "num_attention_heads": 71, "multi_query": True, "alibi": False},
    "gemma3_text": {"num_hidden_layers": 26, "sliding_window": 512, "num_key_value_heads": 1},
    "gpt_oss": {"num_hidden_layers": 24, "sliding_window": 128},
    "llama4_text": {"num_hidden_layers": 48, "attention_chunk_size": 8192},
    "mistral": {"sliding_window": 4096},
    "phi": {"partial_rotary_factor": 0.4},
    "phi3": {"rope_scaling": ROPE, "partial_rotary_factor": 0.75, "num_attention_heads": 24, "num_key_value_heads": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 3},
    "smollm3": {},
}
REFUSED = {
    "mamba2": ({}, "'linear_attention' keep another state"),
    "rwkv": ({}, "from transformers' own"),
    "qwen3_5_text": ({}, "'linear_attention' keep another state"),
    "lfm2": ({"layer_types": [*CONV * 10, "conv", "conv"]}, "'conv' keep another state"),
    "jamba": ({}, "'linear_attention' keep another state"),
    "granitemoehybrid": ({}, "'linear_attention' keep another state"),
    "bloom": ({}, "its logits from the KV cache fail"),
    "falcon": ({"alibi": True, "multi_query": False}, "its logits from the KV cache fail"),
    "bert": ({}, "from transformers' own"),
    "gemma4_text": ({}, "inputs_embeds"),
}


def architecture(family: str, settings: dict[str, object]):
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **settings)


@pytest.mark.parametrize("family", RIGHT)
def test_published_settings_are_read_as_transformers_reads_them(family):
    refuse_disagreement("hf_causal", architecture(family, RIGHT[family]), None)


@pytest.mark.parametrize("family", REFUSED)
def test_an_architecture_with_another_state_is_refused_by_name(family):
    settings, reason = REFUSED[family]
    with pytest.raises(InputError, match=f"models of type '{family}' cannot be used") as caught:
        refuse_disagreement("hf_causal", architecture(family, settings), None)
    assert reason in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", "by_settings"),
        ("gemma2", "by_settings"),
        ("granite", "by_settings"),
        ("cohere", "by_settings"),
        # Its `logits_scaling` divides the hidden states.
        ("minicpm3", "none"),
    ],
)
def test_a_head_is_called_alone_where_the_trial_knows_what_follows_it(family, expected):
    assert find_logit_scaling(architecture(family, {}), None) == expected


@pytest.mark.parametrize(
    "family", ["gpt2", "llama4_text", "modernbert-decoder", "opt", "longcat_flash", "phi4_multimodal"]
)
def test_the_layers_of_a_family_are_found_and_can_be_computed_again(family):
    with torch.no_grad():
        copy = _build_copy(architecture(family, {}), None)
    columns = torch.randn(1, 6, copy.width)
    found = []
    for every in (0, 1):
        copy.zero_grad()
        with recompute_blocks(copy.blocks, every):
            states = copy.run_layers(columns, torch.arange(6)[None, None], torch.ones(1, 6, dtype=torch.bool))
        states.sum().backward()
        found.append([weight.grad for weight in copy.blocks[0].parameters() if weight.grad is not None])
    assert len(copy.blocks) > 1 and found[0]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_head_with_something_unknown_behind_it_is_never_called_alone(monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def squashed(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = torch.asinh(output.logits)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", squashed)
    config = HFCausalConfig(config={**HFCausal.tiny().config, "hidden_size": 40}, vocab_size=320)
    model = HFCausal(config)
    assert model.logit_scaling == "unknown"
    model.fit_tokenizer(["a"], [])
    columns, mask = model.embed(torch.tensor([[3, 4, 5]])), torch.ones(1, 3, dtype=torch.bool)
    states = model.run_layers(columns, torch.arange(3)[None, None], mask)
    found = model.compute_logits(states[0, 1:2])
    assert torch.equal(found[0], model(columns, torch.arange(3)[None, None], mask)[0, 1])


def test_a_refused_family_builds_no_language_model():
    small = {"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
    with pytest.raises(InputError, match=r"'rwkv' cannot be used .*language-models\.md"):
        HFCausal(HFCausalConfig(config=small))


def test_the_trial_changes_no_random_number_and_works_while_weights_have_no_memory():
    torch.manual_seed(3)
    config = HFCausalConfig(config={**HFCausal.tiny().config, "hidden_size": 48}, vocab_size=320)
    first = HFCausal(config).state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(value, first[name]) for name, value in HFCausal(config).state_dict().items())
    other = HFCausalConfig(config={**HFCausal.tiny().config, "hidden_size": 56}, vocab_size=320)
    assert next(build_on_meta(lambda: HFCausal(other)).parameters()).is_meta


def test_a_small_copy_has_every_type_of_layer_and_short_windows():
    small = shrink_config(architecture("gemma3_text", RIGHT["gemma3_text"]))
    assert set(small.layer_types) == {"sliding_attention", "full_attention"} and small.num_hidden_layers == 6
    assert small.sliding_window == 6 and small.num_key_value_heads == 1
