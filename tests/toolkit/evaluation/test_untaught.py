"""Arms that no training sample is like."""

from __future__ import annotations

import shutil

import pytest

from vilavt_components.tasks.files.tiny_files import tiny_questions
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.evaluation.untaught import find_untaught_arms


@pytest.mark.parametrize(
    ("task", "arms"),
    [
        ("{name: digit_scenes}", ()),
        ("{name: easy_vqa, root: nowhere}", ()),
        ("{name: conversations, files: F/train.jsonl}", ()),
        ("{name: vilavt_rl, files: F/rl.jsonl}", ("single_pass", "blind")),
    ],
)
def test_an_arm_is_taught_by_samples_that_answer_as_it_asks(task, arms, tmp_path):
    from vilavt_components.tasks.files.tiny_files import tiny_conversations

    for folder in (tiny_questions(), tiny_conversations()):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    recipe = load_recipe("quickstart", [f"task={task.replace('F', str(tmp_path))}"])
    assert find_untaught_arms(recipe) == arms
