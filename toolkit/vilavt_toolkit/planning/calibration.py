"""Measuring how fast this machine is, for plans: products, convolutions, attention, plain operations, and starts."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vilavt_toolkit.planning.measured import Curve, MeasuredRates
from vilavt_toolkit.planning.rates import Work
from vilavt_toolkit.planning.recording import StepRecorder
from vilavt_toolkit.planning.shapes import run_on_shapes
from vilavt_toolkit.utils.host_memory import measure_host_memory
from vilavt_toolkit.utils.versions import collect_versions

_TYPES = (torch.float32, torch.bfloat16)
_SMALLEST = (16, 64, 256, 1024)
"""Inputs of the linear layers whose products are measured. They have 1,024 outputs, and 1,000 tokens."""
_HEADS = ((64, 24), (64, 64), (250, 32), (250, 64), (600, 64), (600, 128))
"""Tokens and widths of the attention heads that are measured."""
_NUMBERS = tuple(1 << power for power in (13, 16, 19, 22, 24))
"""Numbers of a tensor that plain operations are measured with."""
_SECONDS = 0.05
"""Seconds that one measurement is repeated for; a median of them counts."""
_START_STEPS = 20


def calibrate(device: torch.device | None = None) -> MeasuredRates:
    """Measure the rates of this machine's GPU, or of its CPU with the threads that torch uses; takes half a minute."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = _Clock(device)
    curves: dict[str, Curve] = {}
    for number_type in _TYPES:
        name = str(number_type).removeprefix("torch.")
        curves[f"matrix {name}"] = _measure_products(clock, number_type)
        curves[f"convolution {name}"] = _measure_convolutions(clock, number_type)
        for kind, curve in _measure_attention(clock, number_type).items():
            curves[f"{kind} {name}"] = curve
        # A function such as gelu computes more than it moves, so that one rate would not do for both.
        curves[f"simple {name}"] = _measure_plain(clock, number_type, _list_simple)
        curves[f"function {name}"] = _measure_plain(clock, number_type, _list_functions)
    is_gpu = device.type == "cuda"
    return MeasuredRates(
        machine=torch.cuda.get_device_name(device) if is_gpu else f"{platform.node()}, {_name_processor()}",
        memory=torch.cuda.get_device_properties(device).total_memory if is_gpu else measure_host_memory(),
        threads=torch.get_num_threads(),
        measured=date.today().isoformat(),
        versions=collect_versions(),
        start_seconds=_measure_start(clock),
        curves=curves,
        is_gpu=is_gpu,
    )


class _Clock:
    """Times work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # The time of one thread does not count what other programs do on a shared machine.
        is_own = device.type == "cpu" and torch.get_num_threads() == 1
        self._now = time.process_time if is_own else time.perf_counter

    def measure(self, work: Callable[[], object]) -> float:
        """Return the median seconds of some work."""
        work()
        times: list[float] = []
        while sum(times) < _SECONDS or len(times) < 3:
            self._wait()
            begin = self._now()
            work()
            self._wait()
            times.append(self._now() - begin)
        return sorted(times)[len(times) // 2]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def draw(self, number_type: torch.dtype, *shape: int) -> Tensor:
        """Return random numbers on the device."""
        return torch.randn(*shape, device=self.device).to(number_type)


def _measure_products(clock: _Clock, number_type: torch.dtype) -> Curve:
    """Measure the three products of a linear layer, forward and backward, by their smallest dimension."""
    curve = []
    # A GPU reaches its rate at larger sizes.
    scale = 4 if clock.device.type == "cuda" else 1
    tokens, outputs = 1000 * scale, 1024 * scale
    for smallest in _SMALLEST:
        inputs = smallest * scale
        states, weight = clock.draw(number_type, tokens, inputs), clock.draw(number_type, outputs, inputs)
        gradient = clock.draw(number_type, tokens, outputs)
        pairs = (states, weight.t()), (gradient, weight), (gradient.t(), states)
        seconds = _sum_seconds(clock, [partial(torch.mm, left, right) for left, right in pairs])
        curve.append((float(min(inputs, tokens)), 3 * 2 * tokens * inputs * outputs / seconds))
    return tuple(curve)


def _sum_seconds(clock: _Clock, works: Iterable[Callable[[], object]]) -> float:
    return sum(clock.measure(work) for work in works)


def _measure_convolutions(clock: _Clock, number_type: torch.dtype) -> Curve:
    """Measure one as stems have it, and one as embeddings of patches are; they have one rate."""
    operations = seconds = 0.0
    for width, size, stride in ((32, 3, 1), (3, 4, 4)):
        weight = clock.draw(number_type, 64, width, size, size).requires_grad_()
        images = clock.draw(number_type, 16, width, 32, 32).requires_grad_()

        def convolve(weight: Tensor = weight, images: Tensor = images, stride: int = stride) -> Tensor:
            return functional.conv2d(images, weight, stride=stride)

        found = convolve()
        gradient = torch.ones_like(found)

        def go_back(found: Tensor = found, inputs: Any = (images, weight), gradient: Tensor = gradient) -> object:
            return torch.autograd.grad(found, inputs, gradient, retain_graph=True)

        seconds += _sum_seconds(clock, [convolve, go_back])
        # Two products in the backward pass, for the gradient of each factor.
        operations += 3 * 2 * found.numel() * weight[0].numel()
    return ((1.0, operations / seconds),)


def _measure_attention(clock: _Clock, number_type: torch.dtype) -> Mapping[str, Curve]:
    """Measure attention by the numbers of a head, with and without a causal mask."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for length, width in _HEADS:
        for prefix, is_causal in (("", False), ("causal ", True)):
            tensors = [clock.draw(number_type, 2, 4, length, width).requires_grad_() for _ in range(3)]

            def attend(tensors: list[Tensor] = tensors, is_causal: bool = is_causal) -> Tensor:
                return functional.scaled_dot_product_attention(tensors[0], tensors[1], tensors[2], is_causal=is_causal)

            found = attend()
            gradient = torch.ones_like(found)

            def go_back(tensors: list[Tensor] = tensors, found: Tensor = found, gradient: Tensor = gradient) -> object:
                return torch.autograd.grad(found, tensors, gradient, retain_graph=True)

            # Of one product: a multiplication and an addition in each of the 2 x 4 heads that were drawn.
            operations = 2 * 2 * 4 * length * length * width * (0.5 if is_causal else 1.0)
            for kind, work, products in (("attention", attend, 2), ("attention backward", go_back, 5)):
                point = float(length * width), products * operations / clock.measure(work)
                curves.setdefault(prefix + kind, []).append(point)
    return {kind: tuple(points) for kind, points in curves.items()}


