"""COCOeval and the faster programs that compute the same tables.

The reference is pycocotools' COCOeval. faster-coco-eval (C++) and hotcoco (Rust) match detections the same way and are known to
give its tables to rounding (`tests/metrics/test_backends.py`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_tf.metrics.boundary import BoundaryEval
from mrcnn_tf.metrics.ground_truth import EvaluationError, IouType

Backend = Literal["pycocotools", "faster-coco-eval", "hotcoco"]

_MODULES = {"pycocotools": "pycocotools", "faster-coco-eval": "faster_coco_eval", "hotcoco": "hotcoco"}


def check_backend(backend: str, *, boundary: bool) -> None:
    """See to it, before an hour of detection, that there is such a backend and that it can do what is asked.

    Raises:
        EvaluationError: there is none of this name, or it cannot compare boundaries.
        ModuleNotFoundError: it is not installed.
    """
    if backend not in _MODULES:
        raise EvaluationError(f"the backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if boundary and backend == "hotcoco":
        raise EvaluationError("hotcoco does not compare boundaries; pycocotools and faster-coco-eval do")
    if importlib.util.find_spec(_MODULES[backend]) is None:
        raise ModuleNotFoundError(f"the backend {backend} needs: pip install 'mrcnn-tf[fast-eval]'")


def measure(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    max_detections: Sequence[int],
    backend: Backend,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """COCOeval's tables.

    Args:
        truth: of `read_ground_truth`.
        results: of `as_annotations`.
        iou_type: what is compared.
        max_detections: the bounds M of the detections per image and class, rising.
        backend: which program computes them.

    Returns:
        precision [10, 101, K, 4, M] and recall [10, K, 4, M], as `CocoTables` has them; K classes by rising category id.
    """
    found = {**truth, "annotations": results}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _EVALUATIONS[backend](truth, found, iou_type)
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _pycocotools(truth: Mapping[str, Any], found: Mapping[str, Any], iou_type: IouType) -> Any:
    if iou_type == "boundary":
        return BoundaryEval(_index(COCO(), truth), _index(COCO(), found), "segm")
    return COCOeval(_index(COCO(), truth), _index(COCO(), found), iou_type)


def _faster_coco_eval(truth: Mapping[str, Any], found: Mapping[str, Any], iou_type: IouType) -> Any:
    import faster_coco_eval

    indexed = (_index(faster_coco_eval.COCO(), content) for content in (truth, found))
    return faster_coco_eval.COCOeval_faster(*indexed, iou_type)


def _hotcoco(truth: Mapping[str, Any], found: Mapping[str, Any], iou_type: IouType) -> Any:
    import hotcoco

    return hotcoco.COCOeval(hotcoco.COCO(dict(truth)), hotcoco.COCO(dict(found)), iou_type)


_EVALUATIONS = {"pycocotools": _pycocotools, "faster-coco-eval": _faster_coco_eval, "hotcoco": _hotcoco}


def _index(coco: Any, content: Mapping[str, Any]) -> Any:
    # The records are copied: polygons are replaced by run lengths in what COCOeval is given.
    coco.dataset = {**content, "annotations": [dict(record) for record in content["annotations"]]}
    coco.createIndex()
    return coco
