"""Models and inputs of the encoder's benchmark: encoders of two sizes, views of mixed sizes, inquiries of 32 tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import BlockSpec, Encoder, InquiryEncoder, Modulator, View
from vilavt_toolkit.registry import encoders, modulators
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

INQUIRY_TOKENS = 32
PATCH = 16


@dataclass(frozen=True)
class Size:
    """The plain tower and the load of one device."""

    width: int
    depth: int
    heads: int
    inquiry_width: int
    regions: int
    sides: tuple[int, int]
    """Fewest and most tokens along a side of a region."""
    repeats: int
    qwen_side: int = 0
    """Tokens along a side of the regions of Qwen's tower."""


SIZES = {
    "cpu": Size(width=256, depth=6, heads=4, inquiry_width=256, regions=64, sides=(3, 12), repeats=9),
    "cuda": Size(
        width=1024, depth=24, heads=16, inquiry_width=1024, regions=64, sides=(8, 32), repeats=15, qwen_side=64
    ),
}
QUICK = {
    "cpu": Size(width=64, depth=2, heads=2, inquiry_width=32, regions=8, sides=(2, 5), repeats=2),
    "cuda": Size(width=256, depth=4, heads=4, inquiry_width=64, regions=16, sides=(4, 12), repeats=3, qwen_side=16),
}


class RandomInquiries(InquiryEncoder):
    """One trained vector per word: next to no work, so that only the modulation is measured."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(1000, width)

    @classmethod
    def tiny(cls) -> None:
        """Return nothing: it has no settings."""

    def tokenize(self, text: str) -> list[int]:
        """Return one id per letter."""
        return [ord(letter) % 1000 for letter in text]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the ids as texts."""
        return [str(i) for i in ids]

    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return the vectors of all words [T, D] and their mean per group [G, D]."""
        flat = torch.tensor([i for group in ids for i in group]).to(self.embedding.weight.device, non_blocking=True)
        features = self.embedding(flat)
        parts = features.split_with_sizes([len(group) for group in ids])
        return features, torch.stack([part.sum(0) / max(1, len(part)) for part in parts])


class WholeGroup(Modulator):
    """No modulation, but attention over the whole group: the peer of joint attention."""

    span = "group"

    def __init__(self, config: Any, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()

    @classmethod
    def tiny(cls) -> None:
        """Return nothing: it has no settings."""


def build_plain_vit(size: Size, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Build a plain vision transformer of timm with random weights."""
    entry = encoders.get("timm")
    torch.manual_seed(0)
    config = {"img_size": 224, "patch_size": PATCH, "embed_dim": size.width, "depth": size.depth}
    encoder: Encoder = entry.cls(entry.config(config=config | {"num_heads": size.heads}))
    return encoder.to(device, dtype)


def build_qwen_tower(device: torch.device, dtype: torch.dtype, pad_mlp: int = 1) -> Encoder:
    """Build Qwen2.5-VL-7B's vision tower, the default settings, with random weights."""
    from vilavt_components.encoders.qwen2_5_vl.tower import QwenVisionConfig

    entry = encoders.get("qwen2_5_vl")
    torch.manual_seed(0)
    with torch.device(device):
        encoder: Encoder = entry.cls(entry.config(config=QwenVisionConfig(), pad_mlp=pad_mlp))
    return encoder.to(device, dtype)


def build_modulated(
    encoder: Encoder, parts: Sequence[tuple[type[Modulator], Any]], width: int, integration: str = "late"
) -> DynamicEncoder:
    """Put new modulators on an encoder, which is shared, not copied."""
    weight = next(encoder.parameters())
    torch.manual_seed(1)
    dynamic = DynamicEncoder(encoder, parts, integration, RandomInquiries(width))
    return dynamic.to(weight.device, weight.dtype).train()


def default_modulator(name: str) -> tuple[type[Modulator], Any]:
    """Return a registered modulator with its default settings."""
    entry = modulators.get(name)
    return entry.cls, entry.config()


def make_views(encoder: Encoder, size: Size, count: int = 0) -> list[View]:
    """Make views of mixed sizes on the encoder's device."""
    rng, device = np.random.default_rng(0), next(encoder.parameters()).device
    grids = rng.integers(size.sides[0], size.sides[1] + 1, (count or size.regions, 2)).tolist()
    return [noise_view(grid, PATCH, device) for grid in grids]


def noise_view(grid: Sequence[int], patch: int, device: torch.device) -> View:
    """Make a view of noise with a grid of (h, w) patches."""
    pixels = torch.randint(0, 256, (3, patch * grid[0], patch * grid[1]), dtype=torch.uint8)
    return View(pixels.to(device), tuple(grid))


def make_step(
    dynamic: DynamicEncoder, views: Sequence[View], groups: Sequence[int], words: int = INQUIRY_TOKENS
) -> Callable[[], None]:
    """Make a forward and backward pass over the views, with an inquiry of its own for each group."""
    inquiries = [[(group * 7 + i) % 1000 for i in range(words)] for group in range(max(groups) + 1)]

    def run() -> None:
        dynamic.zero_grad(set_to_none=True)
        features, _ = dynamic.encode(views, groups, inquiries)
        features.float().square().mean().backward()

    return run
