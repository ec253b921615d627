"""Checkpoints that others wrote: found as a folder or on the hub, and told apart by their config.json."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.formats import CheckpointFormat
from vilavt_toolkit.registry import formats

log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_DESCRIPTION = ("*.json", "*.txt", "*.jinja", "*.model")
_WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class HubAccess:
    """How a hub is asked for what is no folder."""

    revision: str | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint of a known format, in a folder."""

    name: str
    """What the user calls it: a folder or hub name."""
    folder: Path
    format: CheckpointFormat

    def read_section(self) -> dict[str, Any]:
        """The section `model` of a recipe that it is; raises InputError."""
        return self.format.read_section(self.folder)


def is_hub_name(name: str) -> bool:
    """Whether a name that is no folder here can be meant as one of the hub, `owner/name`."""
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists() and not Path(name.split("/")[0]).exists()


def find_foreign_checkpoint(
    name: str | os.PathLike[str], hub: HubAccess = HubAccess(), weights: bool = True
) -> ForeignCheckpoint:
    """The checkpoint in a folder, or of a hub name, which is fetched, with its weights if asked; raises InputError."""
    text = os.fspath(name)
    folder = fetch_folder(text, hub, weights) if is_hub_name(text) else Path(text).expanduser()
    return ForeignCheckpoint(text, folder, _recognise_format(text, folder))


def fetch_folder(name: str, hub: HubAccess, weights: bool = True) -> Path:
    """The folder of a hub name's files: descriptions and safetensors, nothing that could run. Raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*_DESCRIPTION, *([_WEIGHTS] if weights else [])]
    try:
        found = snapshot_download(
            name, revision=hub.revision, allow_patterns=patterns, local_files_only=hub.local_files_only
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = re.split(r"(?<=[.!?])\s", " ".join(str(error).split()))[0].removesuffix(".")[:240]
        raise InputError(
            f"there is no folder {name!r} here, and of the hub it is said: {reason}; give the path of a folder, a hub "
            "name that is right and in reach, or one that was fetched before."
        ) from error
    return Path(found)


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json of a folder says; raises InputError."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(
            f"{folder} is no checkpoint: it has no config.json; give the folder of a run, or one with config.json, a "
            "tokenizer and safetensors weights."
        )
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the file again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds no mapping; copy the file again.")
    return found


def _recognise_format(name: str, folder: Path) -> CheckpointFormat:
    from vilavt_toolkit.registry.plugins import load_builtin

    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise InputError(f"checkpoint {name!r} {what}; give the path of its folder, or a hub name like owner/name.")
    load_builtin()
    config = read_config(folder)
    for entry in formats.entries():
        made: CheckpointFormat = build_format(entry.name)
        if made.can_read(config):
            return made
    raise InputError(
        f"{folder / 'config.json'} is of model type {config.get('model_type')!r}, which no checkpoint format here "
        f"reads ({', '.join(formats.names()) or 'there is none'}); name its parts in a recipe, as in "
        "`model.language_model.path`."
    )


def build_format(name: str) -> CheckpointFormat:
    """The format of a registered name; raises UnknownName."""
    entry = formats.get(name)
    config: Any = entry.config()
    made: Any = entry.cls
    format_: CheckpointFormat = made(config)
    return format_
