"""Small models for the contract tests: staged models of several kinds, whole and cut short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONVNEXT = {"patch_size": 2, "depths": (1, 1, 1, 1), "dims": (16, 24, 32, 32), "ls_init_value": 0.5}
_SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
# Tokens in an order of their own, and one size of view.
_HIERA = {"img_size": 32, "embed_dim": 8, "num_heads": 1, "stages": (1, 2, 1, 1)}
_RESNET = {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 32)}


def small_models() -> Mapping[str, tuple[str, dict[str, Any], int | None]]:
    """Return timm's name of a model, the arguments that make it small, and the number of stages that are used."""
    return {
        "convnext": ("convnext_tiny", _CONVNEXT, 2),
        "convnext_whole": ("convnext_tiny", _CONVNEXT | {"output_stride": 8}, None),
        "convnext_v2": ("convnextv2_atto", {**_CONVNEXT, "ls_init_value": None}, 2),
        "swin": ("swin_tiny_patch4_window7_224", _SWIN, None),
        "swin_cut": ("swin_tiny_patch4_window7_224", _SWIN | {"patch_size": 4}, 1),
        "swin_v2": ("swinv2_tiny_window8_256", _SWIN, None),
        "resnet": ("resnet18", _RESNET, 2),
        "resnet_bottleneck": ("resnet50", _RESNET | {"channels": (4, 6, 8, 8)}, 2),
        "resnet_groupnorm": ("resnet18", _RESNET | {"channels": (32, 64, 32, 32), "norm_layer": "groupnorm"}, 2),
        "hiera": ("hiera_tiny_224", _HIERA, None),
        "efficientnet": ("test_efficientnet", {}, 3),
        "resnet_whole": ("resnet26d", _RESNET | {"channels": (4, 6, 8, 8), "output_stride": 8}, None),
    }
