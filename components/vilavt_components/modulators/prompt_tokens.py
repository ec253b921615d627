"""Modulator `prompt_tokens`: learned tokens, changed by the inquiry, are further keys and values of a block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vilavt_toolkit.contracts import BlockSpec, Context, Inquiry, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class PromptTokensConfig:
    """Settings of the `prompt_tokens` modulator."""

    count: int = setting(8, help="number of prompt tokens for every inquiry", minimum=1, maximum=4096)
    width: int = setting(64, help="channels of a prompt token before its key and value", minimum=1, maximum=65536)


@modulators.register("prompt_tokens", PromptTokensConfig)
class PromptTokens(Modulator):
    """Prompt tokens of visual prompt tuning (Jia et al., 2022, arXiv 2203.12119), made of the pooled inquiry.

    For every inquiry q and k = 1, ..., `count`: a token p_k = LN(b_k + W_k q), which attention sees as one key and one
    value. b_k is the learned prompt. As in prefix tuning (Li & Liang, 2021) prompts are no queries, and every block has
    its own. Regions do not see each other.
    """

    def __init__(self, config: PromptTokensConfig, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.count, self.heads = config.count, block.heads
        self.prompts = nn.Linear(inquiry_width, config.count * config.width)
        self.norm = nn.LayerNorm(config.width)
        self.key = nn.Linear(config.width, block.heads * block.head_dim)
        self.value = nn.Linear(config.width, block.heads * block.head_dim)
        nn.init.normal_(self.prompts.bias)

    @classmethod
    def tiny(cls) -> PromptTokensConfig:
        """Return settings of three narrow prompts."""
        return PromptTokensConfig(count=3, width=8)

    @classmethod
    def variants(cls) -> dict[str, PromptTokensConfig]:
        """Return settings of more prompts than an inquiry has words."""
        return {"many": PromptTokensConfig(count=17, width=4)}

    @classmethod
    def unsupported_reason(cls, config: PromptTokensConfig, block: BlockSpec) -> str:
        """Say that the block has no attention; empty if it has."""
        return "" if block.heads else "it adds keys and values, and the block has no attention of tokens."

    def context(self, inquiry: Inquiry) -> Context:
        """Return `count` keys and values for every inquiry; pooled [G, D] -> [G count, H, d] each."""
        groups = len(inquiry.lengths)
        prompts = self.norm(self.prompts(inquiry.pooled).view(groups * self.count, -1))
        k, v = (part(prompts).unflatten(-1, (self.heads, -1)) for part in (self.key, self.value))
        return Context(k, v, lengths=[self.count] * groups)
