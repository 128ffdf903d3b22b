"""Training batches streamed from prepared data: the same samples as from JSON, in an order that can be entered anywhere."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.data import tfds_batches as module
from mrcnn_tf.data.coco import DataError, load_coco
from mrcnn_tf.data.pipeline import coco_batches
from mrcnn_tf.data.prepare import prepare_split
from mrcnn_tf.data.samples import SampleReader
from mrcnn_tf.data.sources import Source
from mrcnn_tf.data.tfds_batches import tfds_batches

NAMES = [f"train_{number:06d}.png" for number in range(12)]


def with_data(config: Config, **changes) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


@pytest.fixture(scope="module")
def batches(prepared_dir, tiny_config):
    return tfds_batches(str(prepared_dir), "train", tiny_config)


def take(dataset, count):
    return [batch for batch, _ in zip(dataset.as_numpy_iterator(), range(count), strict=False)]


def names_of(batches, count, shard=(0, 1)):
    """The images of the first `count` samples of a worker."""
    names = [name for part in batches.index.shards for name in part.file_name]
    elements = batches._elements(tf.constant(0, tf.int64), shard, batches._numbers)
    return [names[place] for _, place in elements.take(count).as_numpy_iterator()]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def samples_by_image(batches, count):
    """The samples of the first batches by their images."""
    names = [name for number in range(count) for name in batches.file_names(number)]
    found = take(batches.endless(), count)
    rows = ({key: value[row] for key, value in batch.items()} for batch in found for row in range(len(batch["images"])))
    return dict(zip(names, rows, strict=True))


@pytest.mark.parametrize("masks", [True, False])
def test_samples_are_those_of_the_json_path(shapes_dir, prepared_dir, tiny_config, masks):
    """Bitwise, where nothing is drawn."""
    config = with_data(tiny_config, horizontal_flip=0.0)
    mask_head = config.model.mask_head.model_copy(update={"enabled": masks})
    config = config.model_copy(update={"model": config.model.model_copy(update={"mask_head": mask_head})})
    ours = samples_by_image(tfds_batches(str(prepared_dir), "train", config), 6)
    theirs = samples_by_image(coco_batches(shapes_dir / "images", shapes_dir / "instances_train.json", config), 6)
    assert ours.keys() == theirs.keys() == set(NAMES)
    assert ("gt_masks" in ours[NAMES[0]]) == masks
    for name in NAMES:
        assert_same(ours[name], theirs[name])


def test_cut_objects_are_those_of_the_json_path(shapes_dir, prepared_dir, tiny_config):
    """They are drawn anew from the segmentations, which come back from the shards as they were."""
    config = with_data(tiny_config, scale_jitter=(1.7, 1.7), horizontal_flip=0.0)
    ours = tfds_batches(str(prepared_dir), "train", config)
    theirs = coco_batches(shapes_dir / "images", shapes_dir / "instances_train.json", config)
    index = {record.file_name: number for number, record in enumerate(theirs.records)}
    elements = ours._elements(tf.constant(0, tf.int64), (0, 1), ours._records)
    raw = next(elements.map(lambda _, place, record: ours.read(record)).as_numpy_iterator())
    name = ours.file_names(0)[0]
    options = {"num_rows": len(raw["gt_classes"]), "masks": True, "cache_bytes": 0, "segmentations": True}
    reader = SampleReader(shapes_dir / "images", ours.path, theirs.records, **options)
    assert_same(raw, reader.read(index[name]))
    assert raw["gt_segmentations"][0] != b""


def test_an_epoch_has_every_image_once(batches):
    assert batches.num_per_epoch == len(batches.epoch()) == 6
    names = names_of(batches, 24)
    first, second = names[:12], names[12:]
    assert sorted(first) == sorted(second) == NAMES
    assert first not in (NAMES, second)
    assert [batches.file_names(number) for number in (0, 5, 7)] == [names[2 * n : 2 * n + 2] for n in (0, 5, 7)]


def test_epochs_go_on_with_each_iteration(batches):
    epochs = batches.epoch()
    whole = take(batches.endless(), 12)
    for part in (whole[:6], whole[6:]):
        found = list(epochs.as_numpy_iterator())
        assert len(found) == 6
        for ours, theirs in zip(found, part, strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("copy_paste", [False, True])
@pytest.mark.parametrize("start", [1, 6, 9])
def test_the_stream_can_be_entered_anywhere(prepared_dir, tiny_config, start, copy_paste):
    config = with_data(tiny_config, copy_paste=copy_paste)
    tf.random.set_seed(1)
    whole = take(tfds_batches(str(prepared_dir), "train", config).endless(), start + 4)
    tf.random.set_seed(2)  # TensorFlow's global seed has no say
    for ours, theirs in zip(take(tfds_batches(str(prepared_dir), "train", config).endless(start), 4), whole[start:], strict=True):
        assert_same(ours, theirs)


def test_copy_paste_has_room_for_the_objects_of_both(prepared_dir, tiny_config, batches):
    pasted = tfds_batches(str(prepared_dir), "train", with_data(tiny_config, copy_paste=True))
    assert len(list(pasted.epoch())) == pasted.num_per_epoch == 6
    plain, both = (found.epoch().element_spec["gt_classes"].shape[1] for found in (batches, pasted))
    assert both == 2 * plain


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_have_disjoint_shares_that_make_the_whole(prepared_dir, tiny_config, num_workers):
    batches = tfds_batches(str(prepared_dir), "train", tiny_config, batch_size=num_workers)
    seen = []
    for worker in range(num_workers):
        own = [name for shard in batches.index.shards[worker::num_workers] for name in shard.file_name]
        names = names_of(batches, 2 * len(own), (worker, num_workers))
        # Each passes over its own images again and again, all of them before any a second time.
        assert sorted(names[: len(own)]) == sorted(names[len(own) :]) == sorted(own)
        seen += own
        assert batches.file_names(3, num_workers)[worker] == names[3 % len(names)]
    assert sorted(seen) == NAMES


def test_a_worker_makes_the_rows_that_are_its_own(prepared_dir, tiny_config):
    """Those that `file_names` names, whatever else the others do."""
    config = with_data(tiny_config, horizontal_flip=0.0)
    batches = tfds_batches(str(prepared_dir), "train", config, batch_size=4)
    samples = samples_by_image(tfds_batches(str(prepared_dir), "train", config), 6)
    for worker in range(2):
        names = names_of(batches, 12, (worker, 2))
        for number, batch in enumerate(take(batches.endless(1, (worker, 2)), 5), 1):
            for row, name in enumerate(names[2 * number : 2 * number + 2]):
                assert_same({key: value[row] for key, value in batch.items()}, samples[name])


def test_a_worker_does_not_read_the_shards_of_others(prepared_dir, tiny_config, tmp_path):
    for path in prepared_dir.iterdir():
        if path.is_file() and not any(f"-0000{number}-of-00005" in path.name for number in (1, 3)):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    batches = tfds_batches(str(tmp_path), "train", tiny_config, batch_size=4)
    assert len(take(batches.endless(0, (0, 2)), 8)) == 8
    with pytest.raises(DataError, match=r"-00001-of-00005: there is no such shard, written were \d+; copy it, or prepare"):
        batches.endless(0, (1, 2))
    path = tmp_path / "shapes-train.tfrecord-00002-of-00005"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"-00002-of-00005: the shard has \d+ bytes, written were \d+"):
        batches.endless(0, (0, 2))


def test_more_workers_than_shards(batches, prepared_dir, tiny_config):
    wide = tfds_batches(str(prepared_dir), "train", tiny_config, batch_size=6)
    with pytest.raises(DataError, match=r"5 shards cannot be shared by 6 workers; prepare the data with --shards 6 or more"):
        wide.endless(0, (0, 6))
    with pytest.raises(ValueError, match="a batch of 2 cannot be divided evenly among 4 workers"):
        batches.endless(0, (0, 4))


def test_a_seed_of_its_own(prepared_dir, tiny_config, batches):
    other = tfds_batches(str(prepared_dir), "train", tiny_config, seed=1)
    assert names_of(other, 12) != names_of(batches, 12)


def test_images_are_mixed_beyond_the_window(prepared_dir, tiny_config, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 2)
    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    batches = tfds_batches(str(prepared_dir), "train", tiny_config)
    names = names_of(batches, 24)
    assert sorted(names[:12]) == sorted(names[12:]) == NAMES
    assert {frozenset(names[n : n + 2]) for n in range(0, 12, 2)} != {frozenset(names[n : n + 2]) for n in range(12, 24, 2)}


def test_draws_differ_from_pass_to_pass(prepared_dir, tiny_config):
    """Every image is flipped in about half of the passes, the same in any run."""
    config = with_data(tiny_config, horizontal_flip=0.5)
    batches = tfds_batches(str(prepared_dir), "train", config)
    seen = collections.defaultdict(set)
    images = [image for batch in take(batches.endless(), 36) for image in batch["images"]]
    for name, image in zip(names_of(batches, 72), images, strict=True):
        seen[name].add(image.tobytes())
    assert {len(found) for found in seen.values()} <= {1, 2}
    assert sum(len(found) == 2 for found in seen.values()) >= 9


@pytest.fixture
def content(shapes_dir):
    return load_coco(shapes_dir / "instances_train.json")


def told(caplog):
    """Lines of the log without the path, with the names in any order."""
    return [sorted(record.getMessage().split(": ", 1)[1].replace(": ", ", ").split(", ")) for record in caplog.records]


@pytest.mark.parametrize("keep_empty", [True, False])
@pytest.mark.parametrize("max_ground_truth", [100, 3])
def test_what_is_left_out_is_what_the_json_path_leaves_out(
    tmp_path, content, shapes_dir, tiny_config, keep_empty, max_ground_truth, caplog
):
    """Images without objects, or with crowd regions only; the smallest of too many objects."""
    kept = [a for a in content["annotations"] if a["image_id"] not in (2, 3)]
    crowd = dict(kept[0], id=900, image_id=3, bbox=[1, 1, 60, 60], iscrowd=1)
    content = {**content, "annotations": [*kept, crowd]}
    source = Source(content, tmp_path / "made.json", shapes_dir / "images")
    prepare_split(source, str(tmp_path / "made"), "train", name="made", num_workers=1, num_shards=3)
    config = with_data(tiny_config, keep_empty=keep_empty, max_ground_truth=max_ground_truth, horizontal_flip=0.0)
    with caplog.at_level("INFO", "mrcnn_tf.data"):
        ours = tfds_batches(str(tmp_path / "made"), "train", config)
        lines = told(caplog)
        caplog.clear()
        theirs = coco_batches(shapes_dir / "images", tmp_path / "made.json", config, content=source.content)
        assert lines == told(caplog)
    assert ours.num_per_epoch == theirs.num_per_epoch == (6 if keep_empty else 5)
    found, wanted = samples_by_image(ours, ours.num_per_epoch), samples_by_image(theirs, theirs.num_per_epoch)
    assert found.keys() == wanted.keys()
    for name in found:
        assert_same(found[name], wanted[name])


def test_what_cannot_be(prepared_dir, tiny_config, tmp_path):
    folder = str(prepared_dir)
    for split, where in (("test", folder), ("train", str(tmp_path))):
        with pytest.raises(DataError, match=rf"index-{split}\.json: there is no such file; expected the folder that"):
            tfds_batches(where, split, tiny_config)
    with pytest.raises(DataError, match="a batch needs 13 images, there are 12 to train on"):
        tfds_batches(folder, "train", tiny_config, batch_size=13)
    for changes in ({"buckets": ((128, 128), (64, 128))}, {"repeat_threshold": 0.1}):
        with pytest.raises(DataError, match=rf"data\.{min(changes)} needs data\.train\.images and data\.train\.annotations"):
            tfds_batches(folder, "train", with_data(tiny_config, **changes))
    categories = [{"id": 1, "name": "circle"}, {"id": 2, "name": "square"}]
    with pytest.raises(DataError, match=r"the model does not know the categories of ids \[3, 4\]; it knows \[1, 2\]"):
        tfds_batches(folder, "train", tiny_config.with_categories(categories))


def test_classes_are_those_of_the_model(prepared_dir, tiny_config, batches):
    """Which may have more, in another order."""
    ids = [category.id for category in tiny_config.model.categories]
    other = tiny_config.with_categories([{"id": number, "name": str(number)} for number in (9, *reversed(ids))])
    ours = take(tfds_batches(str(prepared_dir), "train", other).endless(), 1)[0]["gt_classes"]
    plain = take(batches.endless(), 1)[0]["gt_classes"]
    np.testing.assert_array_equal(ours, np.where(plain > 0, len(ids) + 2 - plain, 0))


def test_copy_paste_without_masks(tmp_path, content, shapes_dir, tiny_config):
    content = {**content, "annotations": [{k: v for k, v in a.items() if k != "segmentation"} for a in content["annotations"]]}
    prepare_split(
        Source(content, tmp_path / "made.json", shapes_dir / "images"),
        str(tmp_path / "made"),
        "train",
        name="made",
        num_workers=1,
    )
    assert "gt_masks" not in tfds_batches(str(tmp_path / "made"), "train", tiny_config).epoch().element_spec
    with pytest.raises(DataError, match=r"data\.copy_paste needs masks"):
        tfds_batches(str(tmp_path / "made"), "train", with_data(tiny_config, copy_paste=True))


def test_a_worker_with_nothing_to_train_on(tmp_path, content, shapes_dir, tiny_config):
    """Its shards hold images without objects only."""
    content = {**content, "annotations": [a for a in content["annotations"] if a["image_id"] % 2]}
    source = Source(content, tmp_path / "made.json", shapes_dir / "images")
    prepare_split(source, str(tmp_path / "made"), "train", name="made", num_workers=1, num_shards=2)
    batches = tfds_batches(str(tmp_path / "made"), "train", tiny_config)
    assert batches.num_per_epoch == 3
    with pytest.raises(DataError, match="the shards of worker 1 of 2 have nothing to train on"):
        batches.endless(0, (1, 2))
