"""The chat: questions follow each other at the cost of what is new, fork, are saved, and are taken back whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vilavt_toolkit as vt
from vilavt_toolkit.contracts import RegionCall, ToolCall, Turn
from vilavt_toolkit.dialogue.batch import collate
from vilavt_toolkit.testing.scripted import Scripted
from vilavt_toolkit.training.losses import target_logprobs

SHORT = vt.Decoding(max_new_tokens=12)


def picture(seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture(params=["tiny_model", "mrope_model"])
def chat_model(request):
    """A model whose positions have one axis, and one whose have three."""
    return request.getfixturevalue(request.param)


def written(model, *turns: Turn) -> list[int]:
    return [token for turn in turns for token in model.language_model.tokenizer.encode(model.dialogue.write(turn))]


def look(*boxes: tuple[int, list[int]], inquiry: str = "red square") -> Turn:
    return Turn("look", call=ToolCall(tuple(RegionCall(i, {"bbox_2d": b}) for i, b in boxes), inquiry))


ANSWER = Turn("seen", answer="7")


@pytest.fixture
def says(monkeypatch):
    """Lets chats say given turns first, question after question."""

    def script(model, *turns: Turn) -> None:
        left = written(model, *turns)

        def loop(model, decoding):
            return Scripted(model, decoding, lambda number: left)

        class Following(Scripted):
            def _draw(self, seats, logits):
                self._left = dict.fromkeys(seats, left)
                return super()._draw(seats, logits)

        monkeypatch.setattr("vilavt_toolkit.chat.chat.Loop", lambda *given: Following(*given, lambda number: left))

    return script


def assert_read_as_at_once(chat) -> None:
    """Log-probabilities that were found turn by turn are those of one forward over the whole dialogue."""
    trajectory, model = chat.trajectory, chat.model
    batch = collate([trajectory], [chat.session.views], model.language_model)
    with torch.no_grad():
        full = target_logprobs(model(batch), batch).tolist()
    kept = [p for p, own in zip(trajectory.logprobs, trajectory.produced, strict=True) if own]
    assert len(kept) == len(full) > 10
    assert max(abs(a - b) for a, b in zip(kept, full, strict=True)) < 1e-4


def test_follow_up_questions_go_on_where_the_last_one_ended(chat_model, says):
    says(chat_model, look((0, [0, 0, 2, 2])), ANSWER, look((1, [1, 1, 4, 4]), (2, [0, 0, 4, 2])), ANSWER)
    chat = vt.Chat(chat_model, [picture(0)])
    first = chat.ask("what digit is on the red square?")
    second = chat.ask("and the blue one?", images=[picture(1)])
    assert (first.text, second.text) == ("7", "7")
    assert [turn.regions[0].index for turn in second.trace.turns[:1]] == [3]
    assert second.cost["regions"] == 3 and first.cost["regions"] == 2
    assert second.cost["tokens_read"] < first.cost["tokens_read"] + 40
    assert len(first.trajectory.ids) < len(second.trajectory.ids) == len(chat.trajectory.ids)
    assert_read_as_at_once(chat)


def test_a_fork_goes_on_by_itself_and_so_does_what_it_was_forked_from(chat_model):
    chat = vt.Chat(chat_model, [picture(0)], SHORT)
    chat.ask("what?")
    forks = [chat.fork(), chat.fork()]
    assert forks[0].kept.bytes == chat.kept.bytes
    asked = [
        one.ask(question) for one, question in zip([forks[0], chat, forks[1]], ["why?", "how?", "why?"], strict=True)
    ]
    assert asked[0].trajectory.ids == asked[2].trajectory.ids != asked[1].trajectory.ids
    for one in (chat, *forks):
        assert_read_as_at_once(one)
