"""Decoding under a grammar: a turn is a thought, then a call that can be carried out, or an answer.

Through llguidance: it reads regular expressions with complements, which is what "a thought without tags" is, makes
nothing for a whole vocabulary beforehand, and needs no other package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.contracts import BoxSchema, Region, SpelledTokenizer, Tokenizer
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.sampling import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from vilavt_toolkit.dialogue.session import Session
    from vilavt_toolkit.models.model import VisualChatModel

_compiled: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()
"""What llguidance makes of tokenizers: seconds for a large one, so once, for as long as the tokenizer lives."""

Ask = Callable[[str], str]
"""How a turn may go on behind what was written: a Lark grammar; empty where it is complete."""


def turn_constraint(model: VisualChatModel, session: Session, answer_only: bool) -> Constraint:
    """What the next turn of a session may be, token by token; with `answer_only`, or without the tool, an answer.

    A turn that `max_new_tokens` cuts short is the beginning of such a turn, and no more. Raises UsageError where the
    dialogue has no grammar, or the extra `grammar` is not installed.
    """
    dialogue, language_model = model.dialogue, model.language_model
    boxes = [] if answer_only or not session.tool else _boxes(model, session)

    def ask(written: str) -> str:
        grammar = dialogue.grammar(written, boxes, bool(boxes))
        if grammar is None:
            name = type(dialogue).__name__
            raise UsageError(f"dialogue {name} has no grammar; leave out `grammar`, or choose another dialogue.")
        return grammar

    end = language_model.end_of_turn
    forbidden = language_model.placeholder
    return TurnConstraint(_tokenizer(language_model.tokenizer, end), language_model.tokenizer, ask, end, forbidden)


class TurnConstraint:
    """The tokens with which one turn may go on. Grammars are asked for piece by piece, see `Dialogue.grammar`."""

    def __init__(
        self, compiled: LLTokenizer, tokenizer: Tokenizer, ask: Ask, end_of_turn: int, placeholder: int
    ) -> None:
        self._compiled, self._tokenizer, self._ask = compiled, tokenizer, ask
        self._end, self._placeholder = end_of_turn, placeholder
        self._ids: list[int] = []
        self._matcher: LLMatcher | None = self._next()

    def mask(self, size: int) -> Tensor:
        """The tokens that may come next, bool [V] of `size` V; behind a complete turn, what ends it."""
        mask = torch.zeros(size, dtype=torch.bool)
        if self._matcher is None:
            mask[self._end] = True
            return mask
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        known = min(size, self._compiled.vocab_size)
        mask[:known] = torch.from_numpy(bits[:known].astype(np.bool_))
        mask[self._placeholder] = False
        self._check(self._matcher)
        return mask

    def accept(self, token: int) -> None:
        """Go on behind `token`, one of the mask's; raises ValueError for another."""
        if self._matcher is None:
            if token != self._end:
                raise ValueError(f"the turn is complete, and token {token} does not end it.")
            return
        if token in (self._end, self._placeholder) or not self._matcher.consume_token(token):
            raise ValueError(f"token {token} does not go on with the turn as its grammar says.")
        self._ids.append(token)
        if self._matcher.is_accepting():
            self._matcher = self._next()

    def _next(self) -> LLMatcher | None:
        """A matcher of what follows what was written; None where the turn is complete."""
        from llguidance import LLMatcher

        grammar = self._ask(self._tokenizer.decode(self._ids) if self._ids else "")
        if not grammar:
            return None
        matcher = LLMatcher(self._compiled, LLMatcher.grammar_from_lark(grammar), log_level=0)
        self._check(matcher)
        return matcher

    def _check(self, matcher: LLMatcher) -> None:
        """Raise UsageError for a grammar that cannot be read, or followed, instead of allowing everything."""
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            raise UsageError(f"the dialogue's grammar cannot be followed ({reason[:300]}); leave out `grammar`.")


def _boxes(model: VisualChatModel, session: Session) -> Sequence[BoxSchema]:
    """For every shown region, what its source says of a box in it; each asked once for the same beginning."""
    boxes: list[BoxSchema] = []
    for view, placed in zip(session.views, session.trajectory.regions, strict=True):
        source = session.sources[placed.source]
        within = Region(source, placed.box, placed.overview).extent
        units = model.dialogue.units(model.encoder.encoder.extent(view))
        boxes.append(cache(partial(_schema, source.box_schema, within, units)))
    return boxes


def _schema(of_source: Callable[..., Any], within: Any, units: Any, begun: tuple[int, ...]) -> Any:
    schema = of_source(within, units, begun)
    if schema is None:
        raise UsageError("the source does not say what its boxes look like (`box_schema`); leave out `grammar`.")
    return schema


def _tokenizer(tokenizer: Tokenizer, end_of_turn: int) -> LLTokenizer:
    """What llguidance makes of a tokenizer; raises UsageError where it can make nothing."""
    if tokenizer in _compiled:
        return _compiled[tokenizer]
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise UsageError(
            "decoding under a grammar needs llguidance; install the extra: pip install 'vilavt-toolkit[grammar]'."
        ) from error
    if not isinstance(tokenizer, SpelledTokenizer):
        raise UsageError("the language model's tokenizer has no `spellings`, which `grammar` needs; leave that out.")
    _compiled[tokenizer] = LLTokenizer(TokenizerWrapper(_Spelled(tokenizer, end_of_turn)))
    return _compiled[tokenizer]


class _Spelled:
    """A tokenizer as llguidance takes it. Not its tokenizer.json: of that it takes text such as <think> for marks."""

    def __init__(self, tokenizer: SpelledTokenizer, end_of_turn: int) -> None:
        self.tokens = list(tokenizer.spellings())
        self.tokens[end_of_turn] = b"<end of turn>"
        self.eos_token_id, self.bos_token_id, self.special_token_ids = end_of_turn, None, [end_of_turn]
        # Weakly: what is made of this one is kept for as long as the tokenizer lives.
        self._tokenizer = ref(tokenizer)

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):  # llguidance tries bytes first
            raise TypeError(f"a text is wanted, not {type(text).__name__}.")
        tokenizer = self._tokenizer()
        return tokenizer.encode(text) if tokenizer is not None else []
