import gc
import json
import logging
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mrcnn_tf.config import Config, ConfigError, DataConfig, MaskHeadConfig, ModelConfig, PreprocessingConfig, TrainConfig
from mrcnn_tf.data import DataError, coco_dataset, pipeline, read_annotations, samples, training_dataset, validation_dataset
from mrcnn_tf.data.pipeline import coco_batches
from mrcnn_tf.data.samples import ByteCache, read_image, select_records
from mrcnn_tf.data.shapes import write_shapes

CATEGORIES = [{"id": 4, "name": "left"}, {"id": 9, "name": "right"}]


def _config(root=None, *, masks=True, how=None, **data):
    values = {"min_sizes": (64,), "max_size": 128, "image_size": (64, 128), "root": root} | data
    preprocessing = PreprocessingConfig(min_size=64, max_size=128, **(how or {}))
    model = ModelConfig(preprocessing=preprocessing, mask_head=MaskHeadConfig(enabled=masks))
    return Config(model=model, data=DataConfig(**values), train=TrainConfig(batch_size=2))


def _annotation(number, image_id, bbox, category=4, **more):
    x, y, w, h = bbox
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox, "segmentation": [polygon]} | more


@pytest.fixture
def folder(tmp_path):
    """Four 40 x 50 images: two objects, one object, one crowd region, nothing. Pixels under an object are of its own colour."""
    content = {"categories": CATEGORIES, "images": [], "annotations": []}
    boxes = {1: [(5, 10, 10, 20), (30, 0, 20, 40)], 2: [(0, 0, 25, 20)]}
    for number in range(1, 5):
        image = np.full((40, 50, 3), 10, np.uint8)
        for x, y, w, h in boxes.get(number, []):
            image[y : y + h, x : x + w] = 200
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 50})
    content["annotations"] = [
        _annotation(1, 1, (5, 10, 10, 20)),
        _annotation(2, 1, (30, 0, 20, 40), 9),
        _annotation(3, 2, (0, 0, 25, 20)),
        _annotation(4, 3, (0, 0, 50, 40), iscrowd=1, segmentation={"size": [40, 50], "counts": [0, 2000]}),
    ]
    _rewrite(tmp_path, content)
    return tmp_path


def _rewrite(folder, content):
    (folder / "instances.json").write_text(json.dumps(content))


def _content(folder):
    return json.loads((folder / "instances.json").read_text())


def _dataset(folder, config, **more):
    return coco_dataset(folder, folder / "instances.json", config, **more)


def test_the_batch_is_as_the_contract_says(folder):
    dataset = _dataset(folder, _config(keep_empty=True), batch_size=4)
    expected = {
        "images": ((4, 64, 128, 3), tf.uint8),
        "image_sizes": ((4, 2), tf.int32),
        "gt_boxes": ((4, 2, 4), tf.float32),
        "gt_classes": ((4, 2), tf.int32),
        "gt_crowd": ((4, 2), tf.bool),
        "gt_masks": ((4, 2, 56, 56), tf.uint8),
    }
    assert {key: (tuple(spec.shape), spec.dtype) for key, spec in dataset.element_spec.items()} == expected
    (batch,) = list(dataset)
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == expected


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_masks_lie_on_the_objects(folder, flip):
    (batch,) = list(_dataset(folder, _config(horizontal_flip=flip)))
    values = {key: value.numpy() for key, value in batch.items()}
    assert values["image_sizes"].tolist() == [[64, 80]] * 2
    assert sorted(values["gt_classes"].ravel()) == [0, 1, 1, 2]
    for image, boxes, classes, masks in zip(*(values[k] for k in ("images", "gt_boxes", "gt_classes", "gt_masks")), strict=True):
        assert image[:, 80:].max() == 0
        on = np.zeros(image.shape[:2], bool)
        for top, left, bottom, right in boxes[classes > 0]:
            on[int(np.ceil(top)) : int(bottom), int(np.ceil(left)) : int(right)] = True
            assert image[int(np.ceil(top)) + 1 : int(bottom) - 1, int(np.ceil(left)) + 1 : int(right) - 1].min() > 190
        assert image[:, :80][~on[:, :80]].mean() < 30
        assert (masks[classes > 0] == 255).all()
        assert (masks[classes == 0] == 0).all()
        assert (boxes[classes == 0] == 0).all()
    two = values["gt_classes"].max(axis=1).argmax()
    left = values["gt_boxes"][two, values["gt_classes"][two] == 2, 1]
    assert left == pytest.approx(0 if flip else 48)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_centred_image_takes_its_boxes_along(folder, flip):
    corner, centred = (
        _dataset(folder, _config(horizontal_flip=flip, how={"placement": placement}), seed=1).take(1).get_single_element()
        for placement in ("top_left", "centre")
    )
    # 64 x 80 in 64 x 128.
    np.testing.assert_array_equal(centred["image_sizes"], corner["image_sizes"])
    np.testing.assert_array_equal(centred["images"], np.roll(corner["images"], 24, axis=2))
    filled = corner["gt_classes"].numpy() > 0
    np.testing.assert_array_equal(centred["gt_boxes"].numpy()[filled], corner["gt_boxes"].numpy()[filled] + [0, 24, 0, 24])
    assert not centred["gt_boxes"].numpy()[~filled].any()
    np.testing.assert_array_equal(centred["gt_masks"], corner["gt_masks"])


