"""Encoder `qwen2_5_vl`: the vision tower of Qwen2.5-VL, which the paper modulates.

Read this file first. `embed` brings the patches into window order, `block` is transformers'
`Qwen2_5_VLVisionBlock.forward` with a hook at every site, and `readout` merges the patches of each cell into a feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.common.qwen_checkpoint_files import CheckpointLocation
from vilavt_components.encoders.qwen2_5_vl import vision_weights, windows
from vilavt_components.encoders.qwen2_5_vl.resizing import (
    Resampling,
    paper_resamplings,
    resample_pixels,
    share_overview_pixels,
)
from vilavt_components.encoders.qwen2_5_vl.tower import Block, QwenVisionConfig, Tower
from vilavt_toolkit.contracts import Attend, BlockSpec, Crop, Encoder, EncoderSpec, Grid, SiteHook, View
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, PixelBudgetConfig, view_size
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout, Tokens, invert_permutation, permute_rows, segment_starts, to_device
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting

# The base of RoPE, fixed in the model's code.
_THETA = 10000.0


@dataclass(frozen=True)
class Qwen25VLConfig(PixelBudgetConfig):
    """Settings of the `qwen2_5_vl` encoder: by `path` or `config`; by neither it is small.

    Its usual views have 3,136 to 200,704 pixels. Those of the small tower have up to 1,024, and 2,048 for a region.
    """

    path: str | None = setting(
        None,
        help="folder or hub name of a Qwen2.5-VL checkpoint",
        replaces=("config",),
        formerly=("model",),
        is_path=True,
    )
    revision: str | None = setting(None, help="hub revision of `path`")
    local_files_only: bool = setting(False, help="never ask the hub")
    config: QwenVisionConfig | None = setting(
        None, help="shape of a new tower, as a checkpoint's vision_config", replaces=("path", "revision")
    )
    pad_mlp: int = setting(
        1,
        help="pad the MLPs' hidden width to a multiple of this with units that give zero. 128 is faster on a GPU, and "
        "exact unless a modulator changes fc1 or fc2",
        minimum=1,
    )
    min_pixels: int | None = setting(
        None,
        help="fewest pixels of a view, to which small regions are enlarged (null: 3,136, or none for the small tower)",
        minimum=0,
    )
    overview_total: int | None = setting(
        None, help="most pixels of all first views of a question together, shared equally (null: no limit)", minimum=1
    )
    resize: Literal["native", "paper"] = setting(
        "native",
        help="size of views: as large as the budget allows, or as in the paper's code, which first enlarges a region "
        "to `max_scale` times the scale of the view that it was named in",
    )


_SMALL = QwenVisionConfig(
    depth=3,
    hidden_size=128,
    intermediate_size=256,
    num_heads=4,
    out_hidden_size=128,
    patch_size=4,
    temporal_patch_size=1,
    window_size=16,
    fullatt_block_indexes=(2,),
    initializer_range=0.08,
)
"""The tower built if none is named, for views of 32 pixels as in the quickstart."""
_BUDGET, _SMALL_BUDGET = PixelBudget(200_704, 200_704, 3_136, 2.0), PixelBudget(1_024, 2_048, 0, 0.5)


@encoders.register("qwen2_5_vl", Qwen25VLConfig)
class Qwen25VLEncoder(Encoder):
    """Qwen2.5-VL's vision tower at native resolution (the paper, section 3), on the packed path.

    A region's patches stand window by window, cell by cell within (`windows.py` says why). A view's data is one of:
    uint8 [3, h, w], an image; uint8 [f, 3, h, w], frames, `temporal_patch_size` of them to a slice of a grid (t, h, w);
    float [n, 3 x frames x pixels], normalised patches in the order of transformers' image processor.
    """

    def __init__(self, config: Qwen25VLConfig) -> None:
        super().__init__()
        self.config = config
        self._location = _checkpoint_location(config)
        self.shape = shape = _tower_shape(config, self._location)
        shape.check_shape()
        hidden = math.ceil(shape.intermediate_size / config.pad_mlp) * config.pad_mlp
        self.tower = _build_tower(shape, hidden, is_new=self._location is None)
        self.budget = _pixel_budget(config, _SMALL_BUDGET if shape is _SMALL else _BUDGET)
        self.spec = EncoderSpec(
            modality="image",
            blocks=(_block_spec(shape, hidden),) * shape.depth,
            out_width=shape.out_hidden_size,
            positions="rotary",
            full_attention=tuple(sorted(shape.fullatt_block_indexes)),
        )
        mean, std = vision_weights.read_statistics(self._location)
        # Statistics of pixels from 0 to 255. No buffers: those take the type of the weights, and bfloat16 would round
        # the mean by up to a quarter of a grey level.
        self._mean_and_std = tuple((255 * m, 255 * s) for m, s in zip(mean, std, strict=True))
        self._affine: dict[torch.device, Tensor] = {}

    @classmethod
    def tiny(cls) -> Qwen25VLConfig:
        """Return settings of three blocks of width 32 on 8-pixel patches, one of them without windows."""
        small = QwenVisionConfig(
            depth=3,
            hidden_size=32,
            intermediate_size=40,
            num_heads=2,
            out_hidden_size=24,
            patch_size=8,
            window_size=32,
            fullatt_block_indexes=(1,),
        )
        return Qwen25VLConfig(config=small, pad_mlp=16, overview_pixels=4096, zoom_pixels=4096, min_pixels=0)

    def prepare(self, crop: Crop) -> View:
        """Resize a crop uint8 [h, w, 3] within the pixel budget, to sides of whole cells."""
        budget = share_overview_pixels(self.budget, self.config.overview_total, crop).with_max_pixels(crop.max_pixels)
        cell = self.shape.cell
        if self.config.resize == "paper":
            resamplings = paper_resamplings(crop, cell, budget)
        else:
            height, width = crop.data.shape[:2]
            resamplings = [Resampling(*view_size(width, height, cell, budget, crop.overview))]
        data = resample_pixels(crop.data, resamplings)
        grid = data.shape[0] // self.shape.patch_size, data.shape[1] // self.shape.patch_size
        return View(data.permute(2, 0, 1).contiguous(), grid)

    def extent(self, view: View) -> Grid:
        """Return width and height of a view in pixels."""
        return self.shape.patch_size * view.size[-1], self.shape.patch_size * view.size[-2]

    def token_count(self, size: Grid) -> int:
        """Count the patches of the grid (h, w) or (t, h, w)."""
        return math.prod(size)

    def feature_grid(self, size: Grid) -> Grid:
        """Return the grid of merged features, one per cell."""
        return windows.cell_grid(size, self.shape.spatial_merge_size)

    def partitions(self, sizes: Sequence[Grid]) -> dict[str, Sequence[int]]:
        """Return segment lengths in patches: of `window`, and of `slice`, all patches of one time."""
        unit, side = self.shape.spatial_merge_size**2, self.shape.window_side
        of_windows: list[int] = []
        of_slices: list[int] = []
        for size in sizes:
            _, cells_of_windows = windows.window_order(self.feature_grid(size), side)
            of_windows += [unit * cells for cells in cells_of_windows]
            # An image (h, w) is one slice; a video (t, h, w) has t of them, which never attend to each other.
            of_slices += [size[-2] * size[-1]] * math.prod(size[:-2])
        return {"window": of_windows, "slice": of_slices}

    def block_partition(self, index: int) -> str:
        """Return `slice` for the blocks of `fullatt_block_indexes`, else `window`."""
        return "slice" if index in self.spec.full_attention else "window"

    def position_stride(self, size: Grid) -> int:
        """Return the longer side of the grid in patches, as the paper's code shifts the regions of a group."""
        return max(size[-2:])

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Return cosines and sines, angles of rows before those of columns; positions [N, 2] -> [2, N, 1, d / 2]."""
        # Half of a head's d / 2 pairs of channels turn with the row, the other half with the column, both at the
        # frequencies of a RoPE of width d / 2. (transformers' `Qwen2_5_VLVisionRotaryEmbedding`.)
        half = self.shape.head_dim // 2
        exponents = torch.arange(0, half, 2, dtype=torch.float32, device=positions.device) / half
        angles = (positions.unsqueeze(-1).float() * (1.0 / _THETA**exponents)).flatten(1)
        return torch.stack([angles.cos(), angles.sin()]).unsqueeze(2)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate the first half of every head against the second, in float32; [N, H, d] -> [N, H, d]."""
        # The same as transformers' `apply_rotary_pos_emb_vision`, whose tables hold every angle twice.
        cos, sin = rotation.unbind(0)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Embed the patches of all views in one linear map, in window order; R views -> x [S, D]."""
        device = self.tower.patch_embed.proj.weight.device
        # Views of one size and form are cut into patches together; images and frames differ in their dimensions.
        alike: dict[tuple[Grid, int], list[int]] = {}
        for region, view in enumerate(views):
            alike.setdefault((view.size, view.data.dim()), []).append(region)
        batches = [torch.stack([views[region].data for region in regions]) for regions in alike.values()]
        patches = torch.cat([self._cut_patches(data, device) for data in batches])
        # One gather does both: it restores the layout's order of regions, and puts their patches into window order.
        order = tuple(region for regions in alike.values() for region in regions)
        rows = layout.get_or_make(("qwen patches", order, device), lambda: self._patch_rows(layout, order, device))
        x = self.tower.patch_embed(patches.index_select(0, rows))
        positions = layout.get_or_make(
            ("qwen positions", device),
            lambda: to_device(self._concat_regions(windows.patch_places, layout)[:, 1:], device),
        )
        return Tokens(x, layout, positions)

    def block(self, index: int, tokens: Tokens, site: SiteHook, attend: Attend) -> Tensor:
        """Run block `index` with a hook at every site; x [S, D] -> [S, D].

        transformers' `Qwen2_5_VLVisionBlock.forward`: x = x + attn(norm1(x)), then x = x + mlp(norm2(x)).
        """
        block, x = cast(Block, self.tower.blocks[index]), tokens.x
        h = site("norm1", x, block.norm1(x))
        qkv = site("qkv", h, block.attn.qkv(h)).view(len(h), 3, self.shape.num_heads, -1)
        q, k, v = qkv.unbind(1)
        # `attend` rotates q and k, and keeps to this block's partition: windows, or whole slices.
        a = attend(q, k, v).flatten(1)
        # Nothing stands between the projection and the residual stream, so sites proj and attention share their y.
        mid = x + site("attention", h, site("proj", a, block.attn.proj(a)))
        h = site("norm2", mid, block.norm2(mid))
        # Site fc1 holds gate and up projection side by side, [S, 2 hidden], before the activation.
        gate, up = site("fc1", h, block.mlp.gate_up(h)).chunk(2, dim=-1)
        y = F.silu(gate) * up
        return site("block", x, mid + site("mlp", h, site("fc2", y, block.mlp.down_proj(y))))

    def readout(self, tokens: Tokens) -> Tensor:
        """Merge the tokens of every cell into a feature, row after row; [S, D] -> [F, D_out]."""
        merger, layout = self.tower.merger, tokens.layout
        # The patches of a cell lie next to each other, so that merging them is a view of the packed tokens.
        normed = merger.ln_q(tokens.x)
        merged: Tensor = merger.mlp(normed.view(-1, normed.shape[-1] * self.shape.spatial_merge_size**2))
        return permute_rows(
            merged,
            *layout.get_or_make(("qwen cells", merged.device), lambda: self._cell_permutation(layout, merged.device)),
        )

    def to_grids(self, values: Tensor, layout: Layout) -> list[Tensor]:
        """Put values of all tokens [S, C] on the grid of each region; [*size, C] each."""
        device = values.device
        rows = layout.get_or_make(("qwen raster", device), lambda: to_device(self._raster_rows(layout), device))
        parts = values.index_select(0, rows).split_with_sizes([math.prod(size) for size in layout.sizes])
        return [part.view(*size, -1) for part, size in zip(parts, layout.sizes, strict=True)]

    def check_weights(self) -> None:
        """Check that the folder `path` has weights; raises InputError."""
        if self._location is not None:
            vision_weights.check_weights(self._location)

    def load_weights(self) -> None:
        """Load the vision weights of `path`; raises InputError."""
        if self._location is None:
            return
        weights = vision_weights.read_weights(self._location)
        shapes = {key: value.shape for key, value in self.tower.state_dict().items()}
        width, name = self.shape.intermediate_size, self._location.name
        self.tower.load_state_dict(vision_weights.from_checkpoint(weights, shapes, width, name))

    def _cut_patches(self, data: Tensor, device: torch.device) -> Tensor:
        """Cut n views of one size into normalised patches, cell after cell; [n x patches, 3 x frames x pixels]."""
        data = data.to(device, non_blocking=True)
        # Patches of transformers' processor are normalised already.
        if data.is_floating_point():
            return data.flatten(0, 1)
        if device not in self._affine:
            statistics = torch.tensor(self._mean_and_std, dtype=torch.float32, device="cpu").T.reshape(2, 3, 1, 1)
            self._affine[device] = statistics.to(device, non_blocking=True)
        mean, std = self._affine[device].unbind(0)
        pixels = (data.float() - mean) / std
        frames, side, merge = self.shape.temporal_patch_size, self.shape.patch_size, self.shape.spatial_merge_size
        # A patch of a single image has the image as each of its frames.
        if pixels.dim() == 4:
            pixels = pixels.unsqueeze(1).expand(-1, frames, -1, -1, -1)
        # t slices of f frames, h x w cells of m x k patches of i x j pixels, as transformers' processor orders them.
        form = "n (t f) c (h m i) (w k j) -> (n t h w m k) (c f i j)"
        return rearrange(pixels, form, f=frames, m=merge, k=merge, i=side, j=side)

    def _concat_regions(self, of_region: Callable[[Grid, int, int], windows.Ints], layout: Layout) -> windows.Ints:
        """Concatenate the results of a function of `windows.py` for every region, in packed order; [S, ...]."""
        merge, side = self.shape.spatial_merge_size, self.shape.window_side
        return np.concatenate([of_region(size, merge, side) for size in layout.sizes])

    def _patch_rows(self, layout: Layout, order: Sequence[int], device: torch.device) -> Tensor:
        """Return for each packed token the row of its patch, if patches come region after region in `order`; [S]."""
        counts = layout.partitions["region"]
        # `starts` holds, by the region's place in the layout, the row at which its patches begin.
        starts = np.empty(len(order), dtype=np.int64)
        starts[list(order)] = segment_starts([counts[region] for region in order])
        return to_device(np.repeat(starts, counts) + self._concat_regions(windows.patch_order, layout), device)

    def _raster_rows(self, layout: Layout) -> windows.Ints:
        """Return the packed row of every patch, taken region after region, row after row; [S]."""
        counts = layout.partitions["region"]
        return invert_permutation(
            np.repeat(segment_starts(counts), counts) + self._concat_regions(windows.patch_raster, layout)
        )

    def _cell_permutation(self, layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the permutation that brings cells from window order into rows, and its inverse; [F], [F]."""
        counts = [self.feature_count(size) for size in layout.sizes]
        orders = [windows.window_order(self.feature_grid(size), self.shape.window_side)[0] for size in layout.sizes]
        place = np.repeat(segment_starts(counts), counts) + np.concatenate(orders)
        return to_device(invert_permutation(place), device), to_device(place, device)


