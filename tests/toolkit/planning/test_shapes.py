"""On shapes, numbers have no memory and whole numbers are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vilavt_toolkit.planning.shapes import forget_values, run_on_shapes


class _Notes:
    """Keeps the names of operations and the tensors that were waited for."""

    def __init__(self) -> None:
        self.operations: list[str] = []
        self.waits: list[Tensor] = []

    def observe(self, operation: Any, arguments: Any, options: Any, inputs: list[Tensor], result: Any) -> None:
        self.operations.append(str(operation))

    def observe_wait(self, tensor: Tensor) -> None:
        self.waits.append(tensor)


def test_a_matrix_of_any_size_takes_no_memory_and_has_a_gradient():
    with run_on_shapes(notes := _Notes()):
        layer = nn.Linear(1 << 20, 1 << 20)
        out = layer(torch.empty(4, 1 << 20))
        out.sum().backward()
    assert isinstance(out, FakeTensor) and out.shape == (4, 1 << 20)
    assert layer.weight.grad is not None and layer.weight.grad.shape == layer.weight.shape
    assert any("addmm" in name or "mm" in name for name in notes.operations)


def test_whole_numbers_and_masks_are_computed():
    with run_on_shapes(_Notes()):
        lengths = torch.tensor([3, 5, 2])
        mask = torch.arange(5) < lengths[:, None]
        columns = mask.flatten().nonzero()[:, 0]
        mask[0] = True
        picked = torch.empty(15, 8).index_select(0, columns)
    assert mask.sum(1).tolist() == [5, 5, 2]
    assert columns.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert isinstance(picked, FakeTensor) and picked.shape == (10, 8)


def test_a_number_that_nobody_knows_is_answered_and_noted():
    with run_on_shapes(notes := _Notes()):
        loss = torch.empty(3).sum()
        assert bool(torch.isfinite(loss))
        assert float(loss) == 1.0
        assert int(torch.tensor([4, 6]).sum()) == 10
    assert len(notes.waits) == 3


def test_shared_weights_stay_shared_and_indices_keep_their_values():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3, device="meta")
            self.head = nn.Linear(3, 7, bias=False, device="meta")
            self.head.weight = self.table.weight
            self.register_buffer("index", torch.arange(4))
            self.register_buffer("scale", torch.ones(4))

    model = Tied()
    with run_on_shapes(_Notes()):
        forget_values(model, torch.bfloat16)
        assert model.head.weight is model.table.weight
    assert isinstance(model.head.weight, FakeTensor) and model.head.weight.dtype == torch.bfloat16
    assert model.index.tolist() == [0, 1, 2, 3]
    assert isinstance(model.scale, FakeTensor)
