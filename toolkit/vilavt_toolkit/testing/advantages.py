"""The claims that every registered advantage must meet."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Advantage
from vilavt_toolkit.registry import advantages
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance

_for_every_instance = bench.for_every_instance(advantages)


def _example_rewards() -> Tensor:
    """Return rewards [5, 4] of five groups: graded, right or wrong, one right, all equal, with a negative one."""
    rows = [[1, 0.5, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0.3, 0.3, 0.3, 0.3], [-1, 0.25, 0.1, 0.75]]
    return torch.tensor(rows, dtype=torch.float32)


def _compute_advantages(part: Advantage, groups: Tensor) -> Tensor:
    found = part.compare_scores(groups[..., None].double(), [1.0])
    assert found.dtype == torch.float32, f"advantages are {found.dtype}, not float32"
    assert found.shape == groups.shape, f"rewards {list(groups.shape)} have advantages {list(found.shape)}"
    assert found.isfinite().all(), "an advantage is not finite"
    bench.assert_close(part.compute_advantages(groups), found, "advantages of a reward and of its single score", 1e-3)
    return found


@_for_every_instance
def follows_the_order_of_rewards(instance: Instance[Advantage]) -> None:
    """Permuting a group permutes its advantages; a better rollout never has a lower one."""
    part = instance.build()
    groups, order = _example_rewards(), [2, 0, 3, 1]
    found = _compute_advantages(part, groups)
    bench.assert_close(_compute_advantages(part, groups[:, order]), found[:, order], "advantages of permuted groups")
    for rewards_of, row in zip(groups.tolist(), found.tolist(), strict=True):
        ordered = [value for _, value in sorted(zip(rewards_of, row, strict=True))]
        assert all(a <= b + 1e-6 for a, b in itertools.pairwise(ordered)), (
            f"rewards {rewards_of} have advantages {row}: a better rollout has a lower one"
        )
    assert found[0, 0] > found[0, 2], "the best rollout of a group has no higher advantage than the worst"


@_for_every_instance
def treats_every_group_alone(instance: Instance[Advantage]) -> None:
    """A group has the same advantages alone as with others, and with a constant added to its rewards.

    An advantage that compares the whole step has those of its step in any order of the groups.
    """
    part = instance.build()
    groups = _example_rewards()
    found = _compute_advantages(part, groups)
    if part.compares_whole_step:
        bench.assert_close(_compute_advantages(part, groups.flip(0)), found.flip(0), "advantages in another order")
    else:
        alone = torch.cat([_compute_advantages(part, groups[row : row + 1]) for row in range(len(groups))])
        bench.assert_close(alone, found, "advantages alone and with other groups")
    # Looser: float32 loses digits of rewards that differ little once 2 is added to them.
    bench.assert_close(_compute_advantages(part, groups + 2), found, "advantages of rewards plus 2", 2e-3)


@_for_every_instance
def is_zero_for_equal_rewards(instance: Instance[Advantage]) -> None:
    """A group of equal rewards has advantages of zero."""
    part = instance.build()
    for value in (0.0, 1.0, 0.3):
        found = _compute_advantages(part, torch.full((2, 4), value))
        assert found.abs().max().item() < 1e-3, f"equal rewards of {value} have advantages {found[0].tolist()}"


CLAIMS = (
    follows_the_order_of_rewards,
    treats_every_group_alone,
    is_zero_for_equal_rewards,
)
