"""Data URIs: files written into a row as base64, `data:image/png;base64,iVBOR...`."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from vilavt_toolkit.data.fields import BadRow
from vilavt_toolkit.utils.text import format_value

MOST_EMBEDDED_BYTES = 1 << 26
"""Bytes of a file in a row: 64 MiB. A larger one belongs beside the data file."""


def is_data_uri(text: str) -> bool:
    """Return True if a text is a data URI, whatever it holds."""
    return text[:5].lower() == "data:"


def decode_data_uri(text: str) -> bytes:
    """Return the bytes of an image's data URI; raises BadRow."""
    head, comma, data = text.partition(",")
    kind, *settings = head[5:].lower().split(";")
    if not comma:
        raise BadRow(f"is {format_value(text)}, a data URI without a comma before its data. Write it again.")
    if kind and not kind.startswith(("image/", "application/octet-stream")):
        raise BadRow(f"is a data URI of {format_value(kind)}. Only images may stand in a row: give a path.")
    # Base64 has four letters for three bytes, and every other way of writing at least one for each.
    if len(data) > MOST_EMBEDDED_BYTES * 4 // 3 + 4:
        raise BadRow(f"is a data URI of {len(data):,} characters. Put so large an image into a file of its own.")
    try:
        content = _decode_base64(data) if "base64" in settings else unquote_to_bytes(data)
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"is a data URI whose base64 cannot be read ({error}). Write it again.") from None
    if not content:
        raise BadRow("is a data URI without any data. Write it again.")
    return content


def _decode_base64(data: str) -> bytes:
    """Decode base64 with or without line breaks, padding, and the two letters that web addresses need."""
    plain = "".join(data.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
