"""Modulators: change the blocks of an encoder under an inquiry."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.encoder import BlockSpec
from vilavt_toolkit.packed.attention import attend_inquiry, inquiry_weights
from vilavt_toolkit.packed.tokens import Layout, gather_rows


@dataclass(frozen=True)
class Inquiry:
    """Holds the inquiries of one packed call, as modulators see them."""

    features: Tensor
    """[T, D] token features of all inquiries, group after group."""
    pooled: Tensor
    """[G, D] one vector per inquiry, zero for an empty one."""
    lengths: tuple[int, ...]
    """Number of tokens of every group's inquiry, 0 for an empty one; plain ints, which never wait for the device."""
    layout: Layout
    """Layout of the vision tokens; in a block that changes it, the layout after the block."""
    attention_log: list[tuple[Layout, Tensor]] | None = None
    """If given, every attention to inquiry tokens adds its weights [S, longest inquiry] here, to explain them."""

    @property
    def token_groups(self) -> Tensor:
        """Group of every vision token; [S]."""
        return self.layout.token_groups(self.pooled.device)

    def to_tokens(self, values: Tensor) -> Tensor:
        """Give every vision token its group's row; [G, ...] -> [S, ...]. The gradient is deterministic."""
        return gather_rows(values, self.token_groups)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Attend from vision tokens q [S, H, d] to the inquiry tokens k, v [T, H, d] of their group; [S, H, d].

        The result is zero for tokens whose inquiry is empty.
        """
        # None in training, so that nobody pays for weights that nobody reads.
        if self.attention_log is not None:
            self.attention_log.append((self.layout, inquiry_weights(q, k, self.layout, self.lengths, scale)))
        return attend_inquiry(q, k, v, self.layout, self.lengths, scale)


@dataclass(frozen=True)
class Context:
    """Holds keys and values that a modulator adds to a block's attention.

    With span `region` keys are not rotated, as prefix tokens are not: the features of a region would otherwise depend
    on the other regions of its group. With span `group` they stand after the last region of their group, one step
    after another, if `Encoder.position_stride` puts regions in sequence.
    """

    k: Tensor
    """[K, H, d] after the key norm and before RoPE, group after group; H and d are the block's."""
    v: Tensor
    """[K, H, d]"""
    lengths: Sequence[int] | None = None
    """Number of keys of every group, any number; None: one key per inquiry token, as `Inquiry.lengths` says.

    The engine leaves out the keys of groups whose inquiry is empty.
    """


class Modulator(nn.Module, Component, ABC):
    """Changes one block under the inquiry. One instance per modulated block; `__init__(config, block, inquiry_width)`.

    The engine restores the plain values of tokens whose inquiry is empty, so a modulator need not.
    """

    sites: frozenset[str] = frozenset()
    """Names of the sites at which `modulate` is called."""
    span: Literal["region", "group"] = "region"
    """The tokens that a token attends over in this block: those of its region, or of all regions of its group."""

    @classmethod
    def unsupported_reason(cls, config: Any, block: BlockSpec) -> str:
        """Return the reason why this modulator cannot work on `block`, or an empty text if it can."""
        return ""

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Change the output y of the part at `site`, whose input was x; [S, D_site] -> [S, D_site].

        A new modulator returns y itself, bit for bit, so that training starts from the plain encoder.
        """
        return y

    def context(self, inquiry: Inquiry) -> Context | None:
        """Return keys and values for the block's attention, or None."""
        return None
