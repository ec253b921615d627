"""Messages: whatever a batch holds comes back the same, and takes no descriptor."""

from __future__ import annotations

import gc
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from vilavt_toolkit.contracts import View
from vilavt_toolkit.training.supervised.messages import receive_message, send_message


def carried(value):
    """What comes out of a socket that a value went into."""
    near, far = socket.socketpair()
    with near, far:
        sender = threading.Thread(target=send_message, args=(near, value))
        sender.start()
        received = receive_message(far)
        sender.join()
    return received


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 5), (2, 3, 4)])
def test_a_tensor_comes_back_the_same_and_can_be_written(dtype, shape):
    value = torch.arange(24).remainder(7)[: int(np.prod(shape))].reshape(shape).to(dtype)
    for given in (value, value.T if value.dim() == 2 else value):
        received = carried(given)
        assert received.dtype == dtype and torch.equal(received, given)
        received.zero_()


def test_a_value_of_many_parts_comes_back_and_opens_no_file():
    views = [View(torch.rand(number, 3), (number, 1)) for number in range(200)]
    value = {"views": views, "same": views, "array": np.arange(5)[::2], "text": "a" * 100_000, "none": None}
    gc.collect()  # files that earlier tests left to it must not end meanwhile
    files = len(list(Path("/proc/self/fd").iterdir()))
    received = carried(value)
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert received["views"] is received["same"] and received["text"] == value["text"]
    assert received["array"].tolist() == [0, 2, 4]
    assert all(torch.equal(a.data, b.data) and a.size == b.size for a, b in zip(views, received["views"], strict=True))


def test_a_writer_that_ends_within_a_message_ends_the_reading():
    near, far = socket.socketpair()
    with far:
        near.sendall(b"\x10\0\0\0\0\0\0\0abc")
        near.close()
        with pytest.raises(EOFError):
            receive_message(far)
