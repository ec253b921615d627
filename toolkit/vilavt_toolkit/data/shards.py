"""Tar shards in the layout of WebDataset: `KEY.json` and the images `KEY.SUFFIX` of each sample, one after another.

The webdataset library splits names into keys and suffixes and expands `{000..010}`. Its readers only stream, so they
cannot give a sample by its number, which shuffling and resuming need. Here the offset of each sample is noted once, in
memory, and the sample's own bytes are read from there.
"""

from __future__ import annotations

import importlib
import re
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vilavt_toolkit.data.fields import BadRow, parse_json
from vilavt_toolkit.data.named_originals import NamedOriginal
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.files import resolve_address

if TYPE_CHECKING:
    from collections.abc import Callable

_IMAGES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif"})
_NUMBERS = re.compile(r"([0-9]+)")


def is_shard(path: Path) -> bool:
    """Return True if a path is named as a shard; raises InputError for a compressed one."""
    name = path.name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise InputError(f"{path} is compressed, so samples cannot be found by their offset. Unpack it to .tar.")
    return name.endswith(".tar")


def expand_braces(name: str) -> list[Path]:
    """Return the files that a name with braces stands for, as `shard-{000..010}.tar`; raises InputError."""
    if "{" not in name:
        return [Path(resolve_address(name)).expanduser()]
    expanded = _import_webdataset("shardlists", "expand_urls")(name)
    return [Path(resolve_address(each)).expanduser() for each in expanded]


def _import_webdataset(module: str, name: str) -> Callable[..., Any]:
    # An optional dependency: whoever uses no shards needs not install it.
    try:
        return cast("Callable[..., Any]", getattr(importlib.import_module(f"webdataset.{module}"), name))
    except ImportError as error:
        raise InputError(
            "shards and names with braces need the library webdataset. Run: pip install vilavt-toolkit[webdataset]"
        ) from error


class Shard(Rows):
    """One tar file; of each sample, the offset (8 bytes) and the key are in memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts, self._keys = array("q"), list[str]()
        end = 0
        try:
            with tarfile.open(path, "r:") as tar:
                for key, member in _keyed_members(tar):
                    # The members of a sample are neighbours, so a sample lies between two offsets.
                    if not self._keys or key != self._keys[-1]:
                        self._starts.append(member.offset)
                        self._keys.append(key)
                    # Data is padded to whole blocks.
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    tar.members = []  # type: ignore[attr-defined]  # or all headers would stay in memory
        except tarfile.TarError as error:
            raise InputError(f"{path} is no sound tar file ({error}). Write the shard again.") from error
        # An archive ends with empty blocks. `tarfile` does not miss them, and a half-copied shard would pass.
        if self._keys and path.stat().st_size < end + tarfile.BLOCKSIZE:
            raise InputError(f"{path} ends without a tar file's end mark, so it may be cut off. Copy it again.")
        self._starts.append(end)

    def __len__(self) -> int:
        return len(self._keys)

    def locate_row(self, index: int) -> str:
        return f"sample '{self._keys[index]}'"

    def read_row(self, index: int) -> Any:
        """Read the sample's JSON. If it names no images, it shows all of the sample, in the order of their names."""
        # `tarfile` reads the bytes of this sample as a whole archive, so it handles long names as in the shard.
        with self._open_sample(index) as tar:
            members = self._members_by_suffix(tar)
            if "json" not in members:
                raise BadRow("has no .json beside its images. Write the shard again with one.")
            row = parse_json(_read_member(tar, members["json"]))
        if isinstance(row, dict) and not any(row.get(key) for key in ("images", "image", "image_path", "video")):
            images = sorted((suffix for suffix in members if _is_image(suffix)), key=_natural_order)
            # Formats differ in the name of this field; of all formats, only one has a `question_type`.
            key = "image_path" if "question_type" in row else "images"
            row = {**row, key: images} if images else row
        return row

    def resolve_original(self, index: int, original: NamedOriginal, root: Path) -> Any:
        """Return an image of a sample, named by its suffix or by its name in the shard; its source decodes it."""
        if original.content is not None:
            return super().resolve_original(index, original, root)
        with self._open_sample(index) as tar:
            members = self._members_by_suffix(tar)
        name = original.name
        # Rows name an image `0.png`, `KEY.0.png` or, if the key has folders, by the last part of it.
        short = name.removeprefix(f"{self._keys[index]}.").removeprefix(f"{Path(self._keys[index]).name}.")
        member = members.get(name.lower()) or members.get(short.lower())
        if member is None:
            raise BadRow(f"has no member '{name}' (it has {', '.join(sorted(members))}). Write the shard again.")
        start = self._starts[index] + member.offset_data
        return EmbeddedFile(f"'{member.name}' in {self.path}", (self.path, (start, start + member.size)))

    @contextmanager
    def _open_sample(self, index: int) -> Iterator[tarfile.TarFile]:
        """Open the part of the file that holds a sample, as a tar file of its own."""
        part = EmbeddedFile(self.locate_row(index), (self.path, (self._starts[index], self._starts[index + 1])))
        try:
            with part.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
        except tarfile.TarError as error:
            raise BadRow(f"cannot be found any more ({error}). The shard changed while in use: start again.") from error

    @staticmethod
    def _members_by_suffix(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
        split = _import_webdataset("tariterators", "base_plus_ext")
        return {split(member.name)[1].lower(): member for _, member in _keyed_members(tar)}


def _keyed_members(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the files of a tar with their keys; folders, links and names without a suffix are left out."""
    split = _import_webdataset("tariterators", "base_plus_ext")
    for member in tar:
        key, _ = split(member.name)
        # WebDataset keeps notes about the shard itself in files named `__...__`.
        if member.isreg() and key is not None and not Path(member.name).name.startswith("__"):
            yield key, member


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read a member whole; raises BadRow if the file ends before it."""
    file = tar.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise BadRow(f"is cut short within '{member.name}'. Write the shard again.")
    return data


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _IMAGES


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sorting key by which 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _NUMBERS.split(name) if part]
