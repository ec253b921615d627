"""Values with many arrays through a socket, without a file or a copy for each.

Values are pickled. A socket joins this process with a worker that it has forked, and nobody else can write into it, so
nothing is read here that the program did not make itself. No file is ever unpickled.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 64
"""Bytes at whose multiples arrays begin, as their own allocator would place them."""


class _MessagePickler(pickle.Pickler):
    """Pickles tensors as arrays. Torch would open a shared-memory file for each, of which a process may have few."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        # Bytes, because numpy lacks some of torch's types.
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return _rebuild_tensor, (flat, value.dtype, tuple(value.shape))


def _rebuild_tensor(flat: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    # `view` refuses to change the type of nothing.
    return torch.from_numpy(flat).view(dtype).reshape(shape) if flat.size else torch.empty(shape, dtype=dtype)


def send_message(connection: socket.socket, value: Any) -> None:
    """Write a value whole; arrays and tensors go from their own memory into the socket."""
    arrays: list[pickle.PickleBuffer] = []
    rest = io.BytesIO()
    _MessagePickler(rest, protocol=5, buffer_callback=arrays.append).dump(value)
    parts = [rest.getbuffer(), *(array.raw() for array in arrays)]
    connection.sendall(b"".join(map(_LENGTH.pack, [len(parts), *(part.nbytes for part in parts)])))
    for part in parts:
        connection.sendall(part)


def receive_message(connection: socket.socket, pins: bool = False) -> Any:
    """Read a value that `send_message` wrote; its arrays share one buffer. Raises EOFError if the writer has ended.

    With `pins` the buffer is in pinned memory, from which a GPU copies while this process goes on. The value must be
    held until the device has been waited for: torch does not know of copies out of the middle of a buffer.
    """
    (count,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    lengths = [length for (length,) in _LENGTH.iter_unpack(_read(connection, count * _LENGTH.size))]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + -(-length // _ALIGNMENT) * _ALIGNMENT)
    whole = _make_buffer(starts[-1], pins)
    parts = [whole[start : start + length] for start, length in zip(starts, lengths, strict=False)]
    for part in parts:
        _fill(connection, part)
    return pickle.loads(parts[0], buffers=parts[1:])


def _read(connection: socket.socket, size: int) -> memoryview:
    part = _make_buffer(size)
    _fill(connection, part)
    return part


def _make_buffer(size: int, pins: bool = False) -> memoryview:
    # Torch keeps pinned memory for the next buffer, since to pin some takes milliseconds.
    if pins:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().data
    # Unlike a bytearray it is not set to zero first.
    return np.empty(size, dtype=np.uint8).data


def _fill(connection: socket.socket, part: memoryview) -> None:
    while part.nbytes:
        count = connection.recv_into(part)
        if not count:
            raise EOFError
        part = part[count:]
