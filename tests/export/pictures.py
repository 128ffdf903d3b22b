"""Picture files of the kinds that clients send, and the comparison of what a server and a predictor find in them."""

from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_tf.detections import Detections
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN

PHOTO = Path(__file__).parent.parent / "data_files" / "photos" / "pizza.jpg"
BOX_TOLERANCE, SCORE_TOLERANCE, MASK_IOU = 0.05, 1e-4, 0.999


def with_edges(model: MaskRCNN) -> MaskRCNN:
    """Untrained, all masks are within rounding of the threshold; a trained network's have edges."""
    if model.mask_predictor is not None:
        kernel = model.mask_predictor.trainable_variables[0]
        kernel.assign(kernel * 1000)
    return model


def write_pictures(folder: Path) -> dict[str, Path]:
    photo = Image.open(PHOTO).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = {
        "jpeg": (photo, "JPEG", {"quality": 90}),
        "png": (photo.resize((210, 333)), "PNG", {}),
        "turned": (photo, "JPEG", {"exif": turned}),
        "turned_png": (photo.resize((300, 111)), "PNG", {"exif": turned}),
        "grey": (photo.convert("L"), "JPEG", {}),
        "alpha": (photo.convert("RGBA").resize((99, 64)), "PNG", {}),
        "one_pixel": (photo.resize((1, 1)), "PNG", {}),
        "large": (photo.resize((4000, 3000)), "JPEG", {"quality": 80}),
    }
    paths = {}
    for name, (image, kind, options) in kinds.items():
        paths[name] = folder / f"{name}.{'jpg' if kind == 'JPEG' else 'png'}"
        image.save(paths[name], kind, **options)
    return paths


def assert_same(outputs: dict[str, np.ndarray], row: int, expected: Detections) -> None:
    """One picture's row of a signature's outputs is what a predictor finds in it."""
    count = int(outputs["num_detections"][row])
    assert count == len(expected)
    assert tuple(outputs["image_size"][row]) == expected.image_size
    assert outputs["detection_classes"][row][:count].tolist() == expected.classes.tolist()
    assert not outputs["detection_classes"][row][count:].any()
    assert not outputs["detection_scores"][row][count:].any()
    assert [name.decode() for name in outputs["detection_class_names"][row][:count]] == expected.category_names
    assert outputs["detection_category_ids"][row][:count].tolist() == expected.category_ids
    np.testing.assert_allclose(outputs["detection_boxes"][row][:count], expected.boxes, rtol=0, atol=BOX_TOLERANCE)
    np.testing.assert_allclose(outputs["detection_scores"][row][:count], expected.scores, rtol=0, atol=SCORE_TOLERANCE)
    if expected.mask_probs is None:
        assert not {"detection_masks", "mask_paste", "detection_masks_rle_bytes"} & set(outputs)
        return
    assert outputs["mask_paste"][row].decode() == expected.paste
    np.testing.assert_allclose(outputs["detection_masks"][row][:count], expected.mask_probs, rtol=0, atol=1e-3)
    if "detection_masks_rle_bytes" in outputs:
        counts = outputs["detection_masks_rle_bytes"][row]
        assert not any(counts[count:])
        for got, rle in zip(counts[:count], expected.rles(), strict=True):
            served = {"size": rle["size"], "counts": got}
            if coco_mask.area(rle) or coco_mask.area(served):
                assert coco_mask.iou([served], [rle], [0])[0, 0] >= MASK_IOU
