"""Reading, checking and writing configurations."""

import importlib.resources
import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from mrcnn_tf.config import (
    BackboneConfig,
    Category,
    Config,
    ConfigError,
    ModelConfig,
    PreprocessingConfig,
    TrainConfig,
    imagenet_preprocessing,
    load_config,
    parse,
    shipped_configs,
)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "own.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def error_of(source, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def test_empty_file_is_the_defaults(write):
    assert load_config(write("# nothing\n")) == Config()


def test_defaults_are_the_published_constants():
    model = Config().model
    assert model.anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert (model.rpn.num_samples, model.rpn.positive_fraction) == (256, 0.5)
    assert (model.rpn.foreground_iou_threshold, model.rpn.background_iou_threshold) == (0.7, 0.3)
    assert (model.box_head.num_samples, model.box_head.positive_fraction) == (512, 0.25)
    assert model.box_head.box_weights == (10, 10, 5, 5)
    assert (model.box_head.score_threshold, model.box_head.nms_iou_threshold, model.box_head.max_detections) == (0.05, 0.5, 100)


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_load_and_come_back_from_yaml(name, write):
    config = load_config(name)
    assert load_config(write(config.to_yaml())) == config
    assert not Path(config.data.root or "").is_absolute()


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_begin_with_their_command(name):
    header = importlib.resources.files("mrcnn_tf.configs").joinpath(f"{name}.yaml").read_text("utf-8").split("model:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"mrcnn-tf train {name}" in header


def test_yaml_and_json_round_trip_with_categories_and_unicode(write):
    config = Config().with_categories([{"id": 7, "name": "Zelle"}, {"id": 3, "name": "細胞"}])
    assert "細胞" in config.to_yaml()
    assert load_config(write(config.to_yaml())) == config
    # what the `.keras` file keeps
    assert ModelConfig.model_validate(json.loads(json.dumps(config.model.model_dump(mode="json")))) == config.model


def test_configurations_are_frozen_and_hashable():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.batch_size = 3
    assert hash(config) == hash(Config())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("model: {rpn: {num_sample: 3}}", "model.rpn.num_sample: unknown key; did you mean model.rpn.num_samples?"),
        ("trian: {}", "trian: unknown key; did you mean train?"),
        ("data: {train: {image: x}}", "data.train.image: unknown key; did you mean data.train.images?"),
        ("model: {fpn: {zzz: 3}}", "model.fpn.zzz: unknown key; known keys: width, norm"),
        (
            "model: {categories: [{id: 1, nam: cat}]}",
            "model.categories.0.nam: unknown key; did you mean model.categories.0.name?",
        ),
    ],
)
def test_unknown_keys_name_the_nearest(write, text, hint):
    path = write(text)
    message = error_of(path)
    assert hint in message
    assert message.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("text", "key", "came"),
    [
        ("train: {batch_size: many}", "train.batch_size", "'many'"),
        ("train: {batch_size: 0}", "train.batch_size", "0"),
        ("train: {batch_size: 2.5}", "train.batch_size", "2.5"),
        ("train: {momentum: 1.0}", "train.momentum", "1.0"),
        ("train: {schedule: 2x}", "train.schedule", "'2x'"),
        ("model: {backbone: {name: resnet18}}", "model.backbone.name", "'resnet18'"),
        ("model: {rpn: {nms_iou_threshold: 1.5}}", "model.rpn.nms_iou_threshold", "1.5"),
        ("model: {roi_align: {sampling_ratio: 3}}", "model.roi_align.sampling_ratio", "3"),
        ("model: {preprocessing: {pixel_mean: [1, 2]}}", "model.preprocessing.pixel_mean", ""),
        ("model: {categories: [{id: one, name: cat}]}", "model.categories.0.id", "'one'"),
        ("model: {backbone: resnet50}", "model.backbone", "'resnet50'"),
        ("model: 3", "model", "3"),
        ("data: {train: null}", "data.train", "None"),
    ],
)
def test_wrong_values_say_key_and_what_came(write, text, key, came):
    line = next(line for line in error_of(write(text)).splitlines() if line.startswith(f"  {key}"))
    assert came in line.split("(got ")[1]


