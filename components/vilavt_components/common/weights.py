"""Weights in .safetensors: read them, and load them into a module that they must fit."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.weight_types import check_tensor_types
from vilavt_toolkit.utils.files import check_plain_files
from vilavt_toolkit.utils.text import shorten_list

logger = logging.getLogger(__name__)

CONVERT = "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
RenameKeys = Callable[[Sequence[str]], Mapping[str, str]]
"""Maps the names of a file's tensors to the module's names; a name that it leaves out is not read."""
# In the order in which open_clip prefers them, so that we load what open_clip would.
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
_SHOWN = 4
# The architecture that names of tensors suggest. The first match counts, so special cases stand before general ones.
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


def identity_names(names: Sequence[str]) -> dict[str, str]:
    """Keep all tensors under their own names."""
    return {name: name for name in names}


def check_safetensors(path: Path, convert_file: str = CONVERT) -> None:
    """Check that a file, or the files of a folder, exist and are .safetensors, reading no tensor; raises InputError."""
    for file in find_weight_files(path):
        with _open_safetensors(file, convert_file):
            pass


def find_weight_files(path: Path) -> list[Path]:
    """Return a file of weights as it is, and of a folder its files: the shards of its index, or one; raises InputError.

    Folders are those that transformers, timm and open_clip write.
    """
    if not path.is_dir():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            # A name that leads out of the folder is no shard of it.
            return [path / Path(str(name)).name for name in sorted(set(names))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"'{index}' is no index of weights. Copy the file again.") from error
    found = [path / name for name in WEIGHT_FILES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
    if not found:
        raise InputError(f"Folder '{path}' holds no weights in .safetensors. Set `path` to a folder or file of some.")
    return found[:1]


def load_file_into(
    module: nn.Module,
    path: Path,
    is_unused: Callable[[str], bool] = lambda name: False,
    rename_keys: RenameKeys = identity_names,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict,
    convert_file: str = CONVERT,
) -> None:
    """Load the weights of a file or folder as `load_weights_into` does; raises InputError.

    `rename_keys` chooses the tensors that are read and gives their names in the module. `convert` then changes names
    and tensors together. `convert_file` is a line of Python, shown in errors, that makes .safetensors of other formats.
    """
    # All names first: the guess needs those too that are not read, since they may be the ones that tell.
    names: list[str] = []
    weights: dict[str, Tensor] = {}
    files = find_weight_files(path)
    for each in files:
        with _open_safetensors(each, convert_file) as file:
            names += file.keys()
    renamed = rename_keys(names)
    for each in files:
        with _open_safetensors(each, convert_file) as file:
            weights |= {renamed[key]: file.get_tensor(key) for key in file.keys() if key in renamed}  # noqa: SIM118
    load_weights_into(module, convert(weights), f"'{path}'", is_unused, guess_architecture(names))


@contextmanager
def _open_safetensors(path: Path, convert_file: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    # By suffix, before opening: .bin and .pt are pickles, and unpickling runs code.
    if path.suffix != ".safetensors":
        raise InputError(
            f"Weights '{path}' are not .safetensors, and other formats can run code when read. Convert once: "
            f"{convert_file}."
        )
    if not path.is_file():
        raise InputError(f"Weights '{path}' do not exist. Correct the part's `path`.")
    check_plain_files([path])
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"Weights '{path}' cannot be read ({error}). Copy the file again.") from error


def load_weights_into(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    origin: str,
    is_unused: Callable[[str], bool],
    architecture: str = "",
    assign: bool = False,
) -> None:
    """Load weights that must fit exactly, except those that `is_unused` names; raises InputError with all faults.

    Buffers that modules compute themselves are skipped, since older checkpoints may hold them. `architecture` is what
    the weights look like, for the error. With `assign` the tensors become the module's own without a copy.
    """
    own, computed = module.state_dict(), _non_persistent_buffer_names(module)

    def is_skipped(name: str) -> bool:
        return name not in own and (name.rpartition(".")[2] in computed or is_unused(name))

    given = {name: value for name, value in weights.items() if not is_skipped(name)}
    # All faults together: a wrong setting shows in several places, and one name alone does not tell which.
    faults = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "mis-shaped": [
            f"{name} {list(value.shape)} for {list(own[name].shape)}"
            for name, value in given.items()
            if name in own and value.shape != own[name].shape
        ],
    }
    found = [f"{fault}: {shorten_list(names, _SHOWN)}" for fault, names in faults.items() if names]
    if found:
        other = f", by their names {architecture}" if architecture and architecture != guess_architecture(own) else ""
        raise InputError(
            f"Weights {origin} are of another architecture{other} ({'; '.join(found)}). Set the part's settings to "
            "match, or name other weights."
        )
    try:
        check_tensor_types(given, own)
    except InputError as error:
        raise InputError(f"Weights {origin}: {error}.") from error
    module.load_state_dict(given, assign=assign)
    logger.info("Loaded %d tensors of %s.", len(given), origin)


def guess_architecture(names: Collection[str]) -> str:
    """Return the architecture that tensors of these names suggest, such as "a ResNet"; empty if they suggest none."""
    return next((kind for start, kind in _KINDS.items() if any(re.match(start, name) for name in names)), "")


def _non_persistent_buffer_names(module: nn.Module) -> set[str]:
    return {name for part in module.modules() for name in part._non_persistent_buffers_set}
