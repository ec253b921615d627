"""The vision tower of Qwen2.5-VL, which the paper modulates: windows, rotary grids, merged features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.encoders.qwen2_5_vl import vision_weights as checkpoint
from vilavt_components.encoders.qwen2_5_vl import windows
from vilavt_components.encoders.qwen2_5_vl.resizing import Step, paper_steps, resized, shared
from vilavt_components.encoders.qwen2_5_vl.tower import Block, QwenVisionConfig, Tower
from vilavt_toolkit.contracts import At, Attend, BlockSpec, Crop, Encoder, EncoderSpec, Grid, View
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, view_size
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout, Tokens, inverse, offsets, permute, to_device
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting

_THETA = 10000.0


@dataclass(frozen=True)
class Qwen25VLConfig:
    """Settings of the `qwen2_5_vl` encoder: by `model` or `config`; by neither it is small."""

    model: str | None = setting(None, help="folder or hub name of a Qwen2.5-VL checkpoint", replaces=("config",))
    revision: str | None = setting(None, help="hub revision of `model`")
    local_files_only: bool = setting(False, help="never ask the hub")
    config: QwenVisionConfig | None = setting(
        None, help="shape of a new tower, as a checkpoint's vision_config", replaces=("model", "revision")
    )
    pad_mlp: int = setting(
        1,
        help="make the MLPs' hidden width a multiple of this with units that give zero; 128 is faster on a GPU, "
        "and exact, unless a modulator works on fc1 or fc2",
        minimum=1,
    )
    overview_pixels: int | None = setting(
        None, help="most pixels of the first view of an image; null: 200,704, of the small tower 1,024", minimum=1
    )
    zoom_pixels: int | None = setting(
        None, help="most pixels of the view of a region; null: 200,704, of the small tower 2,048", minimum=1
    )
    min_pixels: int | None = setting(
        None,
        help="fewest pixels of a view; small regions are enlarged to have them; null: 3,136, of the small tower none",
        minimum=0,
    )
    overview_total: int | None = setting(
        None, help="most pixels of the first views of a question together, which share them alike", minimum=1
    )
    max_scale: float | None = setting(
        None,
        help="most view pixels along one original pixel of a region; the first view is not enlarged; null: 2, and 0.5 "
        "of the small tower",
        minimum=0.01,
    )
    resize: Literal["native", "paper"] = setting(
        "native",
        help="how views get their size: as large as the budget allows, or as the paper's code has it, which first "
        "enlarges a region, to `max_scale` times the scale of the view it was named in",
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
"""For views of 32 pixels, as the quickstart's: the tower that stands where none is named."""
_BUDGET, _SMALL_BUDGET = PixelBudget(200_704, 200_704, 3_136, 2.0), PixelBudget(1_024, 2_048, 0, 0.5)


