"""What every registered checkpoint format must do, shown on a small model of its own parts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.formats import CheckpointFormat, foreign
from vilavt_toolkit.models.assemble import assemble
from vilavt_toolkit.models.meta import without_weights
from vilavt_toolkit.models.model import VisualChatModel


@contextmanager
def _written(name: str) -> Iterator[tuple[CheckpointFormat, VisualChatModel, Path]]:
    """A format, its example model with weights of its own, and the folder that it was written into."""
    made = foreign.make(name)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = made.example()
        made.save(model, Path(folder))
        yield made, model, Path(folder)


def format_recognises_what_it_writes(name: str) -> None:
    """A folder that it wrote is its own by config.json, is whole, and holds nothing that runs when it is read."""
    with _written(name) as (made, _, folder):
        found = foreign.find(folder)
        assert type(found.format) is type(made), f"{type(found.format).__name__} takes what {name} wrote"
        found.format.check(folder)
        unsafe = [file.name for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl", ".py")]
        assert not unsafe, f"it wrote {unsafe}"
        assert not made.recognises({}) and not made.recognises({"model_type": "x"}), "it takes any config.json"


def format_spells_out_a_section_that_assembles(name: str) -> None:
    """What it says of a folder assembles without a weight, to a model of the same shapes."""
    with _written(name) as (made, model, folder), torch.device("meta"):
        section = parse_config(ModelSection, made.section(folder), name)
        built = assemble(section)
        shapes = {key: value.shape for key, value in built.state_dict().items()}
        assert shapes == {key: value.shape for key, value in model.state_dict().items()}, "the shapes are others"


def format_keeps_every_bit(name: str) -> None:
    """Weights written and read again are the same, bit by bit and type by type, and no parameter is left out."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with _written(name) as (made, model, _), tempfile.TemporaryDirectory() as folder:
            made.save(model.to(dtype), Path(folder))
            section = parse_config(ModelSection, made.section(Path(folder)), name)
            filled = made.filled(section, Path(folder))
            built = assemble(section, filled=filled)
            made.load(built, Path(folder), filled, None)
            assert not without_weights(built), f"{without_weights(built)[0]} was not loaded"
            state = dict(built.named_parameters())
            for key, value in model.named_parameters():
                same = state[key].dtype == value.dtype and torch.equal(state[key], value)
                assert same, f"{key} has changed on the way"


CLAIMS = (
    format_recognises_what_it_writes,
    format_spells_out_a_section_that_assembles,
    format_keeps_every_bit,
)
