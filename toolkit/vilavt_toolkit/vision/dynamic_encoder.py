"""The dynamic vision encoder: many regions encoded together, its blocks modulated by the inquiries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vilavt_toolkit.contracts import Encoder, Grid, Inquiry, InquiryEncoder, Modulator, Region, View
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.packed.tokens import Kernel, Layout, Tokens
from vilavt_toolkit.vision.explain import Explanation, explanations
from vilavt_toolkit.vision.integration import integrated_blocks
from vilavt_toolkit.vision.modulation import BlockCall, Heard, behind, build_modulator


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
        self.attention: Kernel = "auto"
        """How segments are attended over; `varlen.choose` says what each means."""
        self._compiled: Callable[[int, Tokens, BlockCall], Tensor] | None = None
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

    def compile_blocks(self, **options: Any) -> None:
        """Compile the encoder's blocks when they first run; `options` are torch.compile's. No state changes its name.

        Attention stays outside of the graphs, so that they serve every layout. Raises BadConfig where the encoder's
        blocks cannot be compiled.
        """
        self.check_compiles()
        from vilavt_toolkit.vision.compiling import compiled_block

        self._compiled = compiled_block(self.encoder, **options)

    def check_compiles(self) -> None:
        """Raise BadConfig with the reason where the encoder's blocks cannot be compiled."""
        if self.encoder.compile_refused:
            raise BadConfig(f"Encoder {type(self.encoder).__name__} is not compiled: {self.encoder.compile_refused}")

    @torch.no_grad()
    def explain(
        self, regions: Sequence[Region], inquiries: Sequence[str] | str, groups: Sequence[int] | None = None
    ) -> list[Explanation]:
        """How much every region's tokens attend to every word of its inquiry; arguments as in `forward`.

        The mean over heads and modulated blocks. Raises InputError for an empty inquiry, and where no modulator
        attends to the inquiry's tokens.
        """
        texts, of_region = self._grouped(len(regions), inquiries, groups)
        views = [self.prepare(region) for region in regions]
        found = self.explain_views(views, of_region, [self.tokenize(text) for text in texts])
        return [replace(each, crop=region.crop().data) for each, region in zip(found, regions, strict=True)]

    @torch.no_grad()
    def explain_views(
        self, views: Sequence[View], groups: Sequence[int], inquiries: Sequence[Sequence[int]]
    ) -> list[Explanation]:
        """`explain` for views and token ids, as `encode` takes them."""
        self._check(views, groups, inquiries)
        silent = next((region for region, group in enumerate(groups) if not inquiries[group]), None)
        if silent is not None:
            raise InputError(f"Region {silent} has an empty inquiry, so there is no word to attend to; ask something.")
        if not views:
            return []
        assert self.inquiry_encoder is not None  # it made the ids
        seen: list[tuple[Layout, Tensor]] = []
        layout = self._encode(views, groups, inquiries, seen)[1]
        if not seen:
            names = sorted({type(modulator).__name__ for modulator in self._all_modulators()})
            raise InputError(
                f"Nothing here attends to the words of the inquiry (modulators: {', '.join(names) or 'none'}); "
                "choose a modulator with attention to them."
            )
        words = [self.inquiry_encoder.words(ids) for ids in inquiries]
        return explanations(self.encoder, layout, words, seen)

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
        features, layout = self._encode(views, groups, inquiries)
        features = layout.restore(features, [self.encoder.count(size) for size in layout.sizes])
        return features, [self.encoder.grid(view.size) for view in views]

    def _encode(
        self,
        views: Sequence[View],
        groups: Sequence[int],
        inquiries: Sequence[Sequence[int]],
        seen: list[tuple[Layout, Tensor]] | None = None,
    ) -> tuple[Tensor, Layout]:
        """Features in packed order, and the layout of the views; attention to inquiries is put into `seen`."""
        sizes = [view.size for view in views]
        counts = [self.encoder.tokens(size) for size in sizes]
        layout = Layout.build(sizes, counts, groups, self.encoder.partitions, self.attention)
        tokens = self.encoder.embed([views[region] for region in layout.order], layout)
        heard = self._hear(inquiries, layout, tokens.x.device, seen)
        for index in range(self.encoder.spec.depth):
            after = behind(self.encoder, index, layout)
            heard = None if heard is None else heard.on(after)
            tokens = tokens.behind(self._run_block(index, tokens, after, heard), after)
        return self.encoder.readout(tokens), layout

    def _run_block(self, index: int, tokens: Tokens, after: Layout, heard: Heard | None) -> Tensor:
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return self._block(index, tokens, after, heard)
        result: Tensor = checkpoint(
            lambda x: self._block(index, tokens.with_x(x), after, heard), tokens.x, use_reentrant=False
        )
        return result

    def _block(self, index: int, tokens: Tokens, after: Layout, heard: Heard | None) -> Tensor:
        call = BlockCall.of(self.encoder, index, self._modulators(index), tokens, after, heard)
        if self._compiled is None or (heard is not None and heard.inquiry.seen is not None):
            return self.encoder.block(index, tokens, call.at, call.attend)
        return self._compiled(index, tokens, call)

    def _modulators(self, index: int) -> list[Modulator]:
        key = str(index)
        if key not in self.modulators:
            return []
        return [module for module in self.modulators[key].children() if isinstance(module, Modulator)]

    def _all_modulators(self) -> list[Modulator]:
        return [module for module in self.modulators.modules() if isinstance(module, Modulator)]

    def _hear(
        self,
        inquiries: Sequence[Sequence[int]],
        layout: Layout,
        device: torch.device,
        seen: list[tuple[Layout, Tensor]] | None,
    ) -> Heard | None:
        """Encode the inquiries; None where no region has one, or no block would listen."""
        if not self.modulators or not any(inquiries[group] for group in layout.groups):
            return None
        if self.inquiry_encoder is None:
            raise InputError("An inquiry was given, but this encoder was built without an inquiry encoder.")
        features, pooled = self.inquiry_encoder(inquiries)
        lengths = tuple(len(ids) for ids in inquiries)
        return Heard.of(Inquiry(features.to(device), pooled.to(device), lengths, layout, seen))

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
