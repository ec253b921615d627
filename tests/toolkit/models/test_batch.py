"""Batches: a dialogue's logits do not depend on what else is in the batch, nor on how it is padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vilavt_toolkit.contracts import Sample, TraceTurn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.testing.plain_logprobs import plain_logprobs
from vilavt_toolkit.training.losses import target_logprobs


def example(model, seed: int, zooms: int, images: int = 1) -> Session:
    rng = np.random.default_rng(seed)
    originals = tuple(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(images))
    looks = [
        TraceTurn(f"look {n}", ["red square", "blue"][(seed + n) % 2], ((n if images else 0, (0.0, 0.0, 32.0, 32.0)),))
        for n in range(zooms)
    ]
    trace = (*looks, TraceTurn("read", answer=str(seed)))
    return build_trace_session(model, Sample(str(seed), "what? " * (1 + seed), str(seed), originals, trace))


@pytest.fixture(scope="module")
def sessions(tiny_model) -> list[Session]:
    """Ragged dialogues: several images, none, several zooms, none."""
    shapes = [(1, 1), (0, 2), (2, 1), (0, 0), (1, 2)]
    return [example(tiny_model, seed, zooms, images) for seed, (zooms, images) in enumerate(shapes)]


def batch_of(sessions, left: bool = False, packed: bool = False):
    language_model = sessions[0].model.language_model
    return collate([s.trajectory for s in sessions], [s.views for s in sessions], language_model, left, packed)


def logits_of(model, sessions, left: bool = False) -> list[torch.Tensor]:
    batch = batch_of(sessions, left=left)
    with torch.no_grad():
        logits = model(batch)
    return [row[mask] for row, mask in zip(logits, batch.mask, strict=True)]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    assert (found[finite] - expected[finite]).abs().max() < 1e-4


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [2, 0], [3, 4]], ids=str)
def test_a_dialogues_logits_are_its_own_in_any_company(tiny_model, sessions, order, left):
    together = logits_of(tiny_model, [sessions[index] for index in order], left)
    for index, found in zip(order, together, strict=True):
        assert_same(found, logits_of(tiny_model, [sessions[index]])[0])


def test_an_inquiry_changes_its_own_dialogue_only(tiny_model, sessions):
    """The paper's code lets a micro-batch's samples hear each other's inquiries."""
    import dataclasses

    pair = [sessions[0], sessions[4]]
    batch = batch_of(pair)
    changed = dataclasses.replace(batch, inquiries=(*batch.inquiries[:-1], (5, 6, 7)))
    # A trained modulator: zero weights would hide the mistake.
    model = trained(tiny_model)
    with torch.no_grad():
        before, after = model(batch), model(changed)
    assert torch.equal(before[0][batch.mask[0]], after[0][batch.mask[0]])
    assert not torch.equal(before[1][batch.mask[1]], after[1][batch.mask[1]])


def trained(model):
    import copy

    other = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in other.vision.modulators.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    # Held in a tuple, which deepcopy follows too.
    assert other.vision.inquiry_encoder._language_model[0] is other.language_model
    return other


def test_groups_and_slots_count_over_the_batch(tiny_model, sessions):
    batch = batch_of(sessions)
    assert len(batch.inquiries) == sum(len(s.trajectory.groups) for s in sessions)
    assert len(batch.groups) == len(batch.views) == sum(len(s.trajectory.regions) for s in sessions)
    assert (batch.ids.flatten()[batch.slots] == tiny_model.language_model.placeholder).all()
    assert len(batch.slots) == sum(r.count for s in sessions for r in s.trajectory.regions)
    of_row = [[batch.inquiries[group] for group in batch.groups]]
    assert of_row[0] == [s.trajectory.groups[r.group].ids for s in sessions for r in s.trajectory.regions]


def test_targets_are_the_produced_tokens_row_by_row(tiny_model, sessions):
    for left in (False, True):
        batch = batch_of(sessions, left=left)
        own = [t for s in sessions for t, p in zip(s.trajectory.ids, s.trajectory.produced, strict=True) if p]
        assert batch.ids.flatten()[batch.targets].tolist() == own


