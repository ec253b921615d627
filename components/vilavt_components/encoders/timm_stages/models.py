"""timm's staged models taken apart: a stem, stages, and the norms after the last of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn

from vilavt_components.common.weights import RenameKeys, identity_names
from vilavt_components.encoders.timm.models import build_by_name, prefix_token_names
from vilavt_toolkit.errors import BadConfig

_SUPPORTED = (
    "Choose a staged model: ConvNeXt, Swin, ResNet and their kin (convnext_tiny, convnextv2_nano, "
    "swin_tiny_patch4_window7_224, swinv2_tiny_window8_256, resnet50, resnext50_32x4d, seresnet50, ...)"
)


@dataclass(frozen=True)
class StagedFamily:
    """Holds how the models of one timm class run."""

    apply_stem: Callable[[Any, Tensor], Tensor]
    """Computes the first maps: (model, pixels [n, 3, h, w]) -> maps."""
    find_stages: Callable[[Any], Sequence[nn.Module]]
    find_norms: Callable[[Any], Sequence[nn.Module]]
    """Finds the norms that the model's own features, or its head, pass after the last stage."""
    find_stem_stride: Callable[[Any], int]
    """Returns the pixels along a token of the first maps; raises BadConfig for a stem that is not square."""
    stage_prefix: str
    """Beginning of the names of a stage's weights, with {} for the number of the stage."""
    first_stage: int = 0
    """Number of the first stage in names and in timm's list of features."""
    head_prefixes: tuple[str, ...] = ()
    """Beginnings of the names of weights after the last stage."""
    has_channels_last: bool = False
    """True if maps are [n, h, w, D], False for [n, D, h, w]."""
    positions: Literal["relative", "none"] = "none"
    rename_keys: RenameKeys = identity_names
    """timm's present names of a file's tensors"""


@dataclass(frozen=True)
class StagedModel:
    """A model whose first stages are used."""

    model: Any
    stem_stride: int
    strides: tuple[int, ...]
    """Pixels along a token after every stage."""
    widths: tuple[int, ...]
    """Channels after every stage."""
    norms: tuple[nn.Module, ...]
    """Norms after the last stage; none if not all stages are used, since they were trained on the last one's output."""
    unused_prefixes: tuple[str, ...]
    """Beginnings of the names of weights that a checkpoint may have and this model does not."""

    @property
    def family(self) -> StagedFamily:
        """Return how the model runs."""
        return staged_families()[type(self.model)]

    @property
    def stages(self) -> Sequence[nn.Module]:
        """Return the stages that are used."""
        return self.family.find_stages(self.model)[: len(self.widths)]

    def run_stem(self, pixels: Tensor) -> Tensor:
        """Compute the first maps; pixels [n, 3, h, w] -> [n, h', w', D]."""
        x = self.family.apply_stem(self.model, pixels)
        return x if self.family.has_channels_last else x.permute(0, 2, 3, 1)

    def run_on_maps(self, part: nn.Module, maps: Tensor) -> Tensor:
        """Run a stage or a norm on maps; [n, h, w, D] -> [n, h', w', D']."""
        # Maps between stages are [n, h, w, D], the order of packed tokens. To a convolution these strides are the
        # memory format channels_last, which its kernels take as it is: nothing is copied here.
        if self.family.has_channels_last:
            after: Tensor = part(maps)
            return after
        after = part(maps.permute(0, 3, 1, 2))
        return after.permute(0, 2, 3, 1)