def test_images_and_sizes_follow_the_preprocessing(folder):
    how = {"quantize": False, "antialias": False, "resize_rounding": "floor", "enlarge_only": True}
    dataset = _dataset(folder, _config(min_sizes=(30,), horizontal_flip=0.0, how=how))
    assert dataset.element_spec["images"].dtype == tf.float32
    (batch,) = list(dataset)
    assert batch["image_sizes"].numpy().tolist() == [[40, 50]] * 2
    (batch,) = list(_dataset(folder, _config(min_sizes=(63,), horizontal_flip=0.0, how=how)))
    assert batch["image_sizes"].numpy().tolist() == [[63, 78]] * 2  # 78.75
    assert (batch["images"].numpy() % 1 > 0).any()


def test_epochs_differ_and_the_seed_repeats_them(tmp_path):
    path = write_shapes(tmp_path, num_images=6, seed=0, image_size=(128, 128))
    config = _config(min_sizes=(32, 48, 64))

    def run(seed):
        dataset = coco_dataset(tmp_path / "images", path, config, seed=seed)
        assert len(dataset) == 3
        return [[{k: v.numpy() for k, v in batch.items()} for batch in dataset] for _ in range(2)]

    first, again, other = run(1), run(1), run(2)
    for epoch, same in zip(first, again, strict=True):
        assert len(epoch) == 3
        for one, two in zip(epoch, same, strict=True):
            for key, value in one.items():
                np.testing.assert_array_equal(value, two[key])
    for different in (first[1], other[0]):
        assert any((one["images"] != two["images"]).any() for one, two in zip(first[0], different, strict=True))


def test_validation_keeps_the_order_and_the_sizes_of_inference(folder):
    dataset = _dataset(folder, _config(min_sizes=(20,), horizontal_flip=1.0), training=False)
    for _ in range(2):
        (batch,) = list(dataset)
        assert batch["image_sizes"].numpy().tolist() == [[64, 80]] * 2
        np.testing.assert_allclose(batch["gt_boxes"][:, 0], [[16, 8, 48, 24], [0, 0, 32, 40]])


def test_what_is_dropped_is_counted_and_named(folder, caplog):
    records, report = select_records(read_annotations(folder / "instances.json"), max_ground_truth=1, keep_empty=False)
    assert [[item.annotation_id for item in record.objects] for record in records] == [[2], [3]]
    assert (report.num_images, report.num_objects) == (2, 2)
    assert report.empty_images == ("3.png", "4.png")
    assert report.cut_images == {"1.png": 1}
    with caplog.at_level(logging.INFO, "mrcnn_tf.data"):
        dataset = _dataset(folder, _config(max_ground_truth=1))
    assert dataset.element_spec["gt_boxes"].shape == (2, 1, 4)
    assert all(text in caplog.text for text in ("3.png, 4.png", "1.png (1)", "2 images with 2 objects"))


