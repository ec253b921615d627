"""Numbers of NumPy and torch are taken as Python's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.utils.scalars import plain_scalar


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), np.float32(0.5), np.bool_(True), torch.tensor(3)])
def test_a_scalar_becomes_a_number_that_json_takes(value: object) -> None:
    assert type(plain_scalar(value)) in (int, float, bool)
    assert json.loads(json.dumps(plain_scalar(value))) == value


@pytest.mark.parametrize("value", [np.zeros(1), torch.zeros(2), "a", 3, None, [np.int64(3)]], ids=str)
def test_anything_else_stays(value: object) -> None:
    assert plain_scalar(value) is value


def test_settings_take_them() -> None:
    load_builtin()
    decoding = Decoding(np.int64(9), np.float32(0.5), np.uint8(200), grammar=np.bool_(False))
    assert decoding == Decoding(9, 0.5, 200, grammar=False)
    assert {type(value) for value in vars(decoding).values()} == {int, float, bool}
    parsed = parse_config(
        TrainSection, {"steps": np.int64(3), "batch_size": np.int32(2), "gradient_clip": np.float64(1)}
    )
    assert (parsed.steps, parsed.batch_size) == (3, 2)
