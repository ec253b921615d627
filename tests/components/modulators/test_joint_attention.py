"""Joint attention: regions of a group and their inquiry are attended over together, as in the paper."""

import torch
from torch.nn import functional as F

from vilavt_components.encoders.qwen2_5_vl.encoder import Qwen25VLEncoder
from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_components.modulators.joint_attention import JointAttention
from vilavt_toolkit.contracts import BlockSpec, View
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing.bench import WordInquiryEncoder, assert_close, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
SIZES = [(2, 2), (3, 2), (1, 4)]


def modulated(encoder=None):
    torch.manual_seed(0)
    encoder = encoder or TimmEncoder(TimmConfig(config=VIT))
    return DynamicEncoder(encoder, [(JointAttention, NoSettings())], "all", WordInquiryEncoder()).eval()


def views():
    generator = torch.Generator().manual_seed(1)
    return [
        View(torch.randint(0, 256, (3, 8 * h, 8 * w), dtype=torch.uint8, generator=generator), (h, w)) for h, w in SIZES
    ]


def captured_attention(dynamic, groups, inquiries):
    """q, k, v and the result of the first block's attention."""
    seen = {}
    block = dynamic.backbone.block

    def watched(index, tokens, site, attend):
        def attention(q, k, v, *args, **kwargs):
            seen.update(q=q, k=k, v=v, out=attend(q, k, v, *args, **kwargs))
            return seen["out"]

        return block(index, tokens, site, attention)

    dynamic.backbone.block = watched
    dynamic.encode(views(), groups, inquiries)
    return seen


def by_hand(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)


@torch.no_grad()
def test_tokens_attend_over_their_group_and_its_inquiry_and_nothing_else():
    dynamic = modulated()
    inquiries = [[3, 5, 7], [1]]
    seen = captured_attention(dynamic, [0, 0, 1], inquiries)
    modulator = dynamic.modulators["0"][0]
    features, _ = dynamic.inquiry_encoder(inquiries)
    keys, values = (part(features).view(-1, 2, 12) for part in (modulator.key, modulator.value))
    for tokens, words in ((slice(0, 10), slice(0, 3)), (slice(10, 14), slice(3, 4))):
        k, v = (torch.cat([seen[name][tokens], of[words]]) for name, of in (("k", keys), ("v", values)))
        assert_close(seen["out"][tokens], by_hand(seen["q"][tokens], k, v), "attention")


@torch.no_grad()
def test_regions_of_a_group_see_each_other_without_an_inquiry_too():
    seen = captured_attention(modulated(), [0, 0, 1], [[], []])
    for tokens in (slice(0, 10), slice(10, 14)):
        assert_close(seen["out"][tokens], by_hand(*(seen[x][tokens] for x in "qkv")), "attention")


@torch.no_grad()
def test_the_order_of_the_inquirys_words_matters_where_positions_are_rotary():
    absolute, rotary = modulated(), modulated(Qwen25VLEncoder(Qwen25VLEncoder.tiny()))
    for dynamic, given, matters in ((absolute, views(), False), (rotary, example_views(rotary.backbone), True)):
        groups = [0] * len(given)
        first, second = (dynamic.encode(given, groups, [ids])[0] for ids in ([3, 5, 7], [7, 3, 5]))
        assert torch.allclose(first, second, atol=1e-5) is not matters


@torch.no_grad()
def test_a_group_sees_past_the_windows_of_its_regions():
    dynamic = modulated(Qwen25VLEncoder(Qwen25VLEncoder.tiny()))
    given = example_views(dynamic.backbone)[:2]
    other = View(given[1].data.flip(-1), given[1].size)
    count = dynamic.backbone.feature_count(given[0].size)
    first, second = (dynamic.encode([given[0], view], [0, 0], [[3]])[0][:count] for view in (given[1], other))
    assert ((first - second).abs().amax(dim=-1) > 0).all()


def test_it_refuses_blocks_without_attention():
    assert "no attention" in JointAttention.unsupported_reason(NoSettings(), BlockSpec(6, {"block": 6}))
    assert not JointAttention.unsupported_reason(NoSettings(), BlockSpec(6, {"block": 6}, heads=2, head_dim=3))


def test_its_width_follows_the_heads_and_not_the_block():
    modulator = JointAttention(NoSettings(), BlockSpec(6, {}, heads=2, head_dim=5), 4)
    assert modulator.key.weight.shape == modulator.value.weight.shape == (10, 4)
