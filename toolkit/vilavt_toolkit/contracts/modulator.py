"""Modulators: change the blocks of an encoder under an inquiry."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.encoder import BlockSpec
from vilavt_toolkit.packed.attention import attend_inquiry, inquiry_weights
from vilavt_toolkit.packed.tokens import Layout, spread


@dataclass(frozen=True)
class Inquiry:
    """The inquiries of one packed call, as modulators see them."""

    features: Tensor
    """[T, D] token features of all inquiries, group after group."""
    pooled: Tensor
    """[G, D], zero for an empty inquiry."""
    lengths: tuple[int, ...]
    """Tokens of every group's inquiry, 0 for an empty one; known on the CPU."""
    layout: Layout
    """The vision tokens' layout, in a block the one behind it; its lengths are known on the CPU."""
    seen: list[tuple[Layout, Tensor]] | None = None
    """Where given, attention weights on the inquiries' tokens are put here, [S, longest inquiry] per attention."""

    @property
    def group_of(self) -> Tensor:
        """The group of every vision token; [S]."""
        return self.layout.group_of(self.pooled.device)

    def to_tokens(self, values: Tensor) -> Tensor:
        """Give every vision token its group's row; [G, ...] -> [S, ...], with a gradient that is deterministic."""
        return spread(values, self.group_of)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Attention of vision tokens q [S, H, d] to their group's inquiry tokens k, v [T, H, d]; [S, H, d].

        Zero for tokens whose inquiry is empty.
        """
        if self.seen is not None:
            self.seen.append((self.layout, inquiry_weights(q, k, self.layout, self.lengths, scale)))
        return attend_inquiry(q, k, v, self.layout, self.lengths, scale)


@dataclass(frozen=True)
class Context:
    """Keys and values that a modulator adds to attention."""

    k: Tensor
    """[K, H, d] after key norm, before rotation; one per inquiry token, in the inquiries' order.

    Where `Encoder.room` lets regions stand one after another, the inquiry stands behind the last of its group.
    """
    v: Tensor
    """[K, H, d]"""


class Modulator(nn.Module, Component, ABC):
    """Changes one block under the inquiry. One instance per modulated block; `__init__(config, block, inquiry_width)`.

    The engine restores the unmodulated values of tokens whose inquiry is empty; a modulator need not.
    """

    sites: frozenset[str] = frozenset()
    """Where `modulate` is called."""
    span: Literal["region", "group"] = "region"
    """What a token attends over in this block; `group`: all regions of its inquiry group."""

    @classmethod
    def refusal(cls, config: Any, block: BlockSpec) -> str:
        """Say why this modulator cannot work on `block`, or return an empty string."""
        return ""

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Change what the part at `site` made of x: y [S, D_site] -> [S, D_site]. At initialisation: y itself."""
        return y

    def context(self, inquiry: Inquiry) -> Context | None:
        """Keys and values for the block's attention, or None."""
        return None
