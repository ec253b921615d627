"""A checkpoint's tensors under timm's names, and resized to a model's own sizes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def to_timm_weights(weights: Mapping[str, Tensor], whole: Any) -> Mapping[str, Tensor]:
    """Return weights as timm's model `whole`, on the meta device, takes them.

    Older layouts of names are brought up to date, and position embeddings and patch embeddings of another size are
    resampled. Weights that are of another architecture come back as they are.
    """
    convert = getattr(sys.modules[_find_module(whole)], "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    try:
        # timm's own function, which it applies when it downloads weights.
        converted: Mapping[str, Tensor] = convert(dict(weights), whole)
    except Exception:  # of another architecture: what its names lack is told where they are loaded
        return weights
    return converted


def _find_module(whole: Any) -> str:
    """Return the module of timm that has the function which builds a model of this name, or its class."""
    from timm.models import is_model, model_entrypoint

    name = (getattr(whole, "pretrained_cfg", None) or {}).get("architecture", "")
    return str(model_entrypoint(name).__module__ if is_model(name) else type(whole).__module__)