@encoders.register("qwen2_5_vl", Qwen25VLConfig)
class Qwen25VLEncoder(Encoder):
    """Qwen2.5-VL's vision tower at native resolution (the paper, section 3), on the packed path.

    A region's patches stand window by window, cell by cell within. A view's data is one of: uint8 [3, h, w], an image;
    uint8 [f, 3, h, w], frames, `temporal_patch_size` of them to a slice of a grid (t, h, w); float [n, 3 x frames x
    pixels], normalised patches in the order of transformers' image processor.
    """

    def __init__(self, config: Qwen25VLConfig) -> None:
        super().__init__()
        self.config = config
        self._origin = _origin(config)
        self.shape = shape = _shape(config, self._origin)
        shape.check()
        hidden = -(-shape.intermediate_size // config.pad_mlp) * config.pad_mlp
        self.tower = _build(shape, hidden, new=self._origin is None)
        self.budget = _budget(config, _SMALL_BUDGET if shape is _SMALL else _BUDGET)
        self.spec = EncoderSpec(
            modality="image",
            blocks=(_block_spec(shape, hidden),) * shape.depth,
            out_width=shape.out_hidden_size,
            positions="rotary",
            full_attention=tuple(sorted(shape.fullatt_block_indexes)),
        )
        mean, std = checkpoint.read_statistics(self._origin)
        # uint8 x -> (x - mean) / std; kept out of the buffers, whose precision follows the weights'.
        self._normalise = tuple((255 * m, 255 * s) for m, s in zip(mean, std, strict=True))
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
        """Resize a crop uint8 [h, w, 3] within the pixel budget, to whole cells."""
        budget = shared(self.budget, self.config.overview_total, crop).within(crop.max_pixels)
        cell = self.shape.cell
        if self.config.resize == "paper":
            steps = paper_steps(crop, cell, budget)
        else:
            height, width = crop.data.shape[:2]
            steps = [Step(*view_size(width, height, cell, budget, crop.overview))]
        data = resized(crop.data, steps)
        grid = data.shape[0] // self.shape.patch_size, data.shape[1] // self.shape.patch_size
        return View(data.permute(2, 0, 1).contiguous(), grid)

    def extent(self, view: View) -> Grid:
        """Width and height of a view in pixels."""
        return self.shape.patch_size * view.size[-1], self.shape.patch_size * view.size[-2]

    def tokens(self, size: Grid) -> int:
        """Patches of the grid (h, w) or (t, h, w)."""
        return math.prod(size)

    def grid(self, size: Grid) -> Grid:
        """The grid of merged features."""
        return windows.cell_grid(size, self.shape.spatial_merge_size)

    def partitions(self, sizes: Sequence[Grid]) -> dict[str, Sequence[int]]:
        """Segment lengths in patches: `window`, and `slice`, the whole of one moment."""
        unit, side = self.shape.spatial_merge_size**2, self.shape.window_side
        return {
            "window": [unit * cells for size in sizes for cells in windows.window_order(self.grid(size), side)[1]],
            "slice": [size[-2] * size[-1] for size in sizes for _ in range(math.prod(size[:-2]))],
        }

    def partition(self, index: int) -> str:
        """`slice` in the blocks of `fullatt_block_indexes`, else `window`."""
        return "slice" if index in self.spec.full_attention else "window"

    def room(self, size: Grid) -> int:
        """The longer side of the grid, in patches. (The paper's code.)"""
        return max(size[-2:])

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Cosines and sines of half a head's angles, rows before columns; positions [N, 2] -> [2, N, 1, d / 2]."""
        half = self.shape.head_dim // 2
        steps = torch.arange(0, half, 2, dtype=torch.float32, device=positions.device)
        angles = (positions.unsqueeze(-1).float() * (1.0 / _THETA ** (steps / half))).flatten(1)
        return torch.stack([angles.cos(), angles.sin()]).unsqueeze(2)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Turn the first half of every head against the second, in float32; [N, H, d] -> [N, H, d]."""
        cos, sin = rotation.unbind(0)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Patches of all views through one linear map, in window order; R views -> x [S, D]."""
        device = self.tower.patch_embed.proj.weight.device
        kinds: dict[tuple[Grid, int], list[int]] = {}
        for region, view in enumerate(views):
            kinds.setdefault((view.size, view.data.dim()), []).append(region)
        batches = [torch.stack([views[region].data for region in regions]) for regions in kinds.values()]
        patches = torch.cat([self._patches(data, device) for data in batches])
        order = tuple(region for regions in kinds.values() for region in regions)
        rows = layout.cached(("qwen patches", order, device), lambda: self._rows(layout, order, device))
        x = self.tower.patch_embed(patches.index_select(0, rows))
        positions = layout.cached(
            ("qwen positions", device),
            lambda: to_device(self._of_patches(windows.patch_places, layout)[:, 1:], device),
        )
        return Tokens(x, layout, positions)

    def block(self, index: int, tokens: Tokens, at: At, attend: Attend) -> Tensor:
        """Run block `index` with its parts in the open; x [S, D] -> [S, D]."""
        block, x = cast(Block, self.tower.blocks[index]), tokens.x
        h = at("norm1", x, block.norm1(x))
        qkv = at("qkv", h, block.attn.qkv(h)).view(len(h), 3, self.shape.num_heads, -1)
        q, k, v = qkv.unbind(1)
        a = attend(q, k, v).flatten(1)
        mid = x + at("attention", h, at("proj", a, block.attn.proj(a)))
        h = at("norm2", mid, block.norm2(mid))
        gate, up = at("fc1", h, block.mlp.gate_up(h)).chunk(2, dim=-1)
        y = F.silu(gate) * up
        return at("block", x, mid + at("mlp", h, at("fc2", y, block.mlp.down_proj(y))))

    def readout(self, tokens: Tokens) -> Tensor:
        """Merge the tokens of every cell into a feature, row after row; [S, D] -> [F, D_out]."""
        merger, layout = self.tower.merger, tokens.layout
        normed = merger.ln_q(tokens.x)
        merged: Tensor = merger.mlp(normed.view(-1, normed.shape[-1] * self.shape.spatial_merge_size**2))
        return permute(
            merged, *layout.cached(("qwen cells", merged.device), lambda: self._cells(layout, merged.device))
        )

    def to_grids(self, values: Tensor, layout: Layout) -> list[Tensor]:
        """Values of all tokens [S, C] on the grid of each region; [*size, C] each."""
        device = values.device
        rows = layout.cached(("qwen raster", device), lambda: to_device(self._raster_rows(layout), device))
        parts = values.index_select(0, rows).split_with_sizes([math.prod(size) for size in layout.sizes])
        return [part.view(*size, -1) for part, size in zip(parts, layout.sizes, strict=True)]

    def check_weights(self) -> None:
        """Hold that the folder `model` has weights; raises InputError."""
        if self._origin is not None:
            checkpoint.check_weights(self._origin)

    def load_weights(self) -> None:
        """Load the vision weights of `model`; raises InputError."""
        if self._origin is None:
            return
        weights = checkpoint.read_weights(self._origin)
        shapes = {key: value.shape for key, value in self.tower.state_dict().items()}
        self.tower.load_state_dict(
            checkpoint.from_checkpoint(weights, shapes, self.shape.intermediate_size, self._origin.name)
        )

    def _patches(self, data: Tensor, device: torch.device) -> Tensor:
        """Normalised patches, cell after cell, of n views of one size; [n cells patches, pixels of a patch]."""
        data = data.to(device, non_blocking=True)
        if data.is_floating_point():
            return data.flatten(0, 1)
        if device not in self._affine:
            made = torch.tensor(self._normalise, dtype=torch.float32, device="cpu").T.reshape(2, 3, 1, 1)
            self._affine[device] = made.to(device, non_blocking=True)
        mean, std = self._affine[device].unbind(0)
        pixels = (data.float() - mean) / std
        frames, side, merge = self.shape.temporal_patch_size, self.shape.patch_size, self.shape.spatial_merge_size
        if pixels.dim() == 4:  # single images
            pixels = pixels.unsqueeze(1).expand(-1, frames, -1, -1, -1)
        form = "n (t f) c (h m i) (w k j) -> (n t h w m k) (c f i j)"
        return rearrange(pixels, form, f=frames, m=merge, k=merge, i=side, j=side)

    def _of_patches(self, what: Callable[[Grid, int, int], windows.Ints], layout: Layout) -> windows.Ints:
        """What a function of _qwen_windows says of the patches of every region, packed."""
        shape = self.shape
        return np.concatenate([what(size, shape.spatial_merge_size, shape.window_side) for size in layout.sizes])

    def _rows(self, layout: Layout, order: Sequence[int], device: torch.device) -> Tensor:
        """Rows of patches that come region after region in `order`, cell after cell, in packed order; [S]."""
        counts = layout.partitions["region"]
        starts = np.empty(len(order), dtype=np.int64)
        starts[list(order)] = offsets([counts[region] for region in order])
        return to_device(np.repeat(starts, counts) + self._of_patches(windows.patch_order, layout), device)

    def _raster_rows(self, layout: Layout) -> windows.Ints:
        """Where the patches stand, region after region, row after row; [S]."""
        counts = layout.partitions["region"]
        return inverse(np.repeat(offsets(counts), counts) + self._of_patches(windows.patch_raster, layout))

    def _cells(self, layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
        """What `permute` needs to bring cells from window order into rows; [F], [F]."""
        counts = [self.count(size) for size in layout.sizes]
        orders = [windows.window_order(self.grid(size), self.shape.window_side)[0] for size in layout.sizes]
        place = np.repeat(offsets(counts), counts) + np.concatenate(orders)
        return to_device(inverse(place), device), to_device(place, device)


def _origin(config: Qwen25VLConfig) -> checkpoint.Origin | None:
    """Where the checkpoint is; None for a new tower."""
    if config.model is None:
        return None
    return checkpoint.Origin(config.model, config.revision, config.local_files_only)


def _shape(config: Qwen25VLConfig, origin: checkpoint.Origin | None) -> QwenVisionConfig:
    """The shape given, the checkpoint's, or a small one; raises BadConfig for both."""
    if origin is None:
        return config.config or _SMALL
    if config.config is None:
        return checkpoint.read_config(origin)
    raise BadConfig(
        "Encoder 'qwen2_5_vl' takes its shape from `model` or from `config`, not from both; leave out one, as in "
        "`config: null`."
    )


def _budget(config: Qwen25VLConfig, usual: PixelBudget) -> PixelBudget:
    """The budget as set, and as usual where it is not."""
    names = {"overview": "overview_pixels", "zoom": "zoom_pixels", "minimum": "min_pixels", "max_scale": "max_scale"}
    given: dict[str, Any] = {name: getattr(config, key) for name, key in names.items()}
    if config.overview_total is not None:  # which is then the limit, where no other is set beside it
        usual = replace(usual, overview=None)
    return replace(usual, **{name: value for name, value in given.items() if value is not None})


def _build(shape: QwenVisionConfig, hidden: int, new: bool) -> Tower:
    """Build the tower; weights that will be loaded are not drawn first."""
    if new:
        tower = Tower(shape, hidden)
        tower.initialise(shape)
        return tower
    from transformers.initialization import no_init_weights

    with no_init_weights():
        return Tower(shape, hidden)


def _block_spec(shape: QwenVisionConfig, hidden: int) -> BlockSpec:
    width = shape.hidden_size
    sites = dict.fromkeys(("norm1", "proj", "attention", "norm2", "fc2", "mlp", "block"), width)
    sites |= {"qkv": 3 * width, "fc1": 2 * hidden}
    return BlockSpec(width, sites, {"fc2": hidden}, heads=shape.num_heads, head_dim=shape.head_dim)