def _checkpoint_location(config: Qwen25VLConfig) -> CheckpointLocation | None:
    """Return where the checkpoint is, or None for a new tower."""
    if config.path is None:
        return None
    return CheckpointLocation(config.path, config.revision, config.local_files_only)


def _tower_shape(config: Qwen25VLConfig, location: CheckpointLocation | None) -> QwenVisionConfig:
    """Return the shape set in `config`, the checkpoint's, or the small one; raises BadConfig if both are set."""
    if location is None:
        return config.config or _SMALL
    if config.config is None:
        return vision_weights.read_config(location)
    raise BadConfig(
        "Encoder 'qwen2_5_vl' takes its shape from `path` or from `config`, not from both. Leave out one, as in "
        "`config: null`."
    )


def _pixel_budget(config: Qwen25VLConfig, usual: PixelBudget) -> PixelBudget:
    """Return the budget of the settings, `usual` for those that are null."""
    # `overview_total` is then the limit of an overview, unless `overview_pixels` is set beside it.
    return config.pixel_budget(usual if config.overview_total is None else replace(usual, overview=None))


def _build_tower(shape: QwenVisionConfig, hidden: int, is_new: bool) -> Tower:
    """Build the tower with MLPs of width `hidden`; weights that will be loaded are not drawn first."""
    if is_new:
        tower = Tower(shape, hidden)
        tower.init_weights(shape)
        return tower
    from transformers.initialization import no_init_weights

    with no_init_weights():
        return Tower(shape, hidden)


def _block_spec(shape: QwenVisionConfig, hidden: int) -> BlockSpec:
    """Describe what every block offers to modulators."""
    width = shape.hidden_size
    sites = dict.fromkeys(("norm1", "proj", "attention", "norm2", "fc2", "mlp", "block"), width)
    sites |= {"qkv": 3 * width, "fc1": 2 * hidden}
    return BlockSpec(width, sites, {"fc2": hidden}, heads=shape.num_heads, head_dim=shape.head_dim)
