"""The model of a recipe: a dynamic encoder, a projector, a language model, and how they work together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vilavt_toolkit.config.schema import PartWithWeights
from vilavt_toolkit.contracts import Dialogue, Grid, LanguageModel, Projector, Region, Source, StoppingPolicy, View
from vilavt_toolkit.models.batch import Batch
from vilavt_toolkit.models.saved_activations import offload_activations, recompute_blocks
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

if TYPE_CHECKING:
    from vilavt_toolkit.models.adapters import Adapters


class VisualChatModel(nn.Module):
    """Holds the parts of a recipe, whose widths agree, and runs them over the trajectories of a batch."""

    def __init__(
        self,
        vision: DynamicEncoder,
        projector: Projector,
        language_model: LanguageModel,
        dialogue: Dialogue,
        source: type[Source],
        source_config: Any,
        stopping: Sequence[StoppingPolicy],
    ) -> None:
        super().__init__()
        self.vision = vision
        self.projector = projector
        self.language_model = language_model
        self.dialogue = dialogue
        self.encodes_always = False
        """True if other processes wait for this one in every encoding: then it takes part without a view too."""
        self.language_model_checkpointing = 0
        """Every n-th layer of the language model is computed again in the backward pass; none for 0."""
        self.offloads_activations = False
        """True if activations wait for the backward pass in the memory of the CPU."""
        self.stopping = nn.ModuleList(stopping)
        """Stopping policies; the first one that does not go on decides."""
        self.adapters: Adapters | None = None
        """The low-rank adapters on its layers, while it has some."""
        # A class and its config, not an instance: a source is opened for every original.
        self._source, self._source_config = source, source_config

    def parts(self) -> dict[PartWithWeights, nn.Module]:
        """Return the module of every kind of part that has weights here; without an inquiry encoder, not that kind."""
        found: dict[PartWithWeights, nn.Module | None] = {
            "encoder": self.vision.backbone,
            "modulator": self.vision.modulators,
            "inquiry_encoder": self.vision.inquiry_encoder,
            "projector": self.projector,
            "language_model": self.language_model,
            "stopping": self.stopping,
        }
        return {kind: module for kind, module in found.items() if module is not None}

    @property
    def policies(self) -> list[StoppingPolicy]:
        """The stopping policies, in their order."""
        return [policy for policy in self.stopping if isinstance(policy, StoppingPolicy)]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def open_source(self, original: Any) -> Source:
        """Open an original as this recipe's kind of source; raises InputError. A Source is returned unchanged."""
        return original if isinstance(original, Source) else self._source.open(original, self._source_config)

    def prepare(self, region: Region) -> View:
        """Cut a region out of its original and make it ready for the encoder; raises InputError."""
        return self.vision.prepare(region)

    def feature_grid(self, size: Grid) -> Grid:
        """Return the grid of the features that the language model gets for a region of grid `size`."""
        return self.projector.output_grid(self.vision.backbone.feature_grid(size))

    def feature_count(self, size: Grid) -> int:
        """Return the number of features that the language model gets for a region of grid `size`."""
        return math.prod(self.feature_grid(size))

    def tokenize_inquiry(self, text: str) -> list[int]:
        """Return the ids of an inquiry for the encoder; [] without an inquiry encoder or without text."""
        return self.vision.tokenize(text) if self.vision.inquiry_encoder is not None else []

    def encode(self, views: Sequence[View], groups: Sequence[int], inquiries: Sequence[Sequence[int]]) -> Tensor:
        """Encode R views of G groups under their inquiries in one packed call: features [F, D] in the views' order."""
        features, sizes = self.vision.encode(views, groups, inquiries)
        projected: Tensor = self.projector(features, sizes)
        return projected

    def embed(self, ids: Tensor, slots: Tensor, features: Tensor) -> Tensor:
        """Embed tokens, and put features into their slots; ids [B, L], slots [F], features [F, D] -> [B, L, D]."""
        # The language model may run in a lower precision than the projector, and its embeddings set the type.
        embedded = self.language_model.embed(ids)
        flat = embedded.reshape(-1, embedded.shape[-1])
        return flat.index_copy(0, slots, features.to(flat.dtype)).view_as(embedded)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits [B, L, V] of whole trajectories. Training uses `run_layers`, which needs no such tensor."""
        embedded, packed = self._embed_batch(batch), _packed_arguments(batch)
        logits: Tensor = self.language_model(embedded, batch.positions, batch.mask, **packed)
        return logits

    def run_layers(self, batch: Batch) -> Tensor:
        """Return the states [B, L, D] of whole trajectories that `LanguageModel.compute_logits` makes logits of.

        Their regions are encoded here, and not in the data workers, so that all parts get gradients.
        """
        language_model, packed = self.language_model, _packed_arguments(batch)
        recomputing = recompute_blocks(language_model.blocks, self.language_model_checkpointing)
        with offload_activations(self, self.offloads_activations), recomputing:
            return language_model.run_layers(self._embed_batch(batch), batch.positions, batch.mask, **packed)

    def _embed_batch(self, batch: Batch) -> Tensor:
        # A batch may have no image at all, as in the arm `blind`.
        if batch.views:
            features = self.encode(batch.views, batch.groups, batch.inquiries)
            return self.embed(batch.ids, batch.slots, features)
        embedded = self.language_model.embed(batch.ids)
        if self.encodes_always:
            features, _ = self.vision.encode((), (), ())
            # The sum of no features: zero, and a way for gradients into the encoder.
            embedded = embedded + features.sum().to(embedded.dtype)
        return embedded


def _packed_arguments(batch: Batch) -> dict[str, Any]:
    # Language models of other people need not know of rows of several dialogues, or of what these share.
    return {name: value for name in ("documents", "stems") if (value := getattr(batch, name))}
