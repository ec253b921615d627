"""The files of Qwen2.5-VL checkpoints, the paper's among them: config.json, and tensors from one or several files.

Our names for the tensors are not here: each part has them, as `encoders/qwen2_5_vl/vision_weights.py` for the tower.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilavt_components.common.hf_errors import as_input_error, check_sizes
from vilavt_components.common.weights import check_safetensors
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.meta import read_as
from vilavt_toolkit.models.weight_types import check_weight_types

FAMILIES = ("qwen2_5_vl", "vilavt")
RenameKey = Callable[[str], str | None]
"""Maps the name of a checkpoint's tensor to the part's name, or to None if the part does not have it."""
_ADVICE = (
    "Give a folder with config.json and safetensors weights of a Qwen2.5-VL model, or a hub name in reach or cached."
)
_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_CONVERT = f"safetensors.torch.save_file(torch.load(path, weights_only=True), '{_SINGLE}')"


@dataclass(frozen=True)
class CheckpointLocation:
    """The place of a checkpoint: a folder or hub name."""

    name: str
    revision: str | None
    local_files_only: bool
    part: str = "encoder"
    """The part of a model that is read from it, for errors."""
    advice: str = _ADVICE
    """Advice on what to give instead, for errors."""

    @property
    def hub_options(self) -> dict[str, Any]:
        """The arguments of transformers' readers besides the name."""
        return {"revision": self.revision, "local_files_only": self.local_files_only}

    def find_file(self, name: str) -> str | None:
        """Return the path of a file of the checkpoint, downloaded if needed; None if it has no such file."""
        from transformers.utils.hub import cached_file

        path: str | None = cached_file(self.name, name, _raise_exceptions_for_missing_entries=False, **self.hub_options)
        return path

    def as_input_error(self, verb: str) -> AbstractContextManager[None]:
        """Turn exceptions inside into an InputError: the part cannot be `verb` ("read" or "loaded")."""
        return as_input_error(f"{self.part} {self.name!r} cannot be {verb}", self.advice, self.name)


def read_checkpoint_config(origin: CheckpointLocation, families: tuple[str, ...] = FAMILIES) -> dict[str, Any]:
    """Return the checkpoint's config.json; raises InputError, also if its model type is not in `families`."""
    from transformers import PretrainedConfig

    with origin.as_input_error("read"):
        found: dict[str, Any]
        found, _ = PretrainedConfig.get_config_dict(origin.name, **origin.hub_options)
        if not found:  # transformers returns nothing, and does not raise, for a folder without the file
            raise ValueError("it has no config.json")
        if found.get("model_type") not in families:
            raise ValueError(f"its model type is {found.get('model_type')!r}, not {families[0]!r}")
        check_sizes(found)
    return found


def _check_types(file: Path, kinds: dict[str, str]) -> None:
    try:
        # Every tensor of these models is a weight.
        check_weight_types(kinds, dict.fromkeys(kinds, torch.empty(0)))
    except InputError as error:
        raise InputError(f"{file}: {error}.") from error


def read_tensors(
    origin: CheckpointLocation, rename_key: RenameKey, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read the tensors that `rename_key` names, under the part's names, on the CPU in `dtype`; raises InputError.

    A tensor that has `dtype` already stays in the memory-mapped file, and takes memory only when it is used.
    """
    tensors: dict[str, Tensor] = {}
    with origin.as_input_error("loaded"):
        for file in _find_weight_files(origin, rename_key):
            with _open_shard(file) as shard:
                names = {key: name for key in shard.keys() if (name := rename_key(key)) is not None}  # noqa: SIM118
                _check_types(Path(file), {key: shard.get_slice(key).get_dtype() for key in names})
                for key, name in names.items():
                    value = shard.get_tensor(key)
                    tensors[name] = value if dtype in (None, value.dtype) else read_as(Path(file), key, dtype)
    return tensors


def read_shapes(origin: CheckpointLocation, rename_key: RenameKey) -> dict[str, Tensor]:
    """Return tensors on the meta device for those that `read_tensors` would read; raises InputError."""
    tensors: dict[str, Tensor] = {}
    with origin.as_input_error("loaded"):
        for file in _find_weight_files(origin, rename_key):
            with _open_shard(file) as shard:
                for key in shard.keys():  # noqa: SIM118
                    if (name := rename_key(key)) is not None:
                        tensors[name] = torch.empty(shard.get_slice(key).get_shape(), device="meta")
    return tensors


def read_tensor_names(origin: CheckpointLocation) -> list[str]:
    """Return the names of all tensors of the checkpoint, from its index or its file's header; raises InputError."""
    with origin.as_input_error("read"):
        index = origin.find_file(_INDEX) if origin.find_file(_SINGLE) is None else None
        if index is not None:
            return list(_read_index(index))
        names: list[str] = []
        for file in _find_weight_files(origin, lambda key: key):
            with _open_shard(file) as shard:
                names += shard.keys()
    return names


def check_weight_files(origin: CheckpointLocation, rename_key: RenameKey) -> None:
    """Check that a folder has the files of the tensors that `rename_key` names; raises InputError.

    It reads no tensor, and does not ask the hub.
    """
    if Path(origin.name).is_dir():
        with origin.as_input_error("loaded"):
            files = list(_find_weight_files(origin, rename_key))
        for file in files:
            check_safetensors(Path(file))


@contextmanager
def _open_shard(file: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as shard:
            yield shard
    except SafetensorError as error:
        raise ValueError(f"its file {Path(file).name} cannot be read: {error}") from error


def _find_weight_files(origin: CheckpointLocation, rename_key: RenameKey) -> Iterator[str]:
    """Find the safetensors files that hold the tensors that `rename_key` names."""
    single = origin.find_file(_SINGLE)
    if single is not None:
        yield single
        return
    index = origin.find_file(_INDEX)
    if index is None:
        if Path(origin.name).is_dir() and any(Path(origin.name).glob("*.safetensors")):
            raise ValueError(f"its {_INDEX}, which names the file of every tensor, is missing, so copy it too")
        raise ValueError(
            f"it holds no safetensors weights, and other formats can run code when read: convert them once, {_CONVERT}"
        )
    # Only the files that hold something wanted: an encoder alone need not download the language model.
    for name in sorted({shard for key, shard in _read_index(index).items() if rename_key(key) is not None}):
        # An index could name `../../secrets.safetensors`: a checkpoint may only read its own folder.
        if Path(name).name != name:
            raise ValueError(f"its {_INDEX} names {name!r}, which is no file of the checkpoint's own folder")
        path = origin.find_file(name)
        if path is None:
            raise ValueError(f"its file {name} is missing")
        yield path


def _read_index(index: str) -> dict[str, str]:
    """Read the index of a checkpoint in several files: the file of every tensor."""
    try:
        found = json.loads(Path(index).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its {_INDEX} cannot be read ({error})") from error
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"its {_INDEX} has no weight_map of names to files")
    return places
