"""NVIDIA's apex: found by its CUDA extensions, and refused with the command that builds them."""

from __future__ import annotations

import importlib

import torch

from vilavt_toolkit.errors import MissingPackage

BUILD = (
    "git clone https://github.com/NVIDIA/apex && cd apex && "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation ."
)
"""The command that builds apex, as its README has it."""


def require_apex(wanted: str, instead: str) -> None:
    """Raise MissingPackage unless apex's CUDA extensions can be used; `wanted` needs them, `instead` does not."""
    build = f"Build it on a machine with CUDA: {BUILD}"
    if not torch.cuda.is_available():
        raise MissingPackage(
            f"{wanted} needs NVIDIA's apex and a CUDA GPU, and there is none here. {build}, or set {instead}."
        )
    # The extension, not `apex`: the index has another project of that name, and apex installs without extensions too.
    try:
        importlib.import_module("amp_C")
    except ImportError as error:
        raise MissingPackage(
            f"{wanted} needs NVIDIA's apex with its CUDA extensions, whose module amp_C cannot be imported ({error}). "
            f"The package `apex` of the index is another project. {build}, or set {instead}."
        ) from error
