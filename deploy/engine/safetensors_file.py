"""The safetensors file format, writing only: enough to hand a model to an engine without installing a library.

A file is eight bytes of header length (little endian), a JSON header that gives each tensor's dtype, shape and byte
range, and then the bytes of all tensors one after the other. It knows nothing of models.
Source: the format's own description in the safetensors project's README.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

F32_BYTES = 4
HEADER_ALIGNMENT = 8
"""The header is padded with spaces so that the tensors start at a multiple of this, which readers that map expect."""

Shape = tuple[int, ...]


def write_f32(path: Path, tensors: Mapping[str, tuple[Shape, Callable[[], bytes]]]) -> None:
    """Write float32 tensors to `path`, in the mapping's order.

    Each tensor is its shape and a function that returns its bytes (row-major, little endian); one is in memory at a
    time. Raises ValueError where a function returns another number of bytes than its shape asks for.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, _) in tensors.items():
        end = offset + math.prod(shape) * F32_BYTES
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, data) in tensors.items():
            content = data()
            if len(content) != math.prod(shape) * F32_BYTES:
                raise ValueError(f"tensor {name!r} of shape {shape} has {len(content)} bytes")
            file.write(content)
