"""What encoding, reading and writing cost: matrix weights twice per token, and attention over what is seen.

A count, not a measurement: norms, activations, rotations and embeddings are left out. (Kaplan et al., arXiv 2001.08361,
table 1.) Every weight of the encoder is taken to multiply every patch: too much for stages on a coarser grid and for
modulators that read the inquiry once, too little for a convolutional stem.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from vilavt_toolkit.contracts import Modulator, Spent, View
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.packed.tokens import Layout


class Costs:
    """Counts the floating-point operations of one model; made when its parts are there, whatever their device."""

    def __init__(self, model: VisualChatModel) -> None:
        self._model = model
        language_model = model.language_model
        self._head = _matrices([language_model.head])
        embedded = {id(weight) for weight in language_model.head.parameters()}
        self._blocks = _matrices([language_model], besides=embedded | _tables(language_model))
        self._width = language_model.width
        self._layers = language_model.layers
        encoder = model.encoder
        self._encoder = _matrices([encoder.encoder, encoder.modulators])
        self._attending = [
            (encoder.encoder.partition(index), block.width, _together(encoder.modulators, index))
            for index, block in enumerate(encoder.encoder.spec.blocks)
            if block.heads > 0
        ]
        self._projector = _matrices([model.projector])

    def views(self, views: Sequence[View], groups: Sequence[int] | None = None) -> Spent:
        """What encoding views costs, and the features that come of it, not yet read.

        `groups` are those of the views; None: each is its own.
        """
        if not views:
            return Spent()
        sizes, encoder = [view.size for view in views], self._model.encoder.encoder
        patches = [encoder.tokens(size) for size in sizes]
        features = sum(self._model.count(size) for size in sizes)
        flops = 2.0 * self._encoder * sum(patches) + 2.0 * self._projector * features
        layout = Layout.build(sizes, patches, range(len(sizes)) if groups is None else groups, encoder.partitions)
        for partition, width, together in self._attending:
            segments = layout.partitions["group" if together else partition]
            flops += 4.0 * width * sum(length**2 for length in segments)
        return Spent(patches=sum(patches), features=features, flops=flops)

    def reading(self, tokens: int, behind: int, heads: int = 1) -> float:
        """Operations of reading so many tokens behind others, and of the logits of `heads` of them."""
        seen = behind + (tokens + 1) / 2
        attention = 4.0 * self._layers * self._width * tokens * seen
        return 2.0 * self._blocks * tokens + attention + 2.0 * self._head * heads


def _matrices(modules: Iterable[nn.Module], besides: Iterable[int] = ()) -> int:
    """Weights that multiply: those of matrices and convolutions, each once."""
    left_out = set(besides)
    weights = {id(weight): weight for module in modules for weight in module.parameters() if weight.dim() > 1}
    return sum(weight.numel() for key, weight in weights.items() if key not in left_out)


def _together(modulators: nn.ModuleDict, index: int) -> bool:
    """Whether a block attends over all regions of an inquiry group."""
    own = modulators[str(index)].modules() if str(index) in modulators else ()
    return any(modulator.span == "group" for modulator in own if isinstance(modulator, Modulator))


def _tables(module: nn.Module) -> set[int]:
    """Embedding tables: looked up, not multiplied with."""
    return {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
