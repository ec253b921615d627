"""One block of the encoder under the inquiries: its modulators, partition, RoPE and context keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.contracts import Bias, BlockSpec, Context, Encoder, Inquiry, Modulator
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.attention import attend_segments, inquiry_weights
from vilavt_toolkit.packed.tokens import Layout, Tokens, concat_ranges, gather_rows, segment_starts, to_device
from vilavt_toolkit.vision.positions import group_positions, inquiry_positions


def layout_after_block(encoder: Encoder, index: int, layout: Layout) -> Layout:
    """Return the layout of tokens after block `index`, of regions whose views have `layout`."""
    # Most encoders keep their grid, and this saves a call for every region of every block.
    if type(encoder).block_grid is Encoder.block_grid:
        return layout
    sizes = tuple(encoder.block_grid(index, size) for size in layout.sizes)
    if sizes == layout.sizes:
        return layout
    counts = [encoder.token_count(size) for size in sizes]
    return layout.get_or_make(("resized", sizes), lambda: layout.with_sizes(sizes, counts, encoder.partitions))


@dataclass(frozen=True)
class ActiveInquiries:
    """Holds the inquiries of one call, and the tokens that have one."""

    inquiry: Inquiry
    has_inquiry: Tensor | None
    """[S, 1] False for tokens whose inquiry is empty; None if every token has one."""

    @classmethod
    def from_inquiry(cls, inquiry: Inquiry) -> ActiveInquiries:
        """Find the tokens whose inquiry is empty, under the layout of `inquiry`."""
        lengths, layout = inquiry.lengths, inquiry.layout
        if all(lengths[group] for group in layout.groups):
            return cls(inquiry, None)
        # Built on the CPU, where lengths are known: asking the device which inquiries are empty would wait for it.
        of_region = np.asarray([lengths[group] > 0 for group in layout.groups])
        of_token = torch.from_numpy(np.repeat(of_region, layout.partitions["region"]))
        return cls(inquiry, of_token.to(inquiry.pooled.device, non_blocking=True).unsqueeze(1))

    def for_layout(self, layout: Layout) -> ActiveInquiries:
        """Return the same inquiries for the same regions under another layout."""
        if layout is self.inquiry.layout:
            return self
        return ActiveInquiries.from_inquiry(replace(self.inquiry, layout=layout))


@dataclass(frozen=True)
class BlockContext:
    """Holds the context of one modulator, rotated, and without the keys of groups whose inquiry is empty."""

    k: Tensor
    """[K, H, d]"""
    v: Tensor
    """[K, H, d]"""
    lengths: tuple[int, ...]
    """Number of keys of every group."""
    is_of_words: bool
    """True if every inquiry token has one key, so that its weights explain the words."""

    @classmethod
    def from_modulator(
        cls, encoder: Encoder, index: int, modulator: Modulator, tokens: Tokens, inquiry: Inquiry
    ) -> BlockContext | None:
        """Ask a modulator for its context in block `index`; None without one. Raises BadConfig for wrong shapes."""
        context = modulator.context(inquiry)
        if context is None:
            return None
        lengths = inquiry.lengths if context.lengths is None else tuple(context.lengths)
        _check_context(type(modulator).__name__, context, lengths, encoder.spec.blocks[index], index, inquiry)
        # Without an inquiry a region is not modulated, whatever the modulator returns for it.
        kept = tuple(length if words else 0 for length, words in zip(lengths, inquiry.lengths, strict=True))
        k, v = context.k, context.v
        if kept != lengths:
            rows = _kept_rows(lengths, kept, inquiry.layout, k.device)
            k, v = gather_rows(k, rows), gather_rows(v, rows)
        if modulator.span == "group" and tokens.positions is not None:
            k = encoder.rotate(k, _rotation_for(encoder, index, tokens, kept))
        return cls(k, v, kept, context.lengths is None)


def _check_context(
    name: str, context: Context, lengths: tuple[int, ...], block: BlockSpec, index: int, inquiry: Inquiry
) -> None:
    """Raise BadConfig if keys and values do not fit the block's heads, or the lengths do not fit the keys."""
    where = f"Modulator {name}, block {index}"
    if len(lengths) != len(inquiry.lengths):
        raise BadConfig(
            f"{where}: `Context.lengths` has {len(lengths)} numbers for {len(inquiry.lengths)} inquiries. "
            "Give one number for every inquiry."
        )
    # Wrong shapes might broadcast inside attention, and give features without an error.
    wanted = (sum(lengths), block.heads, block.head_dim)
    for key in ("k", "v"):
        shape = tuple(getattr(context, key).shape)
        if shape != wanted:
            advice = "Set `Context.lengths`" if context.lengths is None else "Correct the shape or `Context.lengths`"
            raise BadConfig(
                f"{where}: `Context.{key}` is {list(shape)}, expected {list(wanted)}, keys by heads by width. {advice}."
            )


