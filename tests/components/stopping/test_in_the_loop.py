"""Stopping policies in the loop: what they are shown at a look, and that a budget is kept."""

from __future__ import annotations

import pytest
import torch

from vilavt_components.stopping.budget import Budget, BudgetConfig
from vilavt_components.stopping.model_decides import ModelDecides, ModelDecidesConfig
from vilavt_toolkit.contracts import GO_ON, RegionCall, StoppingPolicy, ToolCall, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.hidden_states import collect_hidden_states
from vilavt_toolkit.generation.loop import Decoding
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.testing.scripted import Scripted

ANSWER = Turn("read", answer="7")


def zoom(*boxes: list[int]) -> Turn:
    return Turn("look", call=ToolCall(tuple(RegionCall(0, {"bbox_2d": box}) for box in boxes), "red square"))


SCRIPT = (zoom([0, 0, 2, 2]), zoom([2, 2, 4, 4], [0, 2, 2, 4]), zoom([1, 1, 3, 3]), ANSWER)


class Watcher(StoppingPolicy):
    """Keeps what it is shown, and lets everything go on."""

    def __init__(self, *needs: str) -> None:
        super().__init__()
        self.needs = frozenset(needs)
        self.seen = []

    @classmethod
    def tiny(cls):
        return None

    def decide(self, state):
        self.seen.append(state)
        return GO_ON


@pytest.fixture
def led(tiny_model, tiny_task, monkeypatch):
    """Leads a dialogue by the script under some policies; returns its session."""

    def run(*policies: StoppingPolicy) -> Session:
        held = torch.nn.ModuleList([ModelDecides(ModelDecidesConfig(), 32), *policies])
        monkeypatch.setitem(tiny_model._modules, "stopping", held)
        encode = tiny_model.language_model.tokenizer.encode
        script = [token for turn in SCRIPT for token in encode(tiny_model.dialogue.write(turn))]
        sample = tiny_task.sample("test", 0)
        session = Session(tiny_model, [tiny_model.open_source(original) for original in sample.originals])
        session.ask(sample.question)
        Scripted(tiny_model, Decoding(40), lambda number: script).run([session])
        return session

    return run


@pytest.mark.parametrize("needs", [("hidden",), ("hidden", "features")])
def test_a_look_shows_the_hidden_state_that_a_head_learns_from(led, tiny_model, needs):
    watcher = Watcher(*needs)
    session = led(watcher)
    looks = [state.hidden for state in watcher.seen if state.before_turn]
    assert len(looks) == len(session.trajectory.turns) == len(SCRIPT)
    batch = collate([session.trajectory], [session.views], tiny_model.language_model)
    with torch.no_grad(), collect_hidden_states(tiny_model.language_model) as seen:
        tiny_model(batch)
    torch.testing.assert_close(torch.stack(looks), seen[0][0, batch.starts], rtol=1e-3, atol=1e-4)


def test_beside_a_probe_too_it_is_that_of_a_turn_that_nobody_demanded(led):
    alone, beside = Watcher("hidden"), Watcher("hidden", "probe")
    led(alone)
    led(beside)
    first = [next(state.hidden for state in watcher.seen if state.before_turn) for watcher in (alone, beside)]
    torch.testing.assert_close(first[1], first[0], rtol=1e-3, atol=1e-4)


def test_a_budget_of_patches_is_kept_whatever_is_asked_for(led, tiny_model):
    whole = led().spent.patches
    first = led(Budget(BudgetConfig(patches=0), 32))
    least = first.spent.patches
    spent = []
    for limit in range(least, whole + 1, 4):
        session = led(Budget(BudgetConfig(patches=limit), 32))
        spent.append(session.spent.patches)
        assert session.spent.patches <= limit
        refused = session.trajectory.why.startswith("the budget of")
        assert refused == (spent[-1] < whole)
        if refused:  # its call left nothing behind, and the answer was demanded in its place
            assert len(session.trajectory.turns) == session.calls + 2
            assert sum(tiny_model.vision.backbone.token_count(view.size) for view in session.views) == spent[-1]
    assert spent == sorted(spent) and spent[0] == least and spent[-1] == whole


def test_first_views_that_exceed_a_budget_leave_one_turn_for_the_answer(led, tiny_model):
    session = led(Budget(BudgetConfig(patches=1), 32))
    assert (len(session.trajectory.turns), session.calls) == (1, 0)
    text = tiny_model.language_model.tokenizer.decode(session.trajectory.ids[: session.trajectory.starts[0]])
    assert tiny_model.dialogue.demand() in text
    assert session.trajectory.why.startswith("the budget of 1 patches does not allow more")
