"""timm's staged models taken apart: a stem, stages, and the norms behind the last of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn

from vilavt_components.common.weights import Wanted, as_they_are
from vilavt_components.encoders.timm.models import from_name, prefix_tokens
from vilavt_toolkit.errors import BadConfig

_WORKS = (
    "staged models work: ConvNeXt, Swin, ResNet and their kin (convnext_tiny, convnextv2_nano, "
    "swin_tiny_patch4_window7_224, swinv2_tiny_window8_256, resnet50, resnext50_32x4d, seresnet50, ...)"
)


@dataclass(frozen=True)
class Family:
    """How models of one class run."""

    stem: Callable[[Any, Tensor], Tensor]
    """(model, pixels [n, 3, h, w]) -> the first maps"""
    stages: Callable[[Any], Sequence[nn.Module]]
    norms: Callable[[Any], Sequence[nn.Module]]
    """What the model's own features, or its head, go through behind the last stage."""
    stem_stride: Callable[[Any], int]
    names: str
    """How the names of a stage's weights begin."""
    first: int = 0
    """The number of the first stage in names and in timm's list of features."""
    heads: tuple[str, ...] = ()
    """How names begin of weights behind the last stage."""
    channels_last: bool = False
    """Whether maps are [n, h, w, D], and not [n, D, h, w]."""
    positions: Literal["relative", "none"] = "none"
    wanted: Wanted = as_they_are
    """timm's present names of a file's tensors"""


@dataclass(frozen=True)
class Staged:
    """A model of which the first stages are used."""

    model: Any
    stem_stride: int
    strides: tuple[int, ...]
    """Of the maps behind every stage, in pixels."""
    widths: tuple[int, ...]
    norms: tuple[nn.Module, ...]
    """Behind the last stage; none where not all are used, since they were trained on what the last one gives."""
    unused: tuple[str, ...]
    """How the names of weights begin that a checkpoint may have and this does not."""

    @property
    def family(self) -> Family:
        """How the model runs."""
        return families()[type(self.model)]

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The stages that are used."""
        return self.family.stages(self.model)[: len(self.widths)]

    def stem(self, pixels: Tensor) -> Tensor:
        """Pixels [n, 3, h, w] -> maps [n, h', w', D]."""
        x = self.family.stem(self.model, pixels)
        return x if self.family.channels_last else x.permute(0, 2, 3, 1)

    def run(self, part: nn.Module, maps: Tensor) -> Tensor:
        """Run a stage or a norm on maps [n, h, w, D] -> [n, h', w', D']."""
        if self.family.channels_last:
            made: Tensor = part(maps)
            return made
        made = part(maps.permute(0, 3, 1, 2))
        return made.permute(0, 2, 3, 1)


def build_staged(name: str, args: Mapping[str, Any], stages: int | None) -> Staged:
    """Build timm's model without weights, cut behind `stages` stages; raises BadConfig."""
    # YAML has no tuples.
    model = from_name(name, {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()})
    _check_family(model, name)
    family = families()[type(model)]
    depth = len(family.stages(model))
    used = depth if stages is None else stages
    if used > depth:
        raise BadConfig(f"'{name}' has {depth} stages; set `stages` to {depth} at most, not {used}.")
    features = model.feature_info[family.first : family.first + used]
    strides, widths = (tuple(int(each[key]) for each in features) for key in ("reduction", "num_chs"))
    stem_stride = family.stem_stride(model)
    _accept_any_size(model)
    if used < depth:
        model.prune_intermediate_layers([family.first + used - 1], prune_norm=True, prune_head=True)
        norms: tuple[nn.Module, ...] = ()
    else:
        _drop_head(model)
        norms = tuple(norm for norm in family.norms(model) if not isinstance(norm, nn.Identity))
    dropped = tuple(family.names.format(family.first + index) for index in range(used, depth))
    return Staged(model, stem_stride, strides, widths, norms, family.heads + dropped)


def _check_family(model: Any, name: str) -> None:
    if type(model) in prefix_tokens():
        raise BadConfig(
            f"Model '{name}' is a plain vision transformer ({type(model).__name__}), and encoder 'timm_stages' runs "
            "models in stages; take encoder `timm` for it."
        )
    if type(model) not in families():
        raise BadConfig(f"Encoder 'timm_stages' was not written for {type(model).__name__} ('{name}'); {_WORKS}.")


@cache
def families() -> Mapping[type, Family]:
    """Every model class that this was written for; by exact type, since a subclass may differ."""
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    swin = Family(
        stem=lambda model, pixels: model.patch_embed(pixels),
        stages=lambda model: list(model.layers),
        norms=lambda model: [model.norm],
        stem_stride=_patch_size,
        names="layers.{}.",
        heads=("norm.",),
        channels_last=True,
        positions="relative",
        wanted=_swin_names,
    )
    convnext = Family(
        stem=lambda model, pixels: model.stem(pixels),
        stages=lambda model: list(model.stages),
        # A plain ConvNeXt normalises what it has pooled.
        norms=lambda model: [model.norm_pre, getattr(model.head, "norm", nn.Identity())],
        stem_stride=_stem_stride,
        names="stages.{}.",
        heads=("norm_pre.",),
    )
    resnet = Family(
        stem=lambda model, pixels: model.maxpool(model.act1(model.bn1(model.conv1(pixels)))),
        stages=lambda model: [model.layer1, model.layer2, model.layer3, model.layer4],
        norms=lambda model: [],
        stem_stride=lambda model: 4,
        names="layer{}.",
        first=1,
        heads=("fc.",),
    )
    return {ConvNeXt: convnext, SwinTransformer: swin, SwinTransformerV2: swin, ResNet: resnet}


def _swin_names(names: Sequence[str]) -> dict[str, str]:
    """Where a stage ended with its downsampling, as in the authors' code, the next one begins with it now."""
    if not any(name.startswith("layers.0.downsample.") for name in names):
        return as_they_are(names)
    return {
        name: re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", name)
        for name in names
    }


def _patch_size(model: Any) -> int:
    height, width = model.patch_embed.patch_size
    if height != width:
        raise BadConfig(f"`patch_size` is {height} x {width}; encoder 'timm_stages' takes square patches.")
    return int(height)


def _stem_stride(model: Any) -> int:
    return math.prod(part.stride[0] for part in model.stem if isinstance(part, nn.Conv2d))


def _accept_any_size(model: Any) -> None:
    """Make a Swin mask its windows for the map at hand, as timm's `dynamic_img_size` does."""
    if not hasattr(model, "patch_embed"):
        return
    model.patch_embed.strict_img_size = False
    for stage in model.layers:
        for block in stage.blocks:
            block.dynamic_mask, block.attn_mask = True, None


def _drop_head(model: Any) -> None:
    """Leave of the head its norm alone."""
    model.reset_classifier(0, "")
    if hasattr(model, "head") and hasattr(model.head, "pre_logits"):
        model.head.pre_logits = nn.Identity()
