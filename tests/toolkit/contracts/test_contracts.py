"""The contracts as those who write components meet them: one place to import from, and settings that mean one thing."""

from __future__ import annotations

import numpy as np
import pytest

from vilavt_toolkit import contracts
from vilavt_toolkit.contracts import BlockSpec, Crop, EncoderSpec, Region, ShownAs, position_in_source
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, PixelBudgetConfig
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.formats.format import CheckpointFormat


def test_every_contract_is_found_in_one_place_the_formats_one_too():
    assert contracts.CheckpointFormat is CheckpointFormat
    assert all(hasattr(contracts, name) for name in contracts.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Encodr'"):
        _ = contracts.Encodr


def test_a_setting_that_is_null_takes_the_encoders_usual_value_and_zero_does_not():
    usual = PixelBudget(overview=100, zoom=200, minimum=30, max_scale=0.5)
    assert PixelBudgetConfig(min_pixels=None).pixel_budget(usual) == usual
    assert PixelBudgetConfig().pixel_budget(usual) == PixelBudget(100, 200, 0, 0.5)
    assert PixelBudgetConfig(overview_pixels=7, max_scale=3.0).pixel_budget(usual) == PixelBudget(7, 200, 0, 3.0)


def test_misspelt_positions_of_an_encoder_name_the_allowed_ones():
    with pytest.raises(BadConfig, match=r"is 'rotray'\. Set it to one of: rotary, absolute, relative, none"):
        EncoderSpec("image", (BlockSpec(8, {}),), 8, positions="rotray")


def test_a_region_hands_its_crop_how_it_was_shown_and_its_share_of_the_source():
    from vilavt_components.sources.image import ImageConfig, ImageSource

    source = ImageSource.open(np.zeros((40, 80, 3), np.uint8), ImageConfig())
    region = Region(source, (0, 0, 20, 20), shown=ShownAs(parent_scale=0.5, overview_count=3))
    assert region.crop().shown == ShownAs(0.5, 3, (0.25, 0.5))
    assert position_in_source(source, (0, 0, 40, 40)) == (0, 0, 0.5, 1)
    assert ShownAs.from_parent_view(source, (0, 0, 0.5, 1), 20) == ShownAs(parent_scale=0.5)
    named = Region(source, (0, 0, 20, 20), shown=ShownAs(position=(0.1, 0, 0.4, 0.5)))
    assert named.crop().shown.share == (0.4 - 0.1, 0.5), "a position goes before the box"
    assert Crop(None, "image", True).shown is None and source.crop((0, 0, 20, 20)).shown is None
