"""A loop that says what it is told to: its cache and encoding are the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.reader import Rewrite
from vilavt_toolkit.generation.request import Seat
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel


class Scripted(Loop):
    """The loop, with the first tokens of each dialogue given by its number instead of sampled."""

    def __init__(
        self,
        model: VisualChatModel,
        decoding: Decoding,
        script: Callable[[int], Sequence[int]],
        rewrite: Rewrite | None = None,
    ) -> None:
        super().__init__(model, decoding, rewrite)
        self._script = script
        self._left: dict[Seat, list[int]] = {}

    def _draw(self, seats: list[Seat], logits: Tensor) -> tuple[list[int], list[float]]:
        tokens, logprobs = super()._draw(seats, logits)
        full = (logits.float() / (self.decoding.temperature or 1.0)).log_softmax(-1)
        for index, seat in enumerate(seats):
            left = self._left.setdefault(seat, list(self._script(seat.number)))
            if left:
                tokens[index] = left.pop(0)
                logprobs[index] = full[index, tokens[index]].item()
        return tokens, logprobs
