"""RMS norms of a language model, computed by NVIDIA apex's kernel in place of transformers' own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilavt_components.common.apex import require_apex
from vilavt_toolkit.errors import InputError, MissingPackage

log = logging.getLogger(__name__)

Norms = Literal["own", "apex_rms_norm"]
"""Computes RMS norms: the model's own modules, or apex's."""
BuildNorm = Callable[[int, float], nn.Module]
"""Returns a norm over so many numbers with this epsilon, which has one parameter `weight`."""

_NAME_END = "RMSNorm"
_TRIED_WIDTH = 8


def require_norms(norms: Norms) -> None:
    """Raise MissingPackage unless what is to compute the norms is here."""
    if norms == "apex_rms_norm":
        require_apex("norms apex_rms_norm", "norms own")


def choose_present_norms(norms: Norms) -> Norms:
    """Return `norms`, or `own` with a warning if they are not here: a saved model can be asked on any machine."""
    try:
        require_norms(norms)
    except MissingPackage as error:
        log.warning("the language model's norms are computed by its own modules: %s", error)
        return "own"
    return norms


def use_norms(norms: Norms, label: str, model: nn.Module) -> None:
    """Let `norms` compute the RMS norms of a model, whose weights keep their names; raises InputError, MissingPackage.

    `label` is the registered name of the language model.
    """
    if norms == "apex_rms_norm":
        require_norms(norms)
        replace_norms(label, model, _apex_class())


def replace_norms(label: str, model: nn.Module, build: BuildNorm) -> None:
    """Put what `build` returns in the place of every RMS norm of a model; raises InputError if one is of another kind.

    The parameters themselves stay, so that names, types and devices do.
    """
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if type(child).__name__.endswith(_NAME_END)
    ]
    kinds = dict.fromkeys(type(child) for _, _, child in found)
    other = next((kind.__name__ for kind in kinds if not _is_plain(kind)), None)
    if other is not None or not found:
        reason = "it has no RMS norm" if other is None else f"its {other} computes something else"
        raise InputError(f"{label}: norms apex_rms_norm does not suit this model, because {reason}. Set norms: own.")
    for parent, name, norm in found:
        weight: Any = norm.weight
        # Its own parameter is dropped at once, and takes no memory.
        with torch.device("meta"):
            replacement = build(weight.numel(), _read_epsilon(norm))
        replacement.weight = weight
        setattr(parent, name, replacement.train(norm.training))


def _read_epsilon(norm: nn.Module) -> float:
    """Return the epsilon of a norm, which transformers' families keep under two names."""
    return float(getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or 0.0)


def _is_plain(norm_class: type[nn.Module]) -> bool:
    """Return True if norms of a class divide by the root mean square and multiply by `weight`; a small one is tried.

    Others multiply by 1 + weight, as Gemma's do.
    """
    eps = 0.125
    # Numbers of its own, so that nothing random is drawn from anyone's generator.
    given = torch.linspace(-2, 3, 3 * _TRIED_WIDTH, device="cpu", dtype=torch.float32).view(3, _TRIED_WIDTH)
    weight = torch.linspace(0.5, 2, _TRIED_WIDTH, device="cpu", dtype=torch.float32)
    try:
        with torch.device("cpu"), torch.no_grad():
            tried = norm_class(_TRIED_WIDTH, eps=eps).float()
            if [name for name, _ in tried.named_parameters()] != ["weight"] or _read_epsilon(tried) != eps:
                return False
            tried.weight.copy_(weight)  # type: ignore[operator]
            found: Tensor = tried(given)
    # Families build their norms from other arguments, and fail in ways of their own.
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return False
    return torch.allclose(found, F.rms_norm(given, (_TRIED_WIDTH,), weight, eps), rtol=1e-5, atol=1e-6)


@functools.cache
def _apex_class() -> Any:
    """Return apex's norm as it is used here."""
    from apex.normalization import FusedRMSNorm
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine

    class ApexRMSNorm(FusedRMSNorm):  # type: ignore[misc]
        """FusedRMSNorm whose input keeps its type under autocast, as transformers' norms do."""

        def forward(self, hidden: Tensor) -> Tensor:
            # apex would round a float32 input to the type of autocast before the mean of its squares is taken. Its
            # kernel takes one type, and sums in float32.
            with torch.autocast(hidden.device.type, enabled=False):
                if not hidden.is_cuda or self.weight.dtype == hidden.dtype:
                    normed: Tensor = super().forward(hidden)
                else:
                    weight = self.weight.to(hidden.dtype)
                    normed = fused_rms_norm_affine(hidden, weight, self.normalized_shape, self.eps)
            return normed

    return ApexRMSNorm
