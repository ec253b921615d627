"""Arms that a model was never trained for, so that their accuracy says nothing about it."""

from __future__ import annotations

from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.contracts import Sample, Task
from vilavt_toolkit.errors import VilavtError

_SAMPLES = 300
"""Training samples that are looked at, spread over the split."""


def find_untaught_arms(recipe: CheckedRecipe) -> tuple[str, ...]:
    """Return the arms `single_pass` and `blind` as far as no training sample of a recipe's task is like them.

    A model that has never answered without the tool, or without an image, need not do so well, whatever a zoom is
    worth. Returns nothing if the training data is not there any more.
    """
    try:
        task: Task = recipe.recipe.task.build()
        size = task.length("train")
        found = {"single_pass": True, "blind": True}
        for index in range(0, size, max(1, size // _SAMPLES)):
            sample = task.sample("train", index)
            direct = _answers_at_once(sample)
            found["single_pass"] &= not direct
            found["blind"] &= not (direct and not sample.originals)
            if not any(found.values()):
                break
    except VilavtError:
        # The data need not lie where the model is evaluated. Then nothing is known, and nothing is said.
        return ()
    return tuple(arm for arm, untaught in found.items() if untaught)


def _answers_at_once(sample: Sample) -> bool:
    """Return True if a training sample answers without a look because none is offered, or the answer is demanded."""
    if sample.conversation is not None and not any(sample.conversation.inquiries):
        return True
    return not sample.tool or bool(sample.trace and sample.trace[0].demanded)
