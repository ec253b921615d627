"""Tensors in several files: every one in one of them, files of one size, read as from one, told by name if damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import vilavt_toolkit as vt
from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.checkpoints.tensor_files import deal_tensors, list_tensor_files, write_index
from vilavt_toolkit.checkpoints.training_state import load_training_state
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.training.supervised.run import run_supervised

SIZES = st.dictionaries(st.text("abc.", min_size=1), st.integers(0, 10_000), max_size=30)


@given(SIZES, st.integers(1, 9), st.integers(100, 20_000))
def test_every_tensor_is_in_one_file_and_files_differ_by_one_tensor_at_most(sizes, count, largest):
    files = deal_tensors("model", sizes, count, largest)
    assert sorted(name for file in files for name in file.tensors) == sorted(sizes)
    assert len({file.name for file in files}) == len(files) == min(len(sizes), len(files))
    # As many as can be written at once, in full turns.
    assert len(files) == len(sizes) or len(files) % count == 0
    totals = [sum(max(1, sizes[name]) for name in file.tensors) for file in files]
    if totals:
        assert max(totals) - min(totals) <= max(1, *sizes.values())
    shuffled = dict(sorted(sizes.items(), key=lambda item: hash(item)))
    assert deal_tensors("model", shuffled, count, largest) == files


def split(folder: Path, stem: str, count: int) -> None:
    """Put the tensors of a checkpoint's file into several, as sharded runs do."""
    whole = folder / f"{stem}.safetensors"
    tensors = load_file(whole)
    sizes = {name: value.numel() * value.element_size() for name, value in tensors.items()}
    files = deal_tensors(stem, sizes, count)
    for file in files:
        save_file({name: tensors[name].clone() for name in file.tensors}, folder / file.name)
    write_index(folder, stem, files, sizes)
    whole.unlink()


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    """A copy of the trained run, the newest checkpoint's tensors in three files."""
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for stem in ("model", "resume"):
        split(find_checkpoint(copy), stem, 3)
    return copy


def test_a_model_in_several_files_is_that_of_one_and_is_exported_as_it(run, tiny_run, tmp_path):
    expected, found = vt.load(tiny_run).state_dict(), vt.load(run).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    half = vt.load(run, dtype="bfloat16").state_dict()
    assert all(torch.equal(half[name], expected[name].to(half[name].dtype)) for name in expected)
    folder = vt.export(run, tmp_path / "out", "native")
    exported = vt.load(folder).state_dict()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_a_training_state_in_several_files_goes_on_as_that_of_one(run, tiny_run, _tiny_folder, tmp_path):
    found, expected = (load_training_state(find_checkpoint(each)) for each in (run, tiny_run))
    assert found.tensors.keys() == expected.tensors.keys()
    ends = []
    for source, name in ((run, "several"), (tiny_run, "one")):
        copy = shutil.copytree(source, tmp_path / name)
        settings = [f"run={copy}", "train.steps=5", "train.log_every=1"]
        ends.append(vt.load(run_supervised(load_recipe(_tiny_folder / "tiny.yaml", settings), resume=True)))
    first, second = (end.state_dict() for end in ends)
    assert all(torch.equal(first[name], second[name]) for name in second)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def swap(file: Path) -> None:
    save_file({"strange": torch.ones(2)}, file)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (Path.unlink, "model-00002-of-00003.safetensors is missing"),
        (cut, "model-00002-of-00003.safetensors does not fit its recipe or is damaged"),
        (swap, "model.safetensors.index.json does not fit its recipe"),
    ],
)
def test_a_damaged_file_of_several_is_named(run, damage, told):
    damage(find_checkpoint(run) / "model-00002-of-00003.safetensors")
    with pytest.raises(RunError, match=r"Use another checkpoint|name another checkpoint") as error:
        vt.load(run)
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}'])
def test_a_damaged_index_is_told_and_leads_nowhere_else(run, text):
    for stem in ("model", "resume"):
        (find_checkpoint(run) / f"{stem}.safetensors.index.json").write_text(text)
        with pytest.raises(RunError, match=f"{stem}.safetensors.index.json is no index of tensors"):
            list_tensor_files(find_checkpoint(run), stem)
    with pytest.raises(RunError, match="is no index"):
        vt.load(run)
    with pytest.raises(RunError, match="is no index"):
        load_training_state(find_checkpoint(run))
