"""The dynamic vision encoder: many regions encoded together, in blocks that inquiries modulate."""

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
from vilavt_toolkit.vision.explain import Explanation, build_explanations
from vilavt_toolkit.vision.integration import integrated_blocks
from vilavt_toolkit.vision.modulation import ActiveInquiries, ModulatedBlock, build_modulator, layout_after_block


class DynamicEncoder(nn.Module):
    """Encodes regions of sources together, under inquiries. It works alone too, without a language model.

    `modulators` are (class, config) pairs, which run in this order in every block that `integration` names. Without
    an inquiry encoder every inquiry must be empty. Raises BadConfig if a modulator cannot work on a block.
    """

    def __init__(
        self,
        backbone: Encoder,
        modulators: Sequence[tuple[type[Modulator], Any]] = (),
        integration: str | Sequence[int] = "all",
        inquiry_encoder: InquiryEncoder | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.inquiry_encoder = inquiry_encoder
        self.gradient_checkpointing = 0
        """Every n-th block is computed again in the backward pass; none for 0."""
        self.attention: Kernel = "auto"
        """The attention kernel; `varlen.choose_kernel` says when each is used."""
        self._compiled: Callable[[int, Tokens, ModulatedBlock], Tensor] | None = None
        width = inquiry_encoder.width if inquiry_encoder is not None else 0
        # Without modulators a choice of blocks means nothing, so it is not checked either.
        blocks = integrated_blocks(integration, backbone.spec) if modulators else ()
        self.modulators = nn.ModuleDict()
        for index in blocks:
            block = backbone.spec.blocks[index]
            built = [build_modulator(cls, config, block, index, width) for cls, config in modulators]
            self.modulators[str(index)] = nn.ModuleList(built)

    def forward(
        self, regions: Sequence[Region], inquiries: Sequence[str] | str, groups: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Encode regions under inquiries; return one tensor [*grid, D_out] per region ([F, D_out] without a grid).

        One text is the inquiry of all regions together. With a list, region r is under inquiries[groups[r]], and
        without `groups` each region has its own inquiry. An empty text leaves the encoder unmodulated. Raises
        InputError.
        """
        texts, of_region = self._assign_groups(len(regions), inquiries, groups)
        views = [self.prepare(region) for region in regions]
        features, grids = self.encode(views, of_region, [self.tokenize(text) for text in texts])
        shapes = [(view.size, grid) for view, grid in zip(views, grids, strict=True)]
        parts = features.split_with_sizes([self.backbone.feature_count(size) for size, _ in shapes])
        # If an encoder overrides `feature_count`, its features need not fill a grid; those stay [F, D].
        return [
            part.view(*grid, -1) if math.prod(grid) == len(part) else part
            for part, (_, grid) in zip(parts, shapes, strict=True)
        ]

    def compile_blocks(self, **options: Any) -> None:
        """Compile the encoder's blocks when they first run; `options` are those of torch.compile.

        Attention stays outside of the graphs, so that they serve every layout. The names in the state dict stay the
        same. Raises BadConfig if the encoder's blocks cannot be compiled.
        """
        self.check_compiles()
        from vilavt_toolkit.vision.compiling import compile_block

        self._compiled = compile_block(self.backbone, **options)

    def check_compiles(self) -> None:
        """Raise BadConfig with the reason if the encoder's blocks cannot be compiled."""
        if self.backbone.no_compile_reason:
            raise BadConfig(
                f"Encoder {type(self.backbone).__name__} is not compiled: {self.backbone.no_compile_reason}"
            )

    @torch.no_grad()
    def explain(
        self, regions: Sequence[Region], inquiries: Sequence[str] | str, groups: Sequence[int] | None = None
    ) -> list[Explanation]:
        """Return how much the tokens of every region attend to every word of its inquiry; arguments as in `forward`.

        The weights are means over heads and modulated blocks. Raises InputError for an empty inquiry, and if no
        modulator attends to the tokens of the inquiry.
        """
        texts, of_region = self._assign_groups(len(regions), inquiries, groups)
        views = [self.prepare(region) for region in regions]
        found = self.explain_views(views, of_region, [self.tokenize(text) for text in texts])
        return [replace(each, crop=region.crop().data) for each, region in zip(found, regions, strict=True)]

    @torch.no_grad()
    def explain_views(
        self, views: Sequence[View], groups: Sequence[int], inquiries: Sequence[Sequence[int]]
    ) -> list[Explanation]:
        """Return the explanations of `explain` for views and token ids, as `encode` takes them."""
        self._check_groups(views, groups, inquiries)
        without_inquiry = next((region for region, group in enumerate(groups) if not inquiries[group]), None)
        if without_inquiry is not None:
            raise InputError(
                f"Region {without_inquiry} has an empty inquiry, so there is no word to attend to. Give it an inquiry."
            )
        if not views:
            return []
        assert self.inquiry_encoder is not None  # or `tokenize` would have given no ids
        attention_log: list[tuple[Layout, Tensor]] = []
        layout = self._run_backbone(views, groups, inquiries, attention_log)[1]
        if not attention_log:
            names = sorted({type(modulator).__name__ for modulator in self._all_modulators()})
            raise InputError(
                f"No modulator attends to the words of the inquiry (modulators: {', '.join(names) or 'none'}). "
                "Choose a modulator with attention to them."
            )
        words = [self.inquiry_encoder.token_texts(ids) for ids in inquiries]
        return build_explanations(self.backbone, layout, words, attention_log)

    def prepare(self, region: Region) -> View:
        """Cut a region out of its original and make it ready for the encoder; raises InputError."""
        crop = region.crop()
        try:
            if crop.modality != self.backbone.spec.modality:
                raise InputError(
                    f"a region of modality '{crop.modality}' was given to an encoder of "
                    f"'{self.backbone.spec.modality}'. Choose an encoder for that modality."
                )
            return self.backbone.prepare(crop)
        except InputError as error:
            # The error of a zoom is feedback for the model, which knows regions and no files.
            if region.box is not None:
                raise
            raise InputError(f"{region.source.name}: {error}") from error

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of an inquiry, [] for an empty one; raises InputError without an inquiry encoder."""
        if not text.strip():
            return []
        if self.inquiry_encoder is None:
            raise InputError(f"The inquiry {text!r} cannot be read: this encoder was built without an inquiry encoder.")
        return self.inquiry_encoder.tokenize(text)

    def encode(
        self, views: Sequence[View], groups: Sequence[int], inquiries: Sequence[Sequence[int]]
    ) -> tuple[Tensor, list[Grid]]:
        """Encode views of R regions, region r in group groups[r]; inquiries[g] are token ids, [] for none.

        Returns the features [F, D_out], packed in the order of `views`, and the grid of every region's features.
        Groups may come in any order. Raises InputError for a group without an entry in `inquiries`.
        """
        self._check_groups(views, groups, inquiries)
        if not views:
            # Without a view there is nothing to embed, but callers need features of the right device and type.
            weight = next(self.backbone.parameters())
            return weight.new_zeros(0, self.backbone.spec.out_width), []
        features, layout = self._run_backbone(views, groups, inquiries)
        features = layout.restore_order(features, [self.backbone.feature_count(size) for size in layout.sizes])
        return features, [self.backbone.feature_grid(view.size) for view in views]

    def _run_backbone(
        self,
        views: Sequence[View],
        groups: Sequence[int],
        inquiries: Sequence[Sequence[int]],
        attention_log: list[tuple[Layout, Tensor]] | None = None,
    ) -> tuple[Tensor, Layout]:
        """Return the features in packed order, and the layout of the views; `attention_log` as in `Inquiry`."""
        sizes = [view.size for view in views]
        counts = [self.backbone.token_count(size) for size in sizes]
        layout = Layout.build(sizes, counts, groups, self.backbone.partitions, self.attention)
        # From here to `readout` everything is packed: regions sorted by group, one after another, without padding.
        tokens = self.backbone.embed([views[region] for region in layout.order], layout)
        active = self._encode_inquiries(inquiries, layout, tokens.x.device, attention_log)
        for index in range(self.backbone.spec.depth):
            after = layout_after_block(self.backbone, index, layout)
            active = None if active is None else active.for_layout(after)
            tokens = tokens.after_block(self._run_checkpointed(index, tokens, after, active), after)
        return self.backbone.readout(tokens), layout

    def _run_checkpointed(self, index: int, tokens: Tokens, after: Layout, active: ActiveInquiries | None) -> Tensor:
        every = self.gradient_checkpointing
        if not every or index % every or not torch.is_grad_enabled():
            return self._run_block(index, tokens, after, active)
        # Only x is an input of the checkpoint: the layout holds index tensors, which need no gradient.
        result: Tensor = checkpoint(
            lambda x: self._run_block(index, tokens.with_x(x), after, active), tokens.x, use_reentrant=False
        )
        return result

    def _run_block(self, index: int, tokens: Tokens, after: Layout, active: ActiveInquiries | None) -> Tensor:
        call = ModulatedBlock.from_block(self.backbone, index, self._block_modulators(index), tokens, after, active)
        # Explaining appends to a Python list inside the block, which a graph would do only while it is traced.
        if self._compiled is None or (active is not None and active.inquiry.attention_log is not None):
            return self.backbone.block(index, tokens, call.modulate_site, call.attend)
        return self._compiled(index, tokens, call)

    def _block_modulators(self, index: int) -> list[Modulator]:
        key = str(index)
        if key not in self.modulators:
            return []
        return [module for module in self.modulators[key].children() if isinstance(module, Modulator)]

    def _all_modulators(self) -> list[Modulator]:
        return [module for module in self.modulators.modules() if isinstance(module, Modulator)]

    def _encode_inquiries(
        self,
        inquiries: Sequence[Sequence[int]],
        layout: Layout,
        device: torch.device,
        attention_log: list[tuple[Layout, Tensor]] | None,
    ) -> ActiveInquiries | None:
        """Encode the inquiries; return None if no region has one, or no block is modulated."""
        if not self.modulators or not any(inquiries[group] for group in layout.groups):
            return None
        if self.inquiry_encoder is None:
            raise InputError(
                "An inquiry was given, but this encoder was built without an inquiry encoder. Give it one."
            )
        # An inquiry encoder may run on a language model that is no part of this module, so it is not moved with it.
        features, pooled = self.inquiry_encoder(inquiries)
        lengths = tuple(len(ids) for ids in inquiries)
        return ActiveInquiries.from_inquiry(
            Inquiry(features.to(device), pooled.to(device), lengths, layout, attention_log)
        )

    def _check_groups(self, views: Sequence[View], groups: Sequence[int], inquiries: Sequence[Sequence[int]]) -> None:
        if len(views) != len(groups):
            raise InputError(f"{len(views)} regions came with {len(groups)} groups. Give every region its group.")
        for region, group in enumerate(groups):
            if not 0 <= group < len(inquiries):
                raise InputError(
                    f"Region {region} is in group {group}, but there are {len(inquiries)} inquiries. "
                    "Give an inquiry for every group, an empty text for none."
                )

    @staticmethod
    def _assign_groups(
        regions: int, inquiries: Sequence[str] | str, groups: Sequence[int] | None
    ) -> tuple[list[str], list[int]]:
        # A str is a sequence too: without this check its letters would be taken for inquiries.
        if isinstance(inquiries, str):
            if groups is not None:
                raise InputError(
                    "One inquiry is for all regions together. Leave out `groups`, or give a list of inquiries."
                )
            return [inquiries], [0] * regions
        if groups is None:
            if len(inquiries) != regions:
                raise InputError(
                    f"{regions} regions came with {len(inquiries)} inquiries. Give one text for all, one "
                    "text each, or say in `groups` which region is under which."
                )
            groups = range(regions)
        return list(inquiries), list(groups)
