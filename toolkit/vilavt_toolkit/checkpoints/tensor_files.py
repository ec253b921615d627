"""Tensors of a checkpoint in one safetensors file, or in several beside an index, as Hugging Face lays them out.

model.safetensors                   one file, or
model-00001-of-00008.safetensors    several, each with whole tensors,
model.safetensors.index.json        and the file of every tensor

The processes of a run with sharded weights write several, each its own at the same time. torch.distributed.checkpoint
has a writer of safetensors, which does not serve here: it writes slices of tensors, which no other program reads, or
writes everything a second time to join them. It also makes the bytes of a whole file in memory beside its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vilavt_toolkit.errors import RunError
from vilavt_toolkit.utils.files import read_json, write_json

LARGEST_FILE = 5 * 10**9
"""Bytes that files of several have at most in the mean. A process holds one of them in memory."""


@dataclass(frozen=True)
class TensorFile:
    """A file of several, and the tensors that it gets."""

    name: str
    tensors: tuple[str, ...]


def deal_tensors(stem: str, sizes: Mapping[str, int], count: int, largest: int = LARGEST_FILE) -> list[TensorFile]:
    """Deal tensors of these sizes in bytes to files, at least `count` where there are as many tensors.

    Their sizes differ by no more than the largest tensor. The result depends on nothing but the arguments.
    """
    # As many files as can be written in turns of `count` at once.
    wanted = count * max(1, math.ceil(sum(sizes.values()) / (count * largest)))
    held: list[list[str]] = [[] for _ in range(min(wanted, len(sizes)))]
    filled = [0] * len(held)
    # The largest first, each into the emptiest file.
    for name in sorted(sizes, key=lambda each: (-sizes[each], each)):
        emptiest = filled.index(min(filled))
        held[emptiest].append(name)
        # Tensors without numbers are dealt around too.
        filled[emptiest] += max(1, sizes[name])
    return [
        TensorFile(f"{stem}-{number:05d}-of-{len(held):05d}.safetensors", tuple(sorted(names)))
        for number, names in enumerate(held, start=1)
    ]


def write_index(folder: Path, stem: str, files: Sequence[TensorFile], sizes: Mapping[str, int]) -> None:
    """Write which file has which tensor; raises InputError."""
    places = {name: file.name for file in files for name in file.tensors}
    metadata = {"total_size": sum(sizes.values())}
    write_json(_index_path(folder, stem), {"metadata": metadata, "weight_map": dict(sorted(places.items()))})


def list_tensor_files(folder: Path, stem: str) -> list[Path]:
    """Return the files that hold the tensors of a checkpoint: one, or those of its index; raises RunError.

    Without an index the one file is returned, whether it exists or not.
    """
    single, index = folder / f"{stem}.safetensors", _index_path(folder, stem)
    if single.is_file() or not index.is_file():
        return [single]
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        # A name that leads out of the folder is none of the checkpoint's.
        if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise ValueError(f"{strange[0]!r} is no name of a file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{index} is no index of tensors ({error}). Use another checkpoint of the run.") from error
    files = [folder / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise RunError(f"{missing[0]} is missing. Use another checkpoint of the run.")
    return files


def choose_shown_file(files: Sequence[Path], stem: str) -> Path:
    """Return the file that an error about a checkpoint's tensors names: the first that cannot be opened, or all."""
    for file in files:
        try:
            with safe_open(str(file), "pt"):
                pass
        except (SafetensorError, OSError):
            return file
    return files[0] if len(files) == 1 else _index_path(files[0].parent, stem)


def _index_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.safetensors.index.json"
