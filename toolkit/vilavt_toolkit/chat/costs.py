"""What encoding, reading and writing cost: matrix weights twice per token, and attention over what is seen.

A count, not a measurement: norms, activations, rotations and embeddings are left out. (Kaplan et al., arXiv 2001.08361,
table 1.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from vilavt_toolkit.contracts import Spent, View
from vilavt_toolkit.model import VisualChatModel


class Costs:
    """Counts the floating-point operations of one model; made when its parts are there, whatever their device."""

    def __init__(self, model: VisualChatModel) -> None:
        self._model = model
        language_model = model.language_model
        self._head = _matrices([language_model.head])
        embedded = {id(weight) for weight in language_model.head.parameters()}
        self._blocks = _matrices([language_model], besides=embedded | _tables(language_model))
        self._width = language_model.width
        stacks = (child for child in language_model.modules() if isinstance(child, nn.ModuleList))
        self._layers = max((len(stack) for stack in stacks), default=0)
        encoder = model.encoder
        self._encoder = _matrices([encoder.encoder, encoder.modulators])
        self._encoder_blocks = [(block.width, block.heads > 0) for block in encoder.encoder.spec.blocks]
        self._projector = _matrices([model.projector])

    def views(self, views: Sequence[View]) -> Spent:
        """What encoding views costs, and the features that come of it, not yet read."""
        patches = [self._model.encoder.encoder.tokens(view.size) for view in views]
        features = sum(self._model.count(view.size) for view in views)
        flops = 2.0 * self._encoder * sum(patches) + 2.0 * self._projector * features
        attention = sum(4 * width for width, attends in self._encoder_blocks if attends)
        flops += attention * sum(count**2 for count in patches)
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


def _tables(module: nn.Module) -> set[int]:
    """Embedding tables: looked up, not multiplied with."""
    return {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
