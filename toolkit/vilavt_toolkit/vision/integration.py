"""Integration: the choice of the blocks of an encoder that inquiries modulate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vilavt_toolkit.contracts import EncoderSpec
from vilavt_toolkit.errors import BadConfig

_CHOICES: dict[str, Callable[[int, EncoderSpec], bool]] = {
    "all": lambda block, spec: True,
    "early": lambda block, spec: 2 * block < spec.depth,
    "late": lambda block, spec: 2 * block >= spec.depth,
    "late2": lambda block, spec: 4 * block >= 3 * spec.depth,
    "late3": lambda block, spec: 4 * block >= spec.depth,
    "sparse": lambda block, spec: block in spec.full_attention,
}

INTEGRATIONS = tuple(_CHOICES)
"""Names of the integrations, as in the paper's code."""


def integrated_blocks(integration: str | Sequence[int], spec: EncoderSpec) -> tuple[int, ...]:
    """Return the indices of the modulated blocks, ascending, of a named integration or a list of block indices.

    Negative indices count from the last block. Raises BadConfig.
    """
    # A choice that selects nothing is an error: the inquiries would be ignored without a word.
    if isinstance(integration, str):
        if integration not in _CHOICES:
            raise BadConfig(
                f"Integration '{integration}' is unknown. Choose one of {', '.join(_CHOICES)}, or list block indices."
            )
        blocks = named_blocks(integration, spec)
        if not blocks:
            raise BadConfig(
                f"Integration '{integration}' selects no block of this encoder. List block indices instead."
            )
        return blocks
    if not integration:
        raise BadConfig(
            "Integration is an empty list. List block indices, or choose modulator 'none' to modulate no block."
        )
    # Compared after negative indices are resolved: [1, -3] may name one block twice.
    blocks = tuple(_block_index(index, spec.depth) for index in integration)
    for index in integration:
        if blocks.count(_block_index(index, spec.depth)) > 1:
            raise BadConfig(f"Integration {list(integration)} names block {index} twice. Name every block once.")
    return tuple(sorted(blocks))


def named_blocks(name: str, spec: EncoderSpec) -> tuple[int, ...]:
    """Return the indices of the blocks that a named integration selects, ascending; perhaps none."""
    return tuple(block for block in range(spec.depth) if _CHOICES[name](block, spec))


def _block_index(index: object, depth: int) -> int:
    if not isinstance(index, int) or isinstance(index, bool):
        raise BadConfig(f"Integration holds {index!r}. List whole numbers only.")
    if not -depth <= index < depth:
        raise BadConfig(
            f"Integration names block {index}, but the encoder has {depth}. Name blocks from 0 to {depth - 1}."
        )
    return index % depth
