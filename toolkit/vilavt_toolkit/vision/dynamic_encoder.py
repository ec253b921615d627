"""The dynamic vision encoder: many regions encoded together, its blocks modulated by the inquiries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vilavt_toolkit.contracts import (
    Bias,
    BlockSpec,
    Context,
    Encoder,
    Grid,
    Inquiry,
    InquiryEncoder,
    Modulator,
    Region,
    View,
)
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.vision.attention import attend, inquiry_weights
from vilavt_toolkit.vision.integration import integrated_blocks
from vilavt_toolkit.vision.positions import group_positions, inquiry_positions
from vilavt_toolkit.vision.tokens import Layout, Tokens


@dataclass(frozen=True)
class _Heard:
    """The inquiries of one call, and which tokens they are for."""

    inquiry: Inquiry
    keep: Tensor | None
    """[S, 1] False for tokens whose inquiry is empty; None where there are none."""


class DynamicEncoder(nn.Module):
    """Encodes regions of sources together, under inquiries; usable alone, without a language model.

    `modulators` are (class, settings) pairs, run in order in every block that `integration` names. Without an
    inquiry encoder every inquiry must be empty. Raises BadConfig where a modulator cannot work on a block.
    """

    def __init__(
        self,
        encoder: Encoder,
        modulators: Sequence[tuple[type[Modulator], Any]] = (),
        integration: str | Sequence[int] = "all",
        inquiry_encoder: InquiryEncoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.inquiry_encoder = inquiry_encoder
        self.gradient_checkpointing = False
        width = inquiry_encoder.width if inquiry_encoder is not None else 0
        blocks = integrated_blocks(integration, encoder.spec) if modulators else ()
        self.modulators = nn.ModuleDict()
        for index in blocks:
            block = encoder.spec.blocks[index]
            made = [build_modulator(cls, config, block, index, width) for cls, config in modulators]
            self.modulators[str(index)] = nn.ModuleList(made)

    def forward(
        self, regions: Sequence[Region], inquiries: Sequence[str] | str, groups: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Encode regions under inquiries; one tensor [*grid, D_out] per region ([F, D_out] without a grid).

        One text is for all regions together; of several, region r is under inquiries[groups[r]], and without
        `groups` each region has its own. An empty text leaves the encoder unmodulated. Raises InputError.
        """
        texts, of_region = self._grouped(len(regions), inquiries, groups)
        views = [self.prepare(region) for region in regions]
        features, grids = self.encode(views, of_region, [self.tokenize(text) for text in texts])
        shapes = [(view.size, grid) for view, grid in zip(views, grids, strict=True)]
        parts = features.split_with_sizes([self.encoder.count(size) for size, _ in shapes])
        return [
            part.view(*grid, -1) if math.prod(grid) == len(part) else part
            for part, (_, grid) in zip(parts, shapes, strict=True)
        ]

    def prepare(self, region: Region) -> View:
        """Cut a region out of its original and make it ready for the encoder; raises InputError."""
        crop = region.crop()
        try:
            if crop.modality != self.encoder.spec.modality:
                raise InputError(
                    f"a region of modality '{crop.modality}' was given to an encoder of "
                    f"'{self.encoder.spec.modality}'; choose an encoder for it."
                )
            return self.encoder.prepare(crop)
        except InputError as error:
            # What is wrong with a zoom is told to the model, which knows regions and no files.
            if region.box is not None:
                raise
            raise InputError(f"{region.source.name}: {error}") from error

    def tokenize(self, text: str) -> list[int]:
        """Token ids of an inquiry, [] for an empty one; raises InputError without an inquiry encoder."""
        if not text.strip():
            return []
        if self.inquiry_encoder is None:
            raise InputError(f"The inquiry {text!r} cannot be read: this encoder was built without an inquiry encoder.")
        return self.inquiry_encoder.tokenize(text)

    def encode(
        self, views: Sequence[View], groups: Sequence[int], inquiries: Sequence[Sequence[int]]
    ) -> tuple[Tensor, list[Grid]]:
        """Encode views of R regions, region r in group groups[r]; inquiries[g] are token ids, [] for none.

        Returns the features [F, D_out], packed in the order of `views`, and the grid of every region's
        features. Groups may come in any order. Raises InputError for a group that has no inquiry.
        """
        self._check(views, groups, inquiries)
        if not views:
            weight = next(self.encoder.parameters())
            return weight.new_zeros(0, self.encoder.spec.out_width), []
        sizes = [view.size for view in views]
        layout = Layout.build(sizes, [self.encoder.tokens(s) for s in sizes], groups, self.encoder.partitions)
        tokens = self.encoder.embed([views[region] for region in layout.order], layout)
        heard = self._hear(inquiries, layout, tokens.x.device)
        for index in range(self.encoder.spec.depth):
            tokens = tokens.with_x(self._run_block(index, tokens, heard))
        features = self.encoder.readout(tokens)
        features = layout.restore(features, [self.encoder.count(size) for size in layout.sizes])
        return features, [self.encoder.grid(size) for size in sizes]

    def _run_block(self, index: int, tokens: Tokens, heard: _Heard | None) -> Tensor:
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return self._block(index, tokens, heard)
        result: Tensor = checkpoint(
            lambda x: self._block(index, tokens.with_x(x), heard), tokens.x, use_reentrant=False
        )
        return result

    def _block(self, index: int, tokens: Tokens, heard: _Heard | None) -> Tensor:
        modulators = self._modulators(index)
        # Also where every inquiry is empty: regions of a group still see each other, as in the paper's code.
        together = any(modulator.span == "group" for modulator in modulators)
        partition = "group" if together else self.encoder.partition(index)
        contexts = [] if heard is None else _contexts(modulators, heard.inquiry)
        lengths = () if heard is None else heard.inquiry.lengths
        rotate = self._rotate(index, tokens, together)
        added = [(self._rotate_inquiry(index, context.k, tokens, lengths), context.v) for context in contexts]

        def at(site: str, x: Tensor, y: Tensor) -> Tensor:
            if heard is None:
                return y
            for modulator in modulators:
                if site in modulator.sites:
                    y = _modulated(modulator, site, x, y, heard)
            return y

        def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Bias | None = None) -> Tensor:
            q, k = rotate(q), rotate(k)
            if heard is not None and heard.inquiry.seen is not None:
                heard.inquiry.seen.extend(
                    inquiry_weights(q, context, tokens.layout, lengths, scale, (k, partition)) for context, _ in added
                )
            return attend(q, k, v, tokens.layout, partition, added, lengths, scale, bias)

        return self.encoder.block(index, tokens, at, attention)

    def _rotate(self, index: int, tokens: Tokens, together: bool) -> Callable[[Tensor], Tensor]:
        """The rotation of vision tokens in block `index`, where they have positions."""
        if tokens.positions is None:
            return lambda x: x
        rotation = self._rotation(index, tokens, "group" if together else "region")
        return lambda x: self.encoder.rotate(x, rotation)

    def _rotate_inquiry(self, index: int, k: Tensor, tokens: Tokens, lengths: tuple[int, ...]) -> Tensor:
        if tokens.positions is None:
            return k
        return self.encoder.rotate(k, self._rotation(index, tokens, lengths))

    def _rotation(self, index: int, tokens: Tokens, of: Literal["region", "group"] | tuple[int, ...]) -> Tensor:
        """What rotates tokens standing by themselves (`region`), as a group, or the inquiries of given lengths."""
        assert tokens.positions is not None
        layout, positions = tokens.layout, tokens.positions

        def make() -> Tensor:
            if of == "region":
                return self.encoder.rotation(index, positions)
            room = [self.encoder.room(size) for size in layout.sizes]
            if isinstance(of, tuple):
                return self.encoder.rotation(index, inquiry_positions(positions, layout, room, of))
            prefix = [self.encoder.tokens(size) - math.prod(size) for size in layout.sizes]
            return self.encoder.rotation(index, group_positions(positions, layout, room, prefix))

        return layout.cached(("rotation", of), make) if self.encoder.same_rotation else make()

    def _modulators(self, index: int) -> list[Modulator]:
        key = str(index)
        if key not in self.modulators:
            return []
        return [module for module in self.modulators[key].children() if isinstance(module, Modulator)]

    def _hear(self, inquiries: Sequence[Sequence[int]], layout: Layout, device: torch.device) -> _Heard | None:
        """Encode the inquiries; None where no region has one, or no block would listen."""
        if not self.modulators or not any(inquiries[group] for group in layout.groups):
            return None
        if self.inquiry_encoder is None:
            raise InputError("An inquiry was given, but this encoder was built without an inquiry encoder.")
        features, pooled = self.inquiry_encoder(inquiries)
        lengths = tuple(len(ids) for ids in inquiries)
        inquiry = Inquiry(features.to(device), pooled.to(device), lengths, layout)
        if all(lengths[group] for group in layout.groups):
            return _Heard(inquiry, None)
        heard = np.asarray([lengths[group] > 0 for group in layout.groups])
        keep = torch.from_numpy(np.repeat(heard, layout.partitions["region"]))
        return _Heard(inquiry, keep.to(device, non_blocking=True).unsqueeze(1))

    def _check(self, views: Sequence[View], groups: Sequence[int], inquiries: Sequence[Sequence[int]]) -> None:
        if len(views) != len(groups):
            raise InputError(f"{len(views)} regions came with {len(groups)} groups; give every region its group.")
        for region, group in enumerate(groups):
            if not 0 <= group < len(inquiries):
                raise InputError(
                    f"Region {region} is in group {group}, but there are {len(inquiries)} inquiries; "
                    "give an inquiry for every group, empty where there is none."
                )

    @staticmethod
    def _grouped(
        regions: int, inquiries: Sequence[str] | str, groups: Sequence[int] | None
    ) -> tuple[list[str], list[int]]:
        if isinstance(inquiries, str):
            if groups is not None:
                raise InputError("One inquiry is for all regions together; leave out `groups`, or give a list.")
            return [inquiries], [0] * regions
        if groups is None:
            if len(inquiries) != regions:
                raise InputError(
                    f"{regions} regions came with {len(inquiries)} inquiries; give one text for all, one "
                    "text each, or say in `groups` which region is under which."
                )
            groups = range(regions)
        return list(inquiries), list(groups)


