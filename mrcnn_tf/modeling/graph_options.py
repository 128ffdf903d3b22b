"""How TensorFlow may rewrite the graph of a training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context


@contextmanager
def sums_in_fixed_order() -> Iterator[None]:
    """Without Grappler's memory optimizer, for what is called inside.

    It believes that a CPU has 256 MB, and turns sums of three and more gradients into variables to which each is added as soon as
    it is there: in another order each time. TensorFlow 2.20 has no public switch for it;
    `tf.config.optimizer.set_experimental_options` knows most other passes.
    """
    current = context.context()
    before = current.function_call_options
    config = config_pb2.ConfigProto.FromString(before.config_proto_serialized)
    config.graph_options.rewrite_options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    current.function_call_options = context.FunctionCallOptions(executor_type=before.executor_type, config_proto=config)
    try:
        yield
    finally:
        current.function_call_options = before
