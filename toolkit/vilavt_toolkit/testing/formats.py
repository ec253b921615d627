"""The claims that every registered checkpoint format must meet, shown on its own example model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.formats import CheckpointFormat, foreign
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.models.meta import unfilled_parameters
from vilavt_toolkit.models.model import VisualChatModel


@contextmanager
def _write_example(name: str) -> Iterator[tuple[CheckpointFormat, VisualChatModel, Path]]:
    """Write the example model of a format into a folder: yields the format, the model and the folder."""
    # The caller's random state stays as it was: claims must not depend on which ran before.
    written_format = foreign.build_format(name)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = written_format.build_example()
        written_format.save(model, Path(folder))
        yield written_format, model, Path(folder)


def recognises_what_it_writes(name: str) -> None:
    """It recognises a folder that it wrote, which is complete and holds no file that runs code when read."""
    with _write_example(name) as (written_format, _, folder):
        found = foreign.find_foreign_checkpoint(folder)
        assert type(found.format) is type(written_format), f"{type(found.format).__name__} takes what {name} wrote"
        found.format.check_weights(folder)
        unsafe = [file.name for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl", ".py")]
        assert not unsafe, f"it wrote {unsafe}"
        assert not written_format.can_read({}) and not written_format.can_read({"model_type": "x"}), (
            "it takes any config.json"
        )


def gives_a_section_that_assembles(name: str) -> None:
    """The section `model` that it gives for a folder assembles without weights, to a model of the same shapes."""
    with _write_example(name) as (written_format, model, folder), torch.device("meta"):
        section = parse_config(ModelSection, written_format.read_section(folder), name)
        built = assemble_model(section)
        shapes = {key: value.shape for key, value in built.state_dict().items()}
        assert shapes == {key: value.shape for key, value in model.state_dict().items()}, "the shapes are others"


def keeps_every_bit(name: str) -> None:
    """Weights that are written and read again are equal in every bit and type, and no parameter is left out."""
    # In every type that checkpoints come in: a detour over float32 keeps values, but not types.
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with _write_example(name) as (written_format, model, _), tempfile.TemporaryDirectory() as folder:
            written_format.save(model.to(dtype), Path(folder))
            section = parse_config(ModelSection, written_format.read_section(Path(folder)), name)
            filled = written_format.filled_parts(section, Path(folder))
            built = assemble_model(section, filled=filled)
            written_format.load(built, Path(folder), filled, None)
            assert not unfilled_parameters(built), f"{unfilled_parameters(built)[0]} was not loaded"
            state = dict(built.named_parameters())
            for key, value in model.named_parameters():
                same = state[key].dtype == value.dtype and torch.equal(state[key], value)
                assert same, f"{key} has changed on the way"


CLAIMS = (
    recognises_what_it_writes,
    gives_a_section_that_assembles,
    keeps_every_bit,
)
