"""Schedules against hand-made tables."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import TrainConfig
from mrcnn_tf.schedules import StagedRate, WarmupCosine, WarmupMultiStep, build_schedule, num_steps


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "1x"}, {0: 2e-5, 500: 0.01001, 1000: 0.02, 59_999: 0.02, 60_000: 0.002, 79_999: 0.002, 80_000: 0.0002}),
        ({"schedule": "3x"}, {1000: 0.02, 209_999: 0.02, 210_000: 0.002, 250_000: 0.0002, 269_999: 0.0002}),
        # half the batch: half the rate, twice the steps, warm-up included
        (
            {"schedule": "1x", "batch_size": 8},
            {0: 1e-5, 1000: 0.005005, 2000: 0.01, 119_999: 0.01, 120_000: 0.001, 160_000: 1e-4},
        ),
        ({"schedule": "3x", "batch_size": 32}, {500: 0.04, 104_999: 0.04, 105_000: 0.004, 125_000: 0.0004}),
        (
            {"schedule": "steps", "num_steps": 900, "warmup_steps": 10, "warmup_factor": 0.1},
            {0: 0.002, 5: 0.011, 10: 0.02, 599: 0.02, 600: 0.002, 799: 0.002, 800: 0.0002, 900: 0.0002},
        ),
        (
            {"schedule": "steps", "num_steps": 100, "warmup_steps": 0, "milestones": (0.5,), "batch_size": 4},
            {0: 0.005, 49: 0.005, 50: 0.0005},
        ),
        ({"schedule": "steps", "num_steps": 100, "warmup_steps": 0, "milestones": ()}, {0: 0.02, 99: 0.02}),
        (
            {"schedule": "cosine", "num_steps": 400, "warmup_steps": 0, "batch_size": 4, "reference_batch_size": 4},
            {0: 0.02, 100: 0.01 * (1 + math.sqrt(0.5)), 200: 0.01, 400: 0.0, 500: 0.0},
        ),
        (
            {"schedule": "cosine", "num_steps": 400, "warmup_steps": 200, "warmup_factor": 0.0},
            {0: 0.0, 100: 0.005 * (1 + math.sqrt(0.5)), 200: 0.01},
        ),
    ],
)
def test_rates(values, expected):
    schedule = build_schedule(TrainConfig(**values))
    np.testing.assert_allclose(rates(schedule, expected), list(expected.values()), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "1x"}, 90_000),
        ({"schedule": "3x"}, 270_000),
        ({"schedule": "1x", "batch_size": 4}, 360_000),
        # the lengths count images, so they go by the recipe's batch of 16, not by the rate's
        ({"schedule": "1x", "batch_size": 4, "reference_batch_size": 4}, 360_000),
        ({"schedule": "3x", "batch_size": 32}, 135_000),
        ({"schedule": "steps", "num_steps": 7, "batch_size": 4}, 7),
        ({"schedule": "cosine", "num_steps": 7, "batch_size": 4}, 7),
    ],
)
def test_num_steps(values, expected):
    assert num_steps(TrainConfig(**values)) == expected


def test_warmup_without_steps_starts_at_the_full_rate():
    assert rates(WarmupMultiStep(0.1, [10], warmup_steps=0), [0, 9, 10]) == pytest.approx([0.1, 0.1, 0.01])


@pytest.mark.parametrize("schedule", [WarmupMultiStep(0.1, [3, 5], 2, 0.5), WarmupCosine(0.1, 7, 2, 0.5)])
def test_schedules_come_back_from_their_configuration(schedule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(again) is type(schedule)
    assert rates(again, range(8)) == rates(schedule, range(8))


def test_schedule_works_inside_a_graph():
    schedule = WarmupMultiStep(0.1, [3, 5], 2, 0.5)
    traced = tf.function(schedule, input_signature=[tf.TensorSpec([], tf.int64)])
    np.testing.assert_allclose([traced(step) for step in range(7)], rates(schedule, range(7)), rtol=1e-6)


def test_stages_change_the_rate_at_their_first_step():
    stages = [{"start": 0, "learning_rate_factor": 0.5}, {"start": 3}, {"start": 7, "learning_rate_factor": 2.0}]
    values = {"schedule": "steps", "num_steps": 10, "milestones": (0.5,), "warmup_steps": 0}
    plain = rates(build_schedule(TrainConfig(**values)), range(10))
    staged = build_schedule(TrainConfig(**values, stages=stages))
    assert rates(staged, range(10)) == pytest.approx([f * r for f, r in zip([0.5] * 3 + [1] * 4 + [2] * 3, plain, strict=True)])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(staged))
    assert isinstance(again, StagedRate)
    assert rates(again, range(10)) == rates(staged, range(10))
