"""Plain vision transformers of timm: every plain block class, with patch or convolutional stems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.encoders.image_encoder import ImageEncoder
from vilavt_components.encoders.timm.block_parts import Run
from vilavt_components.encoders.timm.blocks import adapters
from vilavt_components.encoders.timm.models import build_model, check_weights, data_config, load_weights, prefix_tokens
from vilavt_components.encoders.timm.relative_bias import bias_of, bias_parts
from vilavt_components.encoders.timm.rope import Rope
from vilavt_components.encoders.timm.variants import variants
from vilavt_toolkit.contracts import At, Attend, EncoderSpec, Grid
from vilavt_toolkit.contracts.pixel_budget import PixelBudget
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting


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
    """Settings of the `timm` encoder: `model` by name, or `config` with an optional `stem`; by neither it is small."""

    model: str | None = setting(
        None, help="timm model name, such as vit_base_patch16_224.augreg_in21k", replaces=("config", "stem", "file")
    )
    pretrained: bool = setting(False, help="load timm's weights of `model` when training starts", replaces=("file",))
    file: str | None = setting(None, help="local weights (.safetensors) to load instead")
    local_files_only: bool = setting(False, help="never download: take weights from the local cache")
    args: dict[str, Any] = setting(factory=dict, help="more arguments for timm.create_model")
    config: dict[str, Any] | None = setting(
        None,
        help="arguments of timm's VisionTransformer (embed_dim, depth, num_heads, img_size, patch_size, ...)",
        replaces=("model", "pretrained", "args", "file"),
    )
    stem: StemConfig | None = setting(
        None, help="convolutional stem of a `config` model; none: patches", replaces=("model",)
    )
    overview_pixels: int | None = setting(
        None, help="most pixels of the first view of an image; null: those of the model's img_size", minimum=1
    )
    zoom_pixels: int | None = setting(
        None, help="most pixels of the view of a region; null: those of the model's img_size", minimum=1
    )
    min_pixels: int = setting(0, help="fewest pixels of a view; small regions are enlarged to have them", minimum=0)
    max_scale: float | None = setting(
        None,
        help="most view pixels along one original pixel of a region; the first view is not enlarged; null: 2, and 0.5 "
        "without `model` and `config`",
        minimum=0.01,
    )


_SMALL = TimmConfig(
    config={"img_size": 32, "embed_dim": 128, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0},
    stem=StemConfig(norm="groupnorm"),
    overview_pixels=1024,
    zoom_pixels=2048,
    max_scale=0.5,
)
"""For views of 32 pixels, as the quickstart's: the model that stands where none is named."""


@encoders.register("timm", TimmConfig)
class TimmEncoder(ImageEncoder):
    """A plain vision transformer of timm: ViT, DeiT, DINO, CLIP, SigLIP, EVA, BEiT, relative-position ViT."""

    def __init__(self, config: TimmConfig) -> None:
        config = _chosen(config)
        model = build_model(config)
        native = math.prod(model.patch_embed.img_size)
        budget = PixelBudget(
            config.overview_pixels or native,
            config.zoom_pixels or native,
            config.min_pixels,
            2.0 if config.max_scale is None else config.max_scale,
        )
        stride = tuple(model.patch_embed.feat_ratio(as_scalar=False))
        super().__init__(stride, int(model.num_prefix_tokens), budget, data_config(model))
        self.config = config
        self.model = model
        self.rope = _rope(self.model)
        self.same_rotation = self.rope is None or self.rope.kind != "mixed"
        self._blocks = [adapters()[type(block)] for block in self.model.blocks]
        self._biases = [bias_parts(getattr(block, "attn", None), self.model) for block in self.model.blocks]
        self.spec = self._spec()

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
        features: Tensor = self.model.fc_norm(self.model.norm(self.patches(tokens.x, tokens.layout)))
        return features

    def check_weights(self) -> None:
        """Hold that `file` is there; raises InputError."""
        check_weights(self.config)

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

    def embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """uint8 [n, 3, h, w] -> [n, prefix + patches, D], as timm does before its blocks."""
        model = self.model
        x = model.patch_embed(self.pixels(images, next(model.patch_embed.parameters())))
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

    def positions(self, layout: Layout, device: torch.device) -> Tensor | None:
        """Rotary coordinates of all tokens, 0 for prefix tokens; [S, 2]."""
        if self.rope is None:
            return None
        made = {size: self.rope.coordinates(size) for size in dict.fromkeys(layout.sizes)}
        rows = [F.pad(made[size], (0, 0, self.prefix, 0)) for size in layout.sizes]
        positions = torch.cat(rows).to(device, non_blocking=True)
        if not (self.training and self.rope.module.aug_active):
            return positions
        patches = [F.pad(torch.ones(len(made[size]), 1, device="cpu"), (0, 0, self.prefix, 0)) for size in layout.sizes]
        return self.rope.augmented(positions, layout) * torch.cat(patches).to(device, non_blocking=True)


def _chosen(config: TimmConfig) -> TimmConfig:
    """The settings, those of the small model put in where none is named."""
    if (config.model, config.config, config.file, config.stem, config.args) != (None, None, None, None, {}):
        return config
    kept = {field.name: getattr(config, field.name) for field in fields(config)}
    usual = {name: value for name, value in vars(_SMALL).items() if kept[name] is None}
    return replace(config, **usual)


def _rope(model: Any) -> Rope | None:
    module = getattr(model, "rope", None)
    return None if module is None else Rope(module, half=bool(model.blocks[0].attn.rotate_half))
