"""The base of all image encoders: views within a pixel budget, embedded in one batch per size, then packed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Crop, Encoder, Grid, View
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, view_size
from vilavt_toolkit.packed.tokens import (
    Layout,
    Tokens,
    concat_ranges,
    permute_rows,
    segment_permutation,
    segment_starts,
    to_device,
)

if TYPE_CHECKING:
    from PIL.Image import Resampling


class ImageEncoder(Encoder):
    """An encoder of images whose regions are first some prefix tokens, then patches row after row.

    Arguments: `stride` is the size of a patch in pixels (h, w); `prefix_tokens` counts class and register tokens;
    `budget` limits the views; `preprocessing` holds the library's `mean` and `std` (for pixels from 0 to 1) and its
    `interpolation`.
    """

    def __init__(
        self, stride: tuple[int, int], prefix_tokens: int, budget: PixelBudget, preprocessing: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.stride, self.prefix_tokens, self.budget = stride, prefix_tokens, budget
        self.side_multiple = math.lcm(*stride)
        """The number of pixels that both sides of a view are multiples of."""
        self.interpolation: str = preprocessing["interpolation"]
        # Statistics of pixels from 0 to 255, so that normalising is one subtraction and one division. No buffers:
        # those take the type of the weights, and bfloat16 would round the mean by up to a quarter of a grey level.
        statistics = zip(preprocessing["mean"], preprocessing["std"], strict=True)
        self._mean_and_std = tuple((255 * mean, 255 * std) for mean, std in statistics)
        self._affine: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def prepare(self, crop: Crop) -> View:
        """Resize a crop uint8 [h, w, 3] within the pixel budget, to sides of whole tokens."""
        from PIL import Image

        height, width = crop.data.shape[:2]
        size = self.view_size(width, height, self.budget.with_max_pixels(crop.max_pixels), crop.overview)
        data = torch.as_tensor(crop.data)
        if size != (width, height):
            # Pillow resamples with antialiasing, as the libraries' own preprocessing does; torch's resize differs.
            image = Image.fromarray(data.numpy()).resize(size, _resampling_filter(self.interpolation))
            data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3)
        return View(data.permute(2, 0, 1).contiguous(), self.view_grid(*size))

    def view_size(self, width: int, height: int, budget: PixelBudget, overview: bool) -> tuple[int, int]:
        """Return the size (width, height) in pixels at which a crop of `width` x `height` becomes a view."""
        return view_size(width, height, self.side_multiple, budget, overview)

    def view_grid(self, width: int, height: int) -> Grid:
        """Return the grid of tokens (h, w) of a view."""
        return height // self.stride[0], width // self.stride[1]

    def extent(self, view: View) -> Grid:
        """Return width and height of a view in pixels."""
        return view.data.shape[-1], view.data.shape[-2]

    def token_count(self, size: Grid) -> int:
        """Count the patches of the grid (h, w), and the model's class and register tokens."""
        return math.prod(size) + self.prefix_tokens

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Embed the views, one batch per distinct size, and pack the tokens; R views -> x [S, D]."""
        of_size: dict[Grid, list[int]] = {}
        for region, size in enumerate(layout.sizes):
            of_size.setdefault(size, []).append(region)
        packed: list[Tensor] = []
        for size, regions in of_size.items():
            images = torch.stack([views[region].data for region in regions])
            packed.append(self.embed_batch(images, size).flatten(0, 1))
        positions = self.rotary_positions(layout, packed[0].device)
        if len(packed) == 1:
            return Tokens(packed[0], layout, positions)
        # Tokens stand in the order of sizes now; bring them back into the layout's order of regions. The permutation
        # is cached in the layout, since its copy to the device would cost more than applying it.
        order = [region for regions in of_size.values() for region in regions]
        device = packed[0].device
        counts = layout.partitions["region"]
        by_size, back = layout.get_or_make(("embed", device), lambda: segment_permutation(counts, order, device))
        return Tokens(permute_rows(torch.cat(packed), back, by_size), layout, positions)

    @abstractmethod
    def embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """Embed n views of one size for the first block; uint8 [n, 3, h, w] -> [n, prefix tokens + patches, D]."""

    def rotary_positions(self, layout: Layout, device: torch.device) -> Tensor | None:
        """Return the rotary coordinates of all tokens [S, P], or None for an encoder without RoPE."""
        return None

    def normalise_pixels(self, images: Tensor, weight: Tensor) -> Tensor:
        """Normalise pixels on the device of `weight` and in its type; uint8 [n, 3, h, w] -> the same shape."""
        device = weight.device
        # Copied to the device once: a copy in every call would wait for the device.
        if device not in self._affine:
            mean, std = torch.tensor(self._mean_and_std, dtype=torch.float32, device="cpu").T.view(2, 3, 1, 1)
            self._affine[device] = mean.to(device, non_blocking=True), std.to(device, non_blocking=True)
        mean, std = self._affine[device]
        return ((images.to(device, non_blocking=True).float() - mean) / std).to(weight.dtype)

    def select_patches(self, x: Tensor, layout: Layout) -> Tensor:
        """Select the patches, without the prefix tokens of each region; [S, D] -> [F, D]."""
        if not self.prefix_tokens:
            return x
        return x.index_select(0, layout.get_or_make(("patches", x.device), lambda: self._patch_rows(layout, x.device)))

    def _patch_rows(self, layout: Layout, device: torch.device) -> Tensor:
        counts = layout.partitions["region"]
        starts = [start + self.prefix_tokens for start in segment_starts(counts)]
        return to_device(concat_ranges(starts, [count - self.prefix_tokens for count in counts]), device)


def _resampling_filter(interpolation: str) -> Resampling:
    from PIL.Image import Resampling

    # Any other name, such as timm's "random", becomes bicubic: the default of timm's own preprocessing.
    names = {"nearest": Resampling.NEAREST, "bilinear": Resampling.BILINEAR, "lanczos": Resampling.LANCZOS}
    return names.get(interpolation, Resampling.BICUBIC)