def test_the_loss_has_no_gradient_where_the_model_wrote_nothing(tiny_model, sessions):
    batch = batch_of(sessions)
    with torch.no_grad():
        logits = tiny_model(batch)
    logits.requires_grad_()
    plain_logprobs(logits, batch).sum().backward()
    touched = logits.grad.abs().sum(-1).flatten() > 0
    predicting = torch.zeros_like(touched)
    predicting[batch.targets - 1] = True
    assert torch.equal(touched, predicting)
    assert not logits.grad.isnan().any()


def test_logprobs_are_those_of_the_softmax_at_the_temperature(tiny_model, sessions):
    batch = batch_of(sessions[:2])
    with torch.no_grad():
        logits = tiny_model(batch)
    for temperature in (1.0, 0.7):
        full = (logits / temperature).log_softmax(-1).flatten(0, 1)
        expected = full[batch.targets - 1, batch.ids.flatten()[batch.targets]]
        assert torch.allclose(plain_logprobs(logits, batch, temperature), expected, atol=1e-5)


def test_moving_a_batch_moves_its_tensors_and_keeps_the_rest(sessions):
    batch = batch_of(sessions[:2])
    moved = batch.to("meta")
    assert moved.ids.device.type == moved.slots.device.type == moved.mask.device.type == "meta"
    assert moved.views == batch.views and moved.groups == batch.groups and moved.inquiries == batch.inquiries


def packed_loss(model, sessions, packed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean loss over all produced tokens, and every gradient; each dialogue alone unless `packed`."""
    model.zero_grad(set_to_none=True)
    batches = [batch_of(sessions, packed=True)] if packed else [batch_of([session]) for session in sessions]
    count = sum(len(batch.targets) for batch in batches)
    language_model = model.language_model
    logprobs = [target_logprobs(language_model, model.run_layers(batch), batch) for batch in batches]
    parts = [-each.sum() / count for each in logprobs]
    loss = torch.stack(parts).sum()
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("model_name", ["tiny_model", "mrope_model"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 1], [2]], ids=str)
def test_a_packed_row_has_the_loss_and_every_gradient_of_its_dialogues_alone(request, model_name, order):
    model = trained(request.getfixturevalue(model_name))
    shapes = [(1, 1), (0, 2), (2, 3), (0, 0), (1, 2)]
    rows = [example(model, number, *shapes[number]) for number in order]
    loss, gradients = packed_loss(model, rows, packed=True)
    expected_loss, expected = packed_loss(model, rows, packed=False)
    assert (loss - expected_loss).abs() <= 1e-5 * expected_loss.abs()
    assert gradients.keys() == expected.keys() and any("modulators" in name for name in expected)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_a_packed_row_has_no_padding_and_knows_where_its_dialogues_are(tiny_model, sessions):
    batch, padded = batch_of(sessions, packed=True), batch_of(sessions)
    lengths = [len(session.trajectory.ids) for session in sessions]
    assert batch.ids.shape == (1, sum(lengths)) and bool(batch.mask.all()) and batch.documents == tuple(lengths)
    assert batch.ids[0].tolist() == [token for session in sessions for token in session.trajectory.ids]
    for each in (batch, padded):
        assert each.size == 5
        assert each.find_trajectories(each.targets) == each.find_trajectories(each.starts + 1) == [0, 1, 2, 3, 4]
        assert each.find_trajectories(each.slots) == [0, 1, 2, 4], "dialogue 3 shows nothing"
        assert each.find_trajectories(each.targets[-1:]) == [4] and each.find_trajectories(each.targets[:0]) == []
    assert torch.equal(batch.answered, padded.answered) and batch.inquiries == padded.inquiries
    assert torch.equal(batch.ids.flatten()[batch.starts + 1], padded.ids.flatten()[padded.starts + 1])


def test_a_dialogue_that_begins_with_a_written_token_is_refused(tiny_model, sessions):
    """The column before it is of another dialogue, which would be taught to predict it."""
    trajectory = sessions[0].trajectory.copy()
    trajectory.produced[0] = True
    with pytest.raises(ValueError, match="begins with a token of the model"):
        collate([trajectory], [sessions[0].views], tiny_model.language_model)
