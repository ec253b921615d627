"""The encoder's blocks through torch.compile, with attention outside of the graphs.

The work of attention depends on how many segments there are and how long they are, so every layout would need a new
graph. The layers between two attentions depend on the number of tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Bias, Encoder, Inquiry
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.vision.modulation import ActiveInquiries, BlockAttention, ModulatedBlock

_GRAPHS_PER_BLOCK = 8
"""Most graphs of one block: with and without an inquiry, with empty inquiries beside it, with and without gradients."""


_disable = cast(Any, torch.compiler.disable)


def _call_attention(
    attention: BlockAttention, q: Tensor, k: Tensor, v: Tensor, scale: float | None, bias: Bias | None
) -> Tensor:
    return attention(q, k, v, scale, bias)


_attend_untraced = _disable(_call_attention)
_attend_inquiry_untraced = _disable(Inquiry.attend)


@dataclass(frozen=True, eq=False)
class _UntracedAttention:
    """An attention that no graph traces into."""

    attention: BlockAttention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, bias: Bias | None) -> Tensor:
        out: Tensor = _attend_untraced(self.attention, q, k, v, scale, bias)
        return out


class _UntracedInquiry(Inquiry):
    """An inquiry whose attention no graph traces into."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        out: Tensor = _attend_inquiry_untraced(self, q, k, v, scale)
        return out


def compile_block(encoder: Encoder, **options: Any) -> Callable[[int, Tokens, ModulatedBlock], Tensor]:
    """Return the encoder's `block` compiled, with one graph per block and stretch between attentions.

    `options` are those of torch.compile. The limit of graphs per function, which torch has for the whole process, is
    raised to the needs of the encoder's depth.
    """
    from torch._dynamo import config

    # Beyond its limit torch falls back to eager without an error, which would only be slow.
    config.recompile_limit = max(config.recompile_limit, _GRAPHS_PER_BLOCK * encoder.spec.depth)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * config.recompile_limit)
    # Dynamic from the first call: hardly two batches have the same number of tokens.
    block = torch.compile(encoder.block, **{"dynamic": True, **options})

    def run(index: int, tokens: Tokens, call: ModulatedBlock) -> Tensor:
        active = None if call.active is None else _untrace_inquiries(call.active)
        untraced = replace(call, active=active, attention=_UntracedAttention(call.attention))
        # The cache is a Python dict in the layout: filling it while tracing would bake its tensors into the graph.
        _fill_index_cache(call.attention.layout, tokens.x.device)
        out: Tensor = block(index, tokens, untraced.modulate_site, untraced.attend)
        return out

    return run


def _untrace_inquiries(active: ActiveInquiries) -> ActiveInquiries:
    """Return the inquiries with an attention that no graph traces into."""
    inquiry = active.inquiry
    # `replace` keeps the class, and another class with the same fields is needed here.
    values = {field.name: getattr(inquiry, field.name) for field in fields(inquiry)}
    return replace(active, inquiry=_UntracedInquiry(**values))


def _fill_index_cache(layout: Layout, device: torch.device) -> None:
    """Build the index tensors that a block may ask for, so that no graph traces how they are built."""
    layout.token_groups(device)
    layout.token_regions(device)
