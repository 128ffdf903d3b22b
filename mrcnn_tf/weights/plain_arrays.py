"""Arrays of numbers that numpy knows by itself."""

from __future__ import annotations

import numpy as np

from mrcnn_tf.weights.checkpoint_errors import CheckpointError

NUMBER_KINDS = "biuf"
"""numpy's letters for bool, signed, unsigned, floating."""


def plain_array(array: np.ndarray, where: str) -> np.ndarray:
    """The array in a type of numpy's own and in this machine's byte order; copied only if it was not.

    Args:
        array: of any shape; bfloat16 becomes float32, exactly.
        where: file and name, for the message.

    Returns:
        Bools, integers or floats of the same shape.

    Raises:
        CheckpointError: it holds something else.
    """
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype.kind not in NUMBER_KINDS:
        raise CheckpointError(f"{where}: expected bools, integers or floats, got {array.dtype.name}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
