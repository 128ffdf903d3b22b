"""COCO's published figures, and evaluation of a callable over a folder."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_tf.data.images import ImageError
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluate import EvaluationError, coco_metrics, coco_tables, evaluate, read_ground_truth

FIXTURES = Path(__file__).parent / "data_files" / "coco_eval"
CATEGORIES = [{"id": 5, "name": "box"}, {"id": 2, "name": "rare"}]
FIGURES = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", "per_class"}


def fixture(name):
    return json.loads(gzip.decompress((FIXTURES / f"{name}.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def val2014():
    return fixture("instances_val2014_100")


@pytest.mark.parametrize(("iou_type", "results"), [("bbox", "fakebbox100"), ("segm", "fakesegm100")])
def test_the_published_figures(val2014, iou_type, results):
    expected = json.loads((FIXTURES / "expected.json").read_text())[iou_type]
    metrics = coco_metrics(val2014, fixture(f"instances_val2014_{results}_results"), iou_type)
    assert set(metrics) == FIGURES
    assert {name: metrics[name] for name in expected["stats"]} == pytest.approx(expected["stats"], abs=1e-9)
    names = {str(category["id"]): category["name"] for category in val2014["categories"]}
    per_class = {names[number]: value for number, value in expected["per_category_AP"].items()}
    assert set(metrics["per_class"]) == set(per_class)
    for name, value in per_class.items():
        assert metrics["per_class"][name] == (None if value is None else pytest.approx(value, abs=1e-9))


def scene(tmp_path, *, segmentation=True, first_id=0):
    """Three pictures of 64 x 80: two boxes, one box, nothing."""
    boxes = [(1, [8, 10, 20, 30]), (1, [40, 10, 30, 40]), (2, [5, 5, 50, 50])]
    images = [{"id": number, "file_name": f"{number}.png", "height": 64, "width": 80} for number in (1, 2, 3)]
    annotations = []
    for number, (image_id, (x, y, w, h)) in enumerate(boxes, start=first_id):
        record = {"id": number, "image_id": image_id, "category_id": 5, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        if segmentation:
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append(record)
    for image in images:
        Image.fromarray(np.full((64, 80, 3), image["id"], np.uint8)).save(tmp_path / image["file_name"])
    content = {"images": images, "categories": CATEGORIES, "annotations": annotations}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path / "annotations.json"


class Oracle:
    """Finds the ground truth of `scene`, or what a test makes of it; the picture's grey says which one it is."""

    def __init__(self, annotations, *, scores=(0.9, 0.8), masks=True, categories=CATEGORIES, shift=0.0, repeat=1):
        self.content = json.loads(annotations.read_text())
        self.scores, self.masks, self.categories, self.shift, self.repeat = scores, masks, tuple(categories), shift, repeat

    def __call__(self, image):
        records = [record for record in self.content["annotations"] if record["image_id"] == image[0, 0, 0]] * self.repeat
        corners = np.array([record["bbox"] for record in records], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
        corners[:, 2:] += corners[:, :2]
        return Detections(
            boxes=corners + np.float32(self.shift),
            classes=np.ones(len(records), np.int32),
            scores=np.resize(np.float32(self.scores), len(records)),
            mask_probs=np.ones((len(records), 28, 28), np.float32) if self.masks else None,
            image_size=image.shape[:2],
            categories=self.categories,
        )


def test_ground_truth_as_detections_is_perfect(tmp_path):
    annotations = scene(tmp_path)
    metrics = evaluate(Oracle(annotations), tmp_path, annotations, tmp_path / "out", progress=False)
    assert set(metrics) == {"bbox", "segm", "classes"}
    for section in (metrics["bbox"], metrics["segm"]):
        assert set(section) == FIGURES
        assert section["AP"] == section["AR100"] == pytest.approx(1)
        assert section["AR1"] == pytest.approx(2 / 3)
        # Nothing is larger than 96 x 96, and there is no ground truth of the other class.
        assert section["APl"] is None
        assert section["per_class"] == {"box": pytest.approx(1), "rare": None}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics


def test_what_is_written_can_be_evaluated_again(tmp_path):
    annotations = scene(tmp_path)
    metrics = evaluate(Oracle(annotations, shift=2.0), tmp_path, annotations, tmp_path / "out", progress=False)
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert 0 < metrics["bbox"]["AP"] < 1
    assert all(coco_metrics(annotations, results, kind) == metrics[kind] for kind in ("bbox", "segm"))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    plots = {f"precision_recall_{kind}{end}.png" for kind in ("bbox", "segm") for end in ("", "_classes")}
    assert written == {"metrics.json", "detections.json", "classes.csv", "classes.html", *plots}
    for plot in plots:
        assert Image.open(tmp_path / "out" / plot).size[0] >= 400


def test_more_can_be_measured(tmp_path):
    annotations = scene(tmp_path)
    metrics = evaluate(
        Oracle(annotations), tmp_path, annotations, tmp_path / "out", progress=False, boundary=True, voc=True, errors=True
    )
    assert set(metrics) == {"bbox", "segm", "boundary", "classes", "voc", "errors"}
    assert metrics["boundary"]["AP"] == metrics["voc"]["segm"]["AP70"] == metrics["errors"]["bbox"]["AP50"] == pytest.approx(1)
    assert set(metrics["classes"]) == {"bbox", "segm", "boundary"}
    rare, box = metrics["classes"]["bbox"]
    assert (rare["id"], rare["objects"], rare["detections"], rare["AP"], rare["AR"]) == (2, 0, 0, None, None)
    assert (box["name"], box["objects"], box["detections"]) == ("box", 3, 3)
    assert box["AP"] == box["AR"] == pytest.approx(1)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"errors.png", "classes.csv", "classes.html", "precision_recall_boundary.png"} <= written


