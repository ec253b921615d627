"""Stopping policies: decide when the model stops looking and answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.dialogue import Turn


@dataclass(frozen=True)
class Spent:
    """What a dialogue has cost since a question was asked; what is kept from before costs nothing."""

    patches: int = 0
    """Tokens that went through the encoder."""
    features: int = 0
    """Features that went into the context."""
    read: int = 0
    """Other tokens that were given."""
    written: int = 0
    """Tokens that the model wrote."""
    probed: int = 0
    """Tokens that were read and written to probe the answer, and taken back."""
    flops: float = 0.0
    """Multiplications and additions, by the count of `chat.costs`."""
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """All that the language model read and wrote, features included."""
        return self.features + self.read + self.written + self.probed

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Probe:
    """The answer that the model would give now: its greedy turn after the demand, taken back unless it is accepted."""

    answer: str | None
    """None where the turn was no answer."""
    probability: float
    """Of the answer's own tokens, given what the model wrote before them; 0 where there is none."""
    turn_probability: float = 0.0
    """Of the whole turn, its thought included."""


@dataclass(frozen=True)
class LoopState:
    """What a stopping policy sees: the state of the dialogue since the last question.

    Policies are asked after each turn, before its call is carried out, and again at each look: when everything that was
    asked for has been read and the model would write its next turn, the first one included. What a policy `needs` is
    there at looks only.
    """

    turns: tuple[Turn, ...]
    calls: int
    """Tool calls carried out so far."""
    spent: Spent = Spent()
    planned: Spent = Spent()
    """After a turn: what carrying out its call would add, answering not counted."""
    look: bool = False
    """Whether this is a look."""
    probes: tuple[Probe, ...] = ()
    """The answers probed so far, one for every look; there at a look where a policy needs `probe`."""
    features: tuple[Tensor, ...] = ()
    """The mean feature [D] of the first views and of each call since, where a policy needs `features`; on the CPU."""
    hidden: Tensor | None = None
    """The last hidden state [D] at a look, where a policy needs `hidden`."""


@dataclass(frozen=True)
class Decision:
    """What a stopping policy says: go on, demand the answer now, or stop; and why."""

    action: Literal["go_on", "answer", "stop"]
    why: str = ""
    call: bool = True
    """Of `answer`, after a turn that calls the tool: whether that call is still carried out."""

    def __post_init__(self) -> None:
        if self.action not in ("go_on", "answer", "stop"):
            raise ValueError(f"a stopping policy cannot decide {self.action!r}; it is go_on, answer or stop.")


GO_ON = Decision("go_on")


NEEDS = frozenset({"probe", "features", "hidden"})
"""What the loop can find out for a stopping policy at a look."""


class StoppingPolicy(nn.Module, Component, ABC):
    """Decides after each turn and at each look. `__init__(config, width)`, the width of the model's hidden states.

    In a list of policies the first that does not say go on decides.
    """

    needs: frozenset[Literal["probe", "features", "hidden"]] = frozenset()
    """What the loop must find out for it at each look."""

    @abstractmethod
    def decide(self, state: LoopState) -> Decision:
        """Say go on, answer now (and why), or stop (and why). Pure: the same state, the same decision."""

    def loss(self, hidden: Tensor, answered: Tensor) -> Tensor | None:
        """What a policy learns from traces: the sum over turns of its loss, a scalar; None where it learns nothing.

        `hidden` [N, D] where each turn begins, `answered` [N] 1 where that turn answered, 0 where it looked again.
        """
        return None
