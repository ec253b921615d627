"""Prepared samples on disk, for the runs that would prepare the same ones again.

A folder holds the samples of one key (`sample_key`), in files of safetensors and JSON. A file is written under another
name and then moved into place, so that runs may write and read at once. One that is damaged is left out. All that is
here can be made again: what does not fit is thrown away, the folder that was used longest ago first.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from vilavt_toolkit.contracts import Trajectory, View
from vilavt_toolkit.data.fields import hash_parts
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.files import atomic_write

log = logging.getLogger(__name__)

PreparedSample = tuple[Trajectory, list[View]]
"""A sample as the model is trained on it: ids and regions, and each region's crop, ready for the encoder."""
Facts = Mapping[str, Any]
"""Description of the files that a sample is made of, as plain data; empty if it is made of none."""

_ROWS = "rows"
"""The tensor that holds everything but pixels, as JSON in UTF-8."""
_LEFT_OVER_SECONDS = 24 * 3600.0
"""Age at which a file that is not in place was left by a run that was killed."""


class SampleCache:
    """The prepared samples of one key, and room for them beside those of other keys."""

    def __init__(self, root: Path, key: str, most_bytes: int) -> None:
        """`most_bytes` is the size that all keys of `root` take together."""
        self.folder, self._root, self._most_bytes = root / key, root, most_bytes
        self._room = 0
        """Bytes that may be written before sizes are looked at again."""
        self._is_open = True

    def load(self, indices: Sequence[int], is_current: Callable[[int, Facts], bool]) -> dict[int, PreparedSample]:
        """Return those of the samples that are here and whole, and of which `is_current` finds the files unchanged."""
        wanted, found = set(indices), dict[int, PreparedSample]()
        with suppress(OSError):
            # The time of its last use, by which folders are thrown away.
            os.utime(self.folder)
            _remove_left_over(self.folder)
        for file in sorted(self.folder.glob("[!.]*.safetensors")):
            try:
                if wanted.isdisjoint(_read_indices(file)):
                    continue
                rows = _read_rows(file)
            except FileNotFoundError:  # another run has thrown it away just now
                continue
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                log.warning("%s is damaged (%s): its samples are prepared again.", file, error)
                _remove(file)
                continue
            for index, (sample, facts) in rows.items():
                if index in wanted and index not in found and is_current(index, facts):
                    found[index] = sample
        return found

    def store(self, samples: Mapping[int, PreparedSample], facts: Mapping[int, Facts]) -> None:
        """Write samples into a file of their own, unless there is no room for them, or no way to write them.

        What cannot be written must not end a run, which can do without it.
        """
        if not self._is_open or not samples:
            return
        tensors = _pack_rows(samples, facts)
        if tensors is None:
            return
        if not self._make_room(sum(tensor.nbytes for tensor in tensors.values())):
            log.info("samples are no longer kept for other runs: there is no room left in %s.", self._root)
            self._is_open = False
            return
        # Two runs that prepare the same samples at once write the same file.
        target = self.folder / f"{hash_parts(*samples)}.safetensors"
        metadata = {"indices": json.dumps(list(samples)), "crc": str(_checksum(tensors))}
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(target) as temporary:
                save_file(tensors, temporary, metadata)
        except (InputError, OSError, SafetensorError) as error:
            log.warning("samples are not kept for other runs: %s", error)
            self._is_open = False

    def discard(self) -> None:
        """Remove all samples of the key."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_room(self, needed: int) -> bool:
        """Return True if so many bytes may be written; other keys make room for them."""
        if needed > self._room:
            # Other runs write too, so that only the files themselves tell how much there is.
            others = {folder: _measure(folder) for folder in _list_folders(self._root) if folder != self.folder}
            self._room = self._most_bytes - _measure(self.folder) - sum(others.values())
            for folder in sorted(others, key=_last_use):
                if needed <= self._room:
                    break
                shutil.rmtree(folder, ignore_errors=True)
                self._room += others[folder]
        if needed > self._room:
            return False
        self._room -= needed
        return True


# --- Files -----------------------------------------------------------------------------------------------------------


def _pack_rows(samples: Mapping[int, PreparedSample], facts: Mapping[int, Facts]) -> dict[str, Tensor] | None:
    """Return samples as tensors: pixels of each type one after another, and JSON; None if that would change them."""
    rows: list[dict[str, Any]] = []
    pixels: dict[str, list[Tensor]] = {}
    ends: dict[str, int] = {}
    for index, (trajectory, views) in samples.items():
        places = []
        for view in views:
            kind = str(view.data.dtype).removeprefix("torch.")
            start = ends.get(kind, 0)
            ends[kind] = start + view.data.numel()
            pixels.setdefault(kind, []).append(view.data.detach().cpu().reshape(-1))
            places.append([kind, start, list(view.data.shape), list(view.size)])
        row = {"index": index, "trajectory": trajectory.to_json(), "views": places, "facts": dict(facts.get(index, {}))}
        try:
            # A component may put values of its own into a trajectory, which JSON does not give back as they were.
            if Trajectory.from_json(json.loads(json.dumps(row))["trajectory"]) != trajectory:
                return None
        except (TypeError, ValueError, KeyError):
            return None
        rows.append(row)
    text = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
    return {_ROWS: text, **{f"pixels.{kind}": torch.cat(parts) for kind, parts in pixels.items()}}


def _read_indices(file: Path) -> list[int]:
    """Return the numbers of a file's samples, which stand at its beginning."""
    if not file.is_file():
        raise FileNotFoundError(file)
    with safe_open(file, framework="pt") as opened:
        return [int(index) for index in json.loads((opened.metadata() or {})["indices"])]


def _read_rows(file: Path) -> dict[int, tuple[PreparedSample, Facts]]:
    """Return the samples of a file, each with its facts; raises ValueError and others if it is damaged."""
    with safe_open(file, framework="pt") as opened:
        crc = int((opened.metadata() or {})["crc"])
    # Read whole and not mapped: another run may remove the file while this one trains on its samples.
    tensors = load(file.read_bytes())
    if _checksum(tensors) != crc:
        raise ValueError("its checksum is wrong")
    found: dict[int, tuple[PreparedSample, Facts]] = {}
    for row in json.loads(tensors[_ROWS].numpy().tobytes()):
        views = [_read_view(tensors, *place) for place in row["views"]]
        found[int(row["index"])] = (Trajectory.from_json(row["trajectory"]), views), row["facts"]
    return found


def _read_view(tensors: Mapping[str, Tensor], kind: str, start: int, shape: Sequence[int], size: Sequence[int]) -> View:
    count = torch.Size(shape).numel()
    return View(tensors[f"pixels.{kind}"][start : start + count].view(tuple(shape)), tuple(size))


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return a checksum of all tensors: safetensors itself notices no bit that has flipped."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, crc)
    return crc


def _list_folders(root: Path) -> list[Path]:
    return [folder for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []


def _measure(folder: Path) -> int:
    """Return the bytes of a folder's files, those included that are still being written."""
    total = 0
    with suppress(OSError):  # another run removes folders too
        for entry in os.scandir(folder):
            with suppress(OSError):
                total += entry.stat().st_size
    return total


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _remove_left_over(folder: Path) -> None:
    for file in folder.glob(".*.safetensors"):
        if time.time() - file.stat().st_mtime > _LEFT_OVER_SECONDS:
            _remove(file)


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