def test_boxes_alone_have_no_boundaries(tmp_path):
    annotations = scene(tmp_path)
    metrics = evaluate(
        Oracle(annotations, masks=False), tmp_path, annotations, progress=False, boundary=True, voc=True, errors=True
    )
    assert set(metrics) == {"bbox", "classes", "voc", "errors"}
    assert set(metrics["voc"]) == set(metrics["errors"]) == set(metrics["classes"]) == {"bbox"}


def test_a_crowd_region_without_a_mask_is_its_box(tmp_path):
    annotations = scene(tmp_path)
    content = json.loads(annotations.read_text())
    crowd = {"id": 9, "image_id": 2, "category_id": 5, "bbox": [55, 0, 20, 30], "area": 600, "iscrowd": 1}
    content["annotations"].append(crowd)
    annotations.write_text(json.dumps(content))
    metrics = evaluate(Oracle(annotations), tmp_path, annotations, progress=False)
    # What lies in the crowd region is no false positive.
    assert metrics["segm"]["AP"] == pytest.approx(1)
    assert metrics["classes"]["segm"][1]["objects"] == 3
    assert metrics["classes"]["segm"][1]["detections"] == 4


def test_no_more_than_so_many_classes_are_plotted(tmp_path, monkeypatch):
    """A plot for each of a thousand classes would be too large to be drawn."""
    annotations = scene(tmp_path)
    drawn = []
    monkeypatch.setattr("mrcnn_tf.evaluate.plot_classes", lambda precision, names, path, title: drawn.append(names))
    monkeypatch.setattr("mrcnn_tf.evaluate.NUM_CLASS_PLOTS", 1)
    evaluate(Oracle(annotations), tmp_path, annotations, tmp_path / "out", progress=False)
    assert drawn == [["box"], ["box"]]


def test_a_backend_that_is_not_there_is_refused_before_the_first_picture(tmp_path):
    with pytest.raises(EvaluationError, match="'fast'"):
        evaluate(None, tmp_path, scene(tmp_path), backend="fast", progress=False)


