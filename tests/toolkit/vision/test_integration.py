"""Integration names or lists the modulated blocks."""

import pytest

from vilavt_toolkit.contracts import BlockSpec, EncoderSpec
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.vision.integration import integrated_blocks


def spec(depth, full_attention=()):
    return EncoderSpec("image", (BlockSpec(8, {"block": 8}),) * depth, 8, "none", full_attention)


@pytest.mark.parametrize(
    ("integration", "blocks"),
    [
        ("all", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("early", (0, 1, 2, 3)),
        ("late", (4, 5, 6, 7)),
        ("late2", (6, 7)),
        ("late3", (2, 3, 4, 5, 6, 7)),
        ("sparse", (1, 5)),
        ([7, 0], (0, 7)),
        ([-1, -3], (5, 7)),
    ],
)
def test_integration_selects_blocks(integration, blocks):
    assert integrated_blocks(integration, spec(8, (1, 5))) == blocks


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 12, 27])
def test_early_and_late_share_the_blocks_between_them(depth):
    early, late = (integrated_blocks(name, spec(depth)) for name in ("early", "late")) if depth > 1 else ((0,), ())
    assert sorted(early + late) == list(range(depth))


@pytest.mark.parametrize(
    ("integration", "words"),
    [
        ("middle", "'middle' is unknown. Choose one of all, early"),
        ("sparse", "'sparse' selects no block"),
        ([], "empty list. List block indices"),
        ([4], "block 4, but the encoder has 4. Name blocks from 0 to 3"),
        ([-5], "block -5"),
        ([1, -3], "names block 1 twice"),
        ([True], "True"),
        (["1"], "'1'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(integration, words):
    with pytest.raises(BadConfig, match=words):
        integrated_blocks(integration, spec(4))
