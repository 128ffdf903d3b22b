"""The constants of other systems as values of the configuration."""

import typing

import pytest

from mrcnn_tf.config import Config, ConfigError, ModelConfig, PresetName, parse
from mrcnn_tf.presets import PRESETS, merge


def test_there_is_a_preset_for_every_name():
    assert sorted(PRESETS) == sorted(typing.get_args(PresetName))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_a_file(name):
    config = parse(ModelConfig, {"preset": name}, "test")
    assert config.preset == name
    for section, values in PRESETS[name].items():
        for key, value in values.items() if isinstance(values, dict) else ():
            assert getattr(getattr(config, section), key) == value, (section, key)
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config


def test_own_values_win_over_a_preset():
    config = parse(ModelConfig, {"preset": "torchvision", "roi_align": {"sampling_ratio": 4}}, "test")
    assert (config.roi_align.sampling_ratio, config.roi_align.aligned) == (4, False)
    assert config.preprocessing.channel_order == "rgb"


def test_own_sections_win_over_a_preset():
    section = parse(ModelConfig, {}, "test").roi_align
    assert ModelConfig(preset="torchvision", roi_align=section).roi_align == section


def test_unknown_preset_is_named():
    with pytest.raises(ConfigError, match=r"model\.preset.*detectron2.*torchvision"):
        parse(Config, {"model": {"preset": "mmdetection"}}, "test")


def test_merge_goes_by_section_and_leaves_both_as_they_were():
    base, changes = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": {"z": 1}}
    assert merge(base, changes) == {"a": {"x": 1, "y": 5}, "b": 3, "c": {"z": 1}}
    assert (base, changes) == ({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": {"z": 1}})
    assert merge({"a": 1}, {"a": {"x": 2}}) == {"a": {"x": 2}}
