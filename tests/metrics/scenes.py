"""Drawn ground truth and detections: random ones with crowds, ties and classes without objects, and single boxes by hand."""

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.evaluate import read_ground_truth

HEIGHT, WIDTH = 120, 160


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def ellipse(box):
    x, y, width, height = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((columns - x - width / 2) / (width / 2)) ** 2 + ((rows - y - height / 2) / (height / 2)) ** 2 <= 1


def random_scene(seed, *, num_images=20, num_classes=5, crowd=0.15):
    """Ground truth and results: the last class has no objects, scores have one decimal, some detections have a wrong class."""
    rng = np.random.default_rng(seed)
    images = [{"id": 7 * n + 3, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(num_images)]
    ids = [3 * n + 2 for n in range(num_classes)]
    annotations, results = [], []
    for image in images:
        for _ in range(rng.integers(0, 8)):
            box = [rng.uniform(0, 100), rng.uniform(0, 80), rng.uniform(4, 60), rng.uniform(4, 40)]
            class_number = int(rng.integers(0, num_classes - 1))
            shape = {"bbox": box, "segmentation": rle(ellipse(box))}
            what = {"image_id": image["id"], "category_id": ids[class_number]}
            area = 0.8 * box[2] * box[3]
            annotations.append({**what, **shape, "area": area, "iscrowd": int(rng.random() < crowd)})
            for _ in range(rng.integers(0, 5)):
                moved = np.maximum(np.array(box) + rng.normal(0, 4, 4), [0, 0, 2, 2]).tolist()
                number = class_number if rng.random() < 0.8 else int(rng.integers(0, num_classes))
                what = {"image_id": image["id"], "category_id": ids[number], "score": round(rng.random(), 1)}
                results.append({**what, "bbox": moved, "segmentation": rle(ellipse(moved))})
    categories = [{"id": number, "name": f"class {number}"} for number in ids]
    return read_ground_truth({"images": images, "categories": categories, "annotations": annotations}), results


def truth_of(*objects, num_images=1):
    """Ground truth of (category id, box) or (category id, box, further keys); image 1 unless `image_id` says otherwise."""
    images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(1, num_images + 1)]
    annotations = [
        {"image_id": 1, "category_id": number, "bbox": box, **_polygon(box), **dict(*more)} for number, box, *more in objects
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return read_ground_truth({"images": images, "categories": categories, "annotations": annotations})


def found(*detections):
    """Results of (category id, score, box) or (category id, score, box, image id)."""
    return [
        {"image_id": image[0] if image else 1, "category_id": number, "score": score, "bbox": box, "segmentation": _box_rle(box)}
        for number, score, box, *image in detections
    ]


def _polygon(box):
    x, y, width, height = box
    return {"segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]]}


def _box_rle(box):
    (shape,) = coco_mask.frPyObjects(_polygon(box)["segmentation"], HEIGHT, WIDTH)
    return {"size": shape["size"], "counts": shape["counts"].decode()}
