import numpy as np
from tests.parity.seeded import rng_for


def targets(seed, h, w, n, classes):
    """Boxes xyxy float32 [n,4], labels in [1, classes), elliptic masks uint8 [n,h,w]."""
    rng = rng_for(seed, "targets")
    y0 = rng.uniform(0, h * 0.6, n)
    x0 = rng.uniform(0, w * 0.6, n)
    bh = rng.uniform(h * 0.1, h * 0.39, n)
    bw = rng.uniform(w * 0.1, w * 0.39, n)
    boxes = np.stack([x0, y0, x0 + bw, y0 + bh], 1).astype(np.float32)
    labels = rng.integers(1, classes, n)
    yy, xx = np.mgrid[:h, :w] + 0.5
    masks = [
        ((xx - (b[0] + b[2]) / 2) / ((b[2] - b[0]) / 2)) ** 2 + ((yy - (b[1] + b[3]) / 2) / ((b[3] - b[1]) / 2)) ** 2 <= 1
        for b in boxes
    ]
    return boxes, labels, np.stack(masks).astype(np.uint8)
