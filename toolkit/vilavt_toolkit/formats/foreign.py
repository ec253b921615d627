"""Checkpoints of other projects: finding them in a folder or on the hub, and recognising their format."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.formats import CheckpointFormat
from vilavt_toolkit.registry import Part, formats
from vilavt_toolkit.utils.files import check_plain_files

log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Everything that describes a model and its tokenizer, and nothing large.
_DESCRIPTION = ("*.json", "*.txt", "*.jinja", "*.model")
_WEIGHTS = "*.safetensors"
_stand_ins: ContextVar[StandIns | None] = ContextVar("stand_ins", default=None)
"""The descriptions that stand in for hub names inside `published_stand_ins`."""


@dataclass(frozen=True)
class HubAccess:
    """The revision of a hub name that is meant, and permission to download it."""

    revision: str | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint of a known format, in a folder."""

    name: str
    """Folder or hub name, as the user wrote it."""
    folder: Path
    format: CheckpointFormat

    def read_section(self) -> dict[str, Any]:
        """Return the section `model` of a recipe that it stands for; raises InputError."""
        return self.format.read_section(self.folder)


def is_hub_name(name: str) -> bool:
    """Return True if a name is no path here and has the form of a hub name, `owner/name`."""
    # A path whose first folder exists is a mistyped path, and asking the hub for it would only hide that.
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists() and not Path(name.split("/")[0]).exists()


def find_foreign_checkpoint(
    name: str | os.PathLike[str], hub: HubAccess = HubAccess(), weights: bool = True
) -> ForeignCheckpoint:
    """Return the checkpoint in a folder, or fetch that of a hub name, with or without weights; raises InputError."""
    text = os.fspath(name)
    folder = fetch_folder(text, hub, weights) if is_hub_name(text) else Path(text).expanduser()
    return ForeignCheckpoint(text, folder, _recognise_format(text, folder))


def fetch_folder(name: str, hub: HubAccess, weights: bool = True) -> Path:
    """Fetch the files of a hub name and return their folder; raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Only descriptions and safetensors: pickled weights and Python files could run code.
    patterns = [*_DESCRIPTION, *([_WEIGHTS] if weights else [])]
    try:
        found = snapshot_download(
            name, revision=hub.revision, allow_patterns=patterns, local_files_only=hub.local_files_only
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        stand_ins = _stand_ins.get()
        if stand_ins is not None and not weights and (folder := stand_ins.find(name)) is not None:
            return folder
        # The hub's errors are paragraphs with addresses. Their first sentence says what is wrong.
        reason = re.split(r"(?<=[.!?])\s", " ".join(str(error).split()))[0].removesuffix(".")[:240]
        raise InputError(
            f"{name!r} is no folder here, and the hub does not give it ({reason}). Give the path of a folder, or "
            f"download it where there is a network: `hf download {name}`."
        ) from error
    return Path(found)


class StandIns:
    """Descriptions of published models that stand in for those of hub names that the hub does not give."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.used: list[str] = []
        """Hub names that have been stood in for."""

    def find(self, name: str) -> Path | None:
        """Return a folder that describes the published model of a hub name, or None if no format knows it."""
        from vilavt_toolkit.registry.plugins import load_builtin

        folder = self._root / name.replace("/", "--")
        if name in self.used:
            return folder
        load_builtin()
        folder.mkdir(exist_ok=True)
        if not any(build_format(entry.name).describe_published(name, folder) for entry in formats.entries()):
            return None
        self.used.append(name)
        return folder


@contextmanager
def published_stand_ins() -> Iterator[StandIns]:
    """Let descriptions of published models stand in for hub names that the hub does not give; never for weights."""
    with tempfile.TemporaryDirectory(prefix="vilavt-") as root:
        stand_ins = StandIns(Path(root))
        token = _stand_ins.set(stand_ins)
        try:
            yield stand_ins
        finally:
            _stand_ins.reset(token)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a folder; raises InputError."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(
            f"{folder} is no checkpoint: it has no config.json. Give the folder of a run, or one with config.json, a "
            "tokenizer and safetensors weights."
        )
    # A copy that broke off gives invalid JSON, or valid JSON that is no mapping.
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}). Copy the file again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds no mapping. Copy the file again.")
    return found


def _recognise_format(name: str, folder: Path) -> CheckpointFormat:
    from vilavt_toolkit.registry.plugins import load_builtin

    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise InputError(f"checkpoint {name!r} {what}. Give the path of its folder, or a hub name like owner/name.")
    # Formats are components, which register when their packages are imported.
    load_builtin()
    check_plain_files(folder.iterdir())
    config = read_config(folder)
    for entry in formats.entries():
        candidate = build_format(entry.name)
        if candidate.can_read(config):
            return candidate
    raise InputError(
        f"{folder / 'config.json'} has the model type {config.get('model_type')!r}, which no checkpoint format here "
        f"reads ({', '.join(formats.names()) or 'there is none'}). Name its parts in a recipe instead, as in "
        "`model.language_model.path`."
    )


def build_format(name: str) -> CheckpointFormat:
    """Build the format of a registered name with its default settings; raises UnknownName."""
    built: CheckpointFormat = Part("format", name, formats.get(name).config()).build()
    return built