def build_staged_model(name: str, args: Mapping[str, Any], stages: int | None) -> StagedModel:
    """Build timm's model without weights, cut after `stages` stages (None: all); raises BadConfig."""
    # YAML has no tuples.
    model = build_by_name(
        name, {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    )
    _check_family(model, name)
    family = staged_families()[type(model)]
    depth = len(family.find_stages(model))
    used = depth if stages is None else stages
    if used > depth:
        raise BadConfig(f"'{name}' has {depth} stages. Set `stages` to {depth} at most, not {used}.")
    features = model.feature_info[family.first_stage : family.first_stage + used]
    strides, widths = (tuple(int(each[key]) for each in features) for key in ("reduction", "num_chs"))
    stem_stride = family.find_stem_stride(model)
    _accept_any_size(model)
    # Parts that are not used are removed, or they would be saved, and counted among the weights that learn.
    if used < depth:
        model.prune_intermediate_layers([family.first_stage + used - 1], prune_norm=True, prune_head=True)
        norms: tuple[nn.Module, ...] = ()
    else:
        _drop_head(model)
        norms = tuple(norm for norm in family.find_norms(model) if not isinstance(norm, nn.Identity))
    dropped = tuple(family.stage_prefix.format(family.first_stage + index) for index in range(used, depth))
    return StagedModel(model, stem_stride, strides, widths, norms, family.head_prefixes + dropped)


def _check_family(model: Any, name: str) -> None:
    if type(model) in prefix_token_names():
        raise BadConfig(
            f"Model '{name}' is a plain vision transformer ({type(model).__name__}), and encoder 'timm_stages' runs "
            "models in stages. Take encoder `timm` for it."
        )
    if type(model) not in staged_families():
        raise BadConfig(f"Encoder 'timm_stages' was not written for {type(model).__name__} ('{name}'). {_SUPPORTED}.")


@cache
def staged_families() -> Mapping[type, StagedFamily]:
    """Return every model class that this was written for; by exact type, since a subclass may differ."""
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    # Each stem, list of stages and norm follows the class's own `forward_features`.
    swin = StagedFamily(
        apply_stem=lambda model, pixels: model.patch_embed(pixels),
        find_stages=lambda model: list(model.layers),
        find_norms=lambda model: [model.norm],
        find_stem_stride=_patch_size,
        stage_prefix="layers.{}.",
        head_prefixes=("norm.",),
        has_channels_last=True,
        positions="relative",
        rename_keys=_swin_names,
    )
    convnext = StagedFamily(
        apply_stem=lambda model, pixels: model.stem(pixels),
        find_stages=lambda model: list(model.stages),
        # A plain ConvNeXt has its norm in the head, after pooling; with `head_norm_first` it is `norm_pre`.
        find_norms=lambda model: [model.norm_pre, getattr(model.head, "norm", nn.Identity())],
        find_stem_stride=_stem_stride,
        stage_prefix="stages.{}.",
        head_prefixes=("norm_pre.",),
    )
    resnet = StagedFamily(
        apply_stem=lambda model, pixels: model.maxpool(model.act1(model.bn1(model.conv1(pixels)))),
        find_stages=lambda model: [model.layer1, model.layer2, model.layer3, model.layer4],
        find_norms=lambda model: [],
        # conv1 and maxpool halve both sides each. timm lists their output as feature 0, so stages start at 1.
        find_stem_stride=lambda model: 4,
        stage_prefix="layer{}.",
        first_stage=1,
        head_prefixes=("fc.",),
    )
    return {ConvNeXt: convnext, SwinTransformer: swin, SwinTransformerV2: swin, ResNet: resnet}


def _swin_names(names: Sequence[str]) -> dict[str, str]:
    """Rename a Swin checkpoint's tensors to timm's present names."""
    # In the authors' code, and in older timm, a stage ended with its downsampling. Now the next one begins with it.
    if not any(name.startswith("layers.0.downsample.") for name in names):
        return identity_names(names)
    return {
        name: re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", name)
        for name in names
    }


def _patch_size(model: Any) -> int:
    height, width = model.patch_embed.patch_size
    if height != width:
        raise BadConfig(
            f"`patch_size` is {height} x {width}, and encoder 'timm_stages' needs square patches. Set one number."
        )
    return int(height)


def _stem_stride(model: Any) -> int:
    return math.prod(part.stride[0] for part in model.stem if isinstance(part, nn.Conv2d))


def _accept_any_size(model: Any) -> None:
    """Let a Swin take maps of any size, as timm's `dynamic_img_size` does."""
    if not hasattr(model, "patch_embed"):
        return
    # timm builds the mask of shifted windows once, for the model's image size; here it is built for each map.
    model.patch_embed.strict_img_size = False
    for stage in model.layers:
        for block in stage.blocks:
            block.dynamic_mask, block.attn_mask = True, None


def _drop_head(model: Any) -> None:
    """Remove everything of the head but its norm."""
    model.reset_classifier(0, "")
    # Some ConvNeXts have a hidden layer between norm and classifier.
    if hasattr(model, "head") and hasattr(model.head, "pre_logits"):
        model.head.pre_logits = nn.Identity()
