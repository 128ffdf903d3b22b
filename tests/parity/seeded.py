"""Seeded weights for parity fixtures: every array is a pure function of (seed, name, shape).

Torch layout (conv OIHW, linear OI).  numpy only.
"""

import zlib
import numpy as np


def rng_for(seed, name):
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def weight(seed, name, shape, gains=()):
    """float32 array of `shape` for parameter `name`.

    gains: (prefix, gain) pairs, the first prefix that `name` starts with wins (default 1).
    """
    rng = rng_for(seed, name)
    leaf = name.rsplit(".", 1)[-1]
    gain = next((g for p, g in gains if name.startswith(p)), 1.0)
    shape = tuple(int(s) for s in shape)
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    if leaf == "running_mean":
        return rng.normal(0.0, 0.1, shape).astype(np.float32)
    if len(shape) == 1:
        if leaf == "weight":  # a norm layer's scale
            return (gain * rng.uniform(0.9, 1.1, shape)).astype(np.float32)
        return (gain * rng.normal(0.0, 0.1, shape)).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return (gain * rng.normal(0.0, 1.0, shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)


def image(seed, height, width):
    """uint8 RGB [height, width, 3]: blocks of random colour with noise on top."""
    rng = rng_for(seed, "image")
    out = np.zeros((height, width, 3), np.float64)
    for cell in (64, 32, 16):
        grid = rng.uniform(0, 255, (-(-height // cell), -(-width // cell), 3))
        out += np.kron(grid, np.ones((cell, cell, 1)))[:height, :width] / 3
    out += rng.normal(0, 8, out.shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
