"""A chat in a folder: what was said and shown, not what was computed of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vilavt_toolkit.chat.decoding import Decoding
from vilavt_toolkit.contracts import Region, Source
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.trajectory import Trajectory
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.files import write_text
from vilavt_toolkit.model import VisualChatModel

FILE = "chat.json"
_VERSION = 1


def save(session: Session, decoding: Decoding, folder: Path) -> None:
    """Write a session into a folder: chat.json, and the originals that came from no file. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        originals = [_saved(number, source, folder) for number, source in enumerate(session.sources)]
    except OSError as error:
        raise InputError(f"the chat cannot be written to {folder}: {error}") from None
    model, trajectory = session.model, session.trajectory
    data = {
        "version": _VERSION,
        "originals": originals,
        "announced": session.announced,
        "calls": session.calls,
        "tool": session.tool,
        "max_pixels": session.max_pixels,
        "max_turns": session.max_turns,
        "decoding": asdict(decoding),
        # Ids mean nothing without their tokenizer: the same text says that it is the same.
        "text": model.language_model.tokenizer.decode(trajectory.ids),
        "trajectory": trajectory.to_json(),
    }
    write_text(folder / FILE, json.dumps(data, ensure_ascii=False, indent=1))


def _saved(number: int, source: Source, folder: Path) -> str:
    """The path of an original: its own, absolute, or that of a copy relative to the folder."""
    if (own := Path(source.name)).is_file():
        return str(own.resolve())
    name = f"original-{number}{source.suffix}"
    source.save(folder / name)
    return name


def load(folder: Path, model: VisualChatModel) -> tuple[Session, Decoding]:
    """Read what `save` wrote; raises InputError naming what is missing, or is not as it was."""
    file = folder / FILE
    try:
        data: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        trajectory, decoding = Trajectory.from_json(data["trajectory"]), Decoding(**data["decoding"])
        originals = [str(folder / original) for original in data["originals"]]
        session = Session(model, [], data["max_pixels"], data["max_turns"])
        session.announced, session.calls, session.tool = int(data["announced"]), int(data["calls"]), bool(data["tool"])
        text: str = data["text"]
    except FileNotFoundError:
        raise InputError(f"{folder} holds no chat ({FILE}); name a folder that a chat was saved to.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} cannot be read ({error!r}); save the chat again.") from None
    if model.language_model.tokenizer.decode(trajectory.ids) != text:
        raise InputError(f"{file} was written with another tokenizer; load it with the chat's own model.")
    session.sources = [model.open_source(original) for original in originals]
    session.trajectory = trajectory
    _prepare(session, file)
    return session, decoding


def _prepare(session: Session, file: Path) -> None:
    """Make the views of all regions ready anew; raises InputError where an original is not what it was."""
    for number, placed in enumerate(session.trajectory.regions):
        if not 0 <= placed.source < len(session.sources):
            raise InputError(f"{file}: region {number} is of original {placed.source}, which is missing.")
        source = session.sources[placed.source]
        most = session.max_pixels
        region = Region(source, placed.box, placed.overview, placed.scale, placed.among, most)
        view = session.model.prepare(region)
        if view.size != placed.size:
            raise InputError(
                f"{file}: region {number} of {source.name} is now {view.size} and was {placed.size}; the file, or the "
                "model's encoder, is another one than the chat was had with."
            )
        session.views.append(view)
