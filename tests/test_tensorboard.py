"""The event files of a run, read back by TensorBoard's own reader."""

import csv
import io
import json

import keras
import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mrcnn_tf import train as train_module
from mrcnn_tf.callbacks import CocoEvaluation, LearningRateLog, StopConditions
from mrcnn_tf.config import parse
from mrcnn_tf.config.run import SplitConfig, TrainConfig
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluate import EvaluationError
from mrcnn_tf.optimizers import CoupledSGD
from mrcnn_tf.predict import Predictor
from mrcnn_tf.tensorboard import LONGEST_EDGE, TensorBoardLog, validation_pictures
from mrcnn_tf.train import train

CATEGORIES = ({"id": 7, "name": "cat"},)


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def tags(folder):
    return {kind: sorted(found) for kind, found in read(folder).Tags().items() if kind in ("scalars", "images", "tensors")}


def curve(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def steps(folder, tag):
    return [step for step, _ in curve(folder, tag)]


def pictures(folder, tag):
    return [(event.step, np.array(Image.open(io.BytesIO(event.encoded_image_string)))) for event in read(folder).Images(tag)]


def text(folder):
    event = read(folder).Tensors("config")[-1]
    (content,) = event.tensor_proto.string_val
    return event.step, content.decode()


def fit(log, *before, done=0, epochs=2, steps=3, optimizer=None):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss="mse")
    model.optimizer.iterations.assign(done)
    data = np.ones((steps, 2), np.float32)
    model.fit(data, data[:, :1], batch_size=1, epochs=epochs, callbacks=[*before, log], verbose=0)


class Figures(keras.callbacks.Callback):
    """Adds to the logs of each batch how many there were, and to those of each epoch an AP."""

    batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        logs["num_proposals"] = float(self.batches)

    def on_epoch_end(self, epoch, logs=None):
        logs.update(num_proposals=float(self.batches), val_bbox_AP=0.1 * epoch, step=self.batches)


def test_curves_stand_at_training_steps(tmp_path):
    fit(TensorBoardLog(tmp_path, "", write_every=2), LearningRateLog(), Figures())
    # Every second step, and the ends of the epochs after 3 and 6 steps.
    assert curve(tmp_path, "train/num_proposals") == [(2, 2), (3, 3), (4, 4), (6, 6)]
    assert curve(tmp_path, "val/bbox_AP") == [(3, 0), (6, pytest.approx(0.1))]
    assert curve(tmp_path, "learning_rate") == [(step, pytest.approx(0.1)) for step in (2, 3, 4, 6)]
    assert tags(tmp_path)["scalars"] == ["learning_rate", "train/loss", "train/num_proposals", "val/bbox_AP"]


def test_several_steps_at_a_call_are_counted_by_the_optimizer(tmp_path):
    class Leap(keras.callbacks.Callback):
        """Three steps more at a call, as with `steps_per_execution`."""

        def on_train_batch_end(self, batch, logs=None):
            self.model.optimizer.iterations.assign_add(3)

    fit(TensorBoardLog(tmp_path, "", write_every=5), Leap(), epochs=1, steps=6)
    assert steps(tmp_path, "train/loss") == [8, 12, 16, 20, 24]


def test_the_configuration_is_a_code_block(tmp_path):
    fit(TensorBoardLog(tmp_path, "train:\n  seed: 1\n"))
    assert text(tmp_path) == (0, "```yaml\ntrain:\n  seed: 1\n```")


def test_a_resumed_run_is_one_curve_without_the_steps_that_are_made_again(tmp_path):
    fit(TensorBoardLog(tmp_path, "first", write_every=1), Figures(), epochs=1, steps=6)
    fit(TensorBoardLog(tmp_path, "second", steps=3, write_every=1), done=3, epochs=1, steps=2)
    assert steps(tmp_path, "train/loss") == [1, 2, 3, 4, 5]
    # Not measured again, and of a step that has not been made yet.
    assert curve(tmp_path, "val/bbox_AP") == []
    assert text(tmp_path) == (0, "```yaml\nfirst\n```")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    fit(TensorBoardLog(tmp_path, "first", write_every=1), epochs=1, steps=6)
    fit(TensorBoardLog(tmp_path, "second", write_every=1), epochs=1, steps=2)
    assert steps(tmp_path, "train/loss") == [1, 2]
    assert text(tmp_path) == (0, "```yaml\nsecond\n```")


