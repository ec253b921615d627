"""What a probe found: the answer in a turn that may be taken back, and how sure the model was of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vilavt_toolkit.contracts import Probe, Tokenizer
from vilavt_toolkit.generation.request import Draft
from vilavt_toolkit.models.model import VisualChatModel


def probe_of(model: VisualChatModel, draft: Draft) -> Probe:
    """Read a probed turn."""
    ended = draft.ids[-1] == model.language_model.end_of_turn
    ids = draft.ids[:-1] if ended else draft.ids
    tokenizer = model.language_model.tokenizer
    text = tokenizer.decode(ids)
    turn = model.dialogue.parse(text)
    if turn.answer is None:
        return Probe(None, 0.0, math.exp(sum(draft.logprobs)))
    own = tokens_of(tokenizer, ids, text.rindex(turn.answer), len(turn.answer))
    certain = sum(draft.logprobs[index] for index in own)
    return Probe(turn.answer, math.exp(certain), math.exp(sum(draft.logprobs)))


def tokens_of(tokenizer: Tokenizer, ids: Sequence[int], start: int, length: int) -> list[int]:
    """Which of `ids` spell the `length` characters from `start` on in their text, wholly or in part."""
    ends = [len(tokenizer.decode(ids[:count])) for count in range(len(ids) + 1)]
    return [index for index in range(len(ids)) if ends[index] < start + length and ends[index + 1] > start]
