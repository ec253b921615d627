"""Trajectories survive JSON, so that items.jsonl holds the record itself."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.contracts import InquiryTokens, RegionCall, ShownAs, ShownRegion, ToolCall, Trajectory, Turn

ints = st.integers(0, 10**6)
floats = st.floats(0, 1e6)
box = st.tuples(floats, floats, floats, floats)
boxes = st.fixed_dictionaries({"bbox_2d": st.lists(ints, min_size=4, max_size=4)}, optional={"frame": ints})
calls = st.builds(ToolCall, st.lists(st.builds(RegionCall, ints, boxes)).map(tuple), st.text())
turns = st.builds(Turn, st.text(), st.none() | calls, st.none() | st.text(), st.text())
grids = st.tuples(ints, ints)
shown = st.builds(ShownAs, floats, ints, position=st.just(()) | box)
regions = st.builds(ShownRegion, ints, st.none() | box, ints, ints, ints, grids, ints, grids, shown)
groups = st.builds(InquiryTokens, st.text(), st.lists(ints).map(tuple))


@given(st.lists(ints), st.lists(regions), st.lists(groups), st.lists(turns), st.text())
def test_a_trajectory_comes_back_from_json_as_it_was(ids, regions, groups, turns, why):
    trajectory = Trajectory(regions=regions, groups=groups, turns=turns, feedback=["" for _ in turns], why=why)
    trajectory.add_given(ids)
    trajectory.add_produced(ids, [-0.5] * len(ids))
    assert Trajectory.from_json(json.loads(json.dumps(trajectory.to_json()))) == trajectory


def test_a_regions_json_keeps_the_flat_keys_of_earlier_versions():
    region = ShownRegion(0, None, 0, 3, 4, (2, 2), grid=(2, 2), shown=ShownAs(0.5, 2))
    written = {"source": 0, "box": None, "group": 0, "start": 3, "count": 4, "size": (2, 2), "overview": 0}
    assert region.to_json() == written | {"grid": (2, 2), "scale": 0.5, "among": 2}
    assert ShownRegion.from_json(written) == ShownRegion(0, None, 0, 3, 4, (2, 2))


def test_the_answer_is_the_last_turns_only():
    assert Trajectory().answer is None
    answered, broken = Turn("a", answer="7"), Turn(problem="no")
    assert Trajectory(turns=[broken, answered]).answer == "7"
    assert Trajectory(turns=[answered, broken]).answer is None


def test_a_regions_places_are_given_and_never_produced():
    trajectory = Trajectory()
    trajectory.add_given([1, 2])
    trajectory.add_region(ShownRegion(0, None, 0, 0, 4, (2, 2)), 9)
    assert trajectory.ids == [1, 2, 9, 9, 9, 9] and not any(trajectory.produced)
    assert trajectory.regions[0].start == 2
    assert len(trajectory.logprobs) == len(trajectory.ids)


def test_the_ids_of_a_turn_are_the_model_s_own():
    trajectory = Trajectory()
    for before, produced in (([1, 2], [3, 4]), ([5], [6]), ([7], [])):
        trajectory.add_given(before)
        trajectory.starts.append(len(trajectory.ids))
        trajectory.add_produced(produced)
        trajectory.add_given([9])
    assert [trajectory.turn_ids(turn) for turn in (0, 1, 2, -1, -2)] == [[3, 4], [6], [], [], [6]]
