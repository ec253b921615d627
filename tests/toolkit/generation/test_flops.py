"""The count of operations: that of torch's FlopCounterMode, with attention that is causal and within windows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.contracts import Decision, Region
from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.generation.kv_cache import KVCache


@pytest.fixture(params=["tiny_model", "mrope_model"])
def chat_model(request):
    """A model with fewer heads for keys than for queries, and one with biases and M-RoPE."""
    return request.getfixturevalue(request.param)


def attention(model, sizes, groups=None) -> float:
    """Operations of encoding views of these sizes beside those of matrices."""
    costs = CostCounter(model)
    found = costs.encoding_cost([SimpleNamespace(size=size) for size in sizes], groups)
    return found.flops - 2.0 * (costs._encoder_weights * found.patches + costs._projector_weights * found.features)


def counted(forward) -> tuple[int, int]:
    """What torch counts of a call: all its operations, and those of attention."""
    # Other kernels of attention are not counted on every device; this one is matrix products, full and not causal.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        forward()
    found = counter.get_flop_counts()["Global"]
    return counter.get_total_flops(), found.get(torch.ops.aten.bmm, 0)


def read(model, cache: KVCache, count: int) -> None:
    """Read so many tokens behind what a cache holds, with the logits of the last."""
    language_model, held = model.language_model, cache.lengths[0]
    ids = torch.arange(1, count + 1)[None]
    embedded = language_model.embed(ids)
    positions = torch.arange(held, held + count).expand(language_model.axes, 1, -1)
    update = cache.prepare_update([0], [count], embedded.dtype)
    language_model(embedded, positions, torch.ones_like(ids, dtype=torch.bool), update, last=1)
    cache.commit([0], [count], [held + count])


@pytest.mark.parametrize("prefix", [0, 1, 7, 40])
def test_a_token_costs_what_torch_counts(chat_model, prefix):
    cache = KVCache(1, torch.device("cpu"))
    if prefix:
        counted(lambda: read(chat_model, cache, prefix))
    total, _ = counted(lambda: read(chat_model, cache, 1))
    assert CostCounter(chat_model).reading_flops(1, prefix) == total


@pytest.mark.parametrize(("prefix", "tokens"), [(0, 2), (0, 9), (7, 5)])
def test_tokens_read_at_once_cost_what_torch_counts_of_causal_attention(chat_model, prefix, tokens):
    cache = KVCache(1, torch.device("cpu"))
    if prefix:
        counted(lambda: read(chat_model, cache, prefix))
    total, full = counted(lambda: read(chat_model, cache, tokens))
    pairs = sum(prefix + number for number in range(1, tokens + 1))
    causal = full * pairs / (tokens * (prefix + tokens))
    assert CostCounter(chat_model).reading_flops(tokens, prefix) == total - full + causal


def test_tokens_read_at_once_cost_what_they_cost_one_by_one(chat_model):
    costs = CostCounter(chat_model)
    assert costs.reading_flops(9, 4, 9) == sum(costs.reading_flops(1, 4 + number) for number in range(9))


def test_an_encoder_and_its_projector_cost_what_torch_counts(tiny_model, picture):
    source = tiny_model.open_source(picture(0))
    views = [tiny_model.prepare(region) for region in (Region(source), Region(source, (0, 0, 32, 32)))]
    total, _ = counted(lambda: tiny_model.encode(views, [0, 1], [(), ()]))
    found = CostCounter(tiny_model).encoding_cost(views)
    # Without an inquiry modulators do not run, and a table of positions is added. The weights of both are counted.
    modulators = [weight for weight in tiny_model.vision.modulators.parameters() if weight.dim() > 1]
    tables = [weight for name, weight in tiny_model.vision.backbone.named_parameters() if name.endswith("pos_embed")]
    assert modulators and tables
    beside = sum(weight.numel() for weight in (*modulators, *tables))
    assert found.flops - 2.0 * beside * found.patches == total


def test_attention_within_windows_costs_what_torch_counts(mrope_model, picture):
    source = mrope_model.open_source(picture(0))
    views = [mrope_model.prepare(region) for region in (Region(source), Region(source, (0, 0, 32, 32)))]
    sizes = [view.size for view in views]
    assert len(set(sizes)) == 2
    _, expected = counted(lambda: mrope_model.encode(views, [0, 1], [(), ()]))
    assert attention(mrope_model, sizes) == expected


def test_attention_within_windows_is_counted_within_windows(mrope_model):
    encoder = mrope_model.vision.backbone
    widths = [block.width for block in encoder.spec.blocks]
    # Modulated by FiLM; block 0 attends within windows of 4 x 4 patches, block 1 over 16 x 16.
    assert encoder.block_partition(0) != encoder.block_partition(1)
    assert attention(mrope_model, [(16, 16)]) == 4 * (widths[0] * 16 * 16**2 + widths[1] * 256**2)


def test_regions_that_do_not_see_each_other_cost_what_they_cost_alone(mrope_model):
    alone = attention(mrope_model, [(8, 8)])
    assert attention(mrope_model, [(8, 8)] * 3) == attention(mrope_model, [(8, 8)] * 3, [0, 0, 0]) == 3 * alone


def test_a_block_under_joint_attention_attends_over_its_inquiry_group_and_no_other_block_does(_tiny_folder):
    joint = ["model.modulator={name: joint_attention}", "model.integration=[1]"]
    model = build(_tiny_folder / "tiny.yaml", joint)
    alone, together = 4 * 32 * (16**2 + 4**2), 4 * 32 * (16 + 4) ** 2
    assert attention(model, [(4, 4), (2, 2)], [0, 0]) == alone + together
    assert attention(model, [(4, 4), (2, 2)], [0, 1]) == attention(model, [(4, 4), (2, 2)]) == 2 * alone


def test_regions_of_one_inquiry_cost_no_more_where_no_modulator_joins_them(tiny_model):
    assert attention(tiny_model, [(4, 4), (2, 2)], [0, 0]) == 2 * 4 * 32 * (16**2 + 4**2)


def test_a_block_of_one_head_has_attention_to_count(_tiny_folder):
    one_head = "model.encoder.config.num_heads=1"
    model = build(_tiny_folder / "tiny.yaml", [one_head, "model.modulator=none"])
    assert [block.heads for block in model.vision.backbone.spec.blocks] == [1, 1]
    assert attention(model, [(8, 8)]) == 2 * 4 * 32 * 64**2


def test_blocks_without_heads_have_no_attention_to_count(_tiny_folder):
    stages = "{name: timm_stages, overview_pixels: 1024, zoom_pixels: 1024}"
    model = build(_tiny_folder / "tiny.yaml", [f"model.encoder={stages}", "model.modulator=none"])
    assert attention(model, [(8, 8)]) == 0


def test_a_view_costs_its_features(tiny_model):
    found = CostCounter(tiny_model).encoding_cost([SimpleNamespace(size=(4, 4)), SimpleNamespace(size=(2, 2))])
    assert (found.patches, found.features) == (20, 20)


def test_a_decision_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"cannot decide 'anwser'\. Return go_on, answer or stop"):
        Decision("anwser", "enough")
