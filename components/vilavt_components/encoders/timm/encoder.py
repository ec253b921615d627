"""Encoder `timm`: plain vision transformers of timm, with their own patch embedding or with a convolutional stem.

Read this file first. `embed_batch` is what timm does before its blocks, `block` hands each of them to its forward in
`blocks.py`, and `readout` is what timm does after them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vilavt_components.encoders.image_encoder import ImageEncoder
from vilavt_components.encoders.timm.blocks import block_adapters
from vilavt_components.encoders.timm.branches import BlockHooks
from vilavt_components.encoders.timm.conversion import adapt_to_weights
from vilavt_components.encoders.timm.models import (
    build_by_config,
    build_by_name,
    check_model,
    check_weights,
    is_naflex,
    load_weights,
    native_size,
    prefix_token_names,
    resolve_preprocessing,
)
from vilavt_components.encoders.timm.relative_bias import find_bias_modules, make_bias
from vilavt_components.encoders.timm.rope import Rope
from vilavt_components.encoders.timm.stem import StemConfig
from vilavt_components.encoders.timm.variants import small_models
from vilavt_toolkit.contracts import Attend, EncoderSpec, Grid, SiteHook
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, PixelBudgetConfig
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class TimmConfig(PixelBudgetConfig):
    """Settings of the `timm` encoder: `model` by name, or `config` with an optional `stem`; by neither it is small."""

    model: str | None = setting(
        None, help="timm model name, such as vit_base_patch16_224.augreg_in21k", replaces=("config", "stem", "path")
    )
    pretrained: bool = setting(False, help="load timm's weights of `model` when training starts", replaces=("path",))
    path: str | None = setting(
        None,
        help="local weights to load instead: .safetensors or a folder of some",
        formerly=("file",),
        is_path=True,
    )
    local_files_only: bool = setting(False, help="never download: take weights from the local cache")
    args: dict[str, Any] = setting(factory=dict, help="more arguments for timm.create_model")
    config: dict[str, Any] | None = setting(
        None,
        help="arguments of timm's VisionTransformer (embed_dim, depth, num_heads, img_size, patch_size, ...)",
        replaces=("model", "pretrained", "args", "path"),
    )
    stem: StemConfig | None = setting(
        None, help="convolutional stem of a `config` model (null: patches)", replaces=("model",)
    )


_SMALL = TimmConfig(
    config={"img_size": 32, "embed_dim": 128, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0},
    stem=StemConfig(norm="groupnorm"),
    overview_pixels=1024,
    zoom_pixels=2048,
    max_scale=0.5,
)
"""The model built if none is named, for views of 32 pixels as in the quickstart."""


@encoders.register("timm", TimmConfig)
class TimmEncoder(ImageEncoder):
    """A plain vision transformer of timm: ViT, DeiT, DINO, CLIP, SigLIP, EVA, BEiT, NaFlexViT, ..."""

    def __init__(self, config: TimmConfig) -> None:
        config = _fill_small_defaults(config)
        model = _build_model(config)
        native = math.prod(native_size(model))
        budget = config.pixel_budget(PixelBudget(native, native))
        stride = tuple((model.embeds if is_naflex(model) else model.patch_embed).feat_ratio(as_scalar=False))
        super().__init__(stride, int(model.num_prefix_tokens), budget, resolve_preprocessing(model))
        self.config = config
        self.model = model
        self.rope = _build_rope(self.model)
        # Only RoPE "mixed" learns frequencies of its own in every block.
        self.has_shared_rotation = self.rope is None or self.rope.kind != "mixed"
        self._adapters = [block_adapters()[type(block)] for block in self.model.blocks]
        # In plain lists, since these modules are registered, and saved, in `model` already.
        self._bias_modules = [
            find_bias_modules(getattr(block, "attn", None), self.model) for block in self.model.blocks
        ]
        self.spec = self._encoder_spec()

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
            for name, (model, args) in small_models().items()
        }

    def block(self, index: int, tokens: Tokens, site: SiteHook, attend: Attend) -> Tensor:
        """Run timm's block `index` with a hook at every site; x [S, D] -> [S, D]."""
        hooks = BlockHooks(site, attend, tokens.layout, make_bias(self._bias_modules[index], tokens.layout))
        return self._adapters[index].forward(self.model.blocks[index], tokens.x, hooks)

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Return cosines and sines in block `index` at coordinates [N, 2]; [2, N, 1 or H, d]."""
        assert self.rope is not None
        return self.rope.rotation(index, positions)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate queries or keys [N, H, d]."""
        assert self.rope is not None
        return self.rope.rotate(x, rotation)

    def position_stride(self, size: Grid) -> int:
        """Return the longer side of a region whose rotary coordinates count tokens, else 0."""
        return 0 if self.rope is None else self.rope.position_stride(size)

    def readout(self, tokens: Tokens) -> Tensor:
        """Apply the final norm to the patch tokens; [S, D] -> [F, D].

        Models that pool before their norm (timm's fc_norm) get that norm on every feature.
        """
        # One of the two is nn.Identity: timm builds `fc_norm` for average pooling, else `norm`.
        features: Tensor = self.model.fc_norm(self.model.norm(self.select_patches(tokens.x, tokens.layout)))
        return features

    def check_weights(self) -> None:
        """Check that the file `path` exists, if it is set; raises InputError."""
        check_weights(self.config)

    def load_weights(self) -> None:
        """Load `path`, or timm's pretrained weights of `model`; raises InputError."""
        with torch.device("meta"):
            whole = _build_whole_model(self.config)
        load_weights(self.model, self.config, whole)

    def _encoder_spec(self) -> EncoderSpec:
        blocks, relative = list(self.model.blocks), [bool(modules) for modules in self._bias_modules]
        positions: Literal["rotary", "absolute", "relative", "none"] = "none"
        # A model may have learned positions too; the kind that attention itself uses counts, since a modulator that
        # adds keys from other regions must deal with that one.
        if self.rope is not None:
            positions = "rotary"
        elif any(relative):
            positions = "relative"
        elif self._has_pos_embed:
            positions = "absolute"
        specs = zip(self._adapters, blocks, relative, strict=True)
        return EncoderSpec(
            modality="image",
            blocks=tuple(adapter.block_spec(block, biased) for adapter, block, biased in specs),
            out_width=self.model.embed_dim,
            positions=positions,
            full_attention=tuple(range(len(blocks))),
        )

    @property
    def _has_pos_embed(self) -> bool:
        return self.model.embeds.pos_embed_type != "none" if is_naflex(self.model) else self._pos_embed is not None

    @property
    def _pos_embed(self) -> Tensor | None:
        # A VisionTransformerRelPos has no such attribute.
        return getattr(self.model, "pos_embed", None)

    def embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """Embed n images of one size; uint8 [n, 3, h, w] -> [n, prefix tokens + patches, D].

        timm's `VisionTransformer.forward_features` up to its blocks: patch_embed, `_pos_embed`, norm_pre.
        """
        model = self.model
        if is_naflex(model):
            # Positions are interpolated to the grid of these images there.
            embedded: Tensor = model.norm_pre(
                model.embeds(self.normalise_pixels(images, next(model.embeds.parameters())))[0]
            )
            return embedded
        x = model.patch_embed(self.normalise_pixels(images, next(model.patch_embed.parameters())))
        if x.dim() == 4:
            # Built with `dynamic_img_size`: [n, h, w, D].
            x = x.flatten(1, 2)
        names = prefix_token_names()[type(model)]
        prefix = [getattr(model, name).expand(len(x), -1, -1) for name in names if getattr(model, name) is not None]
        positions = self._embedded_positions(size)
        # With `no_embed_class` only patches have positions, and those are added before the prefix tokens join them.
        if positions is not None and positions.shape[1] == x.shape[1]:
            x, positions = x + positions, None
        x = torch.cat([*prefix, x], dim=1)
        if positions is not None:
            x = x + positions
        # Not every class has the two that follow.
        if hasattr(model, "pos_drop"):
            x = model.pos_drop(x)
        embedded = model.norm_pre(x) if hasattr(model, "norm_pre") else x
        return embedded

    def _embedded_positions(self, size: Grid) -> Tensor | None:
        """Return learned positions of the patches, and of prefix tokens that have some; [1, n, D], or None."""
        import timm.layers

        if self._pos_embed is None:
            return None
        model, layers = self.model, cast(Any, timm.layers)
        # Interpolated from the grid of pretraining to that of these views, as timm does with `dynamic_img_size`.
        positions: Tensor = layers.resample_abs_pos_embed(
            self._pos_embed,
            new_size=list(size),
            old_size=model.patch_embed.grid_size,
            num_prefix_tokens=0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens,
        )
        return positions

    def rotary_positions(self, layout: Layout, device: torch.device) -> Tensor | None:
        """Return the rotary coordinates of all tokens [S, 2], or None for a model without RoPE."""
        if self.rope is None:
            return None
        of_size = {size: self.rope.grid_coordinates(size) for size in dict.fromkeys(layout.sizes)}

        def pad_prefix(values: Tensor) -> Tensor:
            # Prefix tokens get coordinate 0, where RoPE turns nothing: timm leaves them unrotated.
            return F.pad(values, (0, 0, self.prefix_tokens, 0))

        # Built on the CPU, and copied once: a small copy per region would cost more than the rows themselves.
        positions = torch.cat([pad_prefix(of_size[size]) for size in layout.sizes]).to(device, non_blocking=True)
        if not (self.training and self.rope.module.aug_active):
            return positions
        # Augmenting moves all rows, so a mask puts the prefix tokens back to 0.
        is_patch = [pad_prefix(torch.ones(len(of_size[size]), 1, device="cpu")) for size in layout.sizes]
        return self.rope.augment_positions(positions, layout) * torch.cat(is_patch).to(device, non_blocking=True)


