"""Constrained decoding: a turn is a thought, then a call that can be carried out, or an answer.

It uses llguidance, which supports complements of regular expressions ("a thought without tags" is one), precomputes
nothing per grammar for a whole vocabulary, and depends on no other package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.contracts import Box, BoxSchema, ByteTokenizer, Source, Tokenizer
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.generation.sampling import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from vilavt_toolkit.dialogue.session import Session
    from vilavt_toolkit.models.model import VisualChatModel

_compiled: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()
"""Compiled tokenizers. A large one takes seconds, so it is compiled once and kept as long as the tokenizer lives."""

NextGrammar = Callable[[str], str]
"""Returns how a turn may go on after its text so far: a Lark grammar, empty if the turn is complete."""


def turn_constraint(model: VisualChatModel, session: Session, answer_only: bool) -> Constraint:
    """Return the constraint of a session's next turn; with `answer_only`, or without the tool, it must answer.

    A turn that `max_new_tokens` cuts short is only the beginning of a valid turn. Raises UsageError if the dialogue has
    no grammar or the extra `grammar` is not installed.
    """
    dialogue, language_model = model.dialogue, model.language_model
    # Without a schema of boxes the dialogue has no region to name, and its grammar allows only an answer.
    boxes = [] if answer_only or not session.can_call_tool else _collect_box_schemas(model, session)

    def next_grammar(written: str) -> str:
        # A tag that the chat template opens for the model counts as written.
        grammar = dialogue.grammar(language_model.turn_template.opened + written, boxes, bool(boxes))
        if grammar is None:
            name = type(dialogue).__name__
            raise UsageError(f"dialogue {name} has no grammar. Set grammar=False or choose another dialogue.")
        return grammar

    end, forbidden = language_model.end_of_turn, language_model.placeholder
    compiled = _compile_tokenizer(language_model.tokenizer, end)
    return TurnConstraint(compiled, language_model.tokenizer, next_grammar, end, forbidden)


class TurnConstraint:
    """Restricts one turn to its grammar, which the dialogue gives piece by piece (see `Dialogue.grammar`).

    A box depends on the region index written before it, so no single grammar of a whole turn could be exact.
    """

    def __init__(
        self, compiled: LLTokenizer, tokenizer: Tokenizer, next_grammar: NextGrammar, end_of_turn: int, placeholder: int
    ) -> None:
        self._compiled, self._tokenizer, self._next_grammar = compiled, tokenizer, next_grammar
        self._end, self._placeholder = end_of_turn, placeholder
        self._ids: list[int] = []
        self._matcher: LLMatcher | None = self._build_matcher()

    def allowed_tokens(self, size: int) -> Tensor:
        """Return the tokens that may come next, bool [V] with V = `size`; after a complete turn, only its end."""
        mask = torch.zeros(size, dtype=torch.bool)
        if self._matcher is None:
            mask[self._end] = True
            return mask
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        # Logits may be padded beyond the vocabulary; those entries stay False.
        known = min(size, self._compiled.vocab_size)
        mask[:known] = torch.from_numpy(bits[:known].astype(np.bool_))
        mask[self._placeholder] = False
        self._check_matcher(self._matcher)
        return mask

    def accept_token(self, token: int) -> None:
        """Add `token`, one of the allowed tokens. Raises ValueError for another."""
        if self._matcher is None:
            if token != self._end:
                raise ValueError(f"the turn is complete, and token {token} does not end it.")
            return
        if token in (self._end, self._placeholder) or not self._matcher.consume_token(token):
            raise ValueError(f"token {token} does not go on with the turn as its grammar says.")
        self._ids.append(token)
        # A piece of the grammar has matched. The next piece may depend on its text, so the dialogue is asked again.
        if self._matcher.is_accepting():
            self._matcher = self._build_matcher()

    def _build_matcher(self) -> LLMatcher | None:
        """Return a matcher of what may follow the text so far, or None if the turn is complete."""
        from llguidance import LLMatcher

        grammar = self._next_grammar(self._tokenizer.decode(self._ids) if self._ids else "")
        if not grammar:
            return None
        matcher = LLMatcher(self._compiled, LLMatcher.grammar_from_lark(grammar), log_level=0)
        self._check_matcher(matcher)
        return matcher

    def _check_matcher(self, matcher: LLMatcher) -> None:
        """Raise UsageError if llguidance cannot follow the grammar; it would allow every token otherwise."""
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            raise UsageError(f"the dialogue's grammar cannot be followed ({reason[:300]}). Set grammar=False.")


def _collect_box_schemas(model: VisualChatModel, session: Session) -> Sequence[BoxSchema]:
    """Return the box schema of every shown region. They cache, as the same beginning of a box is asked often."""
    boxes: list[BoxSchema] = []
    for view, placed in zip(session.views, session.trajectory.regions, strict=True):
        source = session.sources[placed.source]
        within = placed.to_region(source).extent
        units = model.dialogue.box_units(model.vision.backbone.extent(view))
        boxes.append(cache(partial(_require_box_schema, source, within, units)))
    return boxes


def _require_box_schema(
    source: Source, within: Box, units: int | tuple[int, ...], begun: tuple[int, ...]
) -> Mapping[str, Any]:
    """Return what a source says of a box that begins with these numbers. Raises UsageError if it says nothing."""
    schema = source.box_schema(within, units, begun)
    if schema is None:
        raise UsageError("the source does not describe its boxes (`box_schema`). Set grammar=False.")
    return schema


def _compile_tokenizer(tokenizer: Tokenizer, end_of_turn: int) -> LLTokenizer:
    """Return a tokenizer compiled by llguidance. Raises UsageError if it cannot be compiled."""
    if tokenizer in _compiled:
        return _compiled[tokenizer]
    # An optional package, imported only where a grammar is used.
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise UsageError("grammar=True needs llguidance. Run: pip install 'vilavt-toolkit[grammar]'.") from error
    if not isinstance(tokenizer, ByteTokenizer):
        raise UsageError(
            "the language model's tokenizer has no `token_bytes`, which grammar=True needs. Set grammar=False."
        )
    _compiled[tokenizer] = LLTokenizer(TokenizerWrapper(_LLGuidanceTokenizer(tokenizer, end_of_turn)))
    return _compiled[tokenizer]


class _LLGuidanceTokenizer:
    """A tokenizer in the form that llguidance takes.

    It could read a tokenizer.json, but would take text such as <think> for special tokens then.
    """

    def __init__(self, tokenizer: ByteTokenizer, end_of_turn: int) -> None:
        self.tokens = list(tokenizer.token_bytes())
        self.tokens[end_of_turn] = b"<end of turn>"
        self.eos_token_id, self.bos_token_id, self.special_token_ids = end_of_turn, None, [end_of_turn]
        # A weak reference: `_compiled` keeps this object as long as the tokenizer lives, and must not keep that alive.
        self._tokenizer = ref(tokenizer)

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):  # llguidance tries bytes first
            raise TypeError(f"The text must be a string, not {type(text).__name__}.")
        tokenizer = self._tokenizer()
        return tokenizer.encode(text) if tokenizer is not None else []
