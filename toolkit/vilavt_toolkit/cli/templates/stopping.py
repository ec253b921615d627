"""The stopping policy 'my_part': the answer is demanded after a number of tool calls.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    model:
      stopping: [model_decides, {name: my_part, calls: 2}, {name: max_turns, turns: 4}]
"""

from __future__ import annotations

from dataclasses import dataclass

from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import setting, stopping_policies


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    calls: int = setting(2, help="tool calls after which the answer is demanded", minimum=0)


@stopping_policies.register("my_part", MyPartConfig)
class MyPart(StoppingPolicy):
    """Demand the answer once so many tool calls were carried out."""

    # What the loop finds out for the policy before each turn: "probe", "features" or "hidden", each at a price.
    needs = frozenset()

    def __init__(self, config: MyPartConfig, width: int) -> None:
        """Build the policy; `width` is that of the model's hidden states, for one that learns from them."""
        super().__init__()
        self.calls = config.calls

    def decide(self, state: LoopState) -> Decision:
        """Return GO_ON, or a decision with its reason, which users read beside the answer."""
        # Asked after each turn too: only before the next turn has a call been carried out.
        if not state.before_turn or state.calls < self.calls:
            return GO_ON
        return Decision("answer", f"{state.calls} tool calls were carried out, the limit is {self.calls}")

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig()
