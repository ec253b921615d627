"""Prompt tokens are further keys and values, as many as the settings say, made of the inquiry."""

import pytest
import torch

from vilavt_components.encoders.timm.encoder import TimmEncoder
from vilavt_components.modulators.joint_attention import JointAttention
from vilavt_components.modulators.prompt_tokens import PromptTokens, PromptTokensConfig
from vilavt_toolkit.contracts import BlockSpec, Inquiry
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing.bench import WordInquiryEncoder, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

BLOCK = BlockSpec(6, {}, heads=2, head_dim=4)


def test_every_inquiry_has_its_own_prompts_however_many_words_it_has():
    prompts = PromptTokens(PromptTokensConfig(count=5, width=7), BLOCK, 3)
    layout = Layout.build([(2,)] * 3, [2] * 3, range(3))
    pooled = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    context = prompts.context(Inquiry(torch.zeros(9, 3), pooled, (1, 0, 8), layout))
    assert context.k.shape == context.v.shape == (15, 2, 4)
    assert list(context.lengths) == [5, 5, 5]
    torch.testing.assert_close(context.k[:5], context.k[10:])  # equal inquiries have equal prompts
    assert not torch.allclose(context.k[:5], context.k[5:10])
    assert not torch.allclose(context.k[0], context.k[1]), "the prompts of an inquiry differ"


def test_a_block_without_attention_is_refused():
    assert "no attention" in PromptTokens.unsupported_reason(PromptTokensConfig(), BlockSpec(6, {"block": 6}))


def test_they_work_beside_a_modulator_with_a_key_for_every_word():
    encoder = TimmEncoder(TimmEncoder.tiny()).eval()
    parts = [(PromptTokens, PromptTokensConfig(count=3, width=4)), (JointAttention, NoSettings())]
    dynamic = DynamicEncoder(encoder, parts, "all", WordInquiryEncoder()).eval()
    views = example_views(encoder)[:3]
    ids = [dynamic.tokenize(text) for text in ("the red square", "", "read")]
    with torch.no_grad():
        together, _ = dynamic.encode(views, [0, 1, 2], ids)
        alone = torch.cat([dynamic.encode([view], [0], [words])[0] for view, words in zip(views, ids, strict=True)])
    torch.testing.assert_close(together, alone)
    # Only the words can be explained, not the prompts.
    explained = dynamic.explain_views(views[:1], [0], ids[:1])
    assert explained[0].weights.shape[0] == 3


def test_prompts_alone_attend_to_no_word_and_are_not_explained():
    encoder = TimmEncoder(TimmEncoder.tiny()).eval()
    dynamic = DynamicEncoder(encoder, [(PromptTokens, PromptTokens.tiny())], "all", WordInquiryEncoder())
    with pytest.raises(InputError, match="No modulator attends to the words"):
        dynamic.explain_views(example_views(encoder)[:1], [0], [dynamic.tokenize("the red square")])


def test_a_context_whose_keys_do_not_fit_its_lengths_is_refused_with_the_shapes():
    class Forgetful(PromptTokens):
        def context(self, inquiry):
            context = super().context(inquiry)
            return type(context)(context.k, context.v, self.told)

    encoder = TimmEncoder(TimmEncoder.tiny()).eval()
    dynamic = DynamicEncoder(encoder, [(Forgetful, PromptTokensConfig(count=3, width=4))], [0], WordInquiryEncoder())
    for told, words in (
        (None, r"block 0: `Context.k` is \[3, 2, 16\], expected \[2, 2, 16\].* Set `Context.lengths`"),
        ([4], r"`Context.k` is \[3, 2, 16\], expected \[4, 2, 16\]"),
        ([3, 3], "has 2 numbers for 1 inquiries"),
    ):
        dynamic.modulators["0"][0].told = told
        with pytest.raises(BadConfig, match=f"Modulator Forgetful, .*{words}"):
            dynamic.encode(example_views(encoder)[:1], [0], [dynamic.tokenize("red square")])
