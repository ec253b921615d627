"""Stopping policy `budget`: what a dialogue may cost, in patches, tokens, FLOPs or seconds."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.endings import ending
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, Spent, StoppingPolicy
from vilavt_toolkit.registry import stopping_policies
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class BudgetConfig:
    """Settings of stopping policy `budget`; what is null is not bounded."""

    patches: int | None = setting(None, help="most tokens through the encoder, first views included", minimum=0)
    tokens: int | None = setting(
        None, help="most tokens the language model reads and writes, features and probes included", minimum=0
    )
    flops: float | None = setting(None, help="most multiplications and additions", minimum=0)
    seconds: float | None = setting(None, help="longest time from the question on", minimum=0)

    def __post_init__(self) -> None:
        if not self.limits():
            raise ValueError("it bounds nothing; set at least one of patches, tokens, flops and seconds.")

    def limits(self) -> dict[str, float]:
        """What is bounded, by its name in `Spent`."""
        named = {name: getattr(self, name) for name in _FORMATS}
        return {name: limit for name, limit in named.items() if limit is not None}


_FORMATS = {"patches": "{:,d} patches", "tokens": "{:,d} tokens", "flops": "{:.4g} FLOPs", "seconds": "{:.4g} seconds"}


@stopping_policies.register("budget", BudgetConfig)
class Budget(StoppingPolicy):
    """A call that would exceed the budget is not carried out; when the budget is exceeded, the answer is demanded."""

    def __init__(self, config: BudgetConfig, width: int) -> None:
        super().__init__()
        self.limits = config.limits()

    @classmethod
    def tiny(cls) -> BudgetConfig:
        """Return a budget that a first view and one call fit into."""
        return BudgetConfig(patches=64)

    def decide(self, state: LoopState) -> Decision:
        """Hold what is spent, and after a call what it would add, to every limit."""
        called = not state.look and bool(state.turns) and state.turns[-1].call is not None
        total = state.spent + state.planned if called else state.spent
        over = next((name for name, limit in self.limits.items() if getattr(total, name) > limit), None)
        if over is None:
            return GO_ON
        return Decision(ending(state), self._why(over, state.spent, state.planned if called else None), call=False)

    def _why(self, name: str, spent: Spent, planned: Spent | None) -> str:
        limit, used = _FORMATS[name].format(self.limits[name]), _FORMATS[name].format(getattr(spent, name))
        added = getattr(planned, name) if planned is not None else 0
        call = f" and the call would add {_FORMATS[name].format(added)}" if added else ""
        return f"the budget of {limit} does not allow more: {used} are spent{call}"
