"""Text protos of the configuration."""

import pytest

from tests.serving.batching_options import BatchingOptions, batching_options
from tests.serving.configs import BatchingParameters, MonitoringConfig, read_text_proto
from tests.serving.status import Code, StatusError

FULL = """
max_batch_size { value: 8 }
batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
thread_pool_name { value: "pool" }
allowed_batch_sizes: 1
allowed_batch_sizes: 4
allowed_batch_sizes: 8
pad_variable_length_inputs: false
enable_large_batch_splitting { value: true }
max_execution_batch_size { value: 4 }
"""


@pytest.fixture
def parse(tmp_path):
    def parse(text, kind=BatchingParameters):
        path = tmp_path / "batching.config"
        path.write_text(text)
        return read_text_proto(path, kind)

    return parse


def test_every_field(parse):
    assert batching_options(parse(FULL)) == BatchingOptions(8, 5000, 100, 2, "pool", (1, 4, 8), True, 4)


def test_field_numbers_are_the_published_ones(parse):
    # Field 1, a message of 2 bytes, whose field 1 is 8; field 6, packed.
    wire = parse("max_batch_size { value: 8 } allowed_batch_sizes: 8").SerializeToString()
    assert wire == bytes([1 << 3 | 2, 2, 1 << 3 | 0, 8, 6 << 3 | 2, 1, 8])


def test_nothing_given_leaves_the_defaults(parse):
    options = batching_options(parse(""))
    assert options == BatchingOptions()
    assert (options.max_batch_size, options.max_enqueued_batches, options.batch_timeout_micros) == (1000, 10, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "must match max_batch_size; last entry was 4; expected 8"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        (
            "max_batch_size { value: 2 } enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }",
            "greater than or equal to max_execution_batch_size",
        ),
        ("pad_variable_length_inputs: true", "pad_variable_length_inputs"),
    ],
)
def test_refused_values(parse, text, message):
    with pytest.raises(StatusError, match=message):
        batching_options(parse(text))


def test_no_waiting_batches_are_one(parse):
    assert batching_options(parse("max_enqueued_batches { value: 0 }")).max_enqueued_batches == 1


def test_padding_to_allowed_sizes(parse):
    options = batching_options(parse("max_batch_size { value: 8 } allowed_batch_sizes: [1, 4, 8]"))
    assert [options.padded(rows) for rows in (1, 2, 4, 5, 8)] == [1, 4, 4, 8, 8]
    assert BatchingOptions().padded(3) == 3


def test_monitoring(parse):
    config = parse('prometheus_config { enable: true path: "/metrics" }', MonitoringConfig).prometheus_config
    assert (config.enable, config.path) == (True, "/metrics")


def test_text_that_is_no_such_proto(parse, tmp_path):
    with pytest.raises(StatusError, match=r"batching.config.*no field named \"max_batch\"") as caught:
        parse("max_batch { value: 1 }")
    assert caught.value.code == Code.INVALID_ARGUMENT
    with pytest.raises(StatusError, match="No such file"):
        read_text_proto(tmp_path / "nothing", BatchingParameters)