def test_every_fault_is_told_at_once(write):
    message = error_of(write("train: {batch_size: 0, sed: 1}\nmodel: {fpn: {width: 0}}"))
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "model.fpn.width",
        "train.batch_size",
        "train.sed",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {anchors: {sizes: [[8], [16]]}}", "one tuple for each of the 5 levels P2..P6, got 2"),
        ("model: {anchors: {sizes: [[8], [16], [32], [64], [128, 256]]}}", "the same number"),
        ("model: {anchors: {sizes: [[], [], [], [], []]}}", "at least one"),
        ("model: {anchors: {aspect_ratios: [1, -1]}}", "positive"),
        ("model: {anchors: {aspect_ratios: []}}", "not empty"),
        ("data: {min_sizes: []}", "positive pixel counts"),
        ("data: {image_size: [100, 640]}", "multiples of 64, got (100, 640); use (128, 640)"),
        ("data: {image_size: [0, 1]}", "use (64, 64)"),
        ("data: {buckets: [[64, 128], [65, 64]]}", "a bucket must be multiples of 64, got (65, 64); use (128, 64)"),
        ("data: {scale_jitter: [2.0, 0.1]}", "two rising numbers above 0, got (2.0, 0.1)"),
        ("data: {scale_jitter: [0, 1]}", "two rising numbers above 0"),
    ],
)
def test_values_that_do_not_fit_together(write, text, words):
    assert words in error_of(write(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is not valid YAML"), ("- 1\n- 2", "must hold a mapping of sections, got list"), ("just words", "got str")],
)
def test_files_that_are_no_configuration(write, text, words):
    path = write(text)
    assert words in error_of(path)
    assert str(path) in error_of(path)


def test_unknown_name_lists_the_shipped_ones():
    message = error_of("shapes_efnet_lite0")
    assert "Did you mean shapes_effnet_lite0?" in message
    assert all(name in message for name in shipped_configs())
    assert "Did you mean" not in error_of("no/such/file.yaml")


def test_overrides(write):
    path = write("train: {batch_size: 8}\nmodel:  # nothing yet\n")
    overrides = [
        "train.batch_size=4",
        "train.learning_rate=1e-3",
        "data.min_sizes=[256, 320]",
        "data.train.images=a=b/c",
        "model.backbone.weights=null",
        "train.max_minutes=",
    ]
    config = load_config(path, overrides)
    assert (config.train.batch_size, config.train.learning_rate) == (4, 0.001)
    assert config.data.min_sizes == (256, 320)
    assert config.data.train.images == "a=b/c"
    assert config.model.backbone.weights is None
    assert config.train.max_minutes is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size", "section.key=value, got 'train.batch_size'"),
        ("=3", "section.key=value"),
        ("train.batch_size=[", "not valid YAML"),
        ("train.batch_size.more=3", "batch_size is a value, not a section"),
        ("train.batchsize=3", "did you mean train.batch_size?"),
        ("batch_size=3", "batch_size: unknown key"),
    ],
)
def test_broken_overrides(write, override, words):
    assert words in error_of(write("train: {batch_size: 8}"), override)


@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_lite1"])
def test_pixel_statistics_follow_the_trunk(write, backbone):
    expected = PreprocessingConfig(**imagenet_preprocessing(backbone), max_size=99)
    found = load_config(write(f"model: {{backbone: {{name: {backbone}}}, preprocessing: {{max_size: 99}}}}"))
    assert found.model.preprocessing == expected
    made = ModelConfig(backbone=BackboneConfig(name=backbone), preprocessing={"max_size": 99})
    assert made.preprocessing == expected


def test_given_pixel_statistics_stay(write):
    text = "model: {backbone: {name: efficientnet_lite0}, preprocessing: {pixel_mean: [1, 2, 3]}}"
    assert load_config(write(text)).model.preprocessing.pixel_mean == (1, 2, 3)


