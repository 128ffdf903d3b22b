"""Shards from a data set: complete, resumable, and readable by TensorFlow Datasets alone."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mrcnn_tf.data.coco import DataError
from mrcnn_tf.data.images import encode_png
from mrcnn_tf.data.prepare import prepare_split, skipped_path
from mrcnn_tf.data.prepare_shard import INDICES
from mrcnn_tf.data.shapes import write_shapes
from mrcnn_tf.data.sources import coco_source
from mrcnn_tf.data.tfds_metadata import prepared_splits

IN_A_PROCESS = """
import sys, time
from pathlib import Path
from mrcnn_tf.data import prepare, prepare_shard
from mrcnn_tf.data.sources import coco_source

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    source = coco_source(folder / "images", folder / "instances_train.json")
    prepare.prepare_split(source, sys.argv[2], "train", name="shapes", num_shards=6, num_workers=int(sys.argv[3]))
"""


@pytest.fixture
def folder(tmp_path):
    """Twelve small pictures; the last two have no objects."""
    path = write_shapes(tmp_path, num_images=12, seed=3, image_size=(128, 128), split="train")
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in (11, 12)]
    path.write_text(json.dumps(content))
    return tmp_path


def prepare(folder, output, split="train", **options):
    source = coco_source(folder / "images", folder / "instances_train.json")
    options = {"name": "shapes", "num_shards": 4, "num_workers": 1} | options
    return prepare_split(source, str(output), split, **options)


def change(folder, edit):
    path = folder / "instances_train.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return content


def shards(output, split="train"):
    return {path.name: path.read_bytes() for path in output.glob(f"[!.]*-{split}.tfrecord-*")}


def test_every_image_is_in_one_shard(folder, tmp_path):
    done = prepare(folder, tmp_path / "out")
    assert [shard.image_id for shard in done.index.shards] == [[1, 5, 9], [2, 6, 10], [3, 7, 11], [4, 8, 12]]
    assert done.index.shards[2].num_objects[2] == 0
    assert done.index.masks
    assert (done.faults, done.skipped, done.reused) == ((), (), 0)
    assert not list((tmp_path / "out").glob(".tmp*"))


def test_tensorflow_datasets_reads_it(folder, tmp_path):
    prepare(folder, tmp_path / "out")
    prepare(folder, tmp_path / "out", "val", num_shards=1)
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert {name: (split.num_examples, split.num_shards) for name, split in builder.info.splits.items()} == {
        "train": (12, 4),
        "val": (12, 1),
    }
    content = json.loads((folder / "instances_train.json").read_text())
    examples = {int(example["image_id"]): example for example in tfds.as_numpy(builder.as_dataset(split="train"))}
    assert len(examples) == 12
    for image in content["images"]:
        example, objects = examples[image["id"]], [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert example["file_name"].decode() == image["file_name"]
        assert example["image"].shape == (128, 128, 3)
        assert example["objects"]["masks"].shape == (len(objects), 56, 56)
        np.testing.assert_array_equal(example["objects"]["bbox"], np.array([a["bbox"] for a in objects]).reshape(-1, 4))
        names = [builder.info.features["objects"]["label"].int2str(int(label)) for label in example["objects"]["label"]]
        assert names == [{c["id"]: c["name"] for c in content["categories"]}[a["category_id"]] for a in objects]


def test_it_is_found_by_name(folder, tmp_path):
    prepare(folder, tmp_path / "sets" / "shapes" / "1.0.0")
    assert len(tfds.load("shapes", split="train", data_dir=tmp_path / "sets")) == 12


def test_the_same_again_makes_nothing_anew(folder, tmp_path):
    first = prepare(folder, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tfrecord*")}
    again = prepare(folder, tmp_path / "out")
    assert (again.reused, again.index) == (4, first.index)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tfrecord*")}


def test_several_processes_write_what_one_writes(folder, tmp_path):
    done = prepare(folder, tmp_path / "two", num_workers=2)
    assert done.index == prepare(folder, tmp_path / "one").index
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_run_goes_on(folder, tmp_path, num_workers):
    output = tmp_path / "out"
    # Encoding is slowed down in the children, too: they import the script as their main module.
    slow = IN_A_PROCESS.replace(
        "\nif __name__",
        "\nread = prepare_shard.encoded_image\n"
        "def late(path):\n    time.sleep(0.3)\n    return read(path)\n"
        "prepare_shard.encoded_image = late\n\nif __name__",
    )
    script = tmp_path / "slow.py"
    script.write_text(slow)
    arguments = [sys.executable, str(script), str(folder), str(output), str(num_workers)]
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while len(list(output.glob(f"{INDICES}/*"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert wait_for_the_end_of(process.pid)
    finished = shards(output)
    assert 2 <= len(finished) < 6
    # Not a data set yet, and what is half written has another name.
    assert not (output / "dataset_info.json").exists()
    assert prepared_splits(str(output)) == []
    done = prepare(folder, output, num_shards=6)
    # Between the name of a shard and its index there is a moment for each process.
    assert len(finished) - num_workers <= done.reused <= len(finished)
    assert done.reused >= 2
    assert finished.items() <= shards(output).items()
    whole = prepare(folder, tmp_path / "whole", num_shards=6)
    assert done.index == whole.index
    assert shards(output) == shards(tmp_path / "whole")
    assert not list(output.glob(".tmp*"))


def wait_for_the_end_of(group):
    """Whether all processes of a group end within some seconds."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_shard_that_is_not_whole_is_made_anew(folder, tmp_path):
    prepare(folder, tmp_path / "out")
    (tmp_path / "out" / "dataset_info.json").unlink()
    (tmp_path / "out" / "index-train.json").unlink()
    path = tmp_path / "out" / "shapes-train.tfrecord-00001-of-00004"
    before = path.read_bytes()
    path.write_bytes(before[:-10])
    assert prepare(folder, tmp_path / "out").reused == 3
    assert path.read_bytes() == before


