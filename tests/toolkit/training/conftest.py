"""A recipe with a second stage, its reward a plugin's, and dialogues whose first turn is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import RegionCall, ToolCall, Turn
from vilavt_toolkit.generation.loop import Decoding
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.testing.scripted import Scripted
from vilavt_toolkit.training.reinforcement.module import PolicyParts, ReinforcementModule
from vilavt_toolkit.training.reinforcement.rollout_buffer import RolloutBuffer
from vilavt_toolkit.training.reinforcement.rollouts import RolloutCollector
from vilavt_toolkit.training.reinforcement.run import StepNumbers

REWARD = '''
from vilavt_toolkit.rewards import reward_function


@reward_function("evenness")
def evenness(sample, trajectory):
    """Share of produced tokens with an even id."""
    own = [token for token, mine in zip(trajectory.ids, trajectory.produced) if mine]
    return sum(token % 2 == 0 for token in own) / max(1, len(own))
'''

RL = """
plugins: [./evenness.py]
rl:
  steps: 3
  prompts_per_step: 2
  group_size: 4
  max_new_tokens: 8
  inner_epochs: 2
  rewards: {name: evenness, weight: 2.0}
  optimizer: {name: adamw, lr: 1.0e-3}
  checkpoint_every: 2
  save_rollouts_every: 0
"""


@pytest.fixture
def rl_recipe(tiny_recipe: Path):
    """The tiny recipe with a second stage that rewards even token ids; a random model can earn them."""
    (tiny_recipe.parent / "evenness.py").write_text(REWARD)
    tiny_recipe.write_text(tiny_recipe.read_text() + RL)
    with isolated_registries():
        yield tiny_recipe


def zoom(model, number: int) -> list[int]:
    """The tokens of a tool call into one or two places of the first image; none for every fourth session."""
    if number % 4 == 3:
        return []
    boxes = [[0, 0, 2, 2], [2, 1, 4, 4]][: 1 + number % 2]
    calls = tuple(RegionCall(0, {"bbox_2d": box}) for box in boxes)
    turn = Turn("look", call=ToolCall(calls, ["red square", "what"][number % 2]))
    return model.language_model.tokenizer.encode(model.dialogue.write(turn))


class Observed(ReinforcementModule):
    """Keeps what it logs, and the gradients of every step before they are clipped."""

    def on_before_optimizer_step(self, optimizer):
        named = self.model.named_parameters()
        self.grads = {name: weight.grad.clone() for name, weight in named if weight.grad is not None}
        super().on_before_optimizer_step(optimizer)

    def log_metrics(self, metrics, in_bar=()):
        self.logged = [*getattr(self, "logged", []), {name: float(value) for name, value in metrics.items()}]


def module_of(recipe: Path, *overrides: str, model: VisualChatModel | None = None, **settings) -> Observed:
    sections = load_recipe(recipe, overrides).recipe
    section, model = sections.rl, model if model is not None else livened(build(recipe, overrides))
    collector = RolloutCollector(model, sections.task.build(), section, sections.seed)
    decoding = Decoding(40, section.temperature)
    collector._loop = Scripted(model, decoding, lambda number: zoom(model, number))
    parts = PolicyParts(section.optimizer.build(), section.advantage.build(), section.policy_loss.build())
    return Observed(model, collector, parts, section, **settings)


def livened(model: VisualChatModel) -> VisualChatModel:
    """Modulators that change something: they begin as the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.vision.modulators.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def stepped(module: Observed, steps: int) -> Observed:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, StepNumbers(0, steps))
    return module


def pending_of(module: ReinforcementModule) -> RolloutBuffer:
    return RolloutBuffer.from_rollouts(module._select_learned(module.collector.collect(0)), "cpu")


@pytest.fixture
def rl() -> SimpleNamespace:
    """What tests of reinforcement share."""
    shared = (Scripted, zoom, module_of, livened, stepped, pending_of)
    return SimpleNamespace(**{helper.__name__: helper for helper in shared})
