"""Weights in .safetensors: read, and filled into a module that they must fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from vilavt_toolkit.errors import InputError

logger = logging.getLogger(__name__)

CONVERT = "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
_SHOWN = 4


def read_safetensors(
    path: Path, wanted: Callable[[str], str | None] = lambda key: key, convert: str = CONVERT
) -> dict[str, Tensor]:
    """The tensors of a file whose name `wanted` gives another name, under that one; others are not read.

    Raises InputError; `convert` is a line of Python that makes .safetensors of other formats.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise InputError(
            f"Weights '{path}' are not .safetensors, and other formats can run code when read; convert once: {convert}."
        )
    if not path.is_file():
        raise InputError(f"Weights '{path}' do not exist; correct the part's `file`.")
    try:
        with safe_open(path, "pt") as file:
            names = {key: wanted(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: file.get_tensor(key) for key, name in names.items() if name is not None}
    except (SafetensorError, OSError) as error:
        raise InputError(f"Weights '{path}' cannot be read ({error}); copy the file again.") from error


def fill(module: nn.Module, weights: Mapping[str, Tensor], origin: str, unused: Callable[[str], bool]) -> None:
    """Load weights that must fit exactly, but for those that are `unused` here; raises InputError with all faults."""
    own = module.state_dict()
    given = {name: value for name, value in weights.items() if name in own or not unused(name)}
    faults = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "mis-shaped": [
            f"{name} {list(value.shape)} for {list(own[name].shape)}"
            for name, value in given.items()
            if name in own and value.shape != own[name].shape
        ],
    }
    found = [f"{kind}: {listed(names)}" for kind, names in faults.items() if names]
    if found:
        raise InputError(
            f"Weights of '{origin}' are of another architecture ({'; '.join(found)}); set the part's settings to match."
        )
    module.load_state_dict(given)
    logger.info("Loaded %d tensors of %s.", len(given), origin)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
