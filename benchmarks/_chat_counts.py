"""Floating-point operations of a dialogue's turns, for the loop that keeps what it has read and for the plain one.

Matrix products and attention over what is seen: half of it in what is causal; norms, activations and rotations are
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.flops import Costs
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.packed.tokens import Layout


def operations(model: VisualChatModel, session: Session) -> tuple[float, float]:
    """Operations of encoding and reading a finished dialogue turn by turn: what is new, and everything each time."""
    costs, trajectory = Costs(model), session.trajectory
    ours = theirs = 0.0
    before = 0
    for start in trajectory.starts:
        ours += costs.reading(start - before, before) + _encoding(model, session, before, start)
        theirs += costs.reading(start, 0) + _encoding(model, session, 0, start)
        before = start
    return ours, theirs


def _encoding(model: VisualChatModel, session: Session, first: int, last: int) -> float:
    """Operations of one packed call over the regions whose features stand in `first .. last` of the ids."""
    trajectory = session.trajectory
    numbers = [number for number, region in enumerate(trajectory.regions) if first <= region.start < last]
    if not numbers:
        return 0.0
    groups = [trajectory.regions[number].group for number in numbers]
    names = sorted(set(groups))
    inquiries = [len(trajectory.groups[name].ids) for name in names]
    sizes = [session.views[number].size for number in numbers]
    return encoder_operations(model, sizes, [names.index(group) for group in groups], inquiries)


def encoder_operations(
    model: VisualChatModel, sizes: Sequence[tuple[int, ...]], groups: Sequence[int], inquiries: Sequence[int]
) -> float:
    """Operations of encoding regions with grids `sizes` in `groups`, whose inquiries have so many tokens."""
    dynamic = model.encoder
    encoder: Any = dynamic.encoder
    counts = [encoder.tokens(size) for size in sizes]
    layout = Layout.build(sizes, counts, groups, encoder.partitions)
    tokens, words = layout.length, sum(inquiries)
    total = 2.0 * tokens * _weights(encoder.tower.patch_embed)
    total += 2.0 * sum(encoder.count(size) for size in sizes) * _weights(encoder.tower.merger)
    for index, block in enumerate(encoder.tower.blocks):
        joint = str(index) in dynamic.modulators
        name = "group" if joint else encoder.partition(index)
        of_segment = zip(layout.partitions[name], layout.segment_groups(name), strict=True)
        pairs = sum(length * (length + joint * inquiries[group]) for length, group in of_segment)
        total += 2.0 * tokens * _weights(block) + 4.0 * encoder.shape.hidden_size * pairs
        total += 2.0 * words * _weights(dynamic.modulators[str(index)]) if joint else 0.0
    if words and dynamic.inquiry_encoder is not None:
        total += 2.0 * words * _weights(dynamic.inquiry_encoder)
    return total


def _weights(module: Any) -> int:
    """Weights that multiply."""
    return sum(weight.numel() for weight in module.parameters() if weight.dim() > 1)
