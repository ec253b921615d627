"""A checkpoint's tensors under timm's names, and resized to a model's own sizes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_components.common.transformers_vision import is_transformers_vision, read_vision_config, to_timm_names
from vilavt_toolkit.errors import InputError


def to_timm_weights(weights: Mapping[str, Tensor], whole: Any) -> Mapping[str, Tensor]:
    """Return weights as timm's model `whole`, on the meta device, takes them.

    Weights of transformers and older layouts of names are renamed. Position embeddings and patch embeddings of another
    size are resampled. Weights of another architecture come back as they are.
    """
    if is_transformers_vision(weights):
        weights = _fit_names(to_timm_names(weights), whole)
    convert = getattr(sys.modules[_find_module(whole)], "checkpoint_filter_fn", None)
    try:
        # timm's own function, which it applies when it downloads weights.
        converted = weights if convert is None else convert(dict(weights), whole)
    except Exception:  # of another architecture: what its names lack is told where they are loaded
        return weights
    return _resample_tables(converted, whole.state_dict())


# What transformers calls activations, and timm.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def adapt_to_weights(model: Any, path: Path) -> None:
    """Give a model the activation and the epsilon of its norms that the weights at `path` were trained with.

    A folder of transformers says both. They are no weights, so that a difference would be wrong without a sign.
    Raises InputError for an activation that timm does not have.
    """
    import timm.layers

    layers, config = cast(Any, timm.layers), read_vision_config(path)
    name, epsilon = config.get("hidden_act"), config.get("layer_norm_eps")
    if name is not None and name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise InputError(f"The activation {str(name)[:40]!r} of '{path}' is unknown. Known are {known}.")
    for module in model.modules():
        # The activation of a gated MLP is part of its kind.
        if name is not None and type(module) is layers.Mlp:
            module.act = layers.get_act_layer(_ACTIVATIONS[name])()
        if isinstance(epsilon, float) and isinstance(module, nn.LayerNorm):
            module.eps = epsilon


def _find_module(whole: Any) -> str:
    """Return the module of timm that has the function which builds a model of this name, or its class."""
    from timm.models import is_model, model_entrypoint

    name = (getattr(whole, "pretrained_cfg", None) or {}).get("architecture", "")
    return str(model_entrypoint(name).__module__ if is_model(name) else type(whole).__module__)


def _fit_names(weights: dict[str, Tensor], whole: Any) -> dict[str, Tensor]:
    """Return weights that have timm's usual names under those that a model has in their place."""
    own = whole.state_dict()
    # A model that pools before its norm calls it `fc_norm`.
    last = "norm." if "norm.weight" in own else "fc_norm."
    fitted: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        if name.startswith("norm."):
            fitted[last + kind] = value
        elif name.endswith(".attn.qkv.bias") and name not in own:
            _split_bias(fitted, stem.removesuffix("qkv"), value, own)
        elif ".mlp.fc1." in name and name not in own and name.replace("fc1", "fc1_g") in own:
            fitted |= zip((name.replace("fc1", "fc1_g"), name.replace("fc1", "fc1_x")), value.chunk(2), strict=True)
        elif ".ls" in name and name not in own:
            fitted[stem.replace(".ls", ".gamma_")] = value
        else:
            fitted[name] = value
    if getattr(whole, "no_embed_class", False) and {"cls_token", "pos_embed"} <= fitted.keys():
        # The class token has a position of its own there. Here it is part of the token.
        first, fitted["pos_embed"] = fitted["pos_embed"].split_with_sizes([1, fitted["pos_embed"].shape[1] - 1], dim=1)
        fitted["cls_token"] = fitted["cls_token"] + first
    return fitted


def _split_bias(fitted: dict[str, Tensor], stem: str, bias: Tensor, own: Mapping[str, Any]) -> None:
    """Add the bias of queries, keys and values as the model keeps it: in parts, or not at all if it is zero."""
    if f"{stem}q_bias" in own:
        fitted |= {f"{stem}{part}_bias": each for part, each in zip("qkv", bias.chunk(3), strict=True) if part != "k"}
    elif bias.any():
        fitted[f"{stem}qkv.bias"] = bias


def _resample_tables(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Resample positions of another grid [1, h, w, D] or of another length [1, L, D], which timm leaves as they are."""
    resampled = dict(weights)
    for name, value in weights.items():
        shape = tuple(own[name].shape) if name in own else tuple(value.shape)
        # Only positions have a meaning at another size. All else must fit, or loading refuses it.
        if "pos_embed" not in name or shape == tuple(value.shape) or value.dim() != len(shape):
            continue
        if value.dim() == 4 and shape[3] == value.shape[3]:
            grid = value.float().permute(0, 3, 1, 2)
            grid = F.interpolate(grid, shape[1:3], mode="bicubic", antialias=True, align_corners=False)
            resampled[name] = grid.permute(0, 2, 3, 1).to(value.dtype)
        elif (
            value.dim() == 3
            and shape[2] == value.shape[2]
            and name.rpartition(".")[2] in ("pos_embed_y", "pos_embed_x")
        ):
            line = F.interpolate(value.float().transpose(1, 2), shape[1], mode="linear", align_corners=False)
            resampled[name] = line.transpose(1, 2).to(value.dtype)
    return resampled