def build_modulator(cls: type[Modulator], config: Any, block: BlockSpec, index: int, inquiry_width: int) -> Modulator:
    """Build the modulator of block `index`; raises BadConfig with the reason where it cannot work there."""
    reason = cls.refusal(config, block)
    if not reason and cls.context is not Modulator.context:
        reason = block.context_refused
    if reason:
        raise BadConfig(f"Modulator {cls.__name__} cannot work on block {index}: {reason}")
    modulator = cls(config, block, inquiry_width)
    missing = sorted(modulator.sites - set(block.sites))
    if missing:
        raise BadConfig(
            f"Modulator {cls.__name__} cannot work on block {index}: it uses '{missing[0]}', "
            f"but the block offers {', '.join(block.sites) or 'no sites'}."
        )
    return modulator


def _contexts(modulators: Sequence[Modulator], inquiry: Inquiry) -> list[Context]:
    made = (modulator.context(inquiry) for modulator in modulators)
    return [context for context in made if context is not None]


def _modulated(modulator: Modulator, site: str, x: Tensor, y: Tensor, heard: _Heard) -> Tensor:
    # The encoder's precision goes on, whatever the modulator's parameters are kept in.
    changed = modulator.modulate(site, x, y, heard.inquiry).to(y.dtype)
    return changed if heard.keep is None else torch.where(heard.keep, changed, y)
