"""A stand-in for TensorFlow Serving's `tensorflow_model_server`, for tests and benchmarks where the real binary cannot be had.

It loads a SavedModel with TensorFlow's C++ loader, the one TensorFlow Serving uses (through its C API, without the Python
package), and keeps to what TensorFlow Serving documents: gRPC and REST APIs, statuses, version folders and labels, batching,
warm-up, monitoring. What it leaves out: Classify, Regress, MultiInference, config reload requests, retries of a failed load,
TLS, `pad_variable_length_inputs: true`. It is Python between the sockets and the graph, so its overhead for one request is
above that of the real server.

Start it with `tests.serving.model_server.serve(...)` or `python -m tests.serving.model_server --help`.
"""
