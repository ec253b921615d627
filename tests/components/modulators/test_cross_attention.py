"""Cross attention lets every token ask its own inquiry, and starts as nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilavt_components.encoders.timm.encoder import TimmEncoder
from vilavt_components.modulators.cross_attention import CrossAttention, CrossAttentionConfig
from vilavt_toolkit.contracts import BlockSpec, Inquiry
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.testing.bench import WordInquiryEncoder, assert_gradients, backpropagate, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

BLOCK = BlockSpec(32, {"attention": 32, "mlp": 32, "block": 32}, heads=2, head_dim=16)
LENGTHS = (2, 1)


def inquiry_of(features, seen=None):
    """Region 0 of 2 tokens under words 0 and 1, region 1 of 3 tokens under word 2."""
    layout = Layout.build([(2,), (3,)], [2, 3], [0, 1])
    return Inquiry(features, torch.zeros(2, features.shape[1]), LENGTHS, layout, seen)


def opened(config=None, block=BLOCK):
    """A cross attention whose output projection is no longer zero."""
    torch.manual_seed(0)
    made = CrossAttention(config or CrossAttentionConfig(width=16, heads=2), block, 12)
    torch.nn.init.normal_(made.out.weight)
    return made


@torch.no_grad()
def test_it_adds_what_the_words_of_the_tokens_own_inquiry_tell():
    made, x, y, features = opened(), torch.randn(5, 32), torch.randn(5, 32), torch.randn(3, 12)
    found = made.modulate("attention", x, y, inquiry_of(features))
    q, gate = made.ask(x).chunk(2, dim=-1)
    k, v = made.tell(made.norm(features)).chunk(2, dim=-1)
    for tokens, words in ((slice(0, 2), slice(0, 2)), (slice(2, 5), slice(2, 3))):
        heads = [
            ((q[tokens, head] @ k[words, head].T) / 8**0.5).softmax(-1) @ v[words, head]
            for head in (slice(0, 8), slice(8, 16))
        ]
        told = torch.cat(heads, dim=-1) * gate[tokens].sigmoid()
        torch.testing.assert_close(found[tokens], y[tokens] + told @ made.out.weight.T)


@torch.no_grad()
def test_a_token_whose_gate_is_shut_is_left_alone():
    made, x, y = opened(), torch.randn(5, 32), torch.randn(5, 32)
    made.ask.bias[16:] = -1e4
    assert torch.equal(made.modulate("attention", x, y, inquiry_of(torch.randn(3, 12))), y)


@torch.no_grad()
def test_the_size_of_unnormalised_tokens_and_of_the_inquiry_says_nothing():
    made, x, features = (
        opened(CrossAttentionConfig(width=16, heads=2, site="block")),
        torch.randn(5, 32),
        torch.randn(3, 12),
    )
    found = made.modulate("block", 100 * x, x, inquiry_of(100 * features))
    torch.testing.assert_close(found, made.modulate("block", x, x, inquiry_of(features)), atol=1e-3, rtol=1e-3)


def test_it_changes_nothing_before_training_and_everything_in_it_learns_after_a_step():
    made = CrossAttention(CrossAttentionConfig(), BLOCK, 12)
    x, y, inquiry = torch.randn(5, 32), torch.randn(5, 32), inquiry_of(torch.randn(3, 12))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    fresh = made.modulate("attention", x, y, inquiry)
    assert torch.equal(fresh, y)
    backpropagate(fresh.square().sum())
    optimizer.step()
    optimizer.zero_grad()
    backpropagate(made.modulate("attention", x, y, inquiry).square().sum())
    assert_gradients(made)
    assert all(parameter.grad.any() for parameter in made.parameters())


@torch.no_grad()
def test_it_shows_which_words_every_token_attends_to():
    seen = []
    opened().modulate("attention", torch.randn(5, 32), torch.randn(5, 32), inquiry_of(torch.randn(3, 12), seen))
    ((_, weights),) = seen
    assert weights.shape == (5, 2)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    assert not weights[2:, 1].any(), "the second group's inquiry has one word only"


@given(
    st.integers(1, 1300), st.integers(0, 130), st.integers(0, 8), st.sampled_from([0, 1, 3, 32, 96])
)  # fmt: skip
def test_it_fits_blocks_of_any_width(width, head_dim, heads, chosen):
    if chosen and heads and chosen % heads:
        with pytest.raises(ValueError, match="does not divide width"):
            CrossAttentionConfig(width=chosen, heads=heads)
        return
    block = BlockSpec(width, {"attention": width}, head_dim=head_dim)
    with torch.device("meta"):
        made = CrossAttention(CrossAttentionConfig(width=chosen, heads=heads), block, 12)
    assert made.width % made.heads == 0
    assert made.width == chosen or made.width <= max(width, heads)
    assert made.heads == heads or not heads


def test_by_itself_it_is_a_quarter_as_wide_as_a_wide_block_with_heads_as_large_as_the_blocks():
    made = opened(CrossAttentionConfig(), BlockSpec(1280, {"attention": 1280}, heads=16, head_dim=80))
    assert (made.width, made.heads) == (320, 4)


def test_a_block_that_offers_nothing_but_its_output_is_modulated_there():
    staged = BlockSpec(24, {"block": 24})
    assert not CrossAttention.unsupported_reason(CrossAttentionConfig(), staged)
    assert opened(CrossAttentionConfig(), staged).sites == {"block"}
    assert opened(CrossAttentionConfig(), BLOCK).sites == {"attention"}


def test_a_site_that_is_not_there_is_refused_by_name():
    assert "'mlp'" in CrossAttention.unsupported_reason(CrossAttentionConfig(site="mlp"), BlockSpec(24, {"block": 24}))
    assert "'block'" in CrossAttention.unsupported_reason(CrossAttentionConfig(), BlockSpec(24, {"norm1": 24}))

    class Staged(TimmEncoder):
        def __init__(self, config):
            super().__init__(config)
            self.spec = type(self.spec)("image", (BlockSpec(32, {"block": 32}),), 32, "none")

    with pytest.raises(BadConfig, match=r"block 0: it adds to the output of 'mlp'"):
        DynamicEncoder(Staged(TimmEncoder.tiny()), [(CrossAttention, CrossAttentionConfig(site="mlp"))], "all")


@torch.no_grad()
@pytest.mark.parametrize("of_encoder", [torch.bfloat16, torch.float32])
def test_the_encoder_and_it_may_have_different_precisions(of_encoder):
    made = opened().to(torch.float32 if of_encoder is torch.bfloat16 else torch.bfloat16)
    x, y, features = torch.randn(5, 32), torch.randn(5, 32), torch.randn(3, 12)
    found = made.modulate("attention", x.to(of_encoder), y.to(of_encoder), inquiry_of(features))
    expected = made.float().modulate("attention", x, y, inquiry_of(features))
    assert found.dtype is of_encoder
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_one_after_another_the_inquiry_is_heard_in_every_block_it_is_integrated_in():
    torch.manual_seed(0)
    parts = [(CrossAttention, CrossAttentionConfig(site=site)) for site in ("attention", "mlp", "block")]
    dynamic = DynamicEncoder(TimmEncoder(TimmEncoder.tiny()), parts, [1], WordInquiryEncoder()).eval()
    views, ids = example_views(dynamic.backbone), [dynamic.tokenize("the red square")]
    before, _ = dynamic.encode(views, [0] * 5, ids)
    for modulator in dynamic.modulators["1"]:
        torch.nn.init.normal_(modulator.out.weight)
        after, _ = dynamic.encode(views, [0] * 5, ids)
        assert not torch.allclose(before, after)
        before = after
