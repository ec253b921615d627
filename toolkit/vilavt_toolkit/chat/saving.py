"""Saved chats: a folder with what was said and shown, without what was computed of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vilavt_toolkit.chat.validate_saved import check_regions, check_session, check_trajectory, read_decoding
from vilavt_toolkit.contracts import Source, Trajectory
from vilavt_toolkit.dialogue.prompt import Tail
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.files import read_plain_text, require_no_device, write_text
from vilavt_toolkit.utils.json_objects import load_unambiguous

CHAT_FILE = "chat.json"
_VERSION = 1
_READ_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""Errors that reading a file raises if it was changed or damaged: its values may have any type."""


def save_chat(session: Session, decoding: Decoding, folder: Path) -> None:
    """Write a session into a folder: chat.json, and the originals that came from no file. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CHAT_FILE).exists() and any(folder.iterdir()):
            raise ValueError("the folder holds other files. Name a new folder, an empty one, or one of a saved chat")
        originals = [_save_original(number, session, folder) for number in range(len(session.sources))]
    except (OSError, ValueError) as error:
        raise InputError(f"the chat cannot be written to {folder}: {error}") from None
    model, trajectory, tail = session.model, session.trajectory, session.tail
    data = {
        "version": _VERSION,
        "originals": originals,
        "announced": session.sources_shown,
        "calls": session.calls,
        "tool": session.can_call_tool,
        "max_pixels": session.max_pixels,
        "max_turns": session.max_turns,
        "decoding": asdict(decoding),
        # Ids mean nothing without their tokenizer. If they decode to the same text again, it is the same one.
        "text": model.language_model.tokenizer.decode(trajectory.ids),
        "trajectory": trajectory.to_json(),
        "tail": None if tail is None else {"start": tail.start, "open": tail.plain, "closed": tail.demanding},
    }
    write_text(folder / CHAT_FILE, json.dumps(data, ensure_ascii=False, indent=1))


def _save_original(number: int, session: Session, folder: Path) -> dict[str, str]:
    """Save an original unless its file still shows the same, and return its path and hash.

    The path is relative if it is in the chat's folder, so that a folder can be moved with its copies.
    """
    source = session.sources[number]
    own = Path(source.name)
    if not _still_shows(own, source, session.model):
        own = folder / f"original-{number}{source.suffix}"
        # The copy of an earlier save stays until the new one is known to be good.
        new = own.with_name(f"new-{own.name}")
        try:
            source.save(new)
            _check_copy(number, session, new)
            new.replace(own)
        finally:
            new.unlink(missing_ok=True)
    own = own.resolve()
    return {"path": own.name if own.parent == folder.resolve() else str(own), "sha256": _hash_path(own)}


def _still_shows(path: Path, source: Source, model: VisualChatModel) -> bool:
    """Return True if a file exists and still has the pixels that were shown, compared by its overviews."""
    try:
        if not path.exists():
            return False
        # By pixels, since there is no hash of the file from the time when it was opened.
        other = model.open_source(str(path))
        same: Sequence[bool] = [
            np.array_equal(source.crop(box, overview=True).data, other.crop(box, overview=True).data)
            for box in source.overviews()
        ]
    except InputError:
        return False
    return source.overviews() == other.overviews() and all(same)


def _check_copy(number: int, session: Session, copy: Path) -> None:
    """Raise InputError unless every region that was shown of an original can be cut from its copy.

    A video whose file is gone is saved from the frames in memory, and those may not hold every region.
    """
    source = session.model.open_source(str(copy))
    for index, placed in enumerate(session.trajectory.regions):
        if placed.source != number:
            continue
        # Frames of another size or number would give a view of another size, which no longer fits the ids.
        region = placed.to_region(source, session.max_pixels)
        try:
            same = session.model.prepare(region).size == placed.size
        except (InputError, LookupError):
            same = False
        if not same:
            name = session.sources[number].name
            raise InputError(
                f"{name} is gone or changed, and a copy does not hold region {index} of it. Put the file back."
            )


def _hash_path(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of the files in a folder."""
    if not path.is_dir():
        require_no_device(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.iterdir() if file.is_file())
    return hashlib.sha256("\n".join(f"{file.name} {_hash_path(file)}" for file in files).encode()).hexdigest()


