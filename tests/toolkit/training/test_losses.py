"""Log-probabilities of produced tokens, in chunks, beside what a softmax written out gives."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.testing.plain_logprobs import plain_logprobs
from vilavt_toolkit.training import losses
from vilavt_toolkit.training.losses import logprobs_and_entropy, target_logprobs, target_logprobs_and_hits
from vilavt_toolkit.training.reinforcement.module import ReinforcementModule
from vilavt_toolkit.training.supervised.run import run_supervised

IDS = torch.tensor([[0, 2, 1, 3], [1, 1, 0, 2]])
BATCH = SimpleNamespace(ids=IDS, targets=torch.tensor([1, 3, 6]))
"""The produced tokens: places 1 and 3 of the first row, place 2 of the second."""
PREDICTS, TOKENS = [(0, 0), (0, 2), (1, 1)], [2, 3, 0]
"""Where the logits of each are, one place before it, and which token it is."""
WHOLE = SimpleNamespace(vocab_size=5, compute_logits=lambda states: states)
"""A language model that has only `forward`: its states are logits."""


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(True)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_token_is_predicted_by_the_place_before_it_at_the_temperature(logits, temperature):
    expected = [
        math.log((logits[place].detach() / temperature).softmax(0)[token])
        for place, token in zip(PREDICTS, TOKENS, strict=True)
    ]
    assert target_logprobs(WHOLE, logits, BATCH, temperature).tolist() == pytest.approx(expected, rel=1e-5)
    assert plain_logprobs(logits, BATCH, temperature).tolist() == pytest.approx(expected, rel=1e-5)
    assert logprobs_and_entropy(WHOLE, logits, BATCH, temperature)[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert target_logprobs(WHOLE, logits.bfloat16(), BATCH).dtype == torch.float32


def test_a_hit_is_a_token_that_is_the_likeliest():
    logits = torch.zeros(2, 4, 5)
    logits[0, 0, 2] = logits[0, 2, 1] = logits[1, 1, 0] = 1.0
    logprobs, hits = target_logprobs_and_hits(WHOLE, logits, BATCH)
    assert hits.tolist() == [True, False, True]
    assert torch.equal(logprobs, target_logprobs(WHOLE, logits, BATCH))


def test_entropy_is_in_nats_at_the_temperature_and_has_no_gradient(logits):
    _, entropy = logprobs_and_entropy(WHOLE, logits, BATCH, 2.0)
    for place, value in zip(PREDICTS, entropy.tolist(), strict=True):
        p = (logits[place] / 2.0).softmax(0)
        assert value == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    assert not entropy.requires_grad
    even, sure = torch.zeros(2, 4, 5), torch.zeros(2, 4, 5)
    sure[..., 1] = 1e4
    assert logprobs_and_entropy(WHOLE, even, BATCH, 1.0)[1].tolist() == pytest.approx([math.log(5)] * 3)
    assert logprobs_and_entropy(WHOLE, sure, BATCH, 1.0)[1].tolist() == [0.0] * 3


# --- Chunks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["tiny_model", "mrope_model"])
def chat_model(request):
    """A model of `hf_causal`, and one of `qwen2_5_vl`, that tests may change."""
    return copy.deepcopy(request.getfixturevalue(request.param))


def batch_of(model, task, count: int = 3):
    sessions = [build_trace_session(model, task.sample("train", index)) for index in range(count)]
    return collate([s.trajectory for s in sessions], [s.views for s in sessions], model.language_model)


def gradients(model, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss in which every token has another weight."""
    model.zero_grad()
    (-logprobs * torch.linspace(0.5, 2.0, len(logprobs))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 20
    whole = torch.cat([gradient.flatten() for gradient in expected.values()])
    error = torch.cat([found[name].flatten() for name in expected]) - whole
    assert error.norm() <= 1e-6 * whole.norm()
    for name, gradient in expected.items():
        # Of a single tensor, where large terms may cancel out, rounding leaves a little more.
        assert (found[name] - gradient).norm() <= 5e-6 * gradient.norm() + 1e-8 * whole.norm(), name


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradient_are_those_of_the_plain_loss(chat_model, tiny_task, chunk, temperature):
    batch = batch_of(chat_model, tiny_task)
    plain = plain_logprobs(chat_model(batch), batch, temperature)
    expected = gradients(chat_model, plain)
    language_model = chat_model.language_model
    found, entropy = logprobs_and_entropy(language_model, chat_model.run_layers(batch), batch, temperature, chunk)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)
    assert found.sum().item() == pytest.approx(plain.sum().item(), rel=1e-6)
    assert entropy.shape == found.shape and not entropy.requires_grad
    assert_same_gradients(gradients(chat_model, found), expected)


def test_a_model_that_has_only_its_forward_learns_the_same(tiny_model, tiny_task):
    model = copy.deepcopy(tiny_model)
    batch = batch_of(model, tiny_task)
    expected = gradients(model, target_logprobs(model.language_model, model.run_layers(batch), batch))
    model.language_model.logit_scaling = "unknown"
    states = model.run_layers(batch)
    assert states.shape[-1] == model.language_model.vocab_size
    assert_same_gradients(gradients(model, target_logprobs(model.language_model, states, batch, chunk=5)), expected)


def test_a_batch_without_a_produced_token_calls_the_head_and_has_a_gradient_of_zero(tiny_model, tiny_task):
    model = copy.deepcopy(tiny_model)
    batch = batch_of(model, tiny_task, 1)
    batch = type(batch)(**{**vars(batch), "targets": batch.targets[:0]})
    logprobs, hits = target_logprobs_and_hits(model.language_model, model.run_layers(batch), batch)
    assert len(logprobs) == len(hits) == 0
    logprobs.sum().backward()
    assert model.language_model.head.weight.grad.abs().max() == 0


class LargestLogits(TorchDispatchMode):
    """Sees every tensor [.., V] that is computed, in the backward pass too, and remembers the most rows of one."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.rows = vocab_size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[-1] == self.vocab_size:
                self.rows = max(self.rows, value.numel() // self.vocab_size)
        return out


@contextmanager
def chunks_of(rows: int, vocab_size: int, monkeypatch):
    # More rows than the head's weight has, when it is transposed to [D, V].
    assert rows > 32
    monkeypatch.setattr(losses, "_CHUNK_BYTES", rows * vocab_size * 4)
    with LargestLogits(vocab_size) as seen:
        yield seen


def test_supervised_training_holds_the_logits_of_one_chunk(tiny_recipe, tmp_path, monkeypatch):
    overrides = [f"run={tmp_path / 'run'}", "train.steps=1", "model.language_model.vocab_size=401"]
    with chunks_of(40, 401, monkeypatch) as seen:
        run_supervised(load_recipe(tiny_recipe, overrides))
    assert seen.rows == 40


def test_reinforcement_holds_the_logits_of_one_chunk(rl, rl_recipe, monkeypatch):
    take_step, rows = ReinforcementModule._take_step, []

    def watched(self, *args, **kwargs):
        with chunks_of(40, self.model.language_model.vocab_size, monkeypatch) as seen:
            found = take_step(self, *args, **kwargs)
        rows.append(seen.rows)
        return found

    monkeypatch.setattr(ReinforcementModule, "_take_step", watched)
    rl.stepped(rl.module_of(rl_recipe), 1)
    assert rows == [40]
