"""The dynamic encoder: groups, inquiries, context, and its use without a language model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vilavt_components.encoders.timm.encoder import TimmEncoder
from vilavt_components.modulators.film import FiLM, FiLMConfig
from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_toolkit.contracts import Context, Modulator, Region
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.testing.bench import WordInquiryEncoder, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder


class AddsContext(Modulator):
    """Joint attention in small: one key and value per inquiry token."""

    span = "group"

    def __init__(self, config, block, inquiry_width):
        super().__init__()
        self.shape = (block.heads, block.head_dim)
        self.kv = nn.Linear(inquiry_width, 2 * block.heads * block.head_dim)

    def context(self, inquiry):
        k, v = self.kv(inquiry.features).view(-1, 2, *self.shape).unbind(1)
        return Context(k, v)


class AsksForTooMuch(Modulator):
    sites = frozenset({"norm3"})

    def __init__(self, config, block, inquiry_width):
        super().__init__()


class RefusesAll(Modulator):
    @classmethod
    def unsupported_reason(cls, config, block):
        return "it is never content."


def dynamic(*modulators, integration="all", inquiry_encoder=True):
    torch.manual_seed(0)
    encoder = TimmEncoder(TimmEncoder.tiny()).eval()
    heard = WordInquiryEncoder() if inquiry_encoder else None
    return DynamicEncoder(encoder, modulators, integration, heard).eval()


@pytest.fixture
def regions():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    source = ImageSource.open(pixels, ImageConfig())
    return [Region(source), Region(source, (0.0, 0.0, 40.0, 24.0)), Region(source, (8.0, 8.0, 30.0, 60.0))]


@torch.no_grad()
def test_it_works_alone_in_five_lines(regions):
    encoder = dynamic((FiLM, FiLMConfig(zero_init=False)))
    features = encoder(regions, "what digit is on the red square?")
    assert [f.dim() for f in features] == [3, 3, 3]
    assert features[0].shape == (*encoder.backbone.prepare(regions[0].crop()).size, 32)
    assert not torch.allclose(features[0], encoder(regions, "another one")[0])


@torch.no_grad()
def test_one_text_is_for_all_regions_and_several_for_one_each(regions):
    encoder = dynamic((AddsContext, None))
    together = encoder(regions, "a b")
    each = encoder(regions, ["a b", "a b", "a b"])
    grouped = encoder(regions, ["a b", "c"], groups=[0, 1, 0])
    assert not torch.allclose(together[0], each[0]), "regions of one group must see each other under span group"
    torch.testing.assert_close(grouped[1], encoder(regions[1:2], "c")[0])
    torch.testing.assert_close(grouped[2], encoder([regions[0], regions[2]], "a b")[1])


@torch.no_grad()
def test_context_reaches_its_group_and_an_empty_inquiry_brings_none():
    encoder = dynamic((AddsContext, None))
    views = example_views(encoder.backbone)
    groups = [1, 0, 1, 0, 1]
    ids = [encoder.tokenize("a b c"), []]
    features, _ = encoder.encode(views, groups, ids)
    changed, _ = encoder.encode(views, groups, [encoder.tokenize("d e"), []])
    silent, _ = encoder.encode(views, groups, [[], []])
    parts = [
        x.split([encoder.backbone.feature_count(view.size) for view in views]) for x in (features, changed, silent)
    ]
    for region, group in enumerate(groups):
        first, second, none = (part[region] for part in parts)
        assert torch.allclose(first, second, atol=1e-5) == (group == 1)
        assert torch.allclose(first, none, atol=1e-5) == (group == 1)


@torch.no_grad()
def test_two_modulators_of_a_block_both_work():
    both = dynamic((FiLM, FiLMConfig(zero_init=False)), (AddsContext, None), (AddsContext, None))
    views = example_views(both.backbone)
    ids = [both.tokenize("a b c")]
    found, _ = both.encode(views, [0] * 5, ids)
    for skipped in range(3):
        kept = [m for i, m in enumerate(both.modulators["0"]) if i != skipped]
        fewer = dynamic()
        fewer.load_state_dict(both.state_dict(), strict=False)
        fewer.inquiry_encoder = both.inquiry_encoder
        fewer.modulators = nn.ModuleDict({"0": nn.ModuleList(kept), "1": both.modulators["1"]})
        assert not torch.allclose(fewer.encode(views, [0] * 5, ids)[0], found, atol=1e-5)


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_site_of_another_width_than_declared_is_named(regions, compiles):
    encoder = TimmEncoder(TimmEncoder.tiny())
    blocks = [replace(block, sites={**block.sites, "norm2": 1}) for block in encoder.spec.blocks]
    encoder.spec = replace(encoder.spec, blocks=tuple(blocks))
    wrong = DynamicEncoder(encoder, [(FiLM, FiLMConfig())], "late", WordInquiryEncoder())
    if compiles:
        wrong.compile_blocks(backend="eager")
    wrong(regions, "")
    with pytest.raises(BadConfig, match=r"TimmEncoder, block 1, site 'norm2': the output has width 32.*declares 1"):
        wrong(regions, "a b")


@torch.no_grad()
def test_only_integrated_blocks_are_modulated():
    late = dynamic((FiLM, FiLMConfig()), integration="late")
    assert list(late.modulators) == ["1"]


@torch.no_grad()
def test_without_an_inquiry_encoder_empty_inquiries_work_and_others_are_refused(regions):
    plain = dynamic(inquiry_encoder=False)
    assert len(plain(regions, "")) == 3
    with pytest.raises(InputError, match="without an inquiry encoder"):
        plain(regions, "what is it?")


def test_nothing_to_encode_gives_no_features():
    features, grids = dynamic().encode([], [], [])
    assert features.shape == (0, 32)
    assert grids == []


@torch.no_grad()
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_encoding_on_a_gpu_waits_for_nothing_and_gives_what_the_cpu_gives():
    encoder = dynamic((FiLM, FiLMConfig(zero_init=False)), (AddsContext, None))
    views = example_views(encoder.backbone)
    groups, ids = [2, 0, 2, 1, 0], [encoder.tokenize(text) for text in ("a b c", "", "d e")]
    expected, _ = encoder.encode(views, groups, ids)
    encoder.cuda()
    encoder.encode(views, groups, ids)  # libraries wait while they set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, _ = encoder.encode(views, groups, ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_an_image_that_cannot_be_encoded_whole_is_named_by_its_file(tmp_path):
    Image.new("RGB", (2010, 10)).save(tmp_path / "ribbon.png")
    source = ImageSource.open(tmp_path / "ribbon.png", ImageConfig())
    with pytest.raises(InputError, match=r"ribbon\.png: a region of 2010 x 10 pixels"):
        dynamic()([Region(source)], "")
    with pytest.raises(InputError, match=r"^a region of 2010 x 4 pixels"):
        dynamic()([Region(source, (0.0, 0.0, 2010.0, 4.0))], "")


def test_a_source_of_another_modality_is_refused_by_name():
    class Points(ImageSource):
        modality = "points"

    source = Points.open(np.zeros((8, 8, 3), np.uint8), ImageConfig())
    with pytest.raises(InputError, match="a region of modality 'points' was given to an encoder of 'image'"):
        dynamic()([Region(source)], "")


def test_groups_without_an_inquiry_are_refused(regions):
    with pytest.raises(InputError, match="Region 1 is in group 2, but there are 2 inquiries"):
        dynamic()(regions, ["a", "b"], groups=[0, 2, 1])
    with pytest.raises(InputError, match="3 regions came with 2 inquiries"):
        dynamic()(regions, ["a", "b"])
    with pytest.raises(InputError, match="3 regions came with 1 groups"):
        dynamic()(regions, ["a"], groups=[0])
    with pytest.raises(InputError, match="One inquiry is for all"):
        dynamic()(regions, "a", groups=[0, 0, 0])


def test_a_modulator_that_cannot_work_on_a_block_is_refused_with_the_reason():
    with pytest.raises(BadConfig, match="RefusesAll cannot work on block 0: it is never content"):
        dynamic((RefusesAll, None))
    with pytest.raises(BadConfig, match="AsksForTooMuch cannot work on block 0: it uses 'norm3'"):
        dynamic((AsksForTooMuch, None))


def test_a_frozen_encoder_gets_no_gradient_and_its_modulators_do():
    encoder = dynamic((FiLM, FiLMConfig()), integration="late")
    encoder.backbone.requires_grad_(False)
    views = example_views(encoder.backbone)
    features, _ = encoder.encode(views, [0] * 5, [encoder.tokenize("a b")])
    features.square().mean().backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.modulators.parameters())


@torch.no_grad()
def test_precision_of_the_encoder_goes_on_beside_a_float32_modulator():
    encoder = dynamic((FiLM, FiLMConfig(zero_init=False)))
    encoder.backbone.to(torch.bfloat16)
    views = example_views(encoder.backbone)
    features, _ = encoder.encode(views, [0, 1, 0, 1, 1], [encoder.tokenize("a b"), []])
    assert features.dtype == torch.bfloat16