_Listed = Iterator[tuple[Callable[[], object], float]]


def _measure_plain(clock: _Clock, number_type: torch.dtype, list_work: Callable[[Tensor], _Listed]) -> Curve:
    """Measure operations that move their numbers, by the bytes that one of them moves."""
    curve = []
    for numbers in _NUMBERS:
        values = clock.draw(number_type, numbers // 256, 256)
        measured = [(clock.measure(work), copies * values.nbytes) for work, copies in list_work(values)]
        moved = sum(size for _, size in measured)
        curve.append((moved / len(measured), moved / sum(seconds for seconds, _ in measured)))
    return tuple(curve)


def _list_simple(values: Tensor) -> _Listed:
    """Yield operations, and how many times they move all values."""
    other, one = torch.ones_like(values), values[:, :1]
    heads = values.view(-1, 4, 64).transpose(0, 1)
    order = torch.arange(len(values) - 1, -1, -1, device=values.device)
    yield lambda: values * other, 3
    yield lambda: values * one, 2
    yield lambda: heads * values[:, :64], 2.25
    yield lambda: values.clone(), 2
    yield lambda: values.index_select(0, order), 2
    yield lambda: torch.cat([values[:, 128:], values[:, :128]], 1), 2


def _list_functions(values: Tensor) -> _Listed:
    """Yield operations that compute more than they move, and how many times they move all values."""
    yield lambda: functional.silu(values), 2
    yield lambda: functional.gelu(values), 2
    yield lambda: values.softmax(-1), 2
    yield lambda: functional.layer_norm(values, (values.shape[1],)), 2


class _SmallBlock(nn.Module):
    """A block of a transformer whose numbers cost nothing beside starting its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.middle_norm = nn.LayerNorm(16), nn.LayerNorm(16)
        self.joint, self.out, self.up, self.down = (
            nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 16),
        )  # fmt: skip

    def forward(self, states: Tensor) -> Tensor:
        rows, length, _ = states.shape
        heads = self.joint(self.norm(states)).view(rows, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        states = states + self.out(mixed.transpose(1, 2).reshape(rows, length, 16))
        done: Tensor = states + self.down(functional.silu(self.up(self.middle_norm(states))))
        return done


def _measure_start(clock: _Clock) -> float:
    """Return the seconds of an operation in a training step whose numbers cost nothing, Python's part included."""
    blocks = nn.Sequential(*[_SmallBlock() for _ in range(8)]).to(clock.device)

    def take_step(model: nn.Module, device: torch.device) -> None:
        model(torch.ones(1, 4, 16, device=device)).sum().backward()

    seconds = min(clock.measure(lambda: take_step(blocks, clock.device)) for _ in range(3))
    recorder = StepRecorder(0, _NoRates())
    with run_on_shapes(recorder):
        blank = nn.Sequential(*[_SmallBlock() for _ in range(8)])
        take_step(blank, torch.device("cpu"))
        # Gradients exist from the second step on, as they do in what was timed.
        recorder.costs.clear()
        take_step(blank, torch.device("cpu"))
    return seconds / sum(cost.launches for cost in recorder.costs.values())


class _NoRates:
    """Rates of which nothing is asked but a count of operations."""

    name, memory, is_gpu = "none", 0, False

    def seconds(self, work: Work) -> float:
        return 0.0


def _name_processor() -> str:
    return platform.processor() or platform.machine()
