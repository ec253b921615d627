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
