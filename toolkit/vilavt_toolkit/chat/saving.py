"""A chat in a folder: what was said and shown, not what was computed of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vilavt_toolkit.chat.validate_saved import check_regions, check_session, check_trajectory, read_decoding
from vilavt_toolkit.contracts import Region, Source, Trajectory
from vilavt_toolkit.dialogue.session import Session, Tail
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.files import write_text

FILE = "chat.json"
_VERSION = 1
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file raises that is not as it was written."""


def save(session: Session, decoding: Decoding, folder: Path) -> None:
    """Write a session into a folder: chat.json, and the originals that came from no file. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / FILE).exists() and any(folder.iterdir()):
            raise ValueError("it holds other things; name a new folder, an empty one, or a chat's")
        originals = [_saved(number, session, folder) for number in range(len(session.sources))]
    except (OSError, ValueError) as error:
        raise InputError(f"the chat cannot be written to {folder}: {error}") from None
    model, trajectory, tail = session.model, session.trajectory, session.tail
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
        "tail": None if tail is None else tail._asdict(),
    }
    write_text(folder / FILE, json.dumps(data, ensure_ascii=False, indent=1))


def _saved(number: int, session: Session, folder: Path) -> dict[str, str]:
    """The path of an original, its own or that of a copy, relative if it is in the folder; and what says it is it."""
    source = session.sources[number]
    own = Path(source.name)
    if not _holds(own, source, session.model):
        own = folder / f"original-{number}{source.suffix}"
        # What an earlier save left there stays until the new one is known to be good.
        new = own.with_name(f"new-{own.name}")
        try:
            source.save(new)
            _check_copy(number, session, new)
            new.replace(own)
        finally:
            new.unlink(missing_ok=True)
    own = own.resolve()
    return {"path": own.name if own.parent == folder.resolve() else str(own), "sha256": _digest(own)}


def _holds(path: Path, source: Source, model: VisualChatModel) -> bool:
    """Whether a file is there and still shows what was shown of it, by its first views."""
    try:
        if not path.exists():
            return False
        other = model.open_source(str(path))
        same: Sequence[bool] = [
            np.array_equal(source.crop(box, overview=True).data, other.crop(box, overview=True).data)
            for box in source.overviews()
        ]
    except InputError:
        return False
    return source.overviews() == other.overviews() and all(same)


def _check_copy(number: int, session: Session, copy: Path) -> None:
    """Hold that all that was shown of an original can be cut from its copy; without its file, a video's is a part."""
    source = session.model.open_source(str(copy))
    for index, placed in enumerate(session.trajectory.regions):
        if placed.source != number:
            continue
        region = Region(source, placed.box, placed.overview, placed.scale, placed.among, session.max_pixels)
        try:
            same = session.model.prepare(region).size == placed.size
        except (InputError, LookupError):
            same = False
        if not same:
            name = session.sources[number].name
            raise InputError(f"{name} is gone or changed, and a copy does not hold region {index} of it; put it back.")


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and the contents of a folder's."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.iterdir() if file.is_file())
    return hashlib.sha256("\n".join(f"{file.name} {_digest(file)}" for file in files).encode()).hexdigest()


def load(folder: Path, model: VisualChatModel) -> tuple[Session, Decoding]:
    """Read what `save` wrote; raises InputError naming what is missing, or is not as it was."""
    file = folder / FILE
    try:
        data: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            raise InputError(f"{file} is of version {data['version']!r}, not {_VERSION}; load it with what wrote it.")
        trajectory, decoding = Trajectory.from_json(data["trajectory"]), read_decoding(data["decoding"])
        check_trajectory(trajectory)
        if _text(trajectory, model) != data["text"]:
            raise InputError(f"{file} was written with another tokenizer; load it with the chat's own model.")
        session = _session(data, trajectory, model)
        originals = [(folder / original["path"], str(original["sha256"])) for original in data["originals"]]
        check_session(session, len(originals))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no chat ({FILE}); name a folder that a chat was saved to.") from None
    except (*_DAMAGED, UsageError) as error:
        raise InputError(f"{file} cannot be read ({error or repr(error)}); save the chat again.") from None
    session.sources = [_opened(number, *original, model) for number, original in enumerate(originals)]
    _prepare(session, file)
    return session, decoding


def _text(trajectory: Trajectory, model: VisualChatModel) -> str | None:
    """The text of the ids; None where the tokenizer does not know them."""
    known = max(trajectory.ids, default=0) < model.language_model.vocab_size
    return model.language_model.tokenizer.decode(trajectory.ids) if known else None


def _session(data: Mapping[str, Any], trajectory: Trajectory, model: VisualChatModel) -> Session:
    session = Session(model, [], data["max_pixels"], data["max_turns"])
    session.announced, session.calls, session.tool = data["announced"], data["calls"], data["tool"]
    session.trajectory, tail = trajectory, data["tail"]
    if tail is not None:
        session.tail = Tail(tail["start"], tuple(tail["open"]), tuple(tail["closed"]))
    return session


def _opened(number: int, path: Path, digest: str, model: VisualChatModel) -> Source:
    """Open an original; raises InputError where it is missing, or is not what it was."""
    try:
        same = _digest(path) == digest
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"original {number} of the chat, {path}, cannot be read ({reason}); put it back.") from None
    if not same:
        raise InputError(f"original {number} of the chat, {path}, is not what it was; put back the one that was shown.")
    return model.open_source(str(path))


def _prepare(session: Session, file: Path) -> None:
    """Make the views of all regions ready anew; raises InputError where they are not what they were."""
    try:
        check_regions(session)
        for placed in session.trajectory.regions:
            source, most = session.sources[placed.source], session.max_pixels
            region = Region(source, placed.box, placed.overview, placed.scale, placed.among, most)
            session.views.append(session.model.prepare(region))
    except _DAMAGED as error:
        raise InputError(f"{file} cannot be read ({error or repr(error)}); save the chat again.") from None
    for number, (placed, view) in enumerate(zip(session.trajectory.regions, session.views, strict=True)):
        if (view.size, session.model.grid(view.size)) != (placed.size, placed.grid):
            raise InputError(
                f"{file}: region {number} of {session.sources[placed.source].name} is now {view.size} and was "
                f"{placed.size}; the model's encoder is another one than the chat was had with."
            )