def spoil_picture(folder):
    (folder / "images" / "train_000004.png").write_bytes(b"nothing")


def spoil_mask(folder):
    change(folder, lambda content: content["annotations"][3].update(segmentation={"size": [128, 128], "counts": [128 * 128]}))


@pytest.mark.parametrize(("spoil", "kind", "num_images"), [(spoil_picture, "broken image", 11), (spoil_mask, "empty mask", 12)])
def test_faults_that_show_with_the_picture(folder, tmp_path, spoil, kind, num_images):
    spoil(folder)
    output = tmp_path / "out"
    done = prepare(folder, output)
    assert done.index is None
    assert [fault.kind for fault in done.faults] == [kind]
    assert not (output / "dataset_info.json").exists()
    # The sound shards are there; only the one with the fault is made now.
    done = prepare(folder, output, skip_bad=True)
    assert done.reused == 3
    assert sum(map(len, done.index.shards)) == num_images
    assert [entry["kind"] for entry in done.skipped] == [kind]
    assert json.loads((tmp_path / skipped_path("out", "train")).read_text()) == list(done.skipped)
    # Known again later, and refused without the option.
    assert prepare(folder, output, skip_bad=True).skipped == done.skipped
    with pytest.raises(DataError, match="the split train is there already, of other data or with other options"):
        prepare(folder, output)


def test_faults_of_the_records_are_listed_before_anything_is_written(folder, tmp_path):
    content = change(folder, lambda content: content["annotations"][0].update(category_id=77))
    done = prepare(folder, tmp_path / "out")
    assert (done.index, [fault.kind for fault in done.faults]) == (None, ["unknown category"])
    assert not (tmp_path / "out").exists()
    done = prepare(folder, tmp_path / "out", skip_bad=True)
    assert sum(sum(shard.num_objects) for shard in done.index.shards) == len(content["annotations"]) - 1
    assert [entry["record"] for entry in done.skipped] == [f"annotation {content['annotations'][0]['id']}"]


