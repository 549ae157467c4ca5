"""The tensors of a safetensors file as float32 arrays, by name and checked shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from pgembed.errors import ModelFileError

Array = npt.NDArray[np.float32]
_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]]
_deserialize = safetensors.deserialize
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Weights:
    """Raises ModelFileError for bytes that are not safetensors."""

    def __init__(self, data: bytes, prefix: str) -> None:
        try:
            tensors = dict(_deserialize(data))
        except safetensors.SafetensorError as error:
            raise ModelFileError(
                f"the weights are not a safetensors file ({error}): get them again"
            ) from None
        self._tensors = {_plain(name, prefix): value for name, value in tensors.items()}

    def get(self, name: str, *shape: int) -> Array:
        """Return a tensor; a size of -1 may be anything but 0.

        Raises ModelFileError when it is missing or has another shape or type.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFileError(
                f"the weights have no tensor {name!r}, as config.json "
                f"says they should: get the model's files again"
            )
        if len(tensor["shape"]) != len(shape) or any(
            size < 1 or wanted not in (-1, size)
            for wanted, size in zip(shape, tensor["shape"], strict=True)
        ):
            raise ModelFileError(
                f"tensor {name!r} has the shape {tensor['shape']}, but config.json "
                f"says {list(shape)}: get the model's files again"
            )
        return _array(name, tensor)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors


def _plain(name: str, prefix: str) -> str:
    name = name.removeprefix(prefix)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(f"LayerNorm{old}"):
            return name.removesuffix(old) + new
    return name


def _array(name: str, tensor: dict[str, Any]) -> Array:
    dtype = _DTYPES.get(tensor["dtype"])
    if dtype is None:
        raise ModelFileError(
            f"tensor {name!r} is of type {tensor['dtype']}, but must be one of "
            f"{', '.join(_DTYPES)}: use weights that are not quantized"
        )
    values = np.frombuffer(tensor["data"], dtype=dtype).reshape(tensor["shape"])
    if tensor["dtype"] == "BF16":
        # bfloat16 is the upper half of a float32.
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
