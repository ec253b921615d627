"""The keys of a training stage that say how single weights learn."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Learning rate and weight decay of the weights that a part's name or a pattern chooses."""

    lr: float | None = setting(None, help="peak learning rate (null: the optimizer's)", minimum=0)
    weight_decay: float | None = setting(
        None, help="weight decay, also here without norms and biases (null: the optimizer's)", minimum=0
    )

    def __post_init__(self) -> None:
        if self.lr is None and self.weight_decay is None:
            raise ValueError("it sets nothing. Write lr or weight_decay.")


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """Low-rank adapters in place of the full training of some parts."""

    rank: int = setting(16, help="rank of every adapter", minimum=1)
    alpha: float | None = setting(
        None, help="scale of the adapters, which is divided by the rank (null: twice the rank)", minimum=0
    )
    dropout: float = setting(0.0, help="share of an adapter's inputs that are dropped", minimum=0, maximum=1)
    targets: list[str] = setting(
        help="linear layers that get an adapter: parts, or patterns of names; all other weights of their parts are "
        "frozen",
        factory=lambda: ["language_model"],
    )
    rslora: bool = setting(False, help="divide alpha by the root of the rank, which suits large ranks")

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets is empty. Name at least one part or pattern.")
        if self.dropout == 1:
            raise ValueError("dropout 1 would drop everything. Write a smaller share.")
