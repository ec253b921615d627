"""Checkpoint format 1 read as today's: weights by their new names, recipes by their new keys.

Format 1 is what the toolkit wrote before its parts and settings got the names they have now. Two things differ:

model.safetensors    the vision encoder's tensors begin with `encoder.`, its backbone's with `encoder.encoder.`
recipe.yaml          some settings have earlier names, which the schema and the components list as `formerly`

The training state (resume.json and resume.safetensors) is the same in both formats: it numbers the trained tensors in
the model's order, and that order has not changed. Nothing here copies a tensor: names are mapped while a file is read.
"""

from __future__ import annotations

from vilavt_toolkit.config.renamed_keys import rename_old_keys

__all__ = ["current_weight_name", "rename_old_keys"]

# The longer prefix first, since it begins with the shorter one.
_PREFIXES = (("encoder.encoder.", "vision.backbone."), ("encoder.", "vision."))


def current_weight_name(name: str) -> str:
    """Return today's state-dict name of a tensor that format 1 saved under `name`."""
    for old, new in _PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
