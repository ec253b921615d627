"""Plain vision transformers of timm, with patch or convolutional stems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from vilavt_components.encoders._timm_models import build_model, data_config, load_weights
from vilavt_toolkit.contracts import At, Attend, BlockSpec, Crop, Encoder, EncoderSpec, Grid, View
from vilavt_toolkit.registry import encoders, setting
from vilavt_toolkit.vision.regions import PixelBudget, view_size
from vilavt_toolkit.vision.tokens import Layout, Tokens, offsets, permutation, permute, runs, spread, to_device

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
    """A plain vision transformer of timm: ViT, DeiT, DINO, CLIP, SigLIP; patch or convolutional stem."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build_model(config)
        native = math.prod(self.model.patch_embed.img_size)
        self.budget = PixelBudget(
            config.overview_pixels or native, config.zoom_pixels or native, config.min_pixels, config.max_scale
        )
        self.stride: tuple[int, int] = tuple(self.model.patch_embed.feat_ratio(as_scalar=False))
        self.spec = EncoderSpec(
            modality="image",
            blocks=tuple(_block_spec(block) for block in self.model.blocks),
            out_width=self.model.embed_dim,
            positions="none" if self.model.pos_embed is None else "absolute",
            full_attention=tuple(range(len(self.model.blocks))),
        )
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
        if len(packed) == 1:
            return Tokens(packed[0], layout)
        order = [region for regions in of_size.values() for region in regions]
        device = packed[0].device
        counts = layout.partitions["region"]
        by_size, back = layout.cached(("embed", device), lambda: permutation(counts, order, device))
        return Tokens(permute(torch.cat(packed), back, by_size), layout)

    def block(self, index: int, tokens: Tokens, at: At, attend: Attend) -> Tensor:
        """Run timm's pre-norm block `index` with its parts in the open; x [S, D] -> [S, D]."""
        block, x = self.model.blocks[index], tokens.x
        h = at("norm1", x, block.norm1(x))
        y = at("attention", h, block.ls1(self._attention(block.attn, h, at, attend)))
        mid = x + _drop_path(block.drop_path1, y, tokens.layout)
        h = at("norm2", mid, block.norm2(mid))
        y = at("mlp", h, block.ls2(_mlp(block.mlp, h, at)))
        return at("block", x, mid + _drop_path(block.drop_path2, y, tokens.layout))

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

    @staticmethod
    def _attention(attn: Any, h: Tensor, at: At, attend: Attend) -> Tensor:
        qkv = at("qkv", h, attn.qkv(h)).view(len(h), 3, attn.num_heads, -1)
        q, k, v = qkv.unbind(1)
        a = attend(attn.q_norm(q), attn.k_norm(k), v, attn.scale).flatten(1)
        a = attn.norm(a)
        if getattr(attn, "gate", None) is not None:
            a = a * attn.gate(h).sigmoid()
        y: Tensor = attn.proj_drop(at("proj", a, attn.proj(a)))
        return y

    def _embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """uint8 [n, 3, h, w] -> [n, prefix + patches, D], as timm does before its blocks."""
        model = self.model
        x = model.patch_embed(self._pixels(images))
        prefix = [token.expand(len(x), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
        if model.pos_embed is None:
            x = torch.cat([*prefix, x], dim=1)
        elif model.no_embed_class:
            x = model.pos_drop(torch.cat([*prefix, x + self._positions(size)], dim=1))
        else:
            x = model.pos_drop(torch.cat([*prefix, x], dim=1) + self._positions(size))
        embedded: Tensor = model.norm_pre(x)
        return embedded

    def _positions(self, size: Grid) -> Tensor:
        import timm.layers

        model, layers = self.model, cast(Any, timm.layers)
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        positions: Tensor = layers.resample_abs_pos_embed(
            model.pos_embed,
            new_size=list(size),
            old_size=model.patch_embed.grid_size,
            num_prefix_tokens=prefix,
        )
        return positions

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


def _block_spec(block: Any) -> BlockSpec:
    width, attn = block.attn.qkv.in_features, block.attn
    sites = dict.fromkeys(("norm1", "proj", "attention", "norm2", "fc2", "mlp", "block"), width)
    sites |= {"qkv": attn.qkv.out_features, "fc1": block.mlp.fc1.out_features}
    head_dim = attn.qkv.out_features // 3 // attn.num_heads
    inputs = {"proj": attn.proj.in_features, "fc2": block.mlp.fc2.in_features}
    return BlockSpec(width, sites, inputs, heads=attn.num_heads, head_dim=head_dim)


def _mlp(mlp: Any, h: Tensor, at: At) -> Tensor:
    y = mlp.norm(mlp.drop1(mlp.act(at("fc1", h, mlp.fc1(h)))))
    out: Tensor = mlp.drop2(at("fc2", y, mlp.fc2(y)))
    return out


def _drop_path(path: Any, y: Tensor, layout: Layout) -> Tensor:
    """Stochastic depth: whole regions, as timm drops whole images."""
    rate = getattr(path, "drop_prob", 0.0)
    if rate == 0 or not path.training:
        return y
    kept = torch.rand(len(layout.sizes), 1, device=y.device) >= rate
    factor = kept.to(y.dtype) / (1 - rate if path.scale_by_keep else 1)
    return y * spread(factor, layout.region_of(y.device))


def _resampling(interpolation: str) -> Resampling:
    from PIL.Image import Resampling

    names = {"nearest": Resampling.NEAREST, "bilinear": Resampling.BILINEAR, "lanczos": Resampling.LANCZOS}
    return names.get(interpolation, Resampling.BICUBIC)
