"""Floating-point operations of encoding, reading and writing.

Every weight of a matrix counts twice per token (a multiplication and an addition). Attention counts four operations
per token it attends to and unit of width: two for queries with keys, two for weights with values. Norms, activations,
RoPE and embeddings are left out (Kaplan et al., arXiv 2001.08361, table 1). The count is analytical, so it is the same
on every machine and budgets are reproducible.

Every weight of the encoder is taken to multiply every patch. That is too much for stages on a coarser grid, position
tables, and modulators that read the inquiry once, and too little for a convolutional stem.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from vilavt_toolkit.contracts import Modulator, Usage, View
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.packed.tokens import Layout


class CostCounter:
    """Counts the operations of one model, from the shapes of its weights. They may be on any device, also on meta."""

    def __init__(self, model: VisualChatModel) -> None:
        self._model = model
        language_model = model.language_model
        self._head = _count_matrix_weights([language_model.head])
        # With tied embeddings the head is also the embedding table. Either way it is counted only where logits are.
        head_weights = {id(weight) for weight in language_model.head.parameters()}
        self._blocks = _count_matrix_weights([language_model], skip=head_weights | _embedding_tables(language_model))
        self._width = language_model.width
        self._layers = language_model.layers
        encoder = model.vision
        self._encoder_weights = _count_matrix_weights([encoder.backbone, encoder.modulators])
        self._attention = [
            (encoder.backbone.block_partition(index), block.width, _attends_over_group(encoder.modulators, index))
            for index, block in enumerate(encoder.backbone.spec.blocks)
            if block.heads > 0
        ]
        self._projector_weights = _count_matrix_weights([model.projector])

    def encoding_cost(self, views: Sequence[View], groups: Sequence[int] | None = None) -> Usage:
        """Return the cost of encoding views, and how many features they give. Reading these is not included.

        `groups` holds the inquiry group of each view; None: each view is its own group.
        """
        if not views:
            return Usage()
        sizes, encoder = [view.size for view in views], self._model.vision.backbone
        patches = [encoder.token_count(size) for size in sizes]
        features = sum(self._model.feature_count(size) for size in sizes)
        flops = 2.0 * self._encoder_weights * sum(patches) + 2.0 * self._projector_weights * features
        return Usage(
            patches=sum(patches), features=features, flops=flops + self.encoding_attention_flops(views, groups)
        )

    def encoding_attention_flops(self, views: Sequence[View], groups: Sequence[int] | None = None) -> float:
        """Return the part of `encoding_cost` that is attention, which has no weights."""
        sizes, encoder = [view.size for view in views], self._model.vision.backbone
        if not sizes:
            return 0.0
        patches = [encoder.token_count(size) for size in sizes]
        # The layout of the real forward gives the segments, so windows and inquiry groups are counted as they run.
        layout = Layout.build(sizes, patches, range(len(sizes)) if groups is None else groups, encoder.partitions)
        flops = 0.0
        for partition, width, attends_over_group in self._attention:
            segments = layout.partitions["group" if attends_over_group else partition]
            flops += 4.0 * width * sum(length**2 for length in segments)
        return flops

    def reading_flops(self, tokens: int, prefix: int, logit_count: int = 1) -> float:
        """Return the operations of reading `tokens` after a prefix, and of the logits at `logit_count` of them."""
        attention = self.reading_attention_flops(tokens, prefix)
        return 2.0 * self._blocks * tokens + attention + 2.0 * self._head * logit_count

    def reading_attention_flops(self, tokens: int, prefix: int) -> float:
        """Return the part of `reading_flops` that is attention, which has no weights."""
        # Causal attention: token i of them sees the prefix and i tokens, itself included. This is the mean over i.
        seen = prefix + (tokens + 1) / 2
        return 4.0 * self._layers * self._width * tokens * seen


def _count_matrix_weights(modules: Iterable[nn.Module], skip: Iterable[int] = ()) -> int:
    """Return the number of weights in matrices and convolutions, without parameters whose id is in `skip`."""
    skipped = set(skip)
    # By id, since tied weights appear under several modules.
    weights = {id(weight): weight for module in modules for weight in module.parameters() if weight.dim() > 1}
    return sum(weight.numel() for key, weight in weights.items() if key not in skipped)


def _attends_over_group(modulators: nn.ModuleDict, index: int) -> bool:
    """Return True if a block attends over all regions of an inquiry group."""
    own = modulators[str(index)].modules() if str(index) in modulators else ()
    return any(modulator.span == "group" for modulator in own if isinstance(modulator, Modulator))


def _embedding_tables(module: nn.Module) -> set[int]:
    """Return the ids of embedding tables. They are looked up, not multiplied."""
    return {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