def load_chat(folder: Path, model: VisualChatModel) -> tuple[Session, Decoding]:
    """Load what `save_chat` wrote; raises InputError naming what is missing or has changed."""
    file = folder / CHAT_FILE
    try:
        data: Mapping[str, Any] = load_unambiguous(read_plain_text(file))
        if data["version"] != _VERSION:
            raise InputError(
                f"{file} is of version {data['version']!r}, not {_VERSION}. Load it with the release that wrote it."
            )
        trajectory, decoding = Trajectory.from_json(data["trajectory"]), read_decoding(data["decoding"])
        check_trajectory(trajectory)
        if _decode_ids(trajectory, model) != data["text"]:
            raise InputError(f"{file} was written with another tokenizer. Load it with the chat's own model.")
        session = _restore_session(data, trajectory, model)
        originals = [(folder / original["path"], str(original["sha256"])) for original in data["originals"]]
        check_session(session, len(originals))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no chat ({CHAT_FILE}). Name a folder that a chat was saved to.") from None
    except (*_READ_ERRORS, UsageError) as error:
        raise InputError(f"{file} cannot be read ({error or repr(error)}). Save the chat again.") from None
    # Originals are opened last: what is wrong with the file itself shows in milliseconds.
    session.sources = [_open_original(number, *original, model) for number, original in enumerate(originals)]
    _prepare_views(session, file)
    return session, decoding


def _decode_ids(trajectory: Trajectory, model: VisualChatModel) -> str | None:
    """Decode the ids of a trajectory; None if some are not in the vocabulary."""
    known = max(trajectory.ids, default=0) < model.language_model.vocab_size
    return model.language_model.tokenizer.decode(trajectory.ids) if known else None


def _restore_session(data: Mapping[str, Any], trajectory: Trajectory, model: VisualChatModel) -> Session:
    session = Session(model, [], data["max_pixels"], data["max_turns"])
    session.sources_shown, session.calls, session.can_call_tool = data["announced"], data["calls"], data["tool"]
    session.trajectory, tail = trajectory, data["tail"]
    if tail is not None:
        session.tail = Tail(tail["start"], tuple(tail["open"]), tuple(tail["closed"]))
    return session


def _open_original(number: int, path: Path, digest: str, model: VisualChatModel) -> Source:
    """Open an original; raises InputError if it is missing or has changed."""
    try:
        same = _hash_path(path) == digest
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"original {number} of the chat, {path}, cannot be read ({reason}). Put it back.") from None
    if not same:
        raise InputError(f"original {number} of the chat, {path}, has changed. Put back the one that was shown.")
    return model.open_source(str(path))


def _prepare_views(session: Session, file: Path) -> None:
    """Prepare the views of all regions again; raises InputError if they come out different."""
    try:
        check_regions(session)
        for placed in session.trajectory.regions:
            region = placed.to_region(session.sources[placed.source], session.max_pixels)
            session.views.append(session.model.prepare(region))
    except _READ_ERRORS as error:
        raise InputError(f"{file} cannot be read ({error or repr(error)}). Save the chat again.") from None
    # The features' places in the ids are fixed, so a view must have as many features as before.
    for number, (placed, view) in enumerate(zip(session.trajectory.regions, session.views, strict=True)):
        if (view.size, session.model.feature_grid(view.size)) != (placed.size, placed.grid):
            raise InputError(
                f"{file}: region {number} of {session.sources[placed.source].name} is now {view.size} and was "
                f"{placed.size}, so the model's encoder is another one. Load the chat with its own model."
            )