def test_default_sections_agree_with_the_default_trunk():
    assert Config().model.preprocessing == Config.model_validate({"model": {}}).model.preprocessing


def test_data_paths_start_at_the_root(write):
    text = "data: {root: /data, train: {images: images, annotations: /elsewhere/train.json}, val: {images: ~/val}}"
    data = load_config(write(text)).data
    assert data.path("train", "images") == Path("/data/images")
    assert data.path("train", "annotations") == Path("/elsewhere/train.json")
    assert data.path("val", "images") == Path.home() / "val"
    assert Config.model_validate({"data": {"val": {"images": "here"}}}).data.path("val", "images") == Path("here")


def test_missing_data_path_is_named():
    with pytest.raises(ConfigError, match=r"data\.val\.annotations is not set"):
        Config().data.path("val", "annotations")


def test_prepared_data():
    splits = {"train": {"tfds": "coco"}, "val": {"tfds": "gs://b/c", "split": "val2"}}
    data = Config.model_validate({"data": {"root": "/data", **splits}}).data
    assert data.prepared("train") == ("/data/coco", "train")
    assert data.prepared("val") == ("gs://b/c", "val2")
    assert data.train.is_set
    assert Config().data.prepared("val") is None
    assert not Config().data.val.is_set


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tfds": "a", "annotations": "b"}, r"images and annotations, or tfds, not both; .* set \{tfds: a\}"),
        ({"images": "a", "annotations": "b", "split": "val"}, "split=val names a part of prepared data; set tfds to its folder"),
    ],
)
def test_prepared_data_or_files(section, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"data": {"val": section}})


def test_a_shipped_configuration_takes_prepared_data_in_one_word():
    config = load_config("mask_rcnn_r50_fpn_1x", ["data.train={tfds: a}", "data.val={tfds: b}"])
    assert (config.data.train.tfds, config.data.train.images, config.data.prepared("val")) == ("a", None, ("b", "val"))


def test_with_categories():
    config = Config().with_categories([{"id": 7, "name": "a", "supercategory": "b"}, Category(id=2, name="c")])
    assert [category.model_dump() for category in config.model.categories] == [{"id": 7, "name": "a"}, {"id": 2, "name": "c"}]
    assert config.model.num_classes == 2
    assert Config().model.num_classes == 0


@pytest.mark.parametrize(
    ("category", "words"), [({"id": 1}, "name: Field required"), ({"id": "x", "name": "a"}, r"id: .*integer.*'x'")]
)
def test_broken_category_is_named(category, words):
    with pytest.raises(ConfigError, match=rf"(?s)category 2.*{words}"):
        Config().with_categories([{"id": 9, "name": "z"}, category])


def test_with_categories_of_the_training_annotations(shapes_dir):
    config = load_config("shapes_effnet_lite0", [f"data.root={shapes_dir}"]).with_categories()
    assert [category.name for category in config.model.categories] == ["circle", "rectangle", "triangle", "star"]


def test_with_categories_without_annotations():
    with pytest.raises(ConfigError, match=r"data\.train\.annotations is not set"):
        Config().with_categories()


def test_parse_takes_any_section():
    assert parse(TrainConfig, {"batch_size": 3}, "here").batch_size == 3
    with pytest.raises(ConfigError, match=r"here:\n  batchsize: unknown key; did you mean batch_size\?"):
        parse(TrainConfig, {"batchsize": 3}, "here")


def keys_of(section, name=""):
    """(section, key) of every value."""
    for key, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys_of(kind, f"{name}.{key}".lstrip("."))
        else:
            yield name, key


def test_the_document_has_every_key_and_no_other():
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    parts = re.split(r"^#+ `([a-z_.]+)`.*$", text, flags=re.MULTILINE)
    tables = zip(parts[1::2], parts[2::2], strict=True)
    found = [(name, key) for name, table in tables for key in re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)]
    assert sorted(found) == sorted(keys_of(Config))
