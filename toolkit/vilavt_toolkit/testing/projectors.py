"""The claims that every registered projector must meet."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import Grid, Projector
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.registry import projectors
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.adapters import assert_adapters_learn
from vilavt_toolkit.testing.bench import Instance

_SIZES: list[Grid] = [(4, 4), (2, 3), (4, 4), (5, 1), (1, 1)]
_IN, _OUT = 24, 40
_for_every_instance = bench.for_every_instance(projectors)


def _build(instance: Instance[Projector], seed: int = 0) -> Projector:
    """Build the small projector between two widths, or between equal widths if it refuses two."""
    try:
        return instance.build(_IN, _OUT, seed=seed)
    # A projector that changes no width, such as `identity`, refuses two widths before anything runs.
    except BadConfig:
        return instance.build(_IN, _IN, seed=seed)


def _random_features() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(math.prod(size) for size in _SIZES), _IN, generator=generator)


def _project_features(projector: nn.Module) -> Tensor:
    projected: Tensor = projector(_random_features(), _SIZES)
    return projected


@_for_every_instance
def builds_quickly_and_on_the_meta_device(instance: Instance[Projector]) -> None:
    """Building reads nothing, and takes no memory on the meta device."""
    bench.assert_builds_quickly(lambda: _build(instance))


@_for_every_instance
def projects_packed_as_alone(instance: Instance[Projector]) -> None:
    """A region has the same projected features alone as packed, as many as its grid has cells."""
    projector = _build(instance)
    parts = _random_features().split_with_sizes([math.prod(size) for size in _SIZES])
    with torch.no_grad():
        alone = [projector(part, [size]) for part, size in zip(parts, _SIZES, strict=True)]
        for one, size in zip(alone, _SIZES, strict=True):
            assert one.shape[1] in (_IN, _OUT), f"features are {one.shape[1]} wide, not {_OUT}"
            count = math.prod(projector.output_grid(size))
            assert len(one) == count, f"grid {size} gives {len(one)} features, not {count}"
        bench.assert_close(_project_features(projector), torch.cat(alone), "packed and alone")


@_for_every_instance
def gives_gradients_without_waiting(instance: Instance[Projector]) -> None:
    """Every trainable parameter and the features get finite gradients, and nothing waits for the device."""
    projector, features = _build(instance).train(), _random_features().requires_grad_()
    with bench.no_synchronisation():
        bench.backpropagate(projector(features, _SIZES).square().sum())
    bench.assert_gradients(projector)
    assert features.grad is not None and features.grad.isfinite().all(), "the encoder gets no finite gradient"


@_for_every_instance
def keeps_its_state(instance: Instance[Projector]) -> None:
    """Its state dict holds all of its state."""
    bench.assert_state_round_trip(lambda seed: _build(instance, seed), _project_features)


@_for_every_instance
def survives_bfloat16(instance: Instance[Projector]) -> None:
    """Its output in bfloat16 is close to that in float32."""
    projector = _build(instance)
    with torch.no_grad():
        expected = _project_features(projector)
        found = projector.to(torch.bfloat16)(_random_features().bfloat16(), _SIZES)
    bench.assert_close_in_bf16(found, expected)


@_for_every_instance
def trains_adapters_on_its_linear_layers(instance: Instance[Projector]) -> None:
    """A low-rank adapter on a linear layer gets a gradient wherever the layer's weight would, and can be merged."""
    projector = _build(instance)
    assert_adapters_learn(projector, lambda: _project_features(projector))


CLAIMS = (
    builds_quickly_and_on_the_meta_device,
    projects_packed_as_alone,
    gives_gradients_without_waiting,
    keeps_its_state,
    survives_bfloat16,
    trains_adapters_on_its_linear_layers,
)
