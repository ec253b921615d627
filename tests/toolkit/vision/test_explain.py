"""Explanations show how much each place of a region attends to each word of its own inquiry."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vilavt_components.encoders.timm.encoder import TimmEncoder
from vilavt_components.modulators.film import FiLM, FiLMConfig
from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_toolkit.contracts import Context, Modulator, Region
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.testing.bench import WordInquiryEncoder
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.explain import Explanation


class _Attends(Modulator):
    def __init__(self, config, block, inquiry_width):
        super().__init__()
        self.shape = (block.heads, block.head_dim)
        self.query = nn.Linear(block.width, block.width)
        self.kv = nn.Linear(inquiry_width, 2 * block.width)

    def keys_values(self, inquiry):
        return self.kv(inquiry.features).view(-1, 2, *self.shape).unbind(1)


class Crosses(_Attends):
    """Attention to the inquiry alone."""

    sites = frozenset({"norm1"})

    def modulate(self, site, x, y, inquiry):
        return y + inquiry.attend(self.query(y).view(-1, *self.shape), *self.keys_values(inquiry)).flatten(1)


class Joins(_Attends):
    """Attention to the inquiry beside the tokens of the group."""

    span = "group"

    def context(self, inquiry):
        return Context(*self.keys_values(inquiry))


def dynamic(*modulators):
    torch.manual_seed(0)
    return DynamicEncoder(TimmEncoder(TimmEncoder.tiny()), modulators, "all", WordInquiryEncoder()).eval()


@pytest.fixture
def regions():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    source = ImageSource.open(pixels, ImageConfig())
    return [Region(source), Region(source, (0.0, 0.0, 40.0, 24.0)), Region(source, (8.0, 8.0, 30.0, 60.0))]


@pytest.mark.parametrize("modulator", [Crosses, Joins])
def test_each_region_has_a_map_per_word_of_its_own_inquiry_on_its_own_grid(regions, modulator):
    made = dynamic((modulator, None))
    found = made.explain(regions, ["a b c", "d"], groups=[1, 0, 1])
    for explanation, region, words in zip(found, regions, (1, 3, 1), strict=True):
        assert len(explanation.words) == words
        assert explanation.weights.shape == (words, *made.prepare(region).size)
        total = explanation.weights.sum(0)
        assert (explanation.weights >= 0).all()
        if modulator is Crosses:
            torch.testing.assert_close(total, torch.ones_like(total))
        else:
            assert (total < 1).all() and (total > 0).all()
    # As it is alone, so that order and prefix tokens are told apart rightly.
    for explanation, region, text in zip(found, regions, ("d", "a b c", "d"), strict=True):
        if modulator is Crosses:
            torch.testing.assert_close(explanation.weights, made.explain([region], text)[0].weights)


def test_a_word_that_places_look_for_is_where_the_map_says(regions):
    made = dynamic((Crosses, None))
    made.modulators["1"] = nn.ModuleList()
    crossing = made.modulators["0"][0]
    with torch.no_grad():
        crossing.kv.weight.zero_()
        crossing.query.weight.zero_()
        crossing.query.bias.fill_(1.0)
        crossing.kv.bias.zero_()
        # The first channel of the inquiry's features is the logit.
        crossing.kv.weight[: crossing.query.out_features, 0] = 1.0
        made.inquiry_encoder.embedding.weight[:, 0] = 0.0
        made.inquiry_encoder.embedding.weight[made.tokenize("seen")[0], 0] = 20.0
    weights = made.explain(regions, "not seen here")[0].weights
    assert (weights[1] > 0.99).all()


def test_several_blocks_and_modulators_are_averaged(regions):
    both = dynamic((Crosses, None), (Joins, None))
    crossed, joined = dynamic((Crosses, None)), dynamic((Joins, None))
    total = [made.explain(regions, "a b")[0].weights.sum(0) for made in (both, crossed, joined)]
    assert ((total[0] < total[1]) & (total[0] > total[2])).all()


def test_explaining_leaves_features_gradients_and_the_mode_alone(regions):
    made = dynamic((Crosses, None))
    with torch.no_grad():
        before = made(regions, "a b")[0]
        assert not made.explain(regions, "a b")[0].weights.requires_grad
        assert torch.equal(made(regions, "a b")[0], before)


def test_what_cannot_be_explained_is_said_in_words(regions):
    with pytest.raises(InputError, match=r"No modulator attends to the words.*FiLM"):
        dynamic((FiLM, FiLMConfig())).explain(regions, "a b")
    with pytest.raises(InputError, match="No modulator attends"):
        dynamic().explain(regions, "a b")
    with pytest.raises(InputError, match="Region 2 has an empty inquiry"):
        dynamic((Crosses, None)).explain(regions, ["a", "b", " "])
    assert dynamic((Crosses, None)).explain([], []) == []


def test_heat_maps_are_drawn_over_the_crop_a_panel_per_word_and_their_mean(regions, tmp_path):
    explanation = dynamic((Crosses, None)).explain(regions, "a b c")[1]
    explanation.draw(tmp_path / "one.png")
    four = Image.open(tmp_path / "one.png").size
    longer = dataclasses.replace(
        explanation, words=tuple("abcdefgh"), weights=torch.rand(8, *explanation.weights.shape[1:])
    )
    longer.draw(tmp_path / "two.png")
    assert four[0] >= 3 * 220, "panels large enough to read stand side by side"
    assert Image.open(tmp_path / "two.png").size[1] > four[1], "more words, more rows"


def test_bright_is_where_the_weight_is(tmp_path):
    weights = torch.zeros(2, 2, 2)
    weights[0, 0, 1] = 1.0
    crop = np.full((64, 64, 3), 90, np.uint8)
    Explanation(("here", "\n"), weights, crop).draw(tmp_path / "heat.png")
    red = np.asarray(Image.open(tmp_path / "heat.png"))[..., 0].astype(int)
    panel, gap, caption = 220, 24, 30
    x, y = gap + 2 * (panel + gap), gap + caption
    quarter = {(row, column): red[y + 55 + 110 * row, x + 55 + 110 * column] for row in (0, 1) for column in (0, 1)}
    assert max(quarter, key=quarter.get) == (0, 1)
    assert quarter[0, 0] == quarter[1, 0] == quarter[1, 1]


def test_what_has_no_rows_and_columns_is_not_drawn(tmp_path):
    with pytest.raises(InputError, match="rows and columns, not 1 axes"):
        Explanation(("a",), torch.rand(1, 5), np.zeros((8, 8, 3), np.uint8)).draw(tmp_path / "a.png")
    with pytest.raises(InputError, match="There is no crop"):
        Explanation(("a",), torch.rand(1, 5, 5)).draw(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