def test_a_shard_of_which_nothing_is_left(folder, tmp_path):
    """It is empty; that is no fault while others are not."""
    spoil_picture(folder)
    done = prepare(folder, tmp_path / "out", num_shards=12, skip_bad=True)
    assert [len(shard) for shard in done.index.shards].count(0) == 1
    assert tfds.builder_from_directory(tmp_path / "out").info.splits["train"].num_examples == 11


def test_nothing_left_at_all(folder, tmp_path):
    for path in (folder / "images").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="nothing usable is left: all images are faulty"):
        prepare(folder, tmp_path / "out", skip_bad=True)
    assert prepared_splits(str(tmp_path / "out")) == []


def test_no_images(folder, tmp_path):
    change(folder, lambda content: content.update(images=[], annotations=[]))
    with pytest.raises(DataError, match="there are no images to prepare"):
        prepare(folder, tmp_path / "out", num_shards=None)


def test_boxes_only_and_no_objects(folder, tmp_path):
    change(folder, lambda content: [annotation.pop("segmentation") for annotation in content["annotations"]])
    assert not prepare(folder, tmp_path / "boxes").index.masks
    change(folder, lambda content: content.update(annotations=[]))
    assert not prepare(folder, tmp_path / "none").index.masks
    (example,) = tfds.builder_from_directory(tmp_path / "none").as_dataset(split="train").take(1)
    assert example["objects"]["bbox"].shape == (0, 4)


def test_other_data_does_not_mix_with_what_is_there(folder, tmp_path):
    output = tmp_path / "out"
    prepare(folder, output)
    for options in ({"num_shards": 3}, {"name": "others"}):
        with pytest.raises(DataError, match=r"there is another shapes-train\.tfrecord-.*give the same name and number of shards"):
            prepare(folder, output, **options)
    change(folder, lambda content: content["categories"].append({"id": 50, "name": "cow"}))
    with pytest.raises(DataError, match="the splits train that are there have other categories"):
        prepare(folder, output, "val")
    change(folder, lambda content: (content["categories"].pop(), content["annotations"].pop()))
    with pytest.raises(DataError, match="the split train is there already, of other data"):
        prepare(folder, output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "My set"}, "the name of a data set must be small letters, digits and _"),
        ({"split": "my-split"}, "the name of a split must be letters, digits and _"),
        ({"split": "all"}, "not 'all'"),
        ({"num_shards": 13}, "13 shards are more than there are images, 12"),
    ],
)
def test_options_that_cannot_be(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(folder, tmp_path / "out", **options)


def test_a_process_that_dies_is_reported(folder, tmp_path):
    script = tmp_path / "dying.py"
    dying = "\nimport os\nprepare_shard.encoded_image = lambda path: os._exit(1)\n\nif __name__"
    script.write_text(IN_A_PROCESS.replace("\nif __name__", dying))
    command = [sys.executable, str(script), str(folder), str(tmp_path / "out"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "a process that wrote shards has died, for want of memory perhaps; run the same again" in done.stderr


def test_pictures_are_kept_as_they_are_if_tensorflow_can_read_them(folder, tmp_path):
    """A BMP becomes a PNG of the same pixels, under the same name."""
    from PIL import Image

    content = change(folder, lambda content: content["images"][0].update(file_name="a.bmp"))
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.bmp")
    prepare(folder, tmp_path / "out", num_shards=1)
    builder = tfds.builder_from_directory(tmp_path / "out")
    raw = builder.as_dataset(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    stored = {example["file_name"].decode(): example["image"] for example in tfds.as_numpy(raw)}
    for image in content["images"][1:]:
        assert stored[image["file_name"]] == (folder / "images" / image["file_name"]).read_bytes()
    assert stored["a.bmp"] == encode_png(pixels)
    np.testing.assert_array_equal(tf.io.decode_png(stored["a.bmp"]), pixels)
