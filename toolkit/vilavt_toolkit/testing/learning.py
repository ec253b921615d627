"""What every registered source, task and optimizer must do."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import torch
from torch import nn

from vilavt_toolkit.contracts import Box, Optimizer, Region, Sample, Source, Task
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.registry import optimizers, sources, tasks
from vilavt_toolkit.testing import bench
from vilavt_toolkit.vision.boxes import BoxError

_STEPS = 1000


def _source(name: str) -> Source:
    cls = sources.get(name).cls
    original = cls.example()
    if original is None:
        original = bench.example_original(cls.modality)
    assert original is not None, f"there is no example of modality '{cls.modality}'"
    return cls.open(original, cls.tiny())


def source_reads_the_boxes_it_writes(name: str) -> None:
    """`read_box` undoes `write_box`, for the whole and for a region in a region."""
    source = _source(name)
    whole = source.extent
    value = source.write_box(whole, whole, _STEPS)
    assert source.read_box(value, whole, _STEPS) == whole, f"{value} is not read as the whole source"
    half = source.read_box(source.write_box(_middle(whole), whole, _STEPS), whole, _STEPS)
    inner = source.read_box(source.write_box(whole, whole, _STEPS), half, _STEPS)
    assert inner == half, f"the whole of the region {half} is read as {inner}"


def source_explains_boxes_it_cannot_read(name: str) -> None:
    """A box that is no box raises BoxError."""
    source = _source(name)
    for value in (None, [], "all", [4, 3, 2, 1], {"x": 1}, [float("nan")] * 4):
        try:
            box = source.read_box({source.box_key: value}, source.extent, _STEPS)
        except BoxError as error:
            assert str(error), f"nothing is said about the box {value!r}"
        else:
            raise AssertionError(f"{value!r} is read as the box {box}")


def source_crops_and_draws(name: str) -> None:
    """Crops say their modality and whether they are the overview; drawings have the asked size."""
    source = _source(name)
    crop = source.crop(_middle(source.extent))
    assert (crop.modality, crop.overview) == (source.modality, False), "a zoom is not marked as one"
    assert source.crop(source.extent, overview=True).overview, "the overview is not marked as one"
    picture = source.draw([source.extent, _middle(source.extent)], 200)
    assert max(picture.size) == 200, f"the longer side of a drawing of 200 is {max(picture.size)}"


def source_says_what_is_seen_first(name: str) -> None:
    """There is an overview, the same each time; each is cut as one and can be zoomed into; a label is one line."""
    source = _source(name)
    boxes = list(source.overviews())
    assert boxes and boxes == list(source.overviews()), f"the overviews are {boxes}, then {source.overviews()}"
    assert source.extent in boxes, f"the extent {source.extent} is no overview"
    for number, box in enumerate(boxes):
        assert Region(source, overview=number).crop().overview, f"overview {number} is not marked as one"
        found = source.read_box(source.write_box(box, box, _STEPS), box, _STEPS)
        assert found == box, f"the whole of overview {number}, {box}, is read as {found}"
        assert "\n" not in source.label(box), f"the label of overview {number} has several lines"


def source_refuses_a_missing_file(name: str) -> None:
    """A file that is not there is named in an InputError."""
    cls = sources.get(name).cls
    try:
        cls.open("no-such-file.bin", cls.tiny())
    except InputError as error:
        assert "no-such-file.bin" in str(error), f"{str(error)!r} does not name the file"
    else:
        raise AssertionError("a file that does not exist is opened")


def _middle(extent: Box) -> Box:
    """The middle half of a box, along every axis."""
    return bench.part_of(extent, 0.25, 0.75)


def _task(name: str) -> Task:
    made: Task = bench.build(tasks.get(name))
    return made


def task_samples_are_reproducible(name: str) -> None:
    """The same settings, split and index give the same bytes, whatever was asked before."""
    first, second = _task(name), _task(name)
    for split in ("train", "test"):
        indices = range(min(3, first.length(split)))
        forward = [_bytes(first.sample(split, index)) for index in indices]
        backward = [_bytes(second.sample(split, index)) for index in reversed(indices)]
        assert forward == backward[::-1], f"samples of '{split}' depend on what was asked before"
        assert len(set(forward)) == len(forward), f"samples of '{split}' repeat"


def task_scores_its_own_answers(name: str) -> None:
    """The right answer scores 1, no answer scores 0, and a trace ends with an answer."""
    task = _task(name)
    for split in ("train", "test"):
        for index in range(min(8, task.length(split))):
            sample = task.sample(split, index)
            assert task.score(sample, sample.answer) == 1.0, f"'{sample.answer}' is not right for {sample.id}"
            assert task.score(sample, None) == 0.0, "a missing answer scores"
            if sample.trace:
                assert sample.trace[-1].answer is not None, f"the trace of {sample.id} ends without an answer"


def task_corpus_is_text(name: str) -> None:
    """The corpus has texts, the same each time."""
    task = _task(name)
    texts = list(itertools.islice(task.corpus(), 50))
    assert texts and all(isinstance(text, str) for text in texts), "the corpus is empty or no text"
    assert texts == list(itertools.islice(task.corpus(), 50)), "the corpus differs from one reading to the next"


def task_refuses_an_unknown_split(name: str) -> None:
    """A split that does not exist is a UsageError that names it."""
    try:
        _task(name).length("no_such_split")
    except UsageError as error:
        assert "no_such_split" in str(error), f"{str(error)!r} does not name the split"
    else:
        raise AssertionError("an unknown split has a length")


def _bytes(sample: Sample) -> bytes:
    return pickle.dumps(sample)


def _trained(name: str, steps: int = 30) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    optimizer = _optimizer(name).build(module.named_parameters())
    x = torch.randn(16, 4)
    losses = []
    for _ in range(steps):
        loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        bench.backpropagate(loss)
        optimizer.step()
        losses.append(loss.item())
    return module, optimizer, losses


def _optimizer(name: str) -> Optimizer:
    made: Optimizer = bench.build(optimizers.get(name))
    return made


def optimizer_lowers_a_loss(name: str) -> None:
    """Thirty steps lower a small regression's loss."""
    _, _, losses = _trained(name)
    assert losses[-1] < losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"


def optimizer_takes_every_trainable_parameter_once(name: str) -> None:
    """Every trainable parameter is in one group, no frozen one in any."""
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    module[2].requires_grad_(False)
    built = _optimizer(name).build(module.named_parameters())
    held: list[Any] = [id(parameter) for group in built.param_groups for parameter in group["params"]]
    expected = [id(parameter) for parameter in module.parameters() if parameter.requires_grad]
    assert sorted(held) == sorted(expected), f"{len(held)} parameters are held, {len(expected)} are trainable"


def optimizer_keeps_its_state(name: str) -> None:
    """Its state dict loads into a fresh one."""
    module, optimizer, _ = _trained(name, steps=2)
    other = _optimizer(name).build(module.named_parameters())
    other.load_state_dict(optimizer.state_dict())
    assert len(other.state) == len(optimizer.state), "state is lost on loading"


SOURCE_CLAIMS = (
    source_reads_the_boxes_it_writes,
    source_explains_boxes_it_cannot_read,
    source_crops_and_draws,
    source_says_what_is_seen_first,
    source_refuses_a_missing_file,
)
TASK_CLAIMS = (
    task_samples_are_reproducible,
    task_scores_its_own_answers,
    task_corpus_is_text,
    task_refuses_an_unknown_split,
)
OPTIMIZER_CLAIMS = (
    optimizer_lowers_a_loss,
    optimizer_takes_every_trainable_parameter_once,
    optimizer_keeps_its_state,
)
