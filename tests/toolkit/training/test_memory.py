"""Settings of memory that a model cannot keep are refused."""

from __future__ import annotations

import pytest

from vilavt_toolkit.config.schema import Part, TrainSection
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.training.memory import check_memory_settings


def test_layers_that_a_language_model_does_not_name_are_refused(tiny_model, monkeypatch):
    plain = TrainSection(steps=1, batch_size=1, optimizer=Part("adamw", None, None))
    section = TrainSection(steps=1, batch_size=1, optimizer=Part("adamw", None, None), language_model_checkpointing=2)
    check_memory_settings(tiny_model, section)
    monkeypatch.setattr(type(tiny_model.language_model), "blocks", ())
    check_memory_settings(tiny_model, plain)
    with pytest.raises(BadConfig, match=r"HFCausal names no layers .*language_model_checkpointing=false"):
        check_memory_settings(tiny_model, section)
