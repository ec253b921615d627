"""Tools of the contract tests: examples, reference parts, assertions, a guard against waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vilavt_toolkit.contracts import Box, Component, Crop, Encoder, InquiryEncoder, LanguageModel, Source, View
from vilavt_toolkit.packed.tokens import to_device
from vilavt_toolkit.registry import REGISTRIES, Entry, Registry

T = TypeVar("T")
C = TypeVar("C", bound=Component)

TEXTS = ("a red square left of the door", "read the digit", "the digit on the blue circle", "")
"""Example inquiries; the last one is empty."""

# (low, high) of zooms: two of equal size, so that packed regions cannot be told apart by their sizes.
_PARTS = ((0.0, 0.5), (0.25, 0.75), (0.0, 0.5), (0.3, 1.0))
# (width, height, overview): flat and tall, two of equal size.
_IMAGES = ((64, 64, True), (20, 40, False), (32, 32, False), (20, 40, False), (48, 16, False))


def build(entry: Entry[Any], *given: Any, seed: int = 0, config: Any = None) -> Any:
    """Build the tiny instance of a component, or one of `config`, from a fixed seed, in evaluation mode.

    `given` are the further arguments of its `__init__`.
    """
    # Components draw their weights from the global generator.
    torch.manual_seed(seed)
    component = entry.cls(entry.cls.tiny() if config is None else config, *given)
    return component.eval() if isinstance(component, nn.Module) else component


@dataclass(frozen=True)
class Instance(Generic[C]):
    """A small instance of a component: its tiny one, or one of its variants."""

    entry: Entry[C]
    config: Any
    variant: str = ""

    @property
    def name(self) -> str:
        """The component's name, and the variant's."""
        return f"{self.entry.name}, {self.variant}" if self.variant else self.entry.name

    def build(self, *context: Any, seed: int = 0) -> C:
        """Build it from a fixed seed, in evaluation mode; `context` follows the settings in its `__init__`."""
        built: C = build(self.entry, *context, seed=seed, config=self.config)
        return built


def list_instances(entry: Entry[C], with_variants: bool = True) -> Iterator[Instance[C]]:
    """List the tiny instance of a component and, `with_variants`, those of its variants."""
    yield Instance(entry, entry.cls.tiny())
    if with_variants:
        for variant, config in entry.cls.variants().items():
            yield Instance(entry, config, variant)


def for_every_instance(registry: Registry[C]) -> Callable[[Callable[[Instance[C]], None]], Callable[[str], None]]:
    """Make a decorator that turns a claim about one small instance into a claim about the component of a name."""

    def decorate(claim: Callable[[Instance[C]], None]) -> Callable[[str], None]:
        # `wraps` keeps the claim's own name, which is what a failing test shows.
        @wraps(claim)
        def claim_of_all(name: str) -> None:
            for instance in list_instances(registry.get(name)):
                with name_failures(instance.name):
                    claim(instance)

        return claim_of_all

    return decorate


@contextmanager
def name_failures(name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into an AssertionError that begins with `name`."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error
    except Exception as error:
        # A claim runs over many instances, and a bare IndexError would not tell on which of them.
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def example_original(modality: str) -> Any:
    """Return something in memory that a source of `modality` can open, or None if there is no example."""
    if modality == "image":
        return np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    examples = (source.example() for source in _source_classes(modality))
    return next((example for example in examples if example is not None), None)


def example_views(encoder: Encoder) -> list[View]:
    """Prepare views of several sizes, two of them of the same size."""
    modality = encoder.spec.modality
    return [encoder.prepare(crop) for crop in (_image_crops() if modality == "image" else _example_crops(modality))]


def _image_crops() -> list[Crop]:
    rng = np.random.default_rng(0)
    return [
        Crop(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), "image", overview)
        for width, height, overview in _IMAGES
    ]


def _example_crops(modality: str) -> list[Crop]:
    """Crop the overview of the modality's example, and parts of it."""
    original = example_original(modality)
    assert original is not None, f"there is no example of '{modality}'; a source of it must have one"
    source = next(source for source in _source_classes(modality) if source.example() is not None)
    opened = source.open(original, source.tiny())
    parts = [part_of(opened.extent, low, high) for low, high in _PARTS]
    return [opened.crop(opened.extent, overview=True), *(opened.crop(part) for part in parts)]


def _source_classes(modality: str) -> list[type[Source]]:
    return [entry.cls for entry in REGISTRIES["source"].entries() if entry.cls.modality == modality]


def part_of(extent: Box, low: float, high: float) -> Box:
    """Return the part of a box from `low` to `high`, in [0, 1], along every axis."""
    # An odd first number, a video's time, is not an axis and stays.
    axes, odd = divmod(len(extent), 2)
    sides = [(a, b - a) for a, b in zip(extent[odd : axes + odd], extent[axes + odd :], strict=True)]
    ends = (start + share * side for share in (low, high) for start, side in sides)
    return (*extent[:odd], *ends)


