"""What encoders of images have in common: views within a pixel budget, and batches of equal ones on the packed axis."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Crop, Encoder, Grid, View
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, view_size
from vilavt_toolkit.packed.tokens import Layout, Tokens, offsets, permutation, permute, runs, to_device

if TYPE_CHECKING:
    from PIL.Image import Resampling


class ImageEncoder(Encoder):
    """An encoder whose regions are `prefix` tokens and then patches of `stride` pixels (h, w), row after row.

    `data` holds `mean`, `std` (of pixels from 0 to 1) and `interpolation`, as the library's own preprocessing.
    """

    def __init__(self, stride: tuple[int, int], prefix: int, budget: PixelBudget, data: Mapping[str, Any]) -> None:
        super().__init__()
        self.stride, self.prefix, self.budget = stride, prefix, budget
        self.multiple = math.lcm(*stride)
        """What the sides of a view are multiples of, in pixels."""
        self.interpolation: str = data["interpolation"]
        # uint8 x -> (x - mean) / std; kept out of the buffers, whose precision follows the weights'.
        self._normalise = tuple((255 * mean, 255 * std) for mean, std in zip(data["mean"], data["std"], strict=True))
        self._affine: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def prepare(self, crop: Crop) -> View:
        """Resize a crop uint8 [h, w, 3] within the pixel budget, to whole tokens."""
        from PIL import Image

        height, width = crop.data.shape[:2]
        size = view_size(width, height, self.multiple, self.budget.within(crop.max_pixels), crop.overview)
        data = torch.as_tensor(crop.data)
        if size != (width, height):
            image = Image.fromarray(data.numpy()).resize(size, _resampling(self.interpolation))
            data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3)
        grid = size[1] // self.stride[0], size[0] // self.stride[1]
        return View(data.permute(2, 0, 1).contiguous(), grid)

    def extent(self, view: View) -> Grid:
        """Width and height of a view in pixels."""
        return view.data.shape[-1], view.data.shape[-2]

    def tokens(self, size: Grid) -> int:
        """Patches of the grid (h, w), and the model's class and register tokens."""
        return math.prod(size) + self.prefix

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Stem, position embeddings and prefix tokens, one batch per distinct size; R views -> x [S, D]."""
        of_size: dict[Grid, list[int]] = {}
        for region, size in enumerate(layout.sizes):
            of_size.setdefault(size, []).append(region)
        packed = [
            self.embed_batch(torch.stack([views[region].data for region in regions]), size).flatten(0, 1)
            for size, regions in of_size.items()
        ]
        positions = self.positions(layout, packed[0].device)
        if len(packed) == 1:
            return Tokens(packed[0], layout, positions)
        order = [region for regions in of_size.values() for region in regions]
        device = packed[0].device
        counts = layout.partitions["region"]
        by_size, back = layout.cached(("embed", device), lambda: permutation(counts, order, device))
        return Tokens(permute(torch.cat(packed), back, by_size), layout, positions)

    @abstractmethod
    def embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """What goes into the first block, of n views of one size; uint8 [n, 3, h, w] -> [n, prefix + patches, D]."""

    def positions(self, layout: Layout, device: torch.device) -> Tensor | None:
        """Rotary coordinates of all tokens [S, P], or None."""
        return None

    def pixels(self, images: Tensor, weight: Tensor) -> Tensor:
        """Normalised pixels where `weight` is and of its type; uint8 [n, 3, h, w] -> the same shape."""
        device = weight.device
        if device not in self._affine:
            mean, std = torch.tensor(self._normalise, dtype=torch.float32, device="cpu").T.view(2, 3, 1, 1)
            self._affine[device] = mean.to(device, non_blocking=True), std.to(device, non_blocking=True)
        mean, std = self._affine[device]
        return ((images.to(device, non_blocking=True).float() - mean) / std).to(weight.dtype)

    def patches(self, x: Tensor, layout: Layout) -> Tensor:
        """The tokens without those that stand before a region's patches; [S, D] -> [F, D]."""
        if not self.prefix:
            return x
        return x.index_select(0, layout.cached(("patches", x.device), lambda: self._patch_rows(layout, x.device)))

    def _patch_rows(self, layout: Layout, device: torch.device) -> Tensor:
        counts = layout.partitions["region"]
        starts = [start + self.prefix for start in offsets(counts)]
        return to_device(runs(starts, [count - self.prefix for count in counts]), device)


def _resampling(interpolation: str) -> Resampling:
    from PIL.Image import Resampling

    names = {"nearest": Resampling.NEAREST, "bilinear": Resampling.BILINEAR, "lanczos": Resampling.LANCZOS}
    return names.get(interpolation, Resampling.BICUBIC)
