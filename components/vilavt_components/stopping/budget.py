"""Stopping policy `budget`: a limit on a dialogue's patches, tokens, FLOPs or seconds."""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_components.stopping.endings import choose_ending
from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy, Usage
from vilavt_toolkit.registry import stopping_policies
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class BudgetConfig:
    """Settings of stopping policy `budget`; null means no limit."""

    patches: int | None = setting(
        None, help="largest number of tokens through the encoder, overviews included", minimum=0
    )
    tokens: int | None = setting(
        None,
        help="largest number of tokens that the language model reads and writes, with features and probes",
        minimum=0,
    )
    flops: float | None = setting(None, help="largest number of multiplications and additions", minimum=0)
    seconds: float | None = setting(None, help="longest time since the question, in seconds", minimum=0)

    def __post_init__(self) -> None:
        if not self.given_limits():
            raise ValueError("no limit is set. Set at least one of patches, tokens, flops and seconds.")

    def given_limits(self) -> dict[str, float]:
        """Return the limits that are set, by the name of their amount in `Usage`."""
        named = {name: getattr(self, name) for name in _FORMATS}
        return {name: limit for name, limit in named.items() if limit is not None}


_FORMATS = {"patches": "{:,d} patches", "tokens": "{:,d} tokens", "flops": "{:.4g} FLOPs", "seconds": "{:.4g} seconds"}


@stopping_policies.register("budget", BudgetConfig)
class Budget(StoppingPolicy):
    """Demands the answer once a limit is exceeded; does not carry out a call that would exceed one."""

    def __init__(self, config: BudgetConfig, width: int) -> None:
        super().__init__()
        self.limits = config.given_limits()

    @classmethod
    def tiny(cls) -> BudgetConfig:
        """Return a budget that fits an overview and one call."""
        return BudgetConfig(patches=64)

    def decide(self, state: LoopState) -> Decision:
        """Compare the usage so far, plus that of a call that waits, with every limit."""
        # `planned` counts only after a turn. Before the next turn the call has been carried out, and is in `spent`.
        called = not state.before_turn and bool(state.turns) and state.turns[-1].call is not None
        total = state.spent + state.planned if called else state.spent
        # Strictly above: a budget that is used up exactly is not exceeded.
        over = next((name for name, limit in self.limits.items() if getattr(total, name) > limit), None)
        if over is None:
            return GO_ON
        return Decision(
            choose_ending(state),
            self._explain_excess(over, state.spent, state.planned if called else None),
            carry_out_call=False,
        )

    def _explain_excess(self, name: str, spent: Usage, planned: Usage | None) -> str:
        limit, used = _FORMATS[name].format(self.limits[name]), _FORMATS[name].format(getattr(spent, name))
        added = getattr(planned, name) if planned is not None else 0
        call = f" and the call would add {_FORMATS[name].format(added)}" if added else ""
        return f"the budget of {limit} does not allow more: {used} are spent{call}"
