"""What every registered reward, advantage and policy loss must do."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from vilavt_toolkit.contracts import (
    Advantage,
    PlacedRegion,
    PolicyLoss,
    RegionCall,
    Reward,
    RewardSettings,
    Sample,
    ToolCall,
    Trajectory,
    Turn,
)
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import Registry, advantages, policy_losses, rewards
from vilavt_toolkit.testing import bench
from vilavt_toolkit.training.reinforcement.policy_math import weighted_sum

_CALL = Turn("look", call=ToolCall((RegionCall(0, {"bbox_2d": [0, 0, 4, 4]}),), "read the digit"))
_BAD = Turn(problem="The turn is not in the right form.")


def example_samples() -> list[Sample]:
    """Samples of every kind of answer, without originals."""
    answers: Mapping[str, str] = {"text": "a red square", "choice": "B", "number": "0.5", "mra": "4"} | {
        "math": "x + 1",
        "yes_no": "yes",
        "view_change": "move_right:1.0",
        "box": "[1, 2, 5, 6]",
    }
    return [Sample(f"example/{kind}", "what?", a, (), tags={"answer_kind": kind}) for kind, a in answers.items()]


def example_trajectory(turns: list[Turn], regions: int = 0, told: str = "") -> Trajectory:
    """A trajectory of an overview and these turns, of eight tokens each; what was wrong with the first is `told`."""
    trajectory = Trajectory()
    trajectory.add_region(PlacedRegion(0, None, 0, 0, 4, (2, 2)), placeholder=1)
    for number, turn in enumerate(turns):
        trajectory.add_produced([3] * 8, [-0.5] * 8)
        trajectory.turns.append(turn)
        trajectory.feedback.append(told if number == 0 else "")
        for _ in range(regions if turn.call is not None and not told else 0):
            trajectory.add_region(PlacedRegion(0, (0.0, 0.0, 4.0, 4.0), 1, 0, 6, (2, 3)), placeholder=1)
    return trajectory


def example_trajectories(answer: str) -> dict[str, Trajectory]:
    """Trajectories with the answer, with other ones, with and without tool calls, broken off and empty, by name."""
    good = Turn("seen", answer=answer)
    return {
        "answers at once": example_trajectory([good]),
        "answers otherwise": example_trajectory([Turn("seen", answer="something else")]),
        "looks, then answers": example_trajectory([_CALL, good], regions=2),
        "looks where nothing is": example_trajectory([_CALL, good], told="Region 0 does not exist."),
        "stumbles, then answers": example_trajectory([_BAD, good], told=_BAD.problem),
        "breaks off after a call": example_trajectory([_CALL], regions=1),
        "never answers": example_trajectory([_BAD]),
        "has no turn": example_trajectory([]),
    }


def _rewards(name: str) -> Iterator[Reward]:
    yield from _instances(rewards, name)


def _instances(registry: Registry[bench.T], name: str) -> Iterator[bench.T]:
    """The tiny instance of a component, and its variants."""
    entry = registry.get(name)
    cls = entry.cls
    for config in (cls.tiny(), *cls.variants().values()):  # type: ignore[attr-defined]
        yield bench.build(entry, config=config)


def _scored(reward: Reward, sample: Sample, trajectory: Trajectory) -> float | None:
    """The score, or None where the reward refuses the sample, which a reward of one kind of answer may."""
    try:
        return reward.score(sample, trajectory)
    except InputError:
        return None


def reward_has_a_weight(name: str) -> None:
    """Its settings begin with those of every reward."""
    config = rewards.get(name).config
    assert issubclass(config, RewardSettings), f"{config.__name__} has no weight: it does not inherit RewardSettings"
    assert isinstance(rewards.get(name).cls.tiny(), config), f"tiny() is no {config.__name__}"


def reward_stays_in_its_range(name: str) -> None:
    """Whatever the rollout, the score is finite, in [0, 1] for a reward and 0 or below for a cost."""
    for reward in _rewards(name):
        scores = [
            (f"{sample.id} {what}", score)
            for sample in example_samples()
            for what, trajectory in example_trajectories(sample.answer).items()
            if (score := _scored(reward, sample, trajectory)) is not None
        ]
        assert scores, "every example is refused with InputError; none of them can be scored"
        for where, score in scores:
            assert math.isfinite(score) and score <= 1, f"{where}: the score is {score}"
        costs, gains = [s for _, s in scores if s < 0], [s for _, s in scores if s > 0]
        assert not (costs and gains), f"scores reach from {min(costs)} to {max(gains)}: neither reward nor cost"


def reward_is_a_pure_function(name: str) -> None:
    """The same rollout scores the same, whatever was scored before; nothing is changed, nothing is drawn."""
    for first, second in zip(_rewards(name), _rewards(name), strict=True):
        cases = [(s, t) for s in example_samples() for t in example_trajectories(s.answer).values()]
        before = copy.deepcopy(cases)
        states = _random_states()
        forward = [_scored(first, *case) for case in cases]
        assert _random_states() == states, "scoring draws random numbers"
        assert cases == before, "scoring changes the sample or the trajectory"
        backward = [_scored(second, *case) for case in reversed(cases)]
        assert forward == backward[::-1], "a score depends on what was scored before, or on chance"


def _random_states() -> tuple[object, object, object]:
    numpy = np.random.get_state(legacy=True)
    return random.getstate(), [np.asarray(part).tolist() for part in numpy], torch.get_rng_state().tolist()


def _groups() -> Tensor:
    """Rewards [5, 4]: graded, right or wrong, one right, all equal, all but equal."""
    rows = [[1, 0.5, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0.3, 0.3, 0.3, 0.3], [-1, 0.25, 0.1, 0.75]]
    return torch.tensor(rows, dtype=torch.float32)


def advantage_follows_the_order_in_a_group(name: str) -> None:
    """Permuting a group permutes its advantages; a better rollout never has the lower one."""
    groups, order = _groups(), [2, 0, 3, 1]
    for part in _instances(advantages, name):
        found = _advantages(part, groups)
        bench.assert_close(_advantages(part, groups[:, order]), found[:, order], "advantages of permuted groups")
        for rewards_of, row in zip(groups.tolist(), found.tolist(), strict=True):
            ordered = [value for _, value in sorted(zip(rewards_of, row, strict=True))]
            assert all(a <= b + 1e-6 for a, b in itertools.pairwise(ordered)), (
                f"rewards {rewards_of} have advantages {row}: a better rollout has a lower one"
            )
        assert found[0, 0] > found[0, 2], "the best rollout of a group has no higher advantage than the worst"


def advantage_of_a_group_is_its_own(name: str) -> None:
    """A group has the same advantages alone as beside others; adding a constant to its rewards changes nothing."""
    groups = _groups()
    for part in _instances(advantages, name):
        found = _advantages(part, groups)
        alone = torch.cat([_advantages(part, groups[row : row + 1]) for row in range(len(groups))])
        bench.assert_close(alone, found, "advantages alone and beside other groups")
        bench.assert_close(_advantages(part, groups + 2), found, "advantages of rewards plus 2", 2e-3)


def advantage_of_equal_rewards_is_nothing(name: str) -> None:
    """A group of equal rewards has advantages of zero."""
    for part in _instances(advantages, name):
        for value in (0.0, 1.0, 0.3):
            found = _advantages(part, torch.full((2, 4), value))
            assert found.abs().max().item() < 1e-3, f"equal rewards of {value} have advantages {found[0].tolist()}"


def _advantages(part: Advantage, groups: Tensor) -> Tensor:
    found = part.advantages(groups)
    assert found.shape == groups.shape, f"rewards {list(groups.shape)} have advantages {list(found.shape)}"
    assert found.isfinite().all(), "an advantage is not finite"
    return found


_LENGTHS = (2, 4, 0, 1, 5)
"""Produced tokens of the sequences of a step; one has none."""


def _tokens(shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities under new and old weights, up to `shift` apart, and advantages of both signs; [12] each."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(12, generator=generator) - 0.1
    logp = old + shift * (2 * torch.rand(12, generator=generator) - 1)
    return logp.requires_grad_(), old, torch.randn(12, generator=generator)


def _graded(part: PolicyLoss, logp: Tensor, old: Tensor, gains: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and clipped of every token."""
    with bench.no_synchronisation():
        loss, clipped = part.tokens(logp, old, gains)
    assert loss.shape == clipped.shape == logp.shape, f"{len(logp)} tokens have losses {list(loss.shape)}"
    assert clipped.dtype == torch.bool, f"clipped is {clipped.dtype}, not bool"
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    return loss.detach(), gradient, clipped


