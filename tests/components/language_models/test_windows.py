"""Layers that slide see their window and the others all, as in transformers' own generation from its cache."""

from __future__ import annotations

import pytest
import torch

from vilavt_components.language_models import qwen2_5_vl
from vilavt_components.language_models.hf_causal import HFCausal, HFCausalConfig
from vilavt_components.language_models.qwen2_5_vl import Qwen25VLLanguageConfig, Qwen25VLLanguageModel
from vilavt_toolkit.generation.kv_cache import KVCache
from vilavt_toolkit.registry import language_models
from vilavt_toolkit.testing import bench

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SMALL |= {"max_position_embeddings": 128, "initializer_range": 0.3, "sliding_window": 6}
BOTH = ["sliding_attention", "full_attention"]
FAMILIES = {
    "gemma3_text": {**SMALL, "num_hidden_layers": 3, "layer_types": [*BOTH, "sliding_attention"]},
    "gpt_oss": {**SMALL, "num_hidden_layers": 2, "layer_types": BOTH, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mistral": {**SMALL, "num_hidden_layers": 2},
    "qwen2": {**SMALL, "num_hidden_layers": 3, "use_sliding_window": True, "max_window_layers": 1},
}


def build(family: str) -> HFCausal:
    settings = {key: value for key, value in FAMILIES[family].items() if family != "qwen2" or key != "head_dim"}
    config = HFCausalConfig(config={"model_type": family, **settings}, vocab_size=320)
    return bench.build_language_model(language_models.get("hf_causal"), config)


@torch.no_grad()
def generate(model: HFCausal, prompts: list[torch.Tensor], count: int) -> list[list[int]]:
    """Generate greedily, with all prompts in one cache."""
    cache, new = KVCache(len(prompts), torch.device("cpu")), prompts
    said: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for _ in range(count):
        counts = [len(ids) for ids in new]
        length = max(counts)
        padded = torch.stack([torch.nn.functional.pad(ids, (length - len(ids), 0), value=1) for ids in new])
        mask = torch.arange(length) >= length - torch.tensor(counts)[:, None]
        positions = (mask.cumsum(1) - 1).clamp(min=0) + torch.tensor(cache.next_positions)[:, None]
        update = cache.prepare_update(rows, counts, torch.float32)
        tokens = model(model.embed(padded), positions[None], mask, update, last=1)[:, -1].argmax(-1)
        cache.commit(rows, counts, [at + n for at, n in zip(cache.next_positions, counts, strict=True)])
        new = [tokens[row : row + 1] for row in rows]
        for row in rows:
            said[row].append(int(tokens[row]))
    return said


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_transformers_own_with_its_own_cache(family):
    model = build(family)
    assert model.context_length == 128, "the window does not end the context"
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 280, (length,), generator=generator) for length in (15, 4)]
    never = [model.placeholder, *range(len(model.tokenizer), model.vocab_size)]
    for prompt, said in zip(prompts, generate(model, prompts, 12), strict=True):
        expected = model.model.generate(
            prompt[None], max_new_tokens=12, do_sample=False, eos_token_id=None, use_cache=True, suppress_tokens=never
        )
        assert said == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padding_does_not_shorten_a_window(family):
    model = build(family)
    ids = torch.randint(5, 280, (1, 20), generator=torch.Generator().manual_seed(1))
    alone = model.model(input_ids=ids).logits
    mask = torch.ones(1, 30, dtype=torch.bool)
    mask[:, 4:14] = False
    holed = torch.ones(1, 30, dtype=torch.long)
    holed[mask] = ids[0]
    found = model(model.embed(holed), (mask.cumsum(1) - 1)[None], mask)[mask]
    bench.assert_close(found[:, found[0].isfinite()], alone[0][:, found[0].isfinite()], family, 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_keeps_its_window(family, tmp_path):
    model = build(family)
    model.save_assets(tmp_path)
    assert HFCausal.from_saved(model.config, tmp_path).model.config.sliding_window == 6


@torch.no_grad()
def test_windows_are_right_where_kernels_for_causal_attention_are(monkeypatch):
    config = Qwen25VLLanguageConfig(config={**Qwen25VLLanguageModel.variants()["windows"].config, "sliding_window": 5})
    model = bench.build_language_model(language_models.get("qwen2_5_vl"), config)
    embeddings = torch.randn(2, 14, model.width, generator=torch.Generator().manual_seed(0))
    whole = model(embeddings, torch.arange(14).expand(3, 2, -1), torch.ones(2, 14).bool())[..., : len(model.tokenizer)]
    for kernels in ((), ("cpu",)):
        monkeypatch.setattr(qwen2_5_vl, "_CAUSAL_KERNELS", kernels)
        cache, found = KVCache(2, torch.device("cpu")), []
        for first, last in ((0, 8), (8, 13), (13, 14)):
            count = last - first
            update = cache.prepare_update([0, 1], [count] * 2, torch.float32)
            positions = torch.arange(first, last).expand(3, 2, -1)
            found.append(model(embeddings[:, first:last], positions, torch.ones(2, count).bool(), update))
            cache.commit([0, 1], [count] * 2, [last] * 2)
        said = torch.arange(len(model.tokenizer)) != model.placeholder
        logits = torch.cat(found, 1)[..., : len(model.tokenizer)]
        bench.assert_close(logits[..., said], whole[..., said], f"kernels {kernels}", 1e-4)
