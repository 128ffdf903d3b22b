"""How often a picture is seen, so that rare classes are seen often enough (Gupta et al., "LVIS", CVPR 2019).

Rounding differs from the paper's (and detectron2's) in one point: all pictures are rounded together, so that every epoch has the
same number. Each picture is still rounded up with the probability of its fraction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mrcnn_tf.data.coco_records import Record

_SLACK = 1e-6
"""More than the rounding of a sum of floats, so that a sum that should be whole does not fall below."""


def repeat_factors(records: Sequence[Record], threshold: float) -> np.ndarray:
    """How often each picture is to be seen in an epoch.

    r(picture) = max over its classes c of max(1, sqrt(threshold / f(c))), where f(c) is the fraction of the pictures that have c.
    Crowd regions do not count.

    Args:
        records: n pictures.
        threshold: t, the fraction of the pictures below which a class is rare (LVIS: 0.001).

    Returns:
        [n] float64, at least 1; 1 for a picture without objects.
    """
    classes = [{item.class_id for item in record.objects if not item.crowd} for record in records]
    counts = Counter(class_id for found in classes for class_id in found)
    factors = {class_id: max(1.0, (threshold * len(records) / count) ** 0.5) for class_id, count in counts.items()}
    return np.array([max((factors[class_id] for class_id in found), default=1.0) for found in classes])


def draw_repeats(factors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Whole numbers of repetitions whose mean is `factors` [n], [n] int64.

    Their sum is that of the factors, rounded down, or one more.
    """
    order = random.permutation(len(factors))
    # A comb with teeth at distance 1, laid at random over the factors in a row: each holds one of the two nearest whole numbers.
    ends = np.floor(np.cumsum(factors[order]) + random.random() + _SLACK)
    repeats = np.empty(len(factors), np.int64)
    repeats[order] = np.diff(ends, prepend=0)
    return repeats
