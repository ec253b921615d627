"""A model whose weights are sharded over all processes by PyTorch's `fully_shard` (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from vilavt_toolkit.models.model import VisualChatModel


def shard_model(model: VisualChatModel, mesh: DeviceMesh, computes_in_bf16: bool = False) -> None:
    """Shard a model's parameters over a mesh of one dimension; `run_layers` and `vision.encode` gather them.

    Units are gathered and freed together: every layer of the language model, the dynamic encoder, and the rest with
    embeddings and head, which stays gathered from the forward to the end of the backward pass, because the head is
    called again there, in chunks whose number differs between processes. Gradients are summed. With `computes_in_bf16`
    weights are gathered and computed with in bfloat16, while shards, sums of gradients and moments stay float32.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if computes_in_bf16 else MixedPrecisionPolicy()
    blocks = find_blocks(model)
    inner = [*blocks, model.vision]
    # A process whose step has no image, or no inquiry, must give a gradient of the same size as the others.
    in_vision = _list_trained(model.vision, ())
    in_rest = _list_trained(model, [module for unit in inner for module in unit.modules()])
    encode: Callable[..., Any] = model.vision.encode
    run_layers: Callable[..., Tensor] = model.run_layers

    def encode_using_all(*arguments: Any) -> Any:
        features, grids = encode(*arguments)
        return features + _add_nothing(in_vision).to(features.dtype), grids

    def run_layers_using_all(batch: Any) -> Tensor:
        states = run_layers(batch)
        return states + _add_nothing(in_rest).to(states.dtype)

    model.vision.encode = encode_using_all  # type: ignore[method-assign, assignment]
    model.run_layers = run_layers_using_all  # type: ignore[method-assign]
    model.encodes_always = True
    for unit in [*inner, model]:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
        # A step's loss is a mean over all its tokens already. gloo has sums, and no other operation for it.
        unit.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        unit.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
    register_fsdp_forward_method(model.vision, "encode")
    register_fsdp_forward_method(model, "run_layers")


def gather_tensor(value: DTensor) -> Tensor:
    """Return the whole of a sharded tensor on its device; all processes call this."""
    # Neither gloo nor NCCL sends numbers of 16 bits that are whole.
    sent = value.to(torch.int32) if value.dtype == torch.int16 else value
    whole: Tensor = sent.full_tensor()  # type: ignore[attr-defined]
    return whole.to(value.dtype)


def shard_like(value: Tensor, weight: Tensor) -> Tensor:
    """Return this process's copied share of a tensor, which is sharded as a weight of its shape is.

    All processes have the whole, mapped from a file for example, of which each reads its share alone. A tensor of
    another shape, or beside a weight that is not sharded, is returned as it is.
    """
    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    shape, offsets = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    share = value[tuple(slice(start, start + size) for start, size in zip(offsets, shape, strict=True))]
    share = share.to(weight.device, copy=True, memory_format=torch.contiguous_format)
    sharded: Tensor = DTensor.from_local(
        share, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )
    return sharded


def find_blocks(model: VisualChatModel) -> list[nn.Module]:
    """Return the layers of the language model: those that it names, or else its longest list of modules."""
    if named := getattr(model.language_model, "blocks", ()):
        return list(named)
    lists = (module for module in model.language_model.modules() if isinstance(module, nn.ModuleList))
    return list(max(lists, key=len, default=()))


def _list_trained(module: nn.Module, outside: Iterable[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Return the trained parameters as pairs of module and name, since sharding replaces the parameters themselves."""
    left_out = {id(each) for each in outside}
    return [
        (each, name)
        for each in module.modules()
        if id(each) not in left_out
        for name, weight in each.named_parameters(recurse=False)
        if weight.requires_grad
    ]


def _add_nothing(weights: Sequence[tuple[nn.Module, str]]) -> Tensor:
    """Return 0 as a function of all these weights, whose gradients it makes zeros where they would be missing."""
    parts = [getattr(module, name).flatten()[:1].sum().float() for module, name in weights]
    return torch.stack(parts).sum() * 0 if parts else torch.zeros(())