def test_an_image_without_detections_counts(tmp_path):
    annotations = scene(tmp_path)
    oracle = Oracle(annotations)
    metrics = evaluate(
        lambda image: oracle(image) if image[0, 0, 0] == 1 else oracle(image).above(2), tmp_path, annotations, progress=False
    )
    assert metrics["bbox"]["AR100"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("first_id", [0, 1])
def test_annotation_ids_do_not_matter(tmp_path, first_id):
    """COCOeval by itself takes a match with annotation 0 for none."""
    annotations = scene(tmp_path, first_id=first_id)
    assert evaluate(Oracle(annotations), tmp_path, annotations, progress=False)["bbox"]["AP"] == pytest.approx(1)


def test_nothing_found_is_zero(tmp_path):
    annotations = scene(tmp_path)
    metrics = evaluate(Oracle(annotations), tmp_path, annotations, tmp_path / "out", score_threshold=0.99, progress=False)
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == metrics["segm"]["AR100"] == 0
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []


def test_no_ground_truth_is_not_measured(tmp_path):
    annotations = scene(tmp_path)
    oracle = Oracle(annotations)
    annotations.write_text(json.dumps({**oracle.content, "annotations": []}))
    metrics = evaluate(oracle, tmp_path, annotations, tmp_path / "out", progress=False, boundary=True, voc=True, errors=True)
    assert metrics["boundary"]["AP"] is metrics["voc"]["bbox"]["AP50"] is metrics["errors"]["segm"]["AP50"] is None
    assert Image.open(tmp_path / "out" / "errors.png").size[0] >= 400
    assert metrics["bbox"]["AP"] is None
    assert metrics["bbox"]["per_class"] == {"box": None, "rare": None}


def test_boxes_alone(tmp_path, capsys):
    annotations = scene(tmp_path, segmentation=False)
    metrics = evaluate(Oracle(annotations), tmp_path, annotations, progress=False)
    assert set(metrics) == {"bbox", "classes"}
    assert "3 of 3 annotations have no segmentation" in capsys.readouterr().err
    annotations = scene(tmp_path)
    metrics = evaluate(Oracle(annotations, masks=False), tmp_path, annotations, progress=False)
    assert set(metrics) == {"bbox", "classes"}
    assert "gives no masks" in capsys.readouterr().err


@pytest.mark.parametrize("max_detections", [1, 2, 5, 200])
def test_only_so_many_detections_count(tmp_path, max_detections):
    annotations = scene(tmp_path)
    metrics = evaluate(
        Oracle(annotations, repeat=2, scores=(0.9, 0.8, 0.7, 0.6)),
        tmp_path,
        annotations,
        tmp_path / "out",
        max_detections=max_detections,
        progress=False,
    )
    assert metrics["bbox"][f"AR{max_detections}"] == pytest.approx(2 / 3 if max_detections == 1 else 1)
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(results) == min(max_detections, 4) + min(max_detections, 2)


def test_more_than_a_hundred_detections_can_count():
    """Of 150 objects in one image, all found, COCOeval's summary would count 100."""
    boxes = [[10.0 * (number % 15), 10.0 * (number // 15), 8.0, 8.0] for number in range(150)]
    truth = {
        "images": [{"id": 1, "file_name": "x", "height": 100, "width": 150}],
        "categories": CATEGORIES,
        "annotations": [{"id": n, "image_id": 1, "category_id": 5, "bbox": box} for n, box in enumerate(boxes)],
    }
    results = [{"image_id": 1, "category_id": 5, "bbox": box, "score": 0.5} for box in boxes]
    assert coco_metrics(truth, results, "bbox")["AR100"] == pytest.approx(100 / 150)
    metrics = coco_metrics(truth, results, "bbox", max_detections=150)
    assert metrics["AR150"] == metrics["AP"] == pytest.approx(1)
    assert metrics["AR10"] == pytest.approx(10 / 150)


def test_the_area_of_a_missed_mask_is_that_of_the_mask():
    """A thin diagonal is small by its mask and large by its box."""
    line = [[0, 0, 2, 0, 100, 98, 100, 100, 98, 100]]
    truth = {
        "images": [{"id": 1, "file_name": "x", "height": 100, "width": 100}],
        "categories": CATEGORIES,
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 5,
                "bbox": [0, 0, 30, 30],
                "area": 900,
                "segmentation": [[0, 0, 30, 0, 30, 30, 0, 30]],
            }
        ],
    }
    rle = coco_mask.frPyObjects(line, 100, 100)[0]
    hit = coco_mask.frPyObjects(truth["annotations"][0]["segmentation"], 100, 100)[0]
    results = [
        {"image_id": 1, "category_id": 5, "bbox": [0, 0, 100, 100], "score": 0.9, "segmentation": rle},
        {"image_id": 1, "category_id": 5, "bbox": [0, 0, 30, 30], "score": 0.8, "segmentation": hit},
    ]
    # Among small objects the missed line is a false positive before the hit; a box of 100 x 100 would not count there.
    assert coco_metrics(truth, results, "segm")["APs"] == pytest.approx(0.5, abs=0.01)
    assert coco_metrics(truth, results, "bbox")["APs"] == pytest.approx(1)


def test_equal_class_names_are_told_apart():
    truth = {
        "images": [{"id": 1, "file_name": "x", "height": 9, "width": 9}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}],
        "annotations": [],
    }
    assert coco_tables(read_ground_truth(truth), [], "bbox").class_names == ("a (1)", "a (2)")


def test_other_category_ids_are_refused(tmp_path):
    annotations = scene(tmp_path)
    other = Oracle(annotations, categories=[{"id": 1, "name": "box"}, {"id": 2, "name": "rare"}])
    with pytest.raises(EvaluationError, match=r"5 \(box\).*it knows \[1, 2\]"):
        evaluate(other, tmp_path, annotations, progress=False)


def test_a_picture_of_another_size_is_refused(tmp_path):
    annotations = scene(tmp_path)
    Image.fromarray(np.full((80, 64, 3), 2, np.uint8)).save(tmp_path / "2.png")
    with pytest.raises(EvaluationError, match=r"2\.png.*\(64, 80\).*\(80, 64\)"):
        evaluate(Oracle(annotations), tmp_path, annotations, progress=False)


def test_a_missing_picture_is_named(tmp_path):
    annotations = scene(tmp_path)
    (tmp_path / "2.png").unlink()
    with pytest.raises(ImageError, match=r"2\.png"):
        evaluate(Oracle(annotations), tmp_path, annotations, progress=False)


@pytest.mark.parametrize("text", ["no json", "[]", '{"images": []}', '{"images": [], "categories": [], "annotations": []}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"x\.json"):
        read_ground_truth(tmp_path / "x.json")


def test_results_of_unknown_images_are_refused():
    truth = {"images": [{"id": 1, "file_name": "x"}], "categories": CATEGORIES, "annotations": []}
    with pytest.raises(EvaluationError, match=r"\[7\]"):
        coco_metrics(truth, [{"image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 1], "score": 1.0}], "bbox")
