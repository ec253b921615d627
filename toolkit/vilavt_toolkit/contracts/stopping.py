"""Stopping policies: decide when the model stops looking and answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor, nn

from vilavt_toolkit.contracts.component import Component
from vilavt_toolkit.contracts.dialogue import Turn


@dataclass(frozen=True)
class Usage:
    """Holds the cost of a dialogue since its last question; what is cached from before costs nothing."""

    patches: int = 0
    """Number of tokens that went through the encoder."""
    features: int = 0
    """Number of features that went into the context."""
    read: int = 0
    """Number of other tokens that the language model read."""
    written: int = 0
    """Number of tokens that the model wrote."""
    probed: int = 0
    """Number of tokens that were read and written to probe the answer, and taken back."""
    flops: float = 0.0
    """Number of multiplications and additions, as `generation.flops` counts them."""
    seconds: float = 0.0
    """Wall-clock seconds."""

    @property
    def tokens(self) -> int:
        """Number of all tokens that the language model read and wrote, features included."""
        return self.features + self.read + self.written + self.probed

    def __add__(self, other: Usage) -> Usage:
        # Over all fields, so that a new kind of cost cannot be left out of a sum.
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Probe:
    """Holds the answer that the model would give now: its greedy turn after the demand.

    The turn is taken back unless a policy accepts it.
    """

    answer: str | None
    """The answer, or None if the turn was no answer."""
    probability: float
    """Probability of the answer's own tokens, given those before them; 0 without an answer."""
    turn_probability: float = 0.0
    """Probability of the whole turn, its thought included."""


@dataclass(frozen=True)
class LoopState:
    """Holds what a stopping policy sees: the state of the dialogue since the last question.

    Policies are asked after each turn, before its call is carried out. They are asked again at each look: everything
    given has been read, and the model is about to write its next turn, the first one included. The signals that a
    policy `needs` are available at looks only.
    """

    turns: tuple[Turn, ...]
    calls: int
    """Number of tool calls carried out so far."""
    spent: Usage = Usage()
    planned: Usage = Usage()
    """After a turn: the cost that carrying out its call would add, without that of answering."""
    before_turn: bool = False
    """True at a look, before the next turn; False after a turn."""
    probes: tuple[Probe, ...] = ()
    """The answers probed so far, one for every look, if a policy needs `probe`."""
    features: tuple[Tensor, ...] = ()
    """The mean feature [D] of the overviews and of each call since, on the CPU, if a policy needs `features`."""
    hidden: Tensor | None = None
    """The last hidden state [D] at a look, if a policy needs `hidden`."""


@dataclass(frozen=True)
class Decision:
    """Holds the decision of a stopping policy and its reason: go on, demand the answer now, or stop."""

    action: Literal["go_on", "answer", "stop"]
    why: str = ""
    carry_out_call: bool = True
    """True if `answer`, decided after a turn that calls the tool, still lets that call be carried out."""

    def __post_init__(self) -> None:
        # Policies are written by users, and Python does not check a Literal.
        if self.action not in ("go_on", "answer", "stop"):
            raise ValueError(f"a stopping policy cannot decide {self.action!r}. Return go_on, answer or stop.")


GO_ON = Decision("go_on")


NEEDS = frozenset({"probe", "features", "hidden"})
"""The signals that the loop can compute for a stopping policy at a look."""


class StoppingPolicy(nn.Module, Component, ABC):
    """Decides after each turn and at each look whether to go on. `__init__(config, width)`.

    `width` is that of the language model's hidden states. In a list of policies the first one that does not go on
    decides.
    """

    needs: frozenset[Literal["probe", "features", "hidden"]] = frozenset()
    """The signals that the loop must compute for it at each look."""

    @abstractmethod
    def decide(self, state: LoopState) -> Decision:
        """Return the decision for a state. A pure function: the same state gives the same decision."""

    def loss(self, hidden: Tensor, answered: Tensor) -> Tensor | None:
        """Return the policy's loss on traces, a scalar summed over turns; None if it learns nothing.

        `hidden` [N, D] holds the hidden state before each turn, `answered` [N] is 1 if that turn answered and 0 if it
        called the tool.
        """
        return None