def policy_loss_begins_as_reinforce(name: str) -> None:
    """Under the weights that sampled, its gradient is REINFORCE's, -A, and nothing is clipped."""
    for part in _instances(policy_losses, name):
        logp, old, gains = _tokens(0.0)
        _, gradient, clipped = _graded(part, logp, old, gains)
        bench.assert_close(gradient, -gains, "the gradient on the first inner step and -A")
        assert not clipped.any(), "tokens are clipped under the weights that sampled them"


def policy_loss_says_what_it_clips(name: str) -> None:
    """A token has no gradient exactly where it is said to be clipped."""
    for part in _instances(policy_losses, name):
        _, gradient, clipped = _graded(part, *_tokens(3.0))
        assert clipped.any() and not clipped.all(), "ratios from e^-3 to e^3 are all clipped, or none is"
        assert not gradient[clipped].any(), "a clipped token has a gradient"
        assert gradient[~clipped].all(), "a token that is not clipped has no gradient"


def policy_loss_treats_every_token_by_itself(name: str) -> None:
    """A token's loss and gradient do not depend on which others stand beside it."""
    chosen = [7, 2, 11]
    for part in _instances(policy_losses, name):
        logp, old, gains = _tokens(1.0)
        loss, gradient, _ = _graded(part, logp, old, gains)
        fewer = _graded(part, logp.detach()[chosen].requires_grad_(), old[chosen], gains[chosen])
        bench.assert_close(fewer[0], loss[chosen], "loss of tokens beside fewer others")
        bench.assert_close(fewer[1], gradient[chosen], "gradient of tokens beside fewer others")


