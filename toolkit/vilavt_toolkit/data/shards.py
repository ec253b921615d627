"""Tar shards in the layout of WebDataset: `KEY.json` and the images `KEY.SUFFIX` of each sample, one after another.

The webdataset library splits names into keys and suffixes and expands `{000..010}`. Its readers only stream, so they
cannot give a sample by its number, which shuffling and resuming need. Here the offset of each sample is noted once, in
memory, and the sample's own bytes are read from there.
"""

from __future__ import annotations

import importlib
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from vilavt_toolkit.data.fields import BadRow, parse_json
from vilavt_toolkit.data.named_originals import ORIGINAL_KEYS, NamedOriginal
from vilavt_toolkit.data.rows import MOST_ROW_BYTES, Rows
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.files import resolve_address
from vilavt_toolkit.utils.text import shorten_list, shorten_text

if TYPE_CHECKING:
    from collections.abc import Callable

_IMAGES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif"})
_NUMBERS = re.compile(r"([0-9]+)")
_RANGE = re.compile(r"\{(-?\w+)\.\.(-?\w+)")
_LIST = re.compile(r"\{([^{}]*,[^{}]*)")
_MOST_FILES = 100_000
"""Files that one name with braces may stand for."""
_MOST_DIGITS = 12


def is_shard(path: Path) -> bool:
    """Return True if a path is named as a shard; raises InputError for a compressed one."""
    name = path.name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise InputError(f"{path} is compressed, so samples cannot be found by their offset. Unpack it to .tar.")
    return name.endswith(".tar")


def expand_braces(name: str) -> list[Path]:
    """Return the files that a name with braces stands for, as `shard-{000..010}.tar`; raises InputError."""
    # A file may be called so itself.
    if "{" not in name or os.path.exists(name):
        return [Path(resolve_address(name)).expanduser()]
    # The library makes the whole list at once, whatever its length.
    if _count_at_most(name) > _MOST_FILES:
        raise InputError(f"{shorten_text(name)} stands for more than {_MOST_FILES:,} files. Give fewer at a time.")
    try:
        expanded = _import_webdataset("shardlists", "expand_urls")(name)
    except ValueError as error:
        raise InputError(
            f"{shorten_text(name)} cannot be read ({error}). Write braces as in part-{{00..10}}.tar."
        ) from None
    return [Path(resolve_address(each)).expanduser() for each in expanded]


def _count_at_most(name: str) -> int:
    """Return how many files a name with braces stands for at most; nested braces may stand for fewer."""
    count = 1
    for first, last in _RANGE.findall(name):
        if max(len(first), len(last)) > _MOST_DIGITS:
            return _MOST_FILES + 1
        # A range of letters has at most as many as an alphabet has.
        count *= abs(int(last) - int(first)) + 1 if first.lstrip("-").isdigit() and last.lstrip("-").isdigit() else 52
    for listed in _LIST.findall(name):
        count *= listed.count(",") + 1
    return count


def _import_webdataset(module: str, name: str) -> Callable[..., Any]:
    # An optional dependency: whoever uses no shards needs not install it.
    try:
        return cast("Callable[..., Any]", getattr(importlib.import_module(f"webdataset.{module}"), name))
    except ImportError as error:
        raise InputError(
            "shards and names with braces need the library webdataset. Run: pip install vilavt-toolkit[webdataset]"
        ) from error


