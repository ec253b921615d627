"""Qwen2.5-VL checkpoints, the paper's among them: their configuration, and the tensors that a part of ours wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilavt_components.common.hf_errors import explained
from vilavt_components.common.weights import check_safetensors

FAMILIES = ("qwen2_5_vl", "vilavt")
Wanted = Callable[[str], str | None]
"""Gives the part's name of a tensor of the checkpoint, None for one that it does not have."""
_ADVICE = (
    "give a folder with config.json and safetensors weights of a Qwen2.5-VL model, or a hub name in reach or cached."
)
_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_CONVERT = f"safetensors.torch.save_file(torch.load(path, weights_only=True), '{_SINGLE}')"


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint is: a folder or hub name."""

    name: str
    revision: str | None
    local_files_only: bool
    part: str = "encoder"
    """What is read from it, for errors."""

    @property
    def options(self) -> dict[str, Any]:
        """What transformers' readers take beside the name."""
        return {"revision": self.revision, "local_files_only": self.local_files_only}

    def file(self, name: str) -> str | None:
        """Path of a file of the checkpoint, fetched if need be; None where it has no such file."""
        from transformers.utils.hub import cached_file

        path: str | None = cached_file(self.name, name, _raise_exceptions_for_missing_entries=False, **self.options)
        return path

    def explained(self, verb: str) -> AbstractContextManager[None]:
        """Turn what goes wrong inside into an InputError that says that the part cannot be `verb` (read, loaded)."""
        return explained(f"{self.part} {self.name!r} cannot be {verb}", _ADVICE, self.name)


def read_config(origin: Origin, families: tuple[str, ...] = FAMILIES) -> dict[str, Any]:
    """What the checkpoint's config.json says; raises InputError, of a model type that is none of `families` too."""
    from transformers import PretrainedConfig

    with origin.explained("read"):
        found: dict[str, Any]
        found, _ = PretrainedConfig.get_config_dict(origin.name, **origin.options)
        if not found:  # so transformers says that a folder lacks the file
            raise ValueError("it has no config.json")
        if found.get("model_type") not in families:
            raise ValueError(f"its model type is {found.get('model_type')!r}, not {families[0]!r}")
    return found


def read_tensors(origin: Origin, wanted: Wanted, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Those tensors of the checkpoint that are `wanted`, under the part's names, of `dtype`; raises InputError.

    On the CPU. What is of `dtype` already stays in the mapped file, and takes memory as it is used.
    """
    tensors: dict[str, Tensor] = {}
    with origin.explained("loaded"):
        for file in _files(origin, wanted):
            with _opened(file) as shard:
                names = {key: name for key in shard.keys() if (name := wanted(key)) is not None}  # noqa: SIM118
                for key, name in names.items():
                    value = shard.get_tensor(key)
                    tensors[name] = value if dtype in (None, value.dtype) else _converted(file, key, dtype)
    return tensors


def read_names(origin: Origin) -> list[str]:
    """The names of all tensors of the checkpoint, from its index or its file's header; raises InputError."""
    with origin.explained("read"):
        index = origin.file(_INDEX) if origin.file(_SINGLE) is None else None
        if index is not None:
            return list(_places(index))
        names: list[str] = []
        for file in _files(origin, lambda key: key):
            with _opened(file) as shard:
                names += shard.keys()
    return names


def check_files(origin: Origin, wanted: Wanted) -> None:
    """Hold that a folder has the files of what is `wanted`, reading no tensor; raises InputError. No hub is asked."""
    if Path(origin.name).is_dir():
        with origin.explained("loaded"):
            files = list(_files(origin, wanted))
        for file in files:
            check_safetensors(Path(file))


def _converted(file: str, key: str, dtype: torch.dtype | None) -> Tensor:
    """A tensor in another type; the file is mapped anew for it, or all that was read would stay in memory."""
    with _opened(file) as shard:
        value: Tensor = shard.get_tensor(key).to(dtype)
    return value


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as shard:
            yield shard
    except SafetensorError as error:
        raise ValueError(f"its file {Path(file).name} cannot be read: {error}") from error


def _files(origin: Origin, wanted: Wanted) -> Iterator[str]:
    """Paths of the safetensors files that hold what is wanted."""
    single = origin.file(_SINGLE)
    if single is not None:
        yield single
        return
    index = origin.file(_INDEX)
    if index is None:
        if Path(origin.name).is_dir() and any(Path(origin.name).glob("*.safetensors")):
            raise ValueError(f"its {_INDEX}, which says what is in which of its files, is missing; copy it too")
        raise ValueError(
            f"it holds no safetensors weights, and other formats can run code when read: convert them once, {_CONVERT}"
        )
    for name in sorted({shard for key, shard in _places(index).items() if wanted(key) is not None}):
        if Path(name).name != name:
            raise ValueError(f"its {_INDEX} names {name!r}, which is no file of the checkpoint's own folder")
        path = origin.file(name)
        if path is None:
            raise ValueError(f"its file {name} is missing")
        yield path


def _places(index: str) -> dict[str, str]:
    """The file of every tensor of a checkpoint in several."""
    try:
        found = json.loads(Path(index).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its {_INDEX} cannot be read ({error})") from error
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"its {_INDEX} has no weight_map of names to files")
    return places