def policy_loss_stays_finite(name: str) -> None:
    """However far the weights have moved, loss and gradient are finite."""
    for part in _instances(policy_losses, name):
        loss, gradient, _ = _graded(part, *_tokens(500.0))
        assert loss.isfinite().all() and gradient.isfinite().all(), "log-ratios of 500 give what is not finite"


def policy_loss_weighs_a_whole_step(name: str) -> None:
    """Weights are not negative, follow their sequences, and are 0 for an empty one."""
    for part in _instances(policy_losses, name):
        weights = part.weights(_LENGTHS)
        assert len(weights) == len(_LENGTHS), f"{len(_LENGTHS)} sequences have {len(weights)} weights"
        for length, weight in zip(_LENGTHS, weights, strict=True):
            assert math.isfinite(weight) and (weight > 0) == (length > 0), f"{length} tokens weigh {weight}"
        assert part.weights(_LENGTHS[::-1]) == weights[::-1], "weights depend on the order of the sequences"
        assert not any(part.weights([0, 0])), "sequences without tokens weigh something"


def policy_loss_is_the_same_in_micro_batches(name: str) -> None:
    """Split into micro-batches of any size, a step has the same gradient."""
    for part in _instances(policy_losses, name):
        whole = _step_gradient(part, len(_LENGTHS))
        for size in (1, 2, 3):
            bench.assert_close(_step_gradient(part, size), whole, f"gradient in micro-batches of {size}", 1e-6)


def _step_gradient(part: PolicyLoss, size: int) -> Tensor:
    logp, old, gains = _tokens(1.0)
    weights = part.weights(_LENGTHS)
    for start in range(0, len(_LENGTHS), size):
        lengths, first = _LENGTHS[start : start + size], sum(_LENGTHS[:start])
        tokens = slice(first, first + sum(lengths))
        loss, _ = part.tokens(logp[tokens], old[tokens], gains[tokens])
        bench.backpropagate(weighted_sum(loss, weights[start : start + size], lengths))
    assert logp.grad is not None
    return logp.grad


REWARD_CLAIMS = (reward_has_a_weight, reward_stays_in_its_range, reward_is_a_pure_function)
ADVANTAGE_CLAIMS = (
    advantage_follows_the_order_in_a_group,
    advantage_of_a_group_is_its_own,
    advantage_of_equal_rewards_is_nothing,
)
POLICY_LOSS_CLAIMS = (
    policy_loss_begins_as_reinforce,
    policy_loss_says_what_it_clips,
    policy_loss_treats_every_token_by_itself,
    policy_loss_stays_finite,
    policy_loss_weighs_a_whole_step,
    policy_loss_is_the_same_in_micro_batches,
)
