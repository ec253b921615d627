"""Reading a probe: the answer in a turn that may be taken back, and the model's probability of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vilavt_toolkit.contracts import Probe, Tokenizer
from vilavt_toolkit.generation.request import TurnDraft
from vilavt_toolkit.models.model import VisualChatModel


def read_probe(model: VisualChatModel, draft: TurnDraft) -> Probe:
    """Return the answer of a probed turn and its probability."""
    ended = draft.ids[-1] == model.language_model.end_of_turn
    ids = draft.ids[:-1] if ended else draft.ids
    tokenizer = model.language_model.tokenizer
    text, opened = tokenizer.decode(ids), model.language_model.turn_template.opened
    turn = model.dialogue.parse(opened + text)
    if turn.answer is None:
        return Probe(None, 0.0, math.exp(sum(draft.logprobs)))
    # The last occurrence: the thought before the answer may contain the same words.
    own = tokens_in_span(tokenizer, ids, text.rindex(turn.answer), len(turn.answer))
    certain = sum(draft.logprobs[index] for index in own)
    return Probe(turn.answer, math.exp(certain), math.exp(sum(draft.logprobs)))


def tokens_in_span(tokenizer: Tokenizer, ids: Sequence[int], start: int, length: int) -> list[int]:
    """Return the indices of the ids that spell the `length` characters from `start` of their text, also in part."""
    # Prefixes are decoded one by one: a token alone may decode to other text than after its neighbours.
    ends = [len(tokenizer.decode(ids[:count])) for count in range(len(ids) + 1)]
    return [index for index in range(len(ids)) if ends[index] < start + length and ends[index + 1] > start]
