"""Weights in .safetensors: read, and filled into a module that they must fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vilavt_toolkit.errors import InputError

logger = logging.getLogger(__name__)

CONVERT = "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
Wanted = Callable[[Sequence[str]], Mapping[str, str]]
"""Of all names of a file's tensors, those to read, each with the module's name."""
_SHOWN = 4
# What names of tensors tell of a model; the first that fits holds.
_KINDS: Mapping[str, str] = {
    r"points\.lift\.": "a `point_cloud` encoder",
    r"(.*\.)?resblocks\.\d+\.": "an open_clip model",
    r"visual\.trunk\.": "an open_clip model with a tower of timm",
    r"(model\.)?visual\.merger\.": "a Qwen-VL model",
    r"(vision|text)_model\.": "a CLIP or SigLIP model of transformers",
    r"(model\.)?layers\.\d+\.self_attn\.": "a language model of transformers",
    r"(\w+\.)?encoder\.layer\.\d+\.attention\.": "a BERT or ViT of transformers",
    r"blocks\.\d+\.(attn|norm1)\.": "a plain vision transformer",
    r"stages\.\d+\.": "a ConvNeXt or another model in stages",
    r"layers\.\d+\.blocks\.\d+\.": "a Swin transformer",
    r"layer\d\.\d+\.conv1\.": "a ResNet",
}


def as_they_are(names: Sequence[str]) -> dict[str, str]:
    """All tensors, under their own names."""
    return {name: name for name in names}


def check_safetensors(path: Path, convert: str = CONVERT) -> None:
    """Hold that a file is there and of the format, reading no tensor of it; raises InputError."""
    with _opened(path, convert):
        pass


def fill_from_file(
    module: nn.Module,
    path: Path,
    unused: Callable[[str], bool] = lambda name: False,
    wanted: Wanted = as_they_are,
    convert: str = CONVERT,
) -> None:
    """Load a file's weights as `fill` does; raises InputError.

    `wanted` gives the module's name of those of the file's tensors that are read; `convert` is a line of Python that
    makes .safetensors of other formats.
    """
    with _opened(path, convert) as file:
        names = list(file.keys())
        weights = {name: file.get_tensor(key) for key, name in wanted(names).items()}
    fill(module, weights, f"'{path}'", unused, kind_of(names))


@contextmanager
def _opened(path: Path, convert: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise InputError(
            f"Weights '{path}' are not .safetensors, and other formats can run code when read; convert once: {convert}."
        )
    if not path.is_file():
        raise InputError(f"Weights '{path}' do not exist; correct the part's `file`.")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"Weights '{path}' cannot be read ({error}); copy the file again.") from error


def fill(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    origin: str,
    unused: Callable[[str], bool],
    kind: str = "",
    assign: bool = False,
) -> None:
    """Load weights that must fit exactly, but for those that are `unused` here; raises InputError with all faults.

    What modules compute themselves (buffers that are not saved) older checkpoints may hold; it is left out. `kind` is
    what model the weights look like. With `assign` the tensors become the module's own, and are not copied.
    """
    own, computed = module.state_dict(), _computed(module)

    def left(name: str) -> bool:
        return name not in own and (name.rpartition(".")[2] in computed or unused(name))

    given = {name: value for name, value in weights.items() if not left(name)}
    faults = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "mis-shaped": [
            f"{name} {list(value.shape)} for {list(own[name].shape)}"
            for name, value in given.items()
            if name in own and value.shape != own[name].shape
        ],
    }
    found = [f"{fault}: {listed(names)}" for fault, names in faults.items() if names]
    if found:
        other = f", by their names {kind}" if kind and kind != kind_of(own) else ""
        raise InputError(
            f"Weights {origin} are of another architecture{other} ({'; '.join(found)}); set the part's settings to "
            "match, or name other weights."
        )
    module.load_state_dict(given, assign=assign)
    logger.info("Loaded %d tensors of %s.", len(given), origin)


def kind_of(names: Collection[str]) -> str:
    """What model tensors of these names are of; empty where they do not tell."""
    return next((kind for start, kind in _KINDS.items() if any(re.match(start, name) for name in names)), "")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _computed(module: nn.Module) -> set[str]:
    return {name for part in module.modules() for name in part._non_persistent_buffers_set}