def test_what_is_written_can_be_read_during_the_run(tmp_path):
    lengths = []

    class Peek(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            lengths.append(len(steps(tmp_path, "train/loss")))

    fit(TensorBoardLog(tmp_path, "", write_every=1), Peek())
    assert lengths == [3, 6]


def test_pictures_come_with_an_evaluation_and_at_its_step(tmp_path):
    class Measured(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                logs["val_bbox_AP"] = 0.5

    drawn = [("a/b.png", np.full((20, 50, 3), 200, np.uint8))]
    fit(TensorBoardLog(tmp_path, "", pictures=lambda: drawn), Measured(), epochs=3)
    ((step, picture),) = pictures(tmp_path, "pictures/a/b.png")
    assert (step, picture.shape) == (6, (20, 50, 3))
    np.testing.assert_allclose(picture.astype(int), 200, atol=2)


def test_pictures_are_drawn_with_the_weights_that_were_measured(tmp_path):
    seen = []
    optimizer = CoupledSGD(0.1, average_momentum=0.9)
    log = TensorBoardLog(tmp_path, "", pictures=lambda: seen.append([w.copy() for w in log.model.get_weights()]) or [])
    fit(log, Figures(), epochs=1, optimizer=optimizer)
    np.testing.assert_array_equal(seen[0][0], optimizer.averages[0])
    assert (seen[0][0] != log.model.get_weights()[0]).any()


def test_figures_that_could_not_be_measured_are_left_out(tmp_path):
    nothing = {"bbox": dict.fromkeys(("AP", "AP50", "AP75"))}
    evaluation = CocoEvaluation(lambda: nothing, every=1, last_step=lambda: False)
    fit(TensorBoardLog(tmp_path, "", pictures=lambda: []), StopConditions(99), evaluation)
    assert tags(tmp_path)["scalars"] == ["train/loss", "train_seconds"]


def write_data(folder, objects, size=(100, 200)):
    """A picture for each number of objects; the ids count from 1."""
    images, annotations = [], []
    for number, count in enumerate(objects, 1):
        Image.new("RGB", size[::-1], (90, 90, 90)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
        annotations += [{"id": 0, "image_id": number, "category_id": 7, "bbox": [20, 10, 60, 50]}] * count
    return {"images": images, "categories": list(CATEGORIES), "annotations": annotations}


def finds(scores, boxes):
    def detect(image):
        return Detections(
            boxes=np.float32(boxes).reshape(-1, 4),
            classes=np.ones(len(scores), np.int32),
            scores=np.float32(scores),
            mask_probs=None,
            image_size=image.shape[:2],
            categories=CATEGORIES,
        )

    return detect


@pytest.mark.parametrize(
    ("objects", "count", "expected"),
    [
        ([1] * 9, 3, [1, 5, 9]),
        ([1] * 2, 4, [1, 2]),
        ([0, 1, 0, 0, 2, 0], 2, [2, 5]),
        ([0, 1, 0, 0, 2, 0], 4, [2, 5, 1, 6]),
        ([0, 0, 0], 1, [1]),
        ([1, 1], 0, []),
    ],
)
def test_pictures_are_spread_and_have_objects_where_they_can(tmp_path, objects, count, expected):
    draw = validation_pictures(finds([], []), tmp_path, write_data(tmp_path, objects), count)
    assert [name for name, _ in draw()] == [f"{number}.png" for number in expected]
    assert [name for name, _ in draw()] == [name for name, _ in draw()]


def test_targets_on_the_left_and_sure_detections_on_the_right(tmp_path):
    detector = finds([0.9, 0.4], [[50, 120, 90, 180], [5, 100, 40, 190]])
    ((_, picture),) = validation_pictures(detector, tmp_path, write_data(tmp_path, [1]), 1)()
    # Small pictures are drawn four times as large, more than LONGEST_EDGE, and shrunk to it.
    assert picture.shape[:2] == (320, 2 * LONGEST_EDGE + 8)
    left, right = picture[:, :LONGEST_EDGE], picture[:, -LONGEST_EDGE:]
    assert (picture[:, LONGEST_EDGE:-LONGEST_EDGE] == 255).all()
    coloured = {name: np.abs(half.astype(int) - 90).max(axis=-1) > 40 for name, half in (("left", left), ("right", right))}
    # 3.2 pixels of the drawing are one of the picture; the label is above the box or inside.
    for half, (y1, x1, y2, x2) in (("left", (10, 20, 60, 80)), ("right", (50, 120, 90, 180))):
        rows, columns = np.nonzero(coloured[half])
        assert columns.min() == pytest.approx(3.2 * x1, abs=3)
        assert columns.max() == pytest.approx(3.2 * x2, abs=3)
        assert rows.max() == pytest.approx(3.2 * y2, abs=3)
        assert 3.2 * y1 - 40 < rows.min() < 3.2 * y1 + 3


def test_large_pictures_are_shrunk(tmp_path):
    ((_, picture),) = validation_pictures(finds([], []), tmp_path, write_data(tmp_path, [1], size=(1600, 800)), 1)()
    assert picture.shape == (LONGEST_EDGE, 2 * 320 + 8, 3)


def test_annotations_that_cannot_be_read_are_named_before_the_run(tmp_path):
    (tmp_path / "val.json").write_text("[]")
    with pytest.raises(EvaluationError, match=r"val\.json: expected COCO JSON"):
        validation_pictures(finds([], []), tmp_path, tmp_path / "val.json", 1)


def changed(config, **section):
    return config.model_copy(update={"train": config.train.model_copy(update=section)})


def test_a_run_has_losses_ap_configuration_and_pictures(tiny_config, tmp_path, monkeypatch):
    made = []

    class Counted(Predictor):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(train_module, "Predictor", Counted)
    run = train(changed(tiny_config, tensorboard_images=2), tmp_path / "run", progress=False)
    folder = run.output / "tensorboard"
    found = tags(folder)
    assert set(found["scalars"]) >= {"train/loss", "train/mask_loss", "learning_rate", "val/bbox_AP", "val/segm_AP50"}
    with (run.output / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert curve(folder, "train/loss") == [(int(row["step"]), pytest.approx(float(row["loss"]), rel=1e-4)) for row in rows]
    step, shown = text(folder)
    assert step == 0
    assert yaml.safe_load(shown.removeprefix("```yaml\n").removesuffix("\n```"))["train"]["tensorboard_images"] == 2
    assert len(found["images"]) == 2
    for tag in found["images"]:
        assert [(step, picture.shape) for step, picture in pictures(folder, tag)] == [(2, (640, 1288, 3)), (4, (640, 1288, 3))]
    # Evaluation and pictures share one, so the model is traced once.
    assert len(made) == 1
    assert made[0]._detect.experimental_get_tracing_count() == 1


@pytest.mark.slow
def test_a_run_that_goes_on_after_a_kill_has_each_step_once(tiny_config, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    class Trap(train_module.Checkpoints):
        """Dies when the events of the second epoch are written and its checkpoint is not."""

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise Killed
            super().on_epoch_end(epoch, logs)

    config = changed(tiny_config, tensorboard_images=1)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "Checkpoints", Trap)
        with pytest.raises(Killed):
            train(config, tmp_path / "run", progress=False)
    folder = tmp_path / "run" / "tensorboard"
    assert steps(folder, "train/loss") == [2, 4]
    assert train(config, tmp_path / "run", progress=False, resume=True).steps == 4
    assert len(list(folder.iterdir())) == 2
    assert steps(folder, "train/loss") == steps(folder, "val/segm_AP") == [2, 4]
    assert [step for step, _ in pictures(folder, tags(folder)["images"][0])] == [2, 4]
    assert len(read(folder).Tensors("config")) == 1


def test_a_run_with_boxes_only(tiny_config, shapes_dir, tmp_path):
    splits = {}
    for split in ("train", "val"):
        content = json.loads((shapes_dir / f"instances_{split}.json").read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        splits[split] = SplitConfig(images=str(shapes_dir / "images"), annotations=str(tmp_path / f"{split}.json"))
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update=splits)})
    run = train(changed(config, num_steps=1, tensorboard_images=1), tmp_path / "run", progress=False)
    found = tags(run.output / "tensorboard")
    assert len(found["images"]) == 1
    assert "val/bbox_AP" in found["scalars"]
    assert not [tag for tag in found["scalars"] if "mask" in tag or "segm" in tag]


def test_a_run_without_validation_data_has_no_pictures(tiny_config, tmp_path):
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"val": SplitConfig()})})
    run = train(changed(config, num_steps=1), tmp_path / "run", progress=False)
    found = tags(run.output / "tensorboard")
    assert (found["images"], found["tensors"]) == ([], ["config"])
    assert "train/loss" in found["scalars"]


def test_the_number_of_pictures_is_not_negative():
    with pytest.raises(ValueError, match="tensorboard_images"):
        parse(TrainConfig, {"tensorboard_images": -1}, "train")
