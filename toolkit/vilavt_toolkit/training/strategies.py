"""Lightning's strategies for the processes of a run: weights in every process, or sharded over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from torch import Tensor, nn

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.training.world import World, find_launcher

_BUCKET_NUMBERS = 2**24
"""Numbers of gradients that are summed in one call: 64 MB of float32."""
_PATIENCE_SECONDS = 1800.0
"""Beyond `train.worker_seconds`: how long a process waits for another, which may be writing a checkpoint."""


class ReplicatedStrategy(DDPStrategy):
    """Keeps all weights in every process, and sums the gradients once a step.

    The module is not wrapped as PyTorch's own DDP does. That one sums in every backward pass, and its processes must
    take equally many, over the same weights. Here a process may have no image, or no sample at all.
    """

    def configure_ddp(self) -> None:
        """Give every process the first one's weights."""
        assert self.lightning_module is not None
        for tensor in [*self.lightning_module.parameters(), *self.lightning_module.buffers()]:
            dist.broadcast(tensor.detach(), src=0)

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of every weight by the sum over all processes; None if no process has one."""
        has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
        dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
        learned = [weight for weight, is_learned in zip(weights, has_gradient.tolist(), strict=True) if is_learned]
        for weight in learned:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        for bucket in _split_into_buckets(learned):
            _sum_bucket([weight.grad for weight in bucket if weight.grad is not None])


def _split_into_buckets(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield the weights in their order, in lists of one type that are summed together."""
    bucket: list[nn.Parameter] = []
    for weight in weights:
        is_full = sum(each.numel() for each in bucket) + weight.numel() > _BUCKET_NUMBERS
        if bucket and (is_full or weight.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket


def _sum_bucket(gradients: Sequence[Tensor]) -> None:
    # One call for many small tensors: each call waits for the slowest process.
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def build_strategy(section: TrainSection, world: World) -> Strategy | str:
    """Build the strategy of a run; one process needs none of its own."""
    if world.size == 1:
        return "auto"
    if section.strategy == "fsdp2":
        return ModelParallelStrategy(world.size, tensor_parallel_size=1, timeout=_patience(section))
    return ReplicatedStrategy(timeout=_patience(section))


def find_lightning_precision(section: TrainSection, world: World) -> Any:
    """Return Lightning's name of the number format; sharded weights are gathered in theirs, without autocast."""
    is_sharded = world.size > 1 and section.strategy == "fsdp2"
    return "32-true" if is_sharded and section.precision == "bf16-mixed" else section.precision


def find_environment(world: World) -> ClusterEnvironment | None:
    """Return the environment in which Lightning finds this process's place; None leaves that to Lightning."""
    launcher = find_launcher()
    if launcher == "slurm":
        # Requeueing would save a pickle of the whole module. The run's own checkpoints are resumed from.
        return SLURMEnvironment(auto_requeue=False)
    if launcher == "environment" and TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # Also for one process in a batch script of SLURM, whose tasks Lightning would wait for.
    return LightningEnvironment() if world.size > 1 or "SLURM_NTASKS" in os.environ else None


def connect_processes(strategy: Strategy, section: TrainSection) -> None:
    """Connect the processes of a run, for tensors on the CPU and on their devices.

    Lightning would do so when training starts. They must agree before, on the checkpoint to resume from.
    """
    if not isinstance(strategy, ParallelStrategy) or dist.is_initialized():
        return
    environment, device = strategy.cluster_environment, strategy.root_device
    assert environment is not None and strategy.parallel_devices is not None
    count = len(strategy.parallel_devices)
    # As Lightning will set them, so that its own call later finds the same numbers.
    environment.set_global_rank(strategy.node_rank * count + strategy.local_rank)
    environment.set_world_size(count * section.nodes)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    is_cuda = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        rank=environment.global_rank(),
        world_size=environment.world_size(),
        timeout=_patience(section),
        device_id=device if is_cuda else None,
    )


def _patience(section: TrainSection) -> timedelta:
    return timedelta(seconds=section.worker_seconds + _PATIENCE_SECONDS)