def _build_whole_model(config: TimmConfig) -> Any:
    """Build timm's model of the settings without weights, with all of its parts; raises BadConfig."""
    if config.model is None:
        return build_by_config(config.config or {}, config.args, config.stem)
    return build_by_name(config.model, config.args)


def _build_model(config: TimmConfig) -> Any:
    """Build timm's model without weights and without a head; raises BadConfig for one that this cannot run."""
    _check_settings(config)
    model = _build_whole_model(config)
    check_model(model, f"the model '{config.model}'" if config.model else "the model")
    # The blocks take any grid; only timm's check of the input size stands in the way.
    if not is_naflex(model):
        model.patch_embed.strict_img_size = False
    model.reset_classifier(0, "")
    if config.path is not None:
        adapt_to_weights(model, Path(config.path))
    return model


def _check_settings(config: TimmConfig) -> None:
    """Raise BadConfig for settings that contradict each other."""
    if config.model is None and config.config is None:
        raise BadConfig("Encoder 'timm' needs either `model` (a timm name) or `config` (arguments of a new one).")
    if config.model is not None and config.config is not None:
        raise BadConfig(
            f"Encoder 'timm' has both `model` ('{config.model}') and `config`. Leave out one, as in `config: null`."
        )
    if config.pretrained and config.model is None:
        raise BadConfig("`pretrained` needs `model`. Weights of a `config` model come from `path`.")
    if config.stem is not None and config.model is not None:
        raise BadConfig("`stem` belongs to a `config` model. A model by name brings its own, so write `stem: null`.")


def _fill_small_defaults(config: TimmConfig) -> TimmConfig:
    """Return the settings, completed by those of the small model if they name no model at all."""
    if (config.model, config.config, config.path, config.stem, config.args) != (None, None, None, None, {}):
        return config
    # Budgets that are set stay: only settings left at null are filled.
    defaults = {name: value for name, value in vars(_SMALL).items() if getattr(config, name) is None}
    return replace(config, **defaults)


def _build_rope(model: Any) -> Rope | None:
    module = getattr(model, "rope", None)
    return None if module is None else Rope(module, rotates_halves=bool(model.blocks[0].attn.rotate_half))
