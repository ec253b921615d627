"""Tar shards in the layout of WebDataset: `KEY.json` and the images `KEY.SUFFIX` of every sample, side by side.

Names are split into keys and suffixes, and `{000..010}` is spelled out, by the webdataset library. Its readers stream,
and a sample could not be asked for by its number; so the places of samples are noted once, in memory, and a sample's
own bytes are read from there.
"""

from __future__ import annotations

import importlib
import io
import re
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vilavt_toolkit.data.fields import BadRow, parse_json
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.pillow import any_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

_IMAGES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif"})
_NUMBERS = re.compile(r"([0-9]+)")


def is_shard(path: Path) -> bool:
    """Whether a path is named as a shard; raises InputError for one that is compressed."""
    name = path.name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise InputError(f"{path} is compressed, and its samples cannot be found by their place; unpack it to .tar.")
    return name.endswith(".tar")


def expand(name: str) -> list[Path]:
    """The files that a name with braces stands for, as in `shard-{000..010}.tar`; raises InputError."""
    if "{" not in name:
        return [Path(name).expanduser()]
    found = _library("shardlists", "expand_urls")(name)
    return [Path(each).expanduser() for each in found]


def _library(module: str, name: str) -> Callable[..., Any]:
    try:
        return cast("Callable[..., Any]", getattr(importlib.import_module(f"webdataset.{module}"), name))
    except ImportError as error:
        raise InputError(
            "shards and names with braces need the library webdataset; install vilavt-toolkit[webdataset]."
        ) from error


class Shard(Rows):
    """One tar file; of every sample its place is in memory, 16 bytes and its key."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts, self._keys = array("q"), list[str]()
        end = 0
        try:
            with tarfile.open(path, "r:") as tar:
                for key, member in _keyed(tar):
                    if not self._keys or key != self._keys[-1]:
                        self._starts.append(member.offset)
                        self._keys.append(key)
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    tar.members = []  # type: ignore[attr-defined]  # or the whole list would stay in memory
        except tarfile.TarError as error:
            raise InputError(f"{path} is no sound tar file ({error}); write the shard again.") from error
        if self._keys and path.stat().st_size < end + tarfile.BLOCKSIZE:  # an archive ends with empty blocks
            raise InputError(f"{path} ends without a tar file's mark of its end, cut off perhaps; copy it again.")
        self._starts.append(end)

    def __len__(self) -> int:
        return len(self._keys)

    def place(self, index: int) -> str:
        return f"sample '{self._keys[index]}'"

    def read(self, index: int) -> Any:
        """The sample's JSON; where that names no images, `images` are those beside it in the order of their names."""
        with self._open(index) as tar:
            found = self._members(tar)
            if "json" not in found:
                raise BadRow("has no .json beside its images; write the shard again with one.")
            row = parse_json(_bytes(tar, found["json"]))
        if isinstance(row, dict) and not any(row.get(key) for key in ("images", "image", "image_path", "video")):
            beside = sorted((suffix for suffix in found if _is_image(suffix)), key=_natural)
            key = "image_path" if "question_type" in row else "images"  # what the format of the row calls them
            row = {**row, key: beside} if beside else row
        return row

    def original(self, index: int, name: str, root: Path, decode: bool = True) -> Image:
        """The image of a sample, by its suffix or by its name in the shard."""
        from PIL import Image, UnidentifiedImageError

        with self._open(index) as tar:
            found = self._members(tar)
        short = name.removeprefix(f"{self._keys[index]}.").removeprefix(f"{Path(self._keys[index]).name}.")
        member = found.get(name.lower()) or found.get(short.lower())
        if member is None:
            raise BadRow(f"has no member '{name}' (it has {', '.join(sorted(found))}); write the shard again.")
        start = self._starts[index] + member.offset_data
        try:
            with any_size():  # how large an image may be is for the source to say
                image = Image.open(io.BufferedReader(_Window(self.path, start, start + member.size)))
                if decode:
                    image.load()
        except UnidentifiedImageError:
            raise BadRow(f"holds '{member.name}', which is no image in a known format; convert it.") from None
        except (OSError, ValueError, SyntaxError) as error:
            raise BadRow(f"holds '{member.name}', which cannot be decoded ({error}); get the image again.") from None
        return image

    @contextmanager
    def _open(self, index: int) -> Iterator[tarfile.TarFile]:
        """The part of the file that a sample lies in, as a tar file of its own."""
        window = _Window(self.path, self._starts[index], self._starts[index + 1])
        try:
            with io.BufferedReader(window) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
        except tarfile.TarError as error:
            raise BadRow(f"cannot be found any more ({error}); the shard was changed while in use.") from error

    @staticmethod
    def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
        """Members by their suffix."""
        split = _library("tariterators", "base_plus_ext")
        return {split(member.name)[1].lower(): member for _, member in _keyed(tar)}


def _keyed(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files of a tar with their keys; folders, links and names without a suffix are passed over."""
    split = _library("tariterators", "base_plus_ext")
    for member in tar:
        key, _ = split(member.name)
        if member.isreg() and key is not None and not Path(member.name).name.startswith("__"):
            yield key, member


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise BadRow(f"is cut short within '{member.name}'; write the shard again.")
    return data


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _IMAGES


def _natural(name: str) -> list[tuple[int, str]]:
    """A sorting key by which 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _NUMBERS.split(name) if part]


class _Window(io.RawIOBase):
    """The bytes of a file from `start` to `end`, as a file."""

    def __init__(self, path: Path, start: int, end: int) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._start, self._size, self._at = start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
