"""The recipes and the training step together: buckets, replicas, XLA, and training from scratch with group norm."""

import json

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config, load_config
from mrcnn_tf.data import training_dataset
from mrcnn_tf.data.shapes import CATEGORIES, write_shapes
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.optimizers import build_optimizer
from mrcnn_tf.train import build_model

BUCKETS = ((128, 192), (192, 128))


@pytest.fixture(scope="module")
def two_shapes(tmp_path_factory):
    """Drawn shapes, four pictures of 128 x 192 and four of 192 x 128."""
    folder = tmp_path_factory.mktemp("two_shapes")
    content = {"images": [], "annotations": [], "categories": None}
    for number, size in enumerate(BUCKETS):
        path = write_shapes(folder / str(number), num_images=4, seed=number, image_size=size)
        part = json.loads(path.read_text())
        content["images"] += [
            {**image, "id": image["id"] + 100 * number, "file_name": f"{number}/images/{image['file_name']}"}
            for image in part["images"]
        ]
        content["annotations"] += [
            {**item, "id": item["id"] + 1000 * number, "image_id": item["image_id"] + 100 * number}
            for item in part["annotations"]
        ]
        content["categories"] = part["categories"]
    (folder / "instances_train.json").write_text(json.dumps(content))
    return folder


def _config(tiny_config, folder, **data) -> Config:
    values = {"root": str(folder), "train": {"images": ".", "annotations": "instances_train.json"}, "buckets": BUCKETS}
    changed = tiny_config.data.model_dump() | values | {"max_size": 192} | data
    return tiny_config.model_copy(update={"data": type(tiny_config.data).model_validate(changed)})


def _count_traces(model, monkeypatch):
    traces = []
    step = model.train_step
    monkeypatch.setattr(model, "train_step", lambda data: (traces.append(data["images"].shape), step(data))[1])
    return traces


def test_one_trace_serves_all_buckets(tiny_config, two_shapes, monkeypatch):
    config = _config(tiny_config, two_shapes)
    model = build_model(config)
    traces = _count_traces(model, monkeypatch)
    history = model.fit(training_dataset(config), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert int(model.optimizer.iterations.numpy()) == 8
    assert len(traces) == 1


def test_replicas_get_the_same_bucket_and_take_the_step_of_one(tiny_config, two_shapes):
    config = _config(tiny_config, two_shapes)
    weights = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        tf.keras.utils.set_random_seed(0)
        with strategy.scope():
            model = MaskRCNN(config)
            model.compile(build_optimizer(config.train), jit_compile=False)
        model.fit(training_dataset(config), epochs=1, verbose=0)
        weights.append([value.numpy() for value in model.trainable_variables])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
def test_xla_compiles_once_for_each_bucket_and_gives_its_losses(tiny_config, two_shapes):
    """Compiling takes seconds, a step a tenth of one."""
    config = _config(tiny_config, two_shapes)
    config = config.model_copy(update={"train": config.train.model_copy(update={"xla": True})})
    model = build_model(config)
    dataset = training_dataset(config)
    batches = list(dataset) + list(dataset)
    any_size = tf.function(model.test_step, input_signature=[dataset.element_spec])
    seconds, compiled = [], set()
    for batch in batches:
        began = tf.timestamp()
        loss = _loss(model, any_size, batch)
        seconds.append(float(tf.timestamp() - began))
        if batch["images"].shape not in compiled:
            compiled.add(batch["images"].shape)
            assert loss == pytest.approx(_loss(model, tf.function(model.test_step), batch), rel=1e-5)
    longest = sorted(seconds)[::-1]
    assert longest[1] > 4 * longest[2]


def _loss(model, step, batch):
    for tracker in model.metrics:
        tracker.reset_state()
    return float(step(batch)["loss"])


def test_group_norm_trains_from_scratch(tiny_config):
    """The shipped recipe, made small: the loss of a batch falls when it is seen again and again."""
    overrides = [
        "model.preprocessing.min_size=128",
        "model.preprocessing.max_size=128",
        "model.fpn.width=32",
        "model.box_head.conv_width=32",
        "model.box_head.fc_width=32",
        "model.mask_head.width=32",
        "model.mask_head.num_convs=1",
        "model.anchors.sizes=[[12], [24], [48], [96], [192]]",
        f"data.root={tiny_config.data.root}",
        "data.train={images: images, annotations: instances_train.json}",
        "data.min_sizes=[128]",
        "data.max_size=128",
        "data.image_size=[128, 128]",
        "data.horizontal_flip=0",
        "train.batch_size=2",
        "train.schedule=cosine",
        "train.num_steps=40",
        "train.warmup_steps=4",
        "train.reference_batch_size=2",
        "train.xla=off",
        "train.strategy=none",
    ]
    config = load_config("scratch_mask_rcnn_r50_fpn_3x_gn", overrides).with_categories(CATEGORIES)
    norms = (config.model.backbone.norm, config.model.fpn.norm, config.model.box_head.norm, config.model.mask_head.norm)
    assert norms == ("group",) * 4
    assert (config.model.backbone.weights, config.model.backbone.frozen_stages) == (None, 0)
    model = build_model(config)
    batch = training_dataset(config).take(1).cache().repeat()
    losses = [model.fit(batch, steps_per_epoch=4, epochs=1, verbose=0).history["loss"][0] for _ in range(4)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
