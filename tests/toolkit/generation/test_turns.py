"""The phases of a request: every allowed transition happens in some dialogue, and a forbidden one raises."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

import vilavt_toolkit as vt
from vilavt_components.stopping.model_decides import ModelDecides, ModelDecidesConfig
from vilavt_toolkit.contracts import GO_ON, Decision, RegionCall, StoppingPolicy, ToolCall, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation import turns
from vilavt_toolkit.generation.loop import Decoding
from vilavt_toolkit.generation.request import SAMPLING_PHASES, TRANSITIONS, Phase, Request, TurnDraft
from vilavt_toolkit.generation.turns import Turns
from vilavt_toolkit.testing.scripted import Scripted

ANSWER = Decision("answer", "enough")
STOP = Decision("stop", "too much")
ZOOM = Turn("look", call=ToolCall((RegionCall(0, {"bbox_2d": [0, 0, 2, 2]}),), "red square"))
BAD_ZOOM = Turn("look", call=ToolCall((RegionCall(7, {"bbox_2d": [0, 0, 2, 2]}),), "red square"))
READ = Turn("read", answer="7")
ALLOWED = {(phase, following) for phase, others in TRANSITIONS.items() for following in others}


class Says(StoppingPolicy):
    """Says one thing at looks and another after turns."""

    def __init__(self, look: Decision = GO_ON, turn: Decision = GO_ON, needs: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.needs = frozenset(needs)
        self._look, self._turn = look, turn

    @classmethod
    def tiny(cls):
        return None

    def decide(self, state):
        return self._look if state.before_turn else self._turn


@pytest.fixture
def walked(tiny_model, picture, monkeypatch):
    """Runs a dialogue under a policy and returns the transitions it went through."""
    seen: list[tuple[Phase, Phase]] = []
    enter = Request.enter

    def recording(self, phase, draft=None):
        seen.append((self.phase, phase))
        enter(self, phase, draft)

    def run(policy, script=(READ,), tool=True, room_after=None, temperature=0.0) -> list[tuple[Phase, Phase]]:
        seen.clear()
        language_model = tiny_model.language_model
        session = Session(tiny_model, [tiny_model.open_source(picture(0))])
        session.ask("what?", tool)
        ids = [i for turn in script for i in language_model.tokenizer.encode(tiny_model.dialogue.write(turn))]
        with monkeypatch.context() as patch:
            patch.setattr(Request, "enter", recording)
            held = torch.nn.ModuleList([ModelDecides(ModelDecidesConfig(), 32), policy])
            patch.setitem(tiny_model._modules, "stopping", held)
            if room_after is not None:
                patch.setattr(language_model, "context_length", room_after(session.copy()))
            Scripted(tiny_model, Decoding(24, temperature), lambda number: ids).run([session])
        return list(seen)

    return run


def after_demand(session: Session) -> int:
    """A context in which one token is left once the demand is added."""
    session.add_demand()
    return len(session.trajectory.ids) + 1


def after_question(session: Session) -> int:
    """A context in which one token is left after the question."""
    return len(session.trajectory.ids) + 1


PROBE = ("probe",)
DIALOGUES = {
    "answers": {"policy": Says()},
    "zooms, then answers": {"policy": Says(), "script": (ZOOM, BAD_ZOOM, READ)},
    "without the tool": {"policy": Says(), "tool": False},
    "without the tool, in a full context": {"policy": Says(), "tool": False, "room_after": after_question},
    "stopped at a look": {"policy": Says(STOP)},
    "stopped after a turn": {"policy": Says(turn=STOP), "script": (ZOOM,)},
    "demanded at a look": {"policy": Says(ANSWER)},
    "demanded at a look, in a full context": {"policy": Says(ANSWER), "room_after": after_demand},
    "demanded after a turn": {"policy": Says(turn=ANSWER), "script": (ZOOM, READ)},
    "probed": {"policy": Says(needs=PROBE), "script": (READ, ZOOM, READ, READ)},
    "probed with hidden states": {"policy": Says(needs=("probe", "hidden")), "script": (READ, READ)},
    "probed, in a full context": {"policy": Says(needs=PROBE), "room_after": after_demand},
    "probed and accepted": {"policy": Says(ANSWER, needs=PROBE)},
    "probed and answered by sampling": {"policy": Says(ANSWER, needs=PROBE), "temperature": 0.9},
    "probed and stopped": {"policy": Says(STOP, needs=PROBE)},
}


@pytest.mark.parametrize("case", DIALOGUES.values(), ids=DIALOGUES)
def test_a_dialogue_goes_from_reading_to_its_end_by_allowed_transitions(walked, case):
    path = walked(**case)
    assert path[0][0] is Phase.READING and path[-1][1] is Phase.OVER
    assert set(path) <= ALLOWED
    assert all(left[1] is right[0] for left, right in itertools.pairwise(path))


def test_every_allowed_transition_happens(walked):
    happened = {pair for case in DIALOGUES.values() for pair in walked(**case)}
    assert happened == ALLOWED


def test_a_probe_that_does_not_fit_is_left_out(walked):
    path = walked(Says(needs=PROBE), room_after=lambda session: after_demand(session) - 1)
    assert Phase.PROBING not in {phase for pair in path for phase in pair}
    assert (Phase.READING, Phase.READING_TURN) in path
    path = walked(Says(needs=("probe", "hidden")), room_after=lambda session: after_demand(session) - 1)
    assert (Phase.READING, Phase.WRITING) in path


@pytest.mark.parametrize(("phase", "following"), sorted(set(itertools.product(Phase, Phase)) - ALLOWED, key=str))
def test_a_forbidden_transition_raises(tiny_model, phase, following):
    request = Request(Session(tiny_model, []))
    request.phase = phase
    with pytest.raises(RuntimeError, match=f"from {phase.name} to {following.name}"):
        request.enter(following, TurnDraft(1) if following in SAMPLING_PHASES else None)
    assert request.phase is phase


@pytest.mark.parametrize("phase", Phase)
def test_an_error_ends_a_request_in_any_phase(tiny_model, phase):
    request = Request(Session(tiny_model, []))
    request.phase = phase
    request.fail(ValueError("out of sorts"))
    assert request.is_over and request.session.trajectory.why == "failed: out of sorts"


def test_a_turn_is_drafted_while_it_is_sampled_and_only_then(tiny_model):
    request = Request(Session(tiny_model, []))
    with pytest.raises(RuntimeError, match="draft"):
        request.enter(Phase.WRITING)
    with pytest.raises(RuntimeError, match="draft"):
        request.enter(Phase.READING_TURN, TurnDraft(1))


def test_the_table_of_the_docstring_is_the_one_that_is_enforced():
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in turns.__doc__.splitlines() if line.startswith("| ")]
    _, _, *rows = rows
    written = {
        (Phase[phase], Phase[following])
        for phases, _, following, _ in rows
        if phases != "any"
        for phase in phases.split(", ")
    }
    assert written == ALLOWED
    named = {name for *_, functions in rows for name in re.findall(r"`(\w+)`", functions)}
    assert all(hasattr(Turns, name) for name in named)


class Watches(StoppingPolicy):
    """Notes how many calls it is told of, and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    @classmethod
    def tiny(cls):
        return None

    def decide(self, state):
        self.calls.append(state.calls)
        return GO_ON


def test_a_policy_sees_the_calls_of_its_own_question(tiny_model, picture, says, monkeypatch):
    policy = Watches()
    monkeypatch.setitem(
        tiny_model._modules, "stopping", torch.nn.ModuleList([policy, ModelDecides(ModelDecidesConfig(), 32)])
    )
    says(tiny_model, {"what?": (ZOOM, ZOOM, READ), "and now?": (ZOOM, READ)})
    chat = vt.Chat(tiny_model, [picture(0)], Decoding(max_new_tokens=60))
    chat.ask("what?")
    # At each look and after each turn, before its call is carried out.
    assert policy.calls == [0, 0, 1, 1, 2, 2]
    policy.calls.clear()
    chat.ask("and now?")
    assert policy.calls == [0, 0, 1, 1]
    assert chat.session.calls == 3
