"""Several dialogues in a row: each has its own logits and gradients, in every kind of layer, or the row is refused."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vilavt_components.language_models.hf_causal import HFCausal, HFCausalConfig
from vilavt_components.language_models.qwen2_5_vl import Qwen25VLLanguageConfig
from vilavt_toolkit.registry import language_models
from vilavt_toolkit.testing import bench

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"max_position_embeddings": 128, "initializer_range": 0.3, "num_hidden_layers": 2}
HEADS = {**SMALL, "head_dim": 8}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
CHUNKS = {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 6, "num_local_experts": 2}
FAMILIES = {
    "llama": HEADS,
    "qwen2": SMALL,
    "mistral": {**HEADS, "sliding_window": 6},
    "gemma3_text": {**HEADS, **BOTH},
    "gemma2": {**HEADS, **BOTH, "attn_logit_softcapping": 20.0},
    "gpt_oss": {**HEADS, **BOTH, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {**HEADS, **CHUNKS, "intermediate_size_mlp": 48},
    "deepseek_v3": {**SMALL, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
    | {"num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8}
    | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
LENGTHS = (15, 1, 9, 23)


def build(family: str, attention: str | None = None) -> HFCausal:
    config = HFCausalConfig(config={"model_type": family, **FAMILIES[family]}, vocab_size=320, attention=attention)
    return bench.build_language_model(language_models.get("hf_causal"), config)


def dialogues(model) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 280, (1, length), generator=generator) for length in LENGTHS]


def positions(model, length: int) -> torch.Tensor:
    # With a region, whose features stand at the same time, beginning at another column in each dialogue.
    regions = [(length // 3, (2, 3))] if length > 8 else []
    return model.positions(length, regions)[:, None]


def read(model, ids: list[torch.Tensor], documents: bool) -> torch.Tensor:
    row = torch.cat(ids, dim=1)
    where = torch.cat([positions(model, part.shape[1]) for part in ids], dim=2)
    options = {"documents": [part.shape[1] for part in ids]} if documents else {}
    logits = model(model.embed(row), where, torch.ones_like(row, dtype=torch.bool), **options)
    return logits.masked_fill(logits == float("-inf"), 0)


def gradients(model, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    logits.square().sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_equal_to_alone(model) -> None:
    ids = dialogues(model)
    alone = torch.cat([read(model, [part], False) for part in ids], dim=1)
    expected = gradients(model, alone)
    together = read(model, ids, True)
    found = gradients(model, together)
    assert (together - alone).norm() <= 1e-5 * alone.norm()
    # Another answer would show: the row as one dialogue.
    assert (read(model, ids, False) - alone).norm() > 1e-2 * alone.norm()
    assert found.keys() == expected.keys() and len(expected) > 5
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_dialogues_of_a_row_have_the_logits_and_gradients_of_each_alone(family):
    model = build(family)
    assert model.describe_packing_problem() == ""
    assert_equal_to_alone(model)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_eager_attention_keeps_them_apart_too(family):
    assert_equal_to_alone(build(family, "eager"))


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": True}, WINDOWS], ids=["plain", "tied", "windows"])
def test_positions_with_three_axes_and_windows_of_qwen2_5_vl_are_each_dialogues_own(change):
    config = Qwen25VLLanguageConfig(config={**SMALL, **change}, vocab_size=320)
    model = bench.build_language_model(language_models.get("qwen2_5_vl"), config)
    assert model.describe_packing_problem() == "" and model.axes == 3
    assert_equal_to_alone(model)


def test_layers_that_are_computed_again_in_the_backward_pass_know_their_dialogues():
    model = build("gemma3_text")
    ids = dialogues(model)
    expected = gradients(model, read(model, ids, True))
    for layer in model.model.model.layers:
        plain = layer.forward
        layer.forward = lambda *values, plain=plain, **more: checkpoint(plain, *values, use_reentrant=False, **more)
    logits = read(model, ids, True)
    # Something else is read between the two passes, as a validation would.
    with torch.no_grad():
        read(model, ids[:1], False)
    found = gradients(model, logits)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_model_that_has_read_such_rows_reads_all_else_as_before_and_is_saved(tmp_path):
    model, other = build("gemma3_text"), build("gemma3_text")
    read(model, dialogues(model), True)
    ids = torch.cat(dialogues(model)[::3], dim=1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 7:12] = False
    where = (mask.cumsum(1) - 1)[None]
    found, expected = (each(each.embed(ids), where, mask) for each in (model, other))
    assert torch.equal(found, expected)
    model.save_assets(tmp_path)
    assert "vilavt_documents" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "from transformers' own"),
        ("stablelm", {**SMALL, "num_key_value_heads": 4}, "fail: RuntimeError"),
        (
            "llama",
            {**HEADS, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "its rotary positions 'dynamic' follow the longest dialogue of a row",
        ),
    ],
    ids=["gptj", "stablelm", "dynamic"],
)
def test_families_that_would_mix_dialogues_say_why_they_take_no_such_row(family, settings, reason):
    model = HFCausal(HFCausalConfig(config={"model_type": family, **settings}, vocab_size=320))
    assert reason in model.describe_packing_problem()


def test_attention_that_cannot_be_split_says_why():
    model = build("llama")
    model.model.config._attn_implementation = "flash_attention_2"
    assert "use 'sdpa'" in model.describe_packing_problem()