def test_boxes_without_area_are_left_out_counted_and_named(folder, caplog):
    """COCO 2017 has two of them."""
    content = json.loads((folder / "instances.json").read_text())
    content["annotations"][0]["bbox"][3] = 0
    (folder / "instances.json").write_text(json.dumps(content))
    with caplog.at_level("WARNING", logger="mrcnn_tf.data"):
        records, report = select_records(read_annotations(folder / "instances.json"), max_ground_truth=100, keep_empty=True)
        report.log()
    image = next(entry for entry in content["images"] if entry["id"] == content["annotations"][0]["image_id"])
    assert report.flat_objects == {image["file_name"]: 1}
    assert "box is empty" in caplog.text
    assert image["file_name"] in caplog.text
    kept = [item.annotation_id for record in records for item in record.objects]
    assert sorted(kept) == sorted(entry["id"] for entry in content["annotations"][1:])


def test_images_without_objects_are_kept_if_asked(folder):
    (batch,) = list(_dataset(folder, _config(keep_empty=True), batch_size=4, training=False))
    assert (batch["gt_classes"].numpy() > 0).sum(axis=1).tolist() == [2, 1, 1, 0]
    assert batch["gt_crowd"].numpy().tolist() == [[False, False], [False, False], [True, False], [False, False]]


def test_only_empty_images_still_have_a_row(folder):
    _rewrite(folder, _content(folder) | {"annotations": []})
    (batch,) = list(_dataset(folder, _config(keep_empty=True), batch_size=4))
    assert batch["gt_boxes"].shape == (4, 1, 4)
    assert batch["gt_classes"].numpy().max() == 0


def test_masks_are_absent_for_boxes_only(folder):
    assert "gt_masks" not in _dataset(folder, _config(masks=False)).element_spec
    content = _content(folder)
    for entry in content["annotations"]:
        entry.pop("segmentation")
    _rewrite(folder, content)
    (batch,) = list(_dataset(folder, _config(horizontal_flip=1.0)))
    assert "gt_masks" not in batch


def test_a_mix_of_masks_and_boxes_names_the_annotation(folder):
    content = _content(folder)
    content["annotations"][2]["segmentation"] = []
    _rewrite(folder, content)
    with pytest.raises(DataError, match="annotation 3: segmentation is missing"):
        _dataset(folder, _config())
    assert len(_dataset(folder, _config(masks=False))) == 1


def test_a_missing_image_and_too_few_images_are_named(folder):
    with pytest.raises(DataError, match="a batch needs 3 images, there are 2"):
        _dataset(folder, _config(), batch_size=3)
    (folder / "2.png").unlink()
    with pytest.raises(DataError, match=r"image 2: there is no file .*2\.png"):
        _dataset(folder, _config())