def example_language_model() -> LanguageModel:
    """Build the tiny instance of the first registered language model, with a tokenizer trained on a few words."""
    entries = REGISTRIES["language_model"].entries()
    assert entries, "no language model is registered, and this claim needs one"
    return build_language_model(entries[0])


def build_language_model(entry: Entry[Any], config: Any = None) -> LanguageModel:
    """Build the tiny instance of a language model, or one of `config`, and fit its tokenizer."""
    model: LanguageModel = build(entry, config=config)
    model.fit_tokenizer([*TEXTS, "0 1 2 3 4 5 6 7 8 9"] * 4, ["<answer>", "</answer>"])
    return model


class WordInquiryEncoder(InquiryEncoder):
    """An inquiry encoder with a random vector per word, so that modulator claims need no other component."""

    def __init__(self, width: int = 12, words: int = 64) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(words, width)

    @classmethod
    def tiny(cls) -> None:
        """Return None: it has no settings."""

    def tokenize(self, text: str) -> list[int]:
        """Return one id per word, computed from its letters."""
        return [sum(word.encode()) % self.embedding.num_embeddings for word in text.split()]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the ids as text, since the words cannot be recovered from them."""
        return [str(i) for i in ids]

    def forward(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of all words [T, D] and their mean per group [G, D]."""
        features = self.embedding(to_device([i for group in ids for i in group], self.embedding.weight.device))
        parts = features.split_with_sizes([len(group) for group in ids])
        return features, torch.stack([part.sum(0) / max(1, len(part)) for part in parts])


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Assert that two tensors differ by at most `tolerance` x max(1, max|expected|)."""
    assert found.shape == expected.shape, f"{what}: {list(found.shape)} is not {list(expected.shape)}"
    if not found.numel():
        return
    # Relative to the largest value: features of some encoders reach hundreds, and float32 keeps 7 digits.
    error = (found - expected).abs().max().item()
    allowed = tolerance * max(1.0, expected.abs().max().item())
    assert error <= allowed, f"{what}: they differ by {error:.2e}, {allowed:.2e} is allowed"


def assert_close_in_bf16(found: Tensor, expected: Tensor) -> None:
    """Assert that a result in bfloat16 is within 2e-2 of that in float32, in relative L2."""
    # L2 over all values: a single value near 0 can be far off in relative terms.
    error = ((found.float() - expected).norm() / expected.norm()).item()
    assert error <= 2e-2, f"bfloat16 is {error:.1e} from float32 in relative L2; 2e-2 is allowed"


def backpropagate(loss: Tensor) -> None:
    """Add the gradient of a scalar loss to that of the parameters."""
    # Typed, unlike Tensor.backward.
    torch.autograd.backward(loss)


def assert_gradients(module: nn.Module) -> None:
    """Assert that every trainable parameter got a finite gradient."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"'{name}' is trainable and got no gradient"
            assert parameter.grad.isfinite().all(), f"the gradient of '{name}' is not finite"


def assert_builds_quickly(make: Callable[[], nn.Module]) -> None:
    """Assert that a part builds within two seconds, and without memory on the meta device."""
    make()  # the first build pays for imports
    # CPU time of this process: a busy machine makes nothing fail.
    start = time.process_time()
    make()
    seconds = time.process_time() - start
    assert seconds < 2, f"the tiny instance takes {seconds:.1f} s to build; two are allowed"
    with torch.device("meta"):
        module = make()
    for name, parameter in module.named_parameters():
        assert parameter.is_meta, f"'{name}' takes memory when built on the meta device"


def assert_state_round_trip(make: Callable[[int], nn.Module], run: Callable[[nn.Module], Tensor]) -> None:
    """Assert that a state dict carries everything to an instance that was built from another seed."""
    first, second = make(0), make(1)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert_close(run(second), run(first), "after loading the state of another instance")


class _NoSyncFunctions(TorchFunctionMode):
    # tolist and numpy read memory directly: no operator shows it.
    names = frozenset({"tolist", "numpy", "item", "__bool__", "__int__", "__float__", "__index__"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in self.names, f"Tensor.{name} waits for the device"
        return func(*args, **(kwargs or {}))


class _NoSyncOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    names = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.names, f"{func} waits for the device"
        assert not self._counts_on_device(name, args, kwargs or {}), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _counts_on_device(name: str, args: Any, kwargs: Any) -> bool:
        # The size of these results depends on values: the CPU has to read a count before it can go on.
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        # A boolean index is a hidden nonzero: the result's size depends on how many are True.
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        return any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Raise AssertionError inside for anything that waits for the device: item, tolist, nonzero, boolean indexing.

    It works on the CPU, so that such a wait is found without an accelerator.
    """
    with _NoSyncFunctions(), _NoSyncOperators():  # type: ignore[no-untyped-call]
        yield


def require_entries(registry: Registry[T]) -> list[Entry[T]]:
    """Return all entries of a registry; raises AssertionError if there is none."""
    found = registry.entries()
    assert found, f"no {registry.label} is registered, and this claim needs one"
    return found
