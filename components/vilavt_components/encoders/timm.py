"""Plain vision transformers of timm: every plain block class, with patch or convolutional stems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.encoders._timm_bias import bias_of, bias_parts
from vilavt_components.encoders._timm_blocks import adapters
from vilavt_components.encoders._timm_models import build_model, data_config, load_weights, prefix_tokens
from vilavt_components.encoders._timm_parts import Run
from vilavt_components.encoders._timm_rope import Rope
from vilavt_components.encoders._timm_variants import variants
from vilavt_toolkit.contracts import At, Attend, Crop, Encoder, EncoderSpec, Grid, View
from vilavt_toolkit.registry import encoders, setting
from vilavt_toolkit.vision.regions import PixelBudget, view_size
from vilavt_toolkit.vision.tokens import Layout, Tokens, offsets, permutation, permute, runs, to_device

if TYPE_CHECKING:
    from PIL.Image import Resampling


@dataclass(frozen=True)
class StemConfig:
    """Settings of a convolutional stem: strided 3 x 3 convolutions with normalisation in place of patches."""

    channels: tuple[int, ...] = setting((32, 64, 128), help="output channels of each convolution")
    strides: tuple[int, ...] = setting((2, 2, 2), help="stride of each convolution; their product is a token's side")
    norm: Literal["layernorm2d", "groupnorm", "batchnorm2d"] = setting(
        "layernorm2d", help="normalisation; batchnorm2d lets the images of a batch see each other in training"
    )


@dataclass(frozen=True)
class TimmConfig:
    """Settings of the `timm` encoder: `model` by name, or `config` with an optional `stem`."""

    model: str | None = setting(None, help="timm model name, such as vit_base_patch16_224.augreg_in21k")
    pretrained: bool = setting(False, help="load timm's weights of `model` when training starts")
    file: str | None = setting(None, help="local weights (.safetensors) to load instead")
    local_files_only: bool = setting(False, help="never download: take weights from the local cache")
    args: dict[str, Any] = setting(factory=dict, help="more arguments for timm.create_model")
    config: dict[str, Any] | None = setting(
        None,
        help="arguments of timm's VisionTransformer (embed_dim, depth, num_heads, img_size, patch_size, ...)",
    )
    stem: StemConfig | None = setting(None, help="convolutional stem of a `config` model; none: patches")
    overview_pixels: int | None = setting(
        None, help="most pixels of the first view of an image; null: those of the model's img_size", minimum=1
    )
    zoom_pixels: int | None = setting(
        None, help="most pixels of the view of a region; null: those of the model's img_size", minimum=1
    )
    min_pixels: int = setting(0, help="fewest pixels of a view; small regions are enlarged to have them", minimum=0)
    max_scale: float = setting(
        2.0, help="most view pixels along one original pixel of a region; the first view is not enlarged", minimum=0.01
    )


@encoders.register("timm", TimmConfig)
class TimmEncoder(Encoder):
    """A plain vision transformer of timm: ViT, DeiT, DINO, CLIP, SigLIP, EVA, BEiT, relative-position ViT."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build_model(config)
        native = math.prod(self.model.patch_embed.img_size)
        self.budget = PixelBudget(
            config.overview_pixels or native, config.zoom_pixels or native, config.min_pixels, config.max_scale
        )
        self.stride: tuple[int, int] = tuple(self.model.patch_embed.feat_ratio(as_scalar=False))
        self.rope = _rope(self.model)
        self.same_rotation = self.rope is None or self.rope.kind != "mixed"
        self._blocks = [adapters()[type(block)] for block in self.model.blocks]
        self._biases = [bias_parts(getattr(block, "attn", None), self.model) for block in self.model.blocks]
        self.spec = self._spec()
        data = data_config(self.model)
        self.interpolation: str = data["interpolation"]
        # uint8 x -> (x - mean) / std; kept out of the buffers, whose precision follows the weights'.
        self._normalise = tuple((255 * mean, 255 * std) for mean, std in zip(data["mean"], data["std"], strict=True))
        self._affine: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def tiny(cls) -> TimmConfig:
        """Return settings of two blocks of width 32 on 8-pixel patches, with class and register token."""
        vit = {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "class_token": True,
        }
        return TimmConfig(config=vit | {"reg_tokens": 1, "mlp_ratio": 2.0}, overview_pixels=1024, zoom_pixels=2048)

    @classmethod
    def variants(cls) -> Mapping[str, TimmConfig]:
        """Return settings of small models, one for each block class and kind of attention."""
        return {
            name: TimmConfig(model=model, args=args, overview_pixels=1024, zoom_pixels=2048)
            for name, (model, args) in variants().items()
        }

    def prepare(self, crop: Crop) -> View:
        """Resize a crop uint8 [h, w, 3] within the pixel budget, to whole tokens."""
        from PIL import Image

        height, width = crop.data.shape[:2]
        size = view_size(width, height, math.lcm(*self.stride), self.budget, crop.overview)
        data = torch.as_tensor(crop.data)
        if size != (width, height):
            image = Image.fromarray(data.numpy()).resize(size, _resampling(self.interpolation))
            data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3)
        grid = size[1] // self.stride[0], size[0] // self.stride[1]
        return View(data.permute(2, 0, 1).contiguous(), grid)

    def tokens(self, size: Grid) -> int:
        """Patches of the grid (h, w), and the model's class and register tokens."""
        return math.prod(size) + int(self.model.num_prefix_tokens)

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Stem, position embeddings and prefix tokens, one batch per distinct size; R views -> x [S, D]."""
        of_size: dict[Grid, list[int]] = {}
        for region, size in enumerate(layout.sizes):
            of_size.setdefault(size, []).append(region)
        packed = [
            self._embed_batch(torch.stack([views[region].data for region in regions]), size).flatten(0, 1)
            for size, regions in of_size.items()
        ]
        positions = self._positions(layout, packed[0].device)
        if len(packed) == 1:
            return Tokens(packed[0], layout, positions)
        order = [region for regions in of_size.values() for region in regions]
        device = packed[0].device
        counts = layout.partitions["region"]
        by_size, back = layout.cached(("embed", device), lambda: permutation(counts, order, device))
        return Tokens(permute(torch.cat(packed), back, by_size), layout, positions)

    def block(self, index: int, tokens: Tokens, at: At, attend: Attend) -> Tensor:
        """Run timm's block `index` with its parts in the open; x [S, D] -> [S, D]."""
        run = Run(at, attend, tokens.layout, bias_of(self._biases[index], tokens.layout))
        return self._blocks[index].forward(self.model.blocks[index], tokens.x, run)

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Cosines and sines in block `index` at coordinates [N, 2]; [2, N, 1 or H, d]."""
        assert self.rope is not None
        return self.rope.rotation(index, positions)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate queries or keys [N, H, d]."""
        assert self.rope is not None
        return self.rope.rotate(x, rotation)

    def room(self, size: Grid) -> int:
        """The longer side of a region whose rotary coordinates count tokens; else 0."""
        return 0 if self.rope is None else self.rope.room(size)

    def readout(self, tokens: Tokens) -> Tensor:
        """Final norm of the patch tokens; [S, D] -> [F, D].

        Models that pool before their norm (timm's fc_norm) get that norm on every feature.
        """
        model, layout = self.model, tokens.layout
        x = tokens.x
        if model.num_prefix_tokens:
            x = x.index_select(0, layout.cached(("patches", x.device), lambda: self._patch_rows(layout, x.device)))
        features: Tensor = model.fc_norm(model.norm(x))
        return features

    def load_weights(self) -> None:
        """Load `file`, or timm's pretrained weights of `model`; raises InputError."""
        load_weights(self.model, self.config)

    def _spec(self) -> EncoderSpec:
        blocks, relative = list(self.model.blocks), [bool(parts) for parts in self._biases]
        positions: Literal["rotary", "absolute", "relative", "none"] = "none"
        if self.rope is not None:
            positions = "rotary"
        elif any(relative):
            positions = "relative"
        elif self._pos_embed is not None:
            positions = "absolute"
        specs = zip(self._blocks, blocks, relative, strict=True)
        return EncoderSpec(
            modality="image",
            blocks=tuple(adapter.spec(block, biased) for adapter, block, biased in specs),
            out_width=self.model.embed_dim,
            positions=positions,
            full_attention=tuple(range(len(blocks))),
        )

    @property
    def _pos_embed(self) -> Tensor | None:
        # Models with relative positions alone have no such attribute.
        return getattr(self.model, "pos_embed", None)

    def _embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """uint8 [n, 3, h, w] -> [n, prefix + patches, D], as timm does before its blocks."""
        model = self.model
        x = model.patch_embed(self._pixels(images))
        if x.dim() == 4:
            # Built with `dynamic_img_size`: [n, h, w, D].
            x = x.flatten(1, 2)
        names = prefix_tokens()[type(model)]
        tokens = [token for token in (getattr(model, name) for name in names) if token is not None]
        prefix = [token.expand(len(x), -1, -1) for token in tokens]
        added = self._embedded_positions(size)
        # With `no_embed_class` the positions are those of the patches alone.
        if added is not None and added.shape[1] == x.shape[1]:
            x, added = x + added, None
        x = torch.cat([*prefix, x], dim=1)
        if added is not None:
            x = x + added
        if hasattr(model, "pos_drop"):
            x = model.pos_drop(x)
        embedded: Tensor = model.norm_pre(x) if hasattr(model, "norm_pre") else x
        return embedded

    def _embedded_positions(self, size: Grid) -> Tensor | None:
        """Learned positions of the patches, and of the prefix tokens where they have some; [1, n, D]."""
        import timm.layers

        if self._pos_embed is None:
            return None
        model, layers = self.model, cast(Any, timm.layers)
        positions: Tensor = layers.resample_abs_pos_embed(
            self._pos_embed,
            new_size=list(size),
            old_size=model.patch_embed.grid_size,
            num_prefix_tokens=0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens,
        )
        return positions

    def _positions(self, layout: Layout, device: torch.device) -> Tensor | None:
        """Rotary coordinates of all tokens, 0 for prefix tokens; [S, 2]."""
        if self.rope is None:
            return None
        made = {size: self.rope.coordinates(size) for size in dict.fromkeys(layout.sizes)}
        prefix = int(self.model.num_prefix_tokens)
        rows = [F.pad(made[size], (0, 0, prefix, 0)) for size in layout.sizes]
        positions = torch.cat(rows).to(device, non_blocking=True)
        if not (self.training and self.rope.module.aug_active):
            return positions
        patches = [F.pad(torch.ones(len(made[size]), 1, device="cpu"), (0, 0, prefix, 0)) for size in layout.sizes]
        return self.rope.augmented(positions, layout) * torch.cat(patches).to(device, non_blocking=True)

    def _pixels(self, images: Tensor) -> Tensor:
        weight = next(self.model.patch_embed.parameters())
        if weight.device not in self._affine:
            mean, std = torch.tensor(self._normalise, dtype=torch.float32, device="cpu").T.view(2, 3, 1, 1)
            self._affine[weight.device] = (
                mean.to(weight.device, non_blocking=True),
                std.to(weight.device, non_blocking=True),
            )
        mean, std = self._affine[weight.device]
        return ((images.to(weight.device, non_blocking=True).float() - mean) / std).to(weight.dtype)

    def _patch_rows(self, layout: Layout, device: torch.device) -> Tensor:
        prefix = int(self.model.num_prefix_tokens)
        counts = layout.partitions["region"]
        starts = [start + prefix for start in offsets(counts)]
        return to_device(runs(starts, [count - prefix for count in counts]), device)


def _rope(model: Any) -> Rope | None:
    module = getattr(model, "rope", None)
    return None if module is None else Rope(module, half=bool(model.blocks[0].attn.rotate_half))


def _resampling(interpolation: str) -> Resampling:
    from PIL.Image import Resampling

    names = {"nearest": Resampling.NEAREST, "bilinear": Resampling.BILINEAR, "lanczos": Resampling.LANCZOS}
    return names.get(interpolation, Resampling.BICUBIC)
