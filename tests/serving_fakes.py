"""Servers that answer as they are told: by the two interfaces of TensorFlow Serving, and as servers do that are none."""

import base64
import io
import json
import socket
import threading
import time
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

KINDS = ("grpc", "rest")
LARGE = 300_000
HANG_SECONDS = 3


def outputs(image):
    """One picture's outputs as an exported model gives them: two objects of three classes, five rows."""
    try:
        height, width = np.asarray(Image.open(io.BytesIO(image))).shape[:2]
    except OSError:
        return {**_rows(0, 0, 0), "image_errors": np.array([b"no JPEG and no PNG"], object)}
    return {**_rows(height, width, 2), "image_errors": np.array([b""], object)}


def without(*names):
    """`outputs` of a model that lacks some."""
    return lambda image: {name: value for name, value in outputs(image).items() if name not in names}


def changed(**replaced):
    """`outputs` with other values in their place."""
    return lambda image: {**outputs(image), **replaced}


def _rows(height, width, count):
    def padded(rows, empty, dtype):
        return np.array([[*rows[:count], *([empty] * (5 - count))]], dtype)

    return {
        "detection_boxes": padded([[1, 2, height, width / 3], [0, 0, 8.5, 9]], [0] * 4, np.float32),
        "detection_classes": padded([3, 1], 0, np.int32),
        "detection_scores": padded([0.9, 0.6], 0, np.float32),
        "num_detections": np.array([count], np.int32),
        "image_size": np.array([[height, width]], np.int32),
        "detection_class_names": padded(["étoile".encode(), b"circle"], b"", object),
        "detection_category_ids": padded([2**40, 7], 0, np.int64),
        "detection_masks": np.full([1, 5, 28, 28], 0.75, np.float32),
        "mask_paste": np.array([b"expanded"], object),
    }


@dataclass
class Fake:
    """A running server.

    Attributes:
        steps: what it does with its requests: the name of a method of `_GrpcSteps` and `_RestSteps`, the last for all others.
        model: from an encoded picture to outputs.
        versions: of its model and their states; None: it does not tell.
        port: set when it runs.
        pictures: what was sent.
        asked: model's name, version, signature of each request; by REST the path.
    """

    steps: tuple[str, ...]
    model: Any = outputs
    versions: dict[int, str] | None = None
    port: int = 0
    pictures: list[bytes] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    connections: list[socket.socket] = field(default_factory=list)

    @property
    def step(self):
        return self.steps[min(len(self.asked), len(self.steps)) - 1]


@contextmanager
def fake_server(kind, *steps, port=0, **options):
    """Run a server of the kind; yields its url and the `Fake`."""
    fake = Fake(steps, port=port, **options)
    start, scheme = {"grpc": (_grpc_server, "grpc"), "rest": (_rest_server, "http")}[kind]
    with start(fake):
        yield f"{scheme}://127.0.0.1:{fake.port}", fake
        fake.stopped.set()


@contextmanager
def _grpc_server(fake):
    server = grpc.server(
        futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    )
    if "no_service" not in fake.steps:
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_GrpcSteps(fake), server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_GrpcStatus(fake), server)
    fake.port = server.add_insecure_port(f"127.0.0.1:{fake.port}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


class _GrpcSteps(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, fake):
        self.fake = fake

    def Predict(self, request, context):
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        self.fake.asked.append((spec.name, version, spec.signature_name))
        self.fake.pictures += tf.make_ndarray(request.inputs["image_bytes"]).tolist()
        return getattr(self, self.fake.step)(context)

    def answer(self, context):
        found = self.fake.model(self.fake.pictures[-1])
        return predict_pb2.PredictResponse(outputs={name: tf.make_tensor_proto(value) for name, value in found.items()})

    def large(self, context):
        return predict_pb2.PredictResponse(outputs={"x": tf.make_tensor_proto(bytes(LARGE))})

    def hang(self, context):
        self.fake.stopped.wait(HANG_SECONDS)

    def unavailable(self, context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "queue is full")

    def not_found(self, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request")

    def refused(self, context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "input size does\nnot match signature" + "x" * 1000)

    def failed(self, context):
        context.abort(grpc.StatusCode.INTERNAL, "out of luck")


class _GrpcStatus(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, fake):
        self.fake = fake

    def GetModelStatus(self, request, context):
        if self.fake.versions is None:
            context.abort(grpc.StatusCode.INTERNAL, "no")
        if not self.fake.versions:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model")
        status = get_model_status_pb2.ModelVersionStatus
        return get_model_status_pb2.GetModelStatusResponse(
            model_version_status=[
                status(version=version, state=status.State.Value(state)) for version, state in self.fake.versions.items()
            ]
        )


@contextmanager
def _rest_server(fake):
    server = ThreadingHTTPServer(("127.0.0.1", fake.port), type("Handler", (_RestSteps,), {"fake": fake}))
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        fake.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in fake.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _RestSteps(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def setup(self):
        super().setup()
        self.fake.connections.append(self.connection)

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.asked.append((self.path, body["signature_name"]))
        self.fake.pictures += [base64.b64decode(row["image_bytes"]["b64"]) for row in body["instances"]]
        getattr(self, self.fake.step)()

    def do_GET(self):
        versions = self.fake.versions
        if versions is None:
            self.html()
        elif not versions:
            self.send(404, {"error": "Could not find any versions of model"})
        else:
            rows = [{"version": str(version), "state": state, "status": {}} for version, state in versions.items()]
            self.send(200, {"model_version_status": rows})

    def send(self, status, value, *, kind="application/json", length=None, **headers):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": kind, "Content-Length": str(length or len(content)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def answer(self):
        found = self.fake.model(self.fake.pictures[-1])
        row = {name: _json_value(value[0]) for name, value in found.items()}
        self.send(200, {"predictions": [row]})

    def only_output(self):
        self.send(200, {"predictions": [[0.5]]})

    def large(self):
        self.send(200, {"predictions": ["x" * LARGE]})

    def hang(self):
        self.fake.stopped.wait(HANG_SECONDS)
        self.close_connection = True

    def trickle(self):
        self.send(200, b"{", length=1 << 20)
        end = time.monotonic() + HANG_SECONDS
        while not self.fake.stopped.wait(0.02) and time.monotonic() < end:
            self.wfile.write(b" " * 4096)

    def unavailable(self):
        self.send(503, {"error": "queue is full"}, **{"Retry-After": "5"})

    def bad_gateway(self):
        self.send(502, b"<html>Bad Gateway</html>", kind="text/html")

    def drop(self):
        self.close_connection = True

    def cut(self):
        self.send(200, b'{"predictions":', length=1000)
        self.close_connection = True

    def not_found(self):
        self.send(404, {"error": "Servable not found for request"})

    def refused(self):
        self.send(400, {"error": "input size does\nnot match signature" + "x" * 1000})

    def failed(self):
        self.send(500, {"error": "out of luck"})

    def html(self):
        self.send(200, b"<html>Welcome</html>", kind="text/html")

    def other_json(self):
        self.send(404, {"message": "no such page"})

    def json_list(self):
        self.send(200, [])

    def moved(self):
        self.send(301, b"", kind="text/html", Location="https://elsewhere/")


def _json_value(value):
    if isinstance(value, bytes):
        return value.decode()
    return [text.decode() for text in value] if value.dtype == object else value.tolist()