class Shard(Rows):
    """One tar file, or several one after another; of each sample, the offset (8 bytes) and the key are in memory."""

    shares_originals = False  # every sample may have a `0.png`

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts, self._keys = array("q"), list[str]()
        self._repeated: dict[int, int] = {}
        """Number of samples before it that have the same key, for those that are not the first of theirs."""
        end: int | None = 0
        try:
            with path.open("rb") as file:
                # `cat a.tar b.tar` is a habit with shards, and `tarfile` stops at the end of the first.
                while end is not None:
                    file.seek(end)
                    end = _find_next_archive(file, self._index_archive(file))
        except tarfile.TarError as error:
            raise InputError(f"{path} is no sound tar file ({error}). Write the shard again.") from error
        self._starts.append(path.stat().st_size)

    def _index_archive(self, file: BinaryIO) -> int:
        """Note the samples of the archive that begins here, and return where its last member ends."""
        start = end = file.tell()
        suffixes, counts = set[str](), Counter(self._keys)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for key, suffix, member in _keyed_members(tar):
                # The members of a sample are neighbours, so a sample lies between two offsets. A second file of the
                # same name is the next sample's: written by two writers with the same keys, say.
                if not suffixes or key != self._keys[-1] or suffix in suffixes:
                    suffixes.clear()
                    if counts[key]:
                        self._repeated[len(self._keys)] = counts[key]
                    counts[key] += 1
                    self._starts.append(member.offset)
                    self._keys.append(key)
                suffixes.add(suffix)
                end = tar.offset
                tar.members = []  # type: ignore[attr-defined]  # or all headers would stay in memory
            end = max(end, tar.offset)
        # Behind the first header of a file, `tarfile` takes a damaged one as the end of the archive.
        if end == start and not _is_empty_block(file, start):
            raise tarfile.ReadError(f"no header at byte {start:,}")
        return end

    def __len__(self) -> int:
        return len(self._keys)

    def locate_row(self, index: int) -> str:
        repeated = f" (number {self._repeated[index] + 1} of this key)" if index in self._repeated else ""
        return f"sample '{shorten_text(self._keys[index], 60)}'{repeated}"

    def read_row(self, index: int) -> Any:
        """Read the sample's JSON. If it names no images, it shows all of the sample, in the order of their names."""
        # `tarfile` reads the bytes of this sample as a whole archive, so it handles long names as in the shard.
        with self._open_sample(index) as tar:
            members = self._members_by_suffix(tar)
            if "json" not in members:
                raise BadRow("has no .json beside its images. Write the shard again with one.")
            row = parse_json(_read_member(tar, members["json"]))
        if isinstance(row, dict) and not any(row.get(key) for key in ORIGINAL_KEYS):
            images = sorted((suffix for suffix in members if _is_image(suffix)), key=_natural_order)
            row = {**row, "images": images} if images else row
        return row

    def resolve_original(self, index: int, original: NamedOriginal, root: Path) -> Any:
        """Return an image of a sample, named by its suffix or by its name in the shard; its source decodes it."""
        if original.content is not None:
            return super().resolve_original(index, original, root)
        if original.kind != "image":
            raise BadRow(f"is a {original.kind.replace('_', ' ')}, and shards hold images only. Write JSON lines.")
        with self._open_sample(index) as tar:
            members = self._members_by_suffix(tar)
        name = original.name
        # Rows name an image `0.png`, `KEY.0.png` or, if the key has folders, by the last part of it.
        short = name.removeprefix(f"{self._keys[index]}.").removeprefix(f"{Path(self._keys[index]).name}.")
        member = members.get(name.lower()) or members.get(short.lower())
        if member is None:
            raise BadRow(
                f"has no member '{shorten_text(name, 60)}' (it has {shorten_list(sorted(members), 8)}). Write the "
                "shard again."
            )
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
        return {suffix: member for _, suffix, member in _keyed_members(tar)}


def _keyed_members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the files of a tar with their keys and suffixes, without folders, links and names without a suffix."""
    split = _import_webdataset("tariterators", "base_plus_ext")
    for member in tar:
        key, suffix = split(member.name)
        # WebDataset keeps notes about the shard itself in files named `__...__`.
        if member.isreg() and key is not None and not Path(member.name).name.startswith("__"):
            yield key, suffix.lower(), member


def _find_next_archive(file: BinaryIO, end: int) -> int | None:
    """Return where the next archive begins after the end mark at `end`, None if there is none; raises InputError.

    An archive ends with empty blocks. `tarfile` does not miss them, and a half-copied shard would pass.
    """
    file.seek(end)
    if len(block := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise InputError(f"{file.name} ends without a tar file's end mark, so it may be cut off. Copy it again.")
    while block and not block.strip(b"\0"):
        end += len(block)
        block = file.read(tarfile.BLOCKSIZE)
    return end if block else None


def _is_empty_block(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    return not file.read(tarfile.BLOCKSIZE).strip(b"\0")


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read a member whole; raises BadRow if it is too long or the file ends before it."""
    if member.size > MOST_ROW_BYTES:
        raise BadRow(f"is longer than {MOST_ROW_BYTES:,} bytes. Put its pictures into files, or remove it.")
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
