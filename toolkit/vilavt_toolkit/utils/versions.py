"""What a result was made with."""

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


def versions() -> dict[str, str]:
    """Versions of python and of every package a result depends on; 'missing' where one is not installed."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