@pytest.mark.parametrize(("broken", "fault"), [(True, r"image 2: .*2\.png: not a readable"), (False, "image 2: .*8 x 9")])
def test_a_broken_image_or_one_of_another_size_stops_with_its_name(folder, broken, fault):
    Image.new("RGB", (9, 8)).save(folder / "2.png")
    if broken:
        (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    with pytest.raises(tf.errors.InvalidArgumentError, match=fault):
        list(_dataset(folder, _config()))


def test_splits_of_the_configuration(folder):
    split = {"images": ".", "annotations": "instances.json"}
    config = _config(root=str(folder), train=split)
    assert len(training_dataset(config)) == len(training_dataset(config, batch_size=1)) / 2 == 1
    with pytest.raises(ConfigError, match=r"data\.val\.images"):
        validation_dataset(config)


def test_the_cache_is_bounded_and_computes_once():
    cache, computed = ByteCache(20), []

    def compute(key):
        computed.append(key)
        return np.zeros(8, np.uint8)

    for _ in range(2):
        for key in "abc":
            cache.get(key, lambda key=key: compute(key))
    assert computed == ["a", "b", "c", "c"]


@pytest.mark.parametrize("num_kept", [0, 3])
def test_no_more_pictures_are_held_than_the_cache_may(tiny_config, shapes_dir, monkeypatch, num_kept):
    """After three epochs of 12 pictures all others are gone, but for the few that are under way."""
    alive = []

    def read(*arguments):
        image = read_image(*arguments)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr(samples, "read_image", read)
    monkeypatch.setattr(pipeline, "CACHE_BYTES", num_kept * 128 * 128 * 3)
    dataset = coco_dataset(shapes_dir / "images", shapes_dir / "instances_train.json", tiny_config)
    for _ in range(3):
        assert len(list(dataset)) == 6
    assert len(alive) == 36 - 2 * num_kept
    gc.collect()
    assert num_kept <= sum(reference() is not None for reference in alive) <= num_kept + 2


MIRRORED = """
import sys, tensorflow as tf
from mrcnn_tf.config import Config, DataConfig, TrainConfig
from mrcnn_tf.data import coco_dataset
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
config = Config(data=DataConfig(min_sizes=(64,), image_size=(64, 128)), train=TrainConfig(batch_size=2))
make = lambda: coco_dataset(sys.argv[1], sys.argv[1] + "/instances.json", config, seed=0)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for dealt in strategy.experimental_distribute_dataset(make()):
    parts = strategy.experimental_local_results(dealt)
whole = next(iter(make()))
assert len(parts) == 2 and all(part["images"].shape == (1, 64, 128, 3) for part in parts)
for key in whole:
    assert (tf.concat([part[key] for part in parts], 0).numpy() == whole[key].numpy()).all(), key
"""


def test_replicas_share_the_batch(folder):
    done = subprocess.run([sys.executable, "-c", MIRRORED, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_batches_from_a_number_on_are_those_of_the_whole_sequence(tiny_config, shapes_dir):
    batches = coco_batches(shapes_dir / "images", shapes_dir / "instances_train.json", tiny_config, batch_size=5)
    assert batches.num_per_epoch == 2
    whole = list(batches.endless().take(7).as_numpy_iterator())
    for start in (1, 2, 5):
        for found, expected in zip(batches.endless(start).take(7 - start).as_numpy_iterator(), whole[start:], strict=True):
            for key, value in expected.items():
                np.testing.assert_array_equal(found[key], value)


def test_epochs_are_the_batches_in_their_order(tiny_config, shapes_dir):
    batches = coco_batches(shapes_dir / "images", shapes_dir / "instances_train.json", tiny_config, batch_size=5)
    epochs = list(batches.epoch().repeat(2).as_numpy_iterator())
    for found, expected in zip(epochs, batches.endless().take(4).as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(found["gt_boxes"], expected["gt_boxes"])


def test_the_images_of_a_batch_by_its_number(tiny_config, shapes_dir):
    batches = coco_batches(shapes_dir / "images", shapes_dir / "instances_train.json", tiny_config, batch_size=5)
    sizes = {record.file_name: len(record.objects) for record in batches.records}
    for number, batch in enumerate(batches.endless().take(4).as_numpy_iterator()):
        names = batches.file_names(number)
        assert [sizes[name] for name in names] == [(row > 0).sum() for row in batch["gt_classes"]]


@pytest.fixture
def mixed(tmp_path):
    """Seven landscape pictures of circles, five portrait ones."""
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number in range(12):
        height, width = (40, 60) if number < 7 else (60, 40)
        image = np.full((height, width, 3), 10 + number, np.uint8)
        image[8:24, 4:30] = 100 + 10 * number
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        content["annotations"].append(_annotation(number, number, (4, 8, 26, 16), 9 if number == 3 else 4))
    _rewrite(tmp_path, content)
    return tmp_path


BUCKETS = {"buckets": [(64, 128), (128, 64)], "horizontal_flip": 0.0}
RECIPES = {
    "buckets": BUCKETS,
    "jitter": {"scale_jitter": (0.3, 2.0), "colour_jitter": {"brightness": 0.4, "hue": 0.1}},
    "paste": {"scale_jitter": (0.3, 2.0), "copy_paste": True, "copy_paste_blur": 1.0},
    "repeats": {"repeat_threshold": 0.5},
}


def _batches(folder, config, **more):
    return coco_batches(folder, folder / "instances.json", config, **more)


def _assert_same(one, other):
    for found, expected in zip(one, other, strict=True):
        assert set(found) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)


def test_batches_of_buckets_are_of_one_shape_each_and_lose_no_picture_but_the_rest(mixed):
    batches = _batches(mixed, _config(**BUCKETS))
    assert batches.num_per_epoch == 3 + 2
    assert batches.epoch().element_spec["images"].shape.as_list() == [2, None, None, 3]
    for batch in batches.epoch():
        size = batch["images"].shape[1:3]
        # 40 x 60 becomes 64 x 96.
        assert batch["image_sizes"].numpy().tolist() == [[64, 96] if size == (64, 128) else [96, 64]] * 2
        assert size in [(64, 128), (128, 64)]
    for epoch in range(4):
        names = [name for number in range(5) for name in batches.file_names(5 * epoch + number)]
        assert len(set(names)) == 10
        assert len(set(names) & {f"{number}.png" for number in range(7)}) == 6


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_on_from_any_batch(mixed, recipe):
    config = _config(**RECIPES[recipe])
    batches, other_threads = _batches(mixed, config), _batches(mixed, _config(num_workers=5, **RECIPES[recipe]))
    whole = list(batches.endless().take(14).as_numpy_iterator())
    _assert_same(other_threads.endless().take(14).as_numpy_iterator(), whole)
    for start in (1, 6):
        _assert_same(batches.endless(start).take(14 - start).as_numpy_iterator(), whole[start:])
    epochs = batches.epoch().repeat(3).take(14).as_numpy_iterator()
    _assert_same(epochs, whole)


@pytest.mark.parametrize("recipe", RECIPES)
def test_shards_are_the_rows_of_the_whole_batches(mixed, recipe, monkeypatch):
    batches = _batches(mixed, _config(**RECIPES[recipe]), batch_size=4)
    whole = list(batches.endless(1).take(6).as_numpy_iterator())
    shares = []
    for worker in range(2):
        shard = batches.endless(1, (worker, 2))
        assert shard.element_spec["gt_boxes"].shape[0] == 2
        shares.append(list(shard.take(6).as_numpy_iterator()))
    joined = ({key: np.concatenate([one[key], two[key]]) for key in one} for one, two in zip(*shares, strict=True))
    _assert_same(joined, whole)
    with pytest.raises(ValueError, match="4 cannot be divided evenly among 3 workers"):
        batches.endless(0, (0, 3))


def test_a_shard_reads_only_its_own_pictures(mixed, monkeypatch):
    read = []
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)
    monkeypatch.setattr(samples, "read_image", lambda *a: (read.append(a[1].file_name), read_image(*a))[1])
    batches = _batches(mixed, _config(), batch_size=4)
    iterator = iter(batches.endless(0, (1, 2)).take(batches.num_per_epoch))
    assert len(list(iterator)) == 3
    assert sorted(read) == sorted(name for number in range(3) for name in batches.file_names(number)[2:])


def test_rare_classes_are_seen_more_often(mixed):
    """Picture 3 alone has its class: sqrt(0.5 / (1 / 12)) = 2.45 times an epoch."""
    batches = _batches(mixed, _config(repeat_threshold=0.5))
    assert batches.num_per_epoch == 6
    names = [name for number in range(600) for name in batches.file_names(number)]
    assert names.count("3.png") / 100 == pytest.approx(6**0.5 * 12 / 13.45, abs=0.1)


def test_copy_paste_doubles_the_rows_and_needs_masks(mixed):
    batches = _batches(mixed, _config(copy_paste=True))
    assert batches.epoch().element_spec["gt_boxes"].shape == (2, 2, 4)
    counts = [(batch["gt_classes"].numpy() > 0).sum() for batch in batches.endless().take(20)]
    assert {2, 3} <= set(counts)
    with pytest.raises(DataError, match=r"data\.copy_paste needs masks"):
        _batches(mixed, _config(copy_paste=True, masks=False))


def test_buckets_that_fill_no_batch_are_named(mixed):
    with pytest.raises(DataError, match=r"a batch needs 8 images of one of data\.buckets"):
        _batches(mixed, _config(**BUCKETS), batch_size=8)


def test_validation_has_buckets_too_but_nothing_is_drawn(mixed):
    dataset = _dataset(mixed, _config(copy_paste=True, repeat_threshold=0.5, **BUCKETS), training=False)
    shapes = [tuple(batch["images"].shape) for batch in dataset]
    assert shapes == [(2, 64, 128, 3)] * 3 + [(2, 128, 64, 3)] * 2
    _assert_same(dataset.as_numpy_iterator(), list(dataset.as_numpy_iterator()))
