"""A convolutional stem in place of a vision transformer's patch embedding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from torch import nn

from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class StemConfig:
    """Settings of a convolutional stem: strided 3 x 3 convolutions with normalisation in place of patches."""

    channels: tuple[int, ...] = setting((32, 64, 128), help="output channels of each convolution")
    strides: tuple[int, ...] = setting(
        (2, 2, 2), help="stride of each convolution (their product is the side of a token)"
    )
    norm: Literal["layernorm2d", "groupnorm", "batchnorm2d"] = setting(
        "layernorm2d", help="normalisation (batchnorm2d lets the images of a batch see each other in training)"
    )


def stem_layer(stem: StemConfig, embed_dim: int) -> Any:
    """Return the class of a stem's embedding, for timm's argument `embed_layer`; raises BadConfig."""
    import timm.layers
    from timm.models.vision_transformer_hybrid import ConvStem

    if len(stem.channels) != len(stem.strides) or not stem.channels:
        raise BadConfig(
            f"Stem channels {list(stem.channels)} and strides {list(stem.strides)} differ in number. Give each "
            "convolution one of both."
        )
    layers = cast(Any, timm.layers)
    norm = {"layernorm2d": layers.LayerNorm2d, "groupnorm": layers.GroupNorm1, "batchnorm2d": nn.BatchNorm2d}[stem.norm]
    # Padding of 1 makes ceil(side / stride) outputs for any stride, so that a side that the strides divide gives whole
    # tokens. timm's default padding does so for stride 2 only.
    convolutions = ConvStem(
        depth=len(stem.channels),
        channels=tuple(stem.channels),
        stride=tuple(stem.strides),
        padding=1,
        norm_layer=norm,
    )
    return partial(layers.HybridEmbed, backbone=convolutions, proj=stem.channels[-1] != embed_dim)


def check_stem(patch_embed: Any) -> None:
    """Raise BadConfig if a stem's stride does not divide the model's image size."""
    import timm.layers

    if type(patch_embed) is not cast(Any, timm.layers).HybridEmbed:
        return
    # Otherwise positions would be interpolated for a grid that the model itself never has.
    strides = patch_embed.feat_ratio(False)
    if len(patch_embed.img_size) != 2:
        raise BadConfig(f"img_size {patch_embed.img_size} has no height and width. Write a number, or two in a list.")
    for size, cells, stride in zip(patch_embed.img_size, patch_embed.grid_size, strides, strict=True):
        if size != cells * stride:
            raise BadConfig(
                f"The stem turns {patch_embed.img_size[0]} pixels into {patch_embed.grid_size[0]} tokens. "
                f"Set `img_size` to a multiple of its stride {stride}."
            )
