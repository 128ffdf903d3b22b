"""The choice of a strategy, and what cannot be."""

import json

import pytest
import tensorflow as tf

from mrcnn_tf.config import ConfigError, TrainConfig
from mrcnn_tf.strategies import build_strategy


def changed(config, **values):
    section = TrainConfig.model_validate({**config.train.model_dump(), **values})
    return config.model_copy(update={"train": section})


def test_auto_takes_one_device_where_there_is_no_gpu(tiny_config, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert build_strategy(changed(tiny_config, strategy="auto")) is tf.distribute.get_strategy()


def test_auto_heeds_a_cluster_of_one_worker_no_more_than_none(tiny_config, monkeypatch):
    value = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))
    assert build_strategy(changed(tiny_config, strategy="auto")) is tf.distribute.get_strategy()


def test_the_batch_must_divide_among_the_replicas(tiny_config):
    with pytest.raises(ConfigError, match="multiple of the 2 replicas, got 3"):
        build_strategy(changed(tiny_config, strategy="mirrored", batch_size=3))


def test_several_machines_need_to_be_named(tiny_config, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=r"multi_worker, but TF_CONFIG names no machines; set it to .*HOST:PORT"):
        build_strategy(changed(tiny_config, strategy="multi_worker"))


def test_several_machines_are_set_up_before_tensorflow_starts(tiny_config, monkeypatch):
    tf.constant(0)
    value = {"cluster": {"worker": ["localhost:1", "localhost:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))
    with pytest.raises(ConfigError, match="before TensorFlow is used"):
        build_strategy(changed(tiny_config, strategy="auto"))
