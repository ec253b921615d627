"""The claim of every part with linear layers: low-rank adapters on them learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vilavt_toolkit.models.adapters import Adapters, add_adapters, list_adapted_layers, merge_adapters
from vilavt_toolkit.testing import bench


def assert_adapters_learn(module: nn.Module, run: Callable[[], Tensor], tolerance: float = 1e-5) -> None:
    """Assert that an adapter gets a gradient wherever the weight of its layer would, and can be merged.

    `run` computes something from the module, which must give the same again. A part that reads the weight of a layer in
    place of calling it may leave the adapter out; its results then do not change, and training it does nothing.
    """
    # Without peft there are no adapters.
    pytest.importorskip("peft")
    layers = _list_learning_layers(module, run)
    if not layers:
        return
    torch.manual_seed(0)
    before = run().detach()
    add_adapters(module, Adapters(2, 4.0, 0.0, False, tuple(layers)))
    bench.assert_close(run().detach(), before, "with adapters that are new")
    for layer in list_adapted_layers(module).values():
        # B begins at zero, where A gets no gradient yet: this is the state after a step.
        nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    adapted = run()
    module.zero_grad()
    bench.backpropagate(_weigh(adapted))
    for name, layer in list_adapted_layers(module).items():
        for matrix in ("lora_A", "lora_B"):
            gradient = getattr(layer, matrix)["default"].weight.grad
            assert gradient is not None and gradient.abs().max() > 0, f"the adapter of '{name}' gets no gradient"
    merge_adapters(module)
    bench.assert_close(run().detach(), adapted.detach(), "with adapters merged", tolerance)


def _list_learning_layers(module: nn.Module, run: Callable[[], Tensor]) -> list[str]:
    """Return the names of the linear layers whose weights get a gradient and are theirs alone."""
    found: list[str] = []
    if not any(isinstance(layer, nn.Linear) for layer in module.modules()):
        return found
    module.zero_grad()
    bench.backpropagate(_weigh(run()))
    # A head may share its weight with the table of embeddings, and then can have no adapter.
    owners = Counter(id(layer._parameters["weight"]) for layer in module.modules() if "weight" in layer._parameters)
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear) or owners[id(layer.weight)] > 1:
            continue
        gradient = layer.weight.grad
        if gradient is not None and gradient.abs().max() > 0:
            found.append(name)
    return found


def _weigh(values: Tensor) -> Tensor:
    """Return a scalar to which all values contribute differently."""
    return (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))).sum()
