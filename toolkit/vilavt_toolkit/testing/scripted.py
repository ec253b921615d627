"""A generation loop that writes given tokens; its KV cache and encoding are the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from vilavt_toolkit.generation.loop import Loop
from vilavt_toolkit.generation.reader import InquiryRewrite
from vilavt_toolkit.generation.request import Request
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.models.model import VisualChatModel


class Scripted(Loop):
    """The loop with the first tokens of each dialogue taken from `script(number)` instead of sampled."""

    def __init__(
        self,
        model: VisualChatModel,
        decoding: Decoding,
        script: Callable[[int], Sequence[int]],
        rewrite: InquiryRewrite | None = None,
    ) -> None:
        super().__init__(model, decoding, rewrite)
        self._script = script
        self._left: dict[Request, list[int]] = {}

    def _sample(self, requests: list[Request], logits: Tensor) -> tuple[list[int], list[float]]:
        tokens, logprobs = super()._sample(requests, logits)
        # Log-probabilities as sampling would have given them, so that reinforcement can learn from scripted rollouts.
        full = (logits.float() / (self.decoding.temperature or 1.0)).log_softmax(-1)
        for index, request in enumerate(requests):
            left = self._left.setdefault(request, list(self._script(request.number)))
            if left:
                tokens[index] = left.pop(0)
                logprobs[index] = full[index, tokens[index]].item()
        return tokens, logprobs
