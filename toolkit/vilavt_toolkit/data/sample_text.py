"""A sample as text: as its row says it, or as a model reads it, token by token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.contracts import Sample
from vilavt_toolkit.utils.embedded import EmbeddedFile
from vilavt_toolkit.utils.text import shorten_text

if TYPE_CHECKING:
    from vilavt_toolkit.dialogue.session import Session

_LONGEST = 2000
"""Characters of a sample that are shown."""


def describe_row(sample: Sample) -> str:
    """Write a sample as its row says it, one line for each message or turn, whatever the dialogue will make of it."""
    names = [_name_of(original) for original in sample.originals]
    if sample.conversation is None:
        lines = [f"user: {_list_names(names)}{sample.question}"]
        for turn in sample.trace:
            lines += [f"user: {turn.question}"] if turn.question else []
            zooms = [f"[region {index}: {', '.join(f'{side:g}' for side in box)}]" for index, box in turn.boxes]
            # A turn that zooms has no answer yet.
            call = f"{' '.join(zooms)} {turn.inquiry}" if zooms else turn.answer
            lines.append(f"model: {f'({turn.thought}) ' if turn.thought else ''}{call}")
        return shorten_text("\n".join(lines if sample.trace else [*lines, f"answer: {sample.answer}"]), _LONGEST)
    lines = []
    for message in sample.conversation.messages:
        said = [part if isinstance(part, str) else f"[{names[part]}]" for part in message.content]
        lines.append(f"{'model' if message.role == 'assistant' else message.role}: {''.join(said)}")
    return shorten_text("\n".join(lines), _LONGEST)


def describe_tokens(session: Session, sample: Sample) -> str:
    """Write the tokens of a sample's session, with the names of what is shown; learned lines begin with `> `."""
    lines = []
    for is_learned, parts in groupby(_list_parts(session, sample), key=lambda part: part[0]):
        text = "".join(text for _, text in parts)
        mark = "> " if is_learned else "  "
        lines += [f"{mark}{line}" for line in text.splitlines()]
    return shorten_text("\n".join(lines), _LONGEST)


def _list_parts(session: Session, sample: Sample) -> Iterator[tuple[bool, str]]:
    """Yield the parts of a session's text, each with True if it is learned from."""
    trajectory, decode = session.trajectory, session.model.language_model.tokenizer.decode
    starts = {region.start: region for region in trajectory.regions}
    # Cut where features begin and end, and where what is learned begins and ends.
    cuts = {0, len(trajectory.ids), *starts, *(region.start + region.count for region in trajectory.regions)}
    cuts |= {k for k in range(1, len(trajectory.ids)) if trajectory.produced[k] != trajectory.produced[k - 1]}
    ordered = sorted(cuts)
    for start, end in pairwise(ordered):
        if start in starts and end > start:
            region = starts[start]
            yield False, f"[{_name_of(sample.originals[region.source])}: {region.count} features]"
        else:
            yield trajectory.produced[start], decode(trajectory.ids[start:end])


def _name_of(original: Any) -> str:
    if isinstance(original, EmbeddedFile):
        # Its name says where it is too: "images[0] of data.jsonl, line 1", "'0.png' in part.tar".
        return re.split(" (?:of|in) ", original.name)[0].strip("'")
    return Path(original).name if isinstance(original, str) else "a file"


def _list_names(names: list[str]) -> str:
    return "".join(f"[{name}]" for name in names)
