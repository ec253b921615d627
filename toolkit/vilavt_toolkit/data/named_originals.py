"""Originals as rows name them: images, videos and point clouds, by a path or with their content in the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vilavt_toolkit.data.data_uri import decode_data_uri, is_data_uri
from vilavt_toolkit.data.fields import BadRow, Fields, hash_parts
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.files import resolve_address
from vilavt_toolkit.utils.text import format_value, shorten_text

OriginalKind = Literal["image", "video", "point_cloud", "any"]

ORIGINAL_KEYS: Mapping[str, OriginalKind] = {
    "images": "image",
    "image": "image",
    "image_path": "image",
    "videos": "video",
    "video": "video",
    "point_clouds": "point_cloud",
    "point_cloud": "point_cloud",
    "originals": "any",
}
"""The fields that name originals, and the kind of each. `originals` is for kinds of sources that plugins add."""

_VIDEOS = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"})
_CLOUDS = frozenset({".ply", ".pcd", ".las", ".laz", ".xyz", ".pts", ".off"})
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_LONGEST_PATH = 4096
"""Characters of a path on Linux; a longer text is something else."""
_IN_ROW = "the file in the row"


@dataclass(frozen=True)
class NamedOriginal:
    """An original as a row names it, and the field that does."""

    field: str
    name: str
    """Its path, or a few words for one whose content stands in the row; empty if it could not be read."""
    kind: OriginalKind = "image"
    content: bytes | None = None
    """The bytes of its file if they stand in the row."""

    @property
    def identity(self) -> str:
        """A text that is the same for the same original: its path, or a hash of its content."""
        return self.name if self.content is None else hash_parts(self.content.hex())


def read_originals(fields: Fields, key: str, kind: OriginalKind | None = None) -> tuple[NamedOriginal, ...]:
    """Read the originals of one field, a list or one alone; () if it is missing or null. Notes problems."""
    value = fields.row.get(key)
    if value is None:
        return ()
    meant = kind or ORIGINAL_KEYS.get(key, "image")
    if not isinstance(value, list | tuple):
        return (_read_original(fields, key, value, meant),)
    return tuple(_read_original(fields, f"{key}[{number}]", item, meant) for number, item in enumerate(value))


def read_by_kind(fields: Fields) -> dict[OriginalKind, tuple[NamedOriginal, ...]]:
    """Read the originals of a row by their kind, in the order of its fields; of two fields for a kind, the first."""
    keys: dict[OriginalKind, str] = {}
    for key, kind in ORIGINAL_KEYS.items():
        # In some data `video: true` only says that the images are frames.
        if fields.has_value(key) and not isinstance(fields.row[key], bool):
            keys.setdefault(kind, key)
    places = {key: place for place, key in enumerate(fields.row)}
    ordered = sorted(keys.items(), key=lambda pair: places[pair[1]])
    return {kind: read_originals(fields, key) for kind, key in ordered}


def is_video(name: str) -> bool:
    """Return True if a name ends as that of a video file."""
    return _suffix_of(name) in _VIDEOS


def _read_original(fields: Fields, field: str, value: Any, kind: OriginalKind) -> NamedOriginal:
    """Read one original; one that cannot be read has no name, and its problem is noted."""
    try:
        # The library datasets keeps a picture as its bytes and the name that it had, either of which may be missing.
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                return NamedOriginal(field, _IN_ROW, kind, _check_content(value["bytes"]))
            value = value.get("path", value)
        if isinstance(value, str) and is_data_uri(value):
            return NamedOriginal(field, _IN_ROW, kind, decode_data_uri(value))
        name = _check_path(fields.check_text(field, value))
        return NamedOriginal(field, name, _kind_by_suffix(name, kind))
    except BadRow as problem:
        fields.add_problem(field, str(problem))
        return NamedOriginal(field, "", kind)


def _check_content(content: Any) -> bytes:
    if not isinstance(content, bytes) or not content:
        raise BadRow(f"has `bytes` that are {format_value(content)}. Give the path of the file.")
    return content


def _check_path(name: str) -> str:
    """Return the path that a text names; raises BadRow for a web address and for what is no path."""
    if len(name) > _LONGEST_PATH:
        raise BadRow(
            f"is {format_value(name)} of {len(name):,} characters, which is no path. If it is a picture in base64, "
            "write data:image/png;base64, before it."
        )
    try:
        return resolve_address(name)
    except InputError as error:
        raise BadRow(str(error)) from None


def _kind_by_suffix(name: str, kind: OriginalKind) -> OriginalKind:
    """Return the kind of an original, which a video may show by its suffix alone; raises BadRow for the wrong field."""
    suffix = _suffix_of(name)
    if kind == "image" and suffix in _VIDEOS:
        return "video"
    if kind in ("image", "video") and suffix in _CLOUDS:
        raise BadRow(f"{shorten_text(name)} is a point cloud. Name it under `point_clouds`.")
    if kind == "point_cloud" and suffix in _PICTURES | _VIDEOS:
        right = "images" if suffix in _PICTURES else "videos"
        raise BadRow(f"{shorten_text(name)} is no point cloud. Name it under `{right}`.")
    return kind


def _suffix_of(name: str) -> str:
    return Path(name).suffix.lower()
