"""Versions of the software that a result was made with."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = (
    "vilavt-toolkit",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "transformers",
    "tokenizers",
    "timm",
    "safetensors",
    "numpy",
    "pillow",
)


def collect_versions() -> dict[str, str]:
    """Return the versions of Python and of every package that results depend on; `missing` if one is not installed."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions
