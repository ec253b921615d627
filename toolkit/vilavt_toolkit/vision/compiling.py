"""The encoder's blocks through torch.compile: what stays outside of the graphs.

Attention does: its work depends on how many segments there are and how long, and a graph would be made anew for every
layout. What lies between two attentions depends on the number of tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Bias, Encoder, Inquiry
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.vision.modulation import Attention, BlockCall, Heard

_GRAPHS_PER_BLOCK = 8
"""With and without an inquiry, with empty ones beside it, with and without gradients."""


_disable = cast(Any, torch.compiler.disable)


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, scale: float | None, bias: Bias | None) -> Tensor:
    return attention(q, k, v, scale, bias)


_attend_outside = _disable(_attend)
_attend_inquiry_outside = _disable(Inquiry.attend)


@dataclass(frozen=True, eq=False)
class _Outside:
    """An attention that no graph looks into."""

    attention: Attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, bias: Bias | None) -> Tensor:
        out: Tensor = _attend_outside(self.attention, q, k, v, scale, bias)
        return out


class _OutsideInquiry(Inquiry):
    """An inquiry whose attention no graph looks into."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        out: Tensor = _attend_inquiry_outside(self, q, k, v, scale)
        return out


def compiled_block(encoder: Encoder, **options: Any) -> Callable[[int, Tokens, BlockCall], Tensor]:
    """The encoder's `block` compiled, one graph per block and stretch between attentions; `options` as torch.compile's.

    Raises torch's limit of graphs per function, which is for all of the process, to what the encoder's depth needs.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, _GRAPHS_PER_BLOCK * encoder.spec.depth)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * config.recompile_limit)
    # Dynamic from the first: no two batches have as many tokens.
    block = torch.compile(encoder.block, **{"dynamic": True, **options})

    def run(index: int, tokens: Tokens, call: BlockCall) -> Tensor:
        heard = None if call.heard is None else _outside(call.heard)
        outside = replace(call, heard=heard, attention=_Outside(call.attention))
        _warm(call.attention.layout, tokens.x.device)
        out: Tensor = block(index, tokens, outside.at, outside.attend)
        return out

    return run


def _outside(heard: Heard) -> Heard:
    inquiry = heard.inquiry
    return replace(heard, inquiry=_OutsideInquiry(**{f.name: getattr(inquiry, f.name) for f in fields(inquiry)}))


def _warm(layout: Layout, device: torch.device) -> None:
    """Make the indices that a block may ask for, so that no graph holds how they are made."""
    layout.group_of(device)
    layout.region_of(device)
