"""The training state that a checkpoint keeps beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vilavt_toolkit.checkpoints.tensor_files import choose_shown_file, list_tensor_files
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.utils.files import read_json
from vilavt_toolkit.utils.text import shorten_list

STATE = "resume"
"""Name of the files of the training state: STATE.json, and one or several of tensors."""

TENSORS_KEY = "tensors"
"""Key of the plain data with the type and shape of every tensor, by which damages are told before training starts."""


@dataclass(frozen=True)
class TrainingState:
    """Everything beyond the weights that resuming needs: tensors by name, and plain data for JSON."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]


def describe_tensors(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Return type and shape of every tensor by name, as plain data."""
    return {name: [str(value.dtype).removeprefix("torch."), *value.shape] for name, value in tensors.items()}


def load_training_state(folder: Path) -> TrainingState:
    """Read the training state that `save_checkpoint` was given; raises RunError."""
    files, data = list_tensor_files(folder, STATE), folder / f"{STATE}.json"
    if not files[0].is_file() or not data.is_file():
        raise RunError(
            f"{folder} cannot be resumed, because it holds weights but no training state. Start a new run from it with "
            "train.init_from."
        )
    try:
        held = {name: value for file in files for name, value in load_file(str(file)).items()}
        facts = read_json(data)
        if not isinstance(facts, dict):
            raise ValueError(f"{data.name} holds no mapping")
        found, written = describe_tensors(held), facts.get(TENSORS_KEY, None)
        # Earlier checkpoints do not say.
        if written is not None and found != written:
            wrong = [name for name in found if not isinstance(written, dict) or found[name] != written.get(name)]
            what = shorten_list(wrong) or "some tensors are gone"
            raise ValueError(f"{choose_shown_file(files, STATE).name} does not hold what was written: {what}")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{folder}: its training state cannot be read ({reason}). Use another checkpoint.") from error
    # Those of optimizer and weights, as large as the model, are copied when they are put back. The others live longer.
    held |= {name: value.clone() for name, value in held.items() if not name.startswith(("optimizer.", "ema."))}
    return TrainingState(held, facts)
