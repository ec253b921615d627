"""Building on the meta device: each thread decides for itself, in whatever order threads leave."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.meta import assign_weights, meta_parameters, parse_dtype, unfilled_parameters

REGISTER = nn.Module.register_parameter


class Meeting:
    """Lets two threads go step by step: `reach` says where one is, `wait` stops the other until then."""

    def __init__(self) -> None:
        self.points: dict[str, threading.Event] = {}

    def _point(self, name: str) -> threading.Event:
        return self.points.setdefault(name, threading.Event())

    def reach(self, name: str) -> None:
        self._point(name).set()

    def wait(self, name: str) -> None:
        assert self._point(name).wait(10), f"nobody reached {name!r}"


def run_together(*works) -> dict[str, str]:
    """The device types that each work found, by its name."""
    found: dict[str, str] = {}

    def call(work) -> None:
        found[work.__name__] = work()

    threads = [threading.Thread(target=call, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


@pytest.mark.parametrize("first_to_leave", ["early", "late"])
def test_two_threads_that_build_on_meta_do_not_undo_each_other(first_to_leave):
    meeting = Meeting()
    other = {"early": "late", "late": "early"}[first_to_leave]

    def enter(name: str) -> str:
        if name == "late":
            meeting.wait("early is in")
        with meta_parameters():
            meeting.reach(f"{name} is in")
            meeting.wait("late is in")
            if name == other:
                meeting.wait(f"{first_to_leave} is out")
            device = nn.Linear(2, 2).weight.device.type
        meeting.reach(f"{name} is out")
        return device

    def early() -> str:
        return enter("early")

    def late() -> str:
        return enter("late")

    assert run_together(early, late) == {"early": "meta", "late": "meta"}
    assert nn.Module.register_parameter is REGISTER
    assert nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize("order", ["real weights while meta is open", "real weights after meta has left"])
def test_a_thread_that_builds_real_weights_beside_one_on_meta_gets_them(order):
    meeting = Meeting()

    def on_meta() -> str:
        with meta_parameters():
            meeting.reach("in")
            if order.endswith("open"):
                meeting.wait("built")
            device = nn.Linear(2, 2).weight.device.type
        meeting.reach("out")
        return device

    def real() -> str:
        meeting.wait("in" if order.endswith("open") else "out")
        device = nn.Linear(2, 2).weight.device.type
        meeting.reach("built")
        return device

    assert run_together(on_meta, real) == {"on_meta": "meta", "real": "cpu"}


def test_a_block_within_a_block_leaves_the_outer_one_open():
    with meta_parameters():
        with meta_parameters():
            pass
        inner = nn.Linear(2, 2)
    assert inner.weight.is_meta and not nn.Linear(2, 2).weight.is_meta


def test_an_error_inside_leaves_torch_as_it_was():
    with pytest.raises(KeyError), meta_parameters():
        raise KeyError("inside")
    assert nn.Module.register_parameter is REGISTER and not nn.Linear(2, 2).weight.is_meta


def test_weights_that_are_assigned_stay_shared_under_both_names():
    with meta_parameters():
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
    assert unfilled_parameters(model) == ["0.weight"]
    assert assign_weights(model, {"1.weight": torch.eye(3)}) == [] and unfilled_parameters(model) == []
    assert model[0].weight is model[1].weight and torch.equal(model[0].weight, torch.eye(3))


@pytest.mark.parametrize("value", ["int8", "float7", "torch.nn"])
def test_a_type_that_weights_cannot_have_is_refused_by_name(value):
    with pytest.raises(InputError, match=f"dtype '{value}' is no type of weights. Give float32"):
        parse_dtype(value)