def _kept_rows(lengths: tuple[int, ...], kept: tuple[int, ...], layout: Layout, device: torch.device) -> Tensor:
    starts = segment_starts(lengths)
    key = ("kept context", lengths, kept, device)
    return layout.get_or_make(key, lambda: to_device(concat_ranges(starts, kept), device))


@dataclass(frozen=True, eq=False)
class BlockAttention:
    """Holds what the attention of a block needs beside q, k and v."""

    layout: Layout
    partition: str
    contexts: tuple[BlockContext, ...]
    attention_log: list[tuple[Layout, Tensor]] | None
    """If given, the weights on contexts are added here, to explain them."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, bias: Bias | None) -> Tensor:
        """Attend from rotated q over rotated k [S, H, d] and the contexts; [S, H, d]."""
        layout = self.layout
        if self.attention_log is not None:
            # The kernels give no weights, so these are computed once more, in plain torch.
            own = (k, self.partition)
            words = [context for context in self.contexts if context.is_of_words]
            weights = [inquiry_weights(q, each.k, layout, each.lengths, scale, own) for each in words]
            self.attention_log.extend((layout, each) for each in weights)
        pairs, lengths = [(each.k, each.v) for each in self.contexts], [each.lengths for each in self.contexts]
        return attend_segments(q, k, v, layout, self.partition, pairs, lengths, scale, bias)


@dataclass(frozen=True, eq=False)
class ModulatedBlock:
    """Holds one run of a block: the hook `modulate_site` and the callable `attend` that `Encoder.block` gets."""

    encoder: Encoder
    modulators: tuple[Modulator, ...]
    active: ActiveInquiries | None
    attention: Any
    """A `BlockAttention`, or a wrapper that runs one outside of a compiled graph."""
    rotation: Any
    """The RoPE table for `Encoder.rotate`; None if tokens have no positions."""
    index: int
    """The index of the block in the encoder; read for errors only, or every block would be compiled anew."""
    site_widths: Mapping[str, int]
    """The widths that the block declares in `BlockSpec.sites`."""

    @classmethod
    def from_block(
        cls,
        encoder: Encoder,
        index: int,
        modulators: Sequence[Modulator],
        tokens: Tokens,
        layout: Layout,
        active: ActiveInquiries | None,
    ) -> ModulatedBlock:
        """Prepare what block `index` needs: partition, RoPE table, and the contexts of its modulators.

        `tokens` go into the block, `layout` and `active` are those after it.
        """
        # Also if every inquiry is empty: regions of a group still see each other, as in the paper's code.
        is_joint = any(modulator.span == "group" for modulator in modulators)
        partition = "group" if is_joint else encoder.block_partition(index)
        rotation = None
        if tokens.positions is not None:
            rotation = _rotation_for(encoder, index, tokens, "group" if is_joint else "region")
        contexts: list[BlockContext] = []
        if active is not None:
            found = (BlockContext.from_modulator(encoder, index, m, tokens, active.inquiry) for m in modulators)
            contexts = [context for context in found if context is not None]
        log = None if active is None else active.inquiry.attention_log
        attention = BlockAttention(layout, partition, tuple(contexts), log)
        return cls(encoder, tuple(modulators), active, attention, rotation, index, encoder.spec.blocks[index].sites)

    def modulate_site(self, site: str, x: Tensor, y: Tensor) -> Tensor:
        """Let the modulators of a site change y, which its part made of x; the `SiteHook` of the block.

        Raises BadConfig if y has another width than the block declares.
        """
        if self.active is None:
            return y
        # Taken before any modulator: the error is about the encoder.
        width = y.shape[-1]
        for modulator in self.modulators:
            if site in modulator.sites:
                # Modulators build their layers for the declared width. Another one would broadcast, or fail unnamed.
                if width != self.site_widths[site]:
                    raise self._width_error(site, width)
                y = _apply_modulator(modulator, site, x, y, self.active)
        return y

    def _width_error(self, site: str, width: int) -> BadConfig:
        name, declared = type(self.encoder).__name__, self.site_widths[site]
        return BadConfig(
            f"Encoder {name}, block {self.index}, site '{site}': the output has width {width}, but `BlockSpec.sites` "
            f"declares {declared}. Correct the width in `EncoderSpec.blocks`."
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Bias | None = None) -> Tensor:
        """Rotate q and k [S, H, d] if tokens have positions, and attend; [S, H, d]. The `Attend` of the block."""
        if self.rotation is not None:
            q, k = self.encoder.rotate(q, self.rotation), self.encoder.rotate(k, self.rotation)
        out: Tensor = self.attention(q, k, v, scale, bias)
        return out


def _apply_modulator(modulator: Modulator, site: str, x: Tensor, y: Tensor, active: ActiveInquiries) -> Tensor:
    # The precision of the encoder goes on, whatever the type of the modulator's parameters.
    changed = modulator.modulate(site, x, y, active.inquiry).to(y.dtype)
    # `where`, not a product with the mask: tokens without an inquiry keep their bits, even beside a NaN.
    return changed if active.has_inquiry is None else torch.where(active.has_inquiry, changed, y)


def _rotation_for(
    encoder: Encoder, index: int, tokens: Tokens, target: Literal["region", "group"] | tuple[int, ...]
) -> Tensor:
    """Return the RoPE table of tokens within their region or group, or of context keys of given lengths."""
    assert tokens.positions is not None
    layout, positions = tokens.layout, tokens.positions

    def make() -> Tensor:
        if target == "region":
            return encoder.rotation(index, positions)
        strides = [encoder.position_stride(size) for size in layout.sizes]
        if isinstance(target, tuple):
            return encoder.rotation(index, inquiry_positions(positions, layout, strides, target))
        prefix = [encoder.token_count(size) - math.prod(size) for size in layout.sizes]
        return encoder.rotation(index, group_positions(positions, layout, strides, prefix))

    # Most encoders rotate alike in every block, so one table per call serves all of them.
    return layout.get_or_make(("rotation", target), make) if encoder.has_shared_rotation else make()


def build_modulator(cls: type[Modulator], config: Any, block: BlockSpec, index: int, inquiry_width: int) -> Modulator:
    """Build the modulator of block `index`; raises BadConfig with the reason if it cannot work there."""
    reason = unsupported_reason(cls, config, block)
    if not reason:
        try:
            modulator = cls(config, block, inquiry_width)
        except KeyError as error:
            # A scheme looks its widths up by site, so a misspelt site comes out as a KeyError without any name.
            if error.args and error.args[0] not in block.sites:
                reason = _missing_site_reason(frozenset({str(error.args[0])}), block)
                raise BadConfig(f"Modulator {cls.__name__} cannot be built on block {index}: {reason}") from error
            raise
        # Asked again: an instance may choose its sites by its config.
        reason = _missing_site_reason(modulator.sites, block)
        if not reason:
            return modulator
    raise BadConfig(f"Modulator {cls.__name__} cannot work on block {index}: {reason}")


def unsupported_reason(cls: type[Modulator], config: Any, block: BlockSpec) -> str:
    """Return the reason why modulators of a class cannot work on `block`, or an empty text."""
    reason = cls.unsupported_reason(config, block)
    if not reason and (cls.context is not Modulator.context or cls.span == "group"):
        reason = block.no_context_reason
    # Sites are checked before one is built, since its layers need their widths.
    return reason or _missing_site_reason(cls.sites, block)


def _missing_site_reason(sites: frozenset[str], block: BlockSpec) -> str:
    missing = sorted(sites - set(block.sites))
    offered = ", ".join(block.sites) or "no sites"
    return f"it uses '{missing[0]}', but the block offers {offered}." if missing else ""
