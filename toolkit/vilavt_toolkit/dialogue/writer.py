"""Writing a dialogue's trajectory: token ids, loss mask and feature placeholders, each addition whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vilavt_toolkit.contracts import InquiryTokens, ShownRegion, Slot, Trajectory, Turn, View, protect_text
from vilavt_toolkit.dialogue.prompt import Tail, encode_pieces, text_after_features
from vilavt_toolkit.dialogue.tool_calls import CallError, PreparedRegion

if TYPE_CHECKING:
    from vilavt_toolkit.models.model import VisualChatModel


class ContextFull(Exception):
    """Raised when an addition does not fit into the language model's context; nothing was added."""


class TrajectoryWriter:
    """Holds the trajectory of one dialogue and the views of its regions, and appends turns to them."""

    def __init__(self, model: VisualChatModel) -> None:
        self.model = model
        self.trajectory = Trajectory()
        self.views: list[View] = []
        """The view of every region of the trajectory, in order."""
        self.tail: Tail | None = None
        """The tail of the last user turn while nobody has answered it."""

    @property
    def tokens_left(self) -> int:
        """Tokens that still fit into the context."""
        return self.model.language_model.context_length - len(self.trajectory.ids)

    @property
    def fixed_length(self) -> int:
        """Length of the prefix that is final. An unanswered user turn at the end can still be extended."""
        return len(self.trajectory.ids) if self.tail is None else self.tail.start

    # --- The model's turns -----------------------------------------------------------------------------------------

    def add_given_turn(self, turn: Turn, produced: bool = True) -> None:
        """Write a turn of a trace as if the model had produced it, with its end-of-turn token.

        Without `produced` it is masked, as a turn that somebody else wrote. Raises ContextFull, and CallError for a
        turn that no model can write.
        """
        self._add_turn_text(turn, self.model.dialogue.write(turn), produced)

    def _add_turn_text(self, turn: Turn, text: str, produced: bool) -> None:
        """Record a turn that is given as text."""
        language_model = self.model.language_model
        written = language_model.turn_template.text_to_write(text)
        # A name such as <|im_end|> within the words would end the turn in their middle.
        words = protect_text(language_model.tokenizer, written)
        ids = [*language_model.tokenizer.encode(words), language_model.end_of_turn]
        if len(ids) > self.tokens_left:
            raise ContextFull(f"{len(ids)} tokens are needed and {self.tokens_left} remain.")
        if language_model.placeholder in ids:
            raise CallError("it holds the placeholder token, which is never a target.")
        # Everything that can fail has been checked, so the turn is added whole.
        self._record_turn(turn)
        (self.trajectory.add_produced if produced else self.trajectory.add_given)(ids)

    def add_sampled_turn(self, ids: Sequence[int], logprobs: Sequence[float]) -> Turn:
        """Record a sampled turn and return it parsed.

        If a stop string ended it, the end-of-turn token is appended and masked: the model did not sample it, so no
        log-probability exists that a policy update could compare with.
        """
        # The sampled ids are kept as they are. Encoding their text again could split it into other tokens.
        language_model = self.model.language_model
        has_ended = bool(ids) and ids[-1] == language_model.end_of_turn
        turn = self.model.dialogue.parse(self._decode_turn(ids))
        self._record_turn(turn)
        self.trajectory.add_produced(ids, logprobs)
        if not has_ended:
            self.trajectory.add_given([language_model.end_of_turn])
        return turn

    def read_turn_text(self, number: int) -> str:
        """Return what the model said in a turn, without the token that ends it."""
        return self._decode_turn(self.trajectory.turn_ids(number))

    def _decode_turn(self, ids: Sequence[int]) -> str:
        """Return the text of a turn's ids, after the tag that the chat template has opened for the model."""
        language_model = self.model.language_model
        written = ids[:-1] if ids and ids[-1] == language_model.end_of_turn else ids
        return language_model.turn_template.opened + language_model.tokenizer.decode(written)

    def _record_turn(self, turn: Turn) -> None:
        """Record a turn. Its ids must be appended right after this."""
        self.tail = None
        self.trajectory.starts.append(len(self.trajectory.ids))
        self.trajectory.turns.append(turn)
        self.trajectory.feedback.append("")

    # --- The user's turns ------------------------------------------------------------------------------------------

    def _write_user_turn(
        self,
        pieces: Sequence[str | Slot],
        regions: Sequence[PreparedRegion],
        inquiries: Sequence[InquiryTokens],
        groups: Sequence[int],
        reserve: int = 0,
        demanding: Sequence[str | Slot] | None = None,
        demand: bool = False,
    ) -> None:
        """Append a user turn. `demanding` is the same turn when it demands the answer, and `demand` chooses it.

        `inquiries` are the new inquiry groups, `groups` the group of each region. Raises ContextFull if fewer than
        `reserve` tokens would remain.
        """
        language_model, first = self.model.language_model, len(self.trajectory.regions)
        chosen = demanding if demand and demanding is not None else pieces
        encoded = encode_pieces(language_model.tokenizer, chosen)
        needed = sum(len(part) for part in encoded if isinstance(part, list)) + self._count_features(regions)
        if needed + reserve > self.tokens_left:
            room = max(0, self.tokens_left - reserve)
            raise ContextFull(f"{needed} tokens are needed and {room} of {language_model.context_length} remain.")
        self.trajectory.groups.extend(inquiries)
        for part in encoded:
            if isinstance(part, list):
                tail_start = len(self.trajectory.ids)
                self.trajectory.add_given(part)
            else:
                offset = part.region - first
                self._place_region(regions[offset], groups[offset])
        # The two versions may differ after the last feature only: everything before it has been read by then.
        self.tail = None
        if demanding is not None and not demand:
            self.tail = Tail(tail_start, text_after_features(pieces), text_after_features(demanding))

    def _place_region(self, prepared: PreparedRegion, group: int) -> None:
        """Append the placeholders of a region's features, and its view."""
        # The count is that of the encoder's view, not of the crop: the language model reads one id per feature.
        source_index, region, view = prepared
        grid = self.model.feature_grid(view.size)
        shown = ShownRegion(
            source=source_index,
            box=region.box,
            group=group,
            start=len(self.trajectory.ids),
            count=math.prod(grid),
            size=view.size,
            overview=region.overview,
            grid=grid,
            shown=region.shown,
        )
        self.trajectory.add_region(shown, self.model.language_model.placeholder)
        self.views.append(view)

    def protect(self, text: str) -> str:
        """Return a text that the toolkit did not write so that none of it can frame turns."""
        return protect_text(self.model.language_model.tokenizer, text)

    def count_text_tokens(self, pieces: Sequence[str | Slot]) -> int:
        """Return the number of text tokens of a prompt, without its features."""
        encoded = encode_pieces(self.model.language_model.tokenizer, pieces)
        return sum(len(part) for part in encoded if isinstance(part, list))

    def _count_features(self, regions: Sequence[PreparedRegion]) -> int:
        return sum(self.model.feature_count(region.view.size) for region in regions)

    # --- The tail of an unanswered user turn ----------------------------------------------------------------------

    def add_demand(self) -> int:
        """Let the last user turn demand the answer. Return the index of the first id that changed.

        Raises ContextFull.
        """
        return self._rewrite_tail(demand=True)

    def remove_demand(self) -> int:
        """Undo `add_demand`. Return the index of the first id that changed."""
        return self._rewrite_tail(demand=False)

    def _rewrite_tail(self, demand: bool) -> int:
        tail, trajectory = self.tail, self.trajectory
        if tail is None:
            raise RuntimeError("The last turn is not the user's.")
        ids = self.model.language_model.tokenizer.encode("".join(tail.demanding if demand else tail.plain))
        # One token must remain for the model's turn, hence >= and not >.
        if len(ids) - (len(trajectory.ids) - tail.start) >= self.tokens_left:
            raise ContextFull(f"{len(ids)} tokens are needed and {self.tokens_left} remain.")
        self._truncate_ids(tail.start)
        trajectory.add_given(ids)
        return tail.start

    def _truncate_ids(self, length: int) -> None:
        """Remove the ids from `length` on. None of them may belong to a feature."""
        for values in (self.trajectory.ids, self.trajectory.produced, self.trajectory.logprobs):
            del values[length:]
