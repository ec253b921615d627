"""What is counted of encoding: attention within windows, and over regions that see each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vilavt_toolkit.contracts import Decision
from vilavt_toolkit.generation.flops import Costs


def attention(model, sizes, groups=None) -> float:
    """Operations of encoding views of these sizes beside those of matrices."""
    costs = Costs(model)
    found = costs.views([SimpleNamespace(size=size) for size in sizes], groups)
    return found.flops - 2.0 * (costs._encoder * found.patches + costs._projector * found.features)


def test_attention_within_windows_is_counted_within_windows(mrope_model):
    encoder = mrope_model.encoder.encoder
    widths = [block.width for block in encoder.spec.blocks]
    # Modulated by FiLM; block 0 attends within windows of 4 x 4 patches, block 1 over 16 x 16.
    assert encoder.partition(0) != encoder.partition(1)
    assert attention(mrope_model, [(16, 16)]) == 4 * (widths[0] * 16 * 16**2 + widths[1] * 256**2)


def test_regions_that_do_not_see_each_other_cost_what_they_cost_alone(mrope_model):
    alone = attention(mrope_model, [(8, 8)])
    assert attention(mrope_model, [(8, 8)] * 3) == attention(mrope_model, [(8, 8)] * 3, [0, 0, 0]) == 3 * alone


def test_a_decision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="cannot decide 'anwser'; it is go_on, answer or stop"):
        Decision("anwser", "enough")
