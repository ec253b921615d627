"""Floating-point operations of a dialogue's turns, for the loop with a KV cache and for the plain one.

Matrix products and attention are counted, causal attention by half. Norms, activations and RoPE are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.packed.tokens import Layout


def count_operations(model: VisualChatModel, session: Session) -> tuple[float, float]:
    """Count the operations of a finished dialogue turn by turn: reading only what is new, and everything each time."""
    costs, trajectory = CostCounter(model), session.trajectory
    ours = theirs = 0.0
    before = 0
    for start in trajectory.starts:
        ours += costs.reading_flops(start - before, before) + _count_encoding(model, session, before, start)
        theirs += costs.reading_flops(start, 0) + _count_encoding(model, session, 0, start)
        before = start
    return ours, theirs


def _count_encoding(model: VisualChatModel, session: Session, first: int, last: int) -> float:
    """Count the operations of one packed call over the regions whose features are at `first .. last` of the ids."""
    trajectory = session.trajectory
    numbers = [number for number, region in enumerate(trajectory.regions) if first <= region.start < last]
    if not numbers:
        return 0.0
    groups = [trajectory.regions[number].group for number in numbers]
    names = sorted(set(groups))
    inquiries = [len(trajectory.groups[name].ids) for name in names]
    sizes = [session.views[number].size for number in numbers]
    return count_encoder_operations(model, sizes, [names.index(group) for group in groups], inquiries)


def count_encoder_operations(
    model: VisualChatModel, sizes: Sequence[tuple[int, ...]], groups: Sequence[int], inquiries: Sequence[int]
) -> float:
    """Count the operations of encoding regions with grids `sizes` in `groups`, whose inquiries have so many tokens."""
    dynamic = model.vision
    encoder: Any = dynamic.backbone
    counts = [encoder.token_count(size) for size in sizes]
    layout = Layout.build(sizes, counts, groups, encoder.partitions)
    tokens, words = layout.length, sum(inquiries)
    total = 2.0 * tokens * _count_weights(encoder.tower.patch_embed)
    total += 2.0 * sum(encoder.feature_count(size) for size in sizes) * _count_weights(encoder.tower.merger)
    for index, block in enumerate(encoder.tower.blocks):
        joint = str(index) in dynamic.modulators
        name = "group" if joint else encoder.block_partition(index)
        of_segment = zip(layout.partitions[name], layout.segment_groups(name), strict=True)
        pairs = sum(length * (length + joint * inquiries[group]) for length, group in of_segment)
        total += 2.0 * tokens * _count_weights(block) + 4.0 * encoder.shape.hidden_size * pairs
        total += 2.0 * words * _count_weights(dynamic.modulators[str(index)]) if joint else 0.0
    if words and dynamic.inquiry_encoder is not None:
        total += 2.0 * words * _count_weights(dynamic.inquiry_encoder)
    return total


def _count_weights(module: Any) -> int:
    """Count the weights of matrices."""
    return sum(weight.numel() for weight in module.parameters() if weight.dim() > 1)
