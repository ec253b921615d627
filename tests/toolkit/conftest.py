"""Fixtures for tests of chats: scripted turns, and checks that a failed question leaves a chat unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import vilavt_toolkit as vt
from vilavt_toolkit.contracts import RegionCall, ToolCall, Turn
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.testing.plain_logprobs import plain_logprobs
from vilavt_toolkit.testing.scripted import Scripted

CLOUDS = """
inherits: point_clouds
model:
  encoder: {overview_points: 32, zoom_points: 64, overview_tokens: 6, zoom_tokens: 8, neighbours: 5, point_width: 16,
            width: 32, depth: 2, heads: 2}
  projector: {name: mlp, hidden_dim: 32}
  language_model:
    vocab_size: 400
    config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
task: {cells: 2, objects: 2, points: 60, train_items: 32, test_items: 6}
"""


@pytest.fixture(params=["tiny_model", "mrope_model"])
def chat_model(request):
    """A model whose positions have one axis, and one whose have three."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def picture():
    """A picture by its number, of noise."""

    def drawn(seed: int, side: int = 64) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)

    return drawn


@pytest.fixture
def chat(chat_model, picture):
    """A chat in which a question has been answered and a picture waits to be shown."""
    chat = vt.Chat(chat_model, [picture(0)], vt.Decoding(max_new_tokens=8))
    chat.ask("what?")
    chat.add(picture(1))
    return chat


@pytest.fixture(scope="session")
def look():
    """A turn that calls the tool."""

    def turn(*boxes: tuple[int, list[int]], inquiry: str = "red square", thought: str = "look") -> Turn:
        return Turn(thought, call=ToolCall(tuple(RegionCall(i, {"bbox_2d": b}) for i, b in boxes), inquiry))

    return turn


@pytest.fixture
def says(monkeypatch):
    """Lets chats that are asked a question say given turns first, whoever asks and however often."""

    def script(model, said: dict[str, Sequence[Turn | str]]) -> None:
        encode, write = model.language_model.tokenizer.encode, model.dialogue.write
        ids = {
            question: [token for turn in turns for token in encode(turn if isinstance(turn, str) else write(turn))]
            for question, turns in said.items()
        }

        class Saying(Scripted):
            def __init__(self, model, decoding, rewrite=None) -> None:
                super().__init__(model, decoding, lambda number: ())

            def _sample(self, requests, logits):
                for request in requests:
                    question = request.session.trajectory.questions[-1].text
                    self._left.setdefault(request, list(ids.get(question, ())))
                return super()._sample(requests, logits)

        monkeypatch.setattr("vilavt_toolkit.chat.chat.Loop", Saying)
        monkeypatch.setattr("vilavt_toolkit.chat.ask.Loop", Saying)

    return script


@pytest.fixture(scope="session")
def state():
    """All that a chat is, but for what was computed of it."""

    def of(chat: vt.Chat) -> tuple[object, ...]:
        session = chat.session
        same = [id(view) for view in session.views], [id(source) for source in session.sources]
        counts = (
            session.sources_shown,
            session.calls,
            session.calls_before,
            session.can_call_tool,
            session.spent,
            session.tail,
        )
        return session.trajectory.to_json(), same, counts

    return of


@pytest.fixture(scope="session")
def read_as_at_once():
    """Log-probabilities that were found turn by turn are those of one forward over the whole dialogue."""

    def check(chat: vt.Chat, least: int = 1) -> None:
        trajectory, model = chat.trajectory, chat.model
        batch = collate([trajectory], [chat.session.views], model.language_model)
        with torch.no_grad():
            full = plain_logprobs(model(batch), batch).tolist()
        kept = [p for p, own in zip(trajectory.logprobs, trajectory.produced, strict=True) if own]
        assert len(kept) == len(full) >= least
        assert max((abs(a - b) for a, b in zip(kept, full, strict=True)), default=0) < 1e-4

    return check


@pytest.fixture(scope="session")
def unharmed(state, read_as_at_once):
    """Whatever happens inside, chats are as before it, and answer as their forks that never saw it."""

    @contextmanager
    def watch(*chats: vt.Chat, then: str = "and now?") -> Iterator[None]:
        before = [(state(chat), chat.fork()) for chat in chats]
        yield
        for chat, (was, other) in zip(chats, before, strict=True):
            assert state(chat) == was
            found, expected = chat.ask(then), other.ask(then)
            assert found.trajectory.ids == expected.trajectory.ids
            assert found.trajectory.logprobs == pytest.approx(expected.trajectory.logprobs, abs=1e-5)
            read_as_at_once(chat)

    return watch


@pytest.fixture(scope="session")
def clouds() -> str:
    """A recipe of a small model of point clouds."""
    return CLOUDS
