"""The page of a bundle: its arithmetic under node beside `mrcnn_tf`, its files, and the page itself in a browser.

The browser tests need Chromium and a folder with node_modules, named by MRCNN_TF_WEB_MODULES (`make test-web` makes it).
"""

import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.lite.tools import flatbuffer_utils

from mrcnn_tf.data.transforms import training_size
from mrcnn_tf.export import web_files
from mrcnn_tf.export.folders import ExportError
from mrcnn_tf.export.web_files import PACKAGES, VERSION, write_web
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from mrcnn_tf.ops.images import image_window, pad_image, resize_image
from mrcnn_tf.ops.restore import restore_detections
from mrcnn_tf.paste import paste_region
from mrcnn_tf.visualize import instance_colour
from tests.export.pictures import with_edges

PAGE = Path(web_files.__file__).parent / "web"
DRIVER = Path(__file__).parent / "open_page.mjs"
STAGES = ["trunk", "propose", "box", "detect", "mask"]
RULES = ["centred", "expanded", "stretched"]
MODULES = os.environ.get("MRCNN_TF_WEB_MODULES")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
NODE = shutil.which("node")

CALLS = """
import { readFileSync } from "node:fs";
import * as drawing from "./drawing.js";
import * as flatbuffer from "./flatbuffer.js";
import * as geometry from "./geometry.js";
const read = (key, value) => (key === "pixels" ? Uint8Array.from(value) : value?.bytes ? Uint8Array.from(value.bytes) : value);
const write = (key, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
const page = { ...drawing, ...flatbuffer, ...geometry };
const calls = JSON.parse(readFileSync(0, "utf-8"), read);
console.log(JSON.stringify(calls.map(([name, ...values]) => page[name](...values)), write));
"""


@pytest.fixture(scope="session")
def js(tmp_path_factory):
    """Runs functions of the page: `js([[name, argument, ...], ...])` gives their results."""
    if NODE is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("js")
    (folder / "package.json").write_text('{"type": "module"}')
    for name in ("drawing.js", "flatbuffer.js", "geometry.js"):
        shutil.copy(PAGE / name, folder)
    (folder / "calls.js").write_text(CALLS)

    def call(calls):
        done = subprocess.run([NODE, folder / "calls.js"], input=json.dumps(calls), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def as_js(image):
    return {"height": image.shape[0], "width": image.shape[1], "pixels": image.ravel().tolist()}


def as_image(picture):
    return np.array(picture["pixels"], np.uint8).reshape(picture["height"], picture["width"], 3)


def random_image(rng, size):
    return rng.integers(0, 256, (*size, 3)).astype(np.uint8)


def random_boxes(rng, count, size):
    """Within, across and outside the picture, with whole and with broken coordinates, and some without area."""
    boxes = (np.sort(rng.uniform(-0.5, 1.5, (count, 2, 2)), axis=1) * np.array(size)).reshape(count, 4)
    boxes[::3] = np.round(boxes[::3])
    boxes[::5] = [0, 0, *size]
    boxes[1::7, 2:] = boxes[1::7, :2]
    return boxes.astype(np.float32)


class TestPictures:
    def test_sizes(self, js):
        rng = np.random.default_rng(1)
        calls, expected = [], []
        for number in range(3000):
            height, width = (int(edge) for edge in np.exp(rng.uniform(0, 8.5, 2)))
            min_size = int(rng.integers(1, 900))
            sizes = {"min_size": min_size, "max_size": min_size + int(rng.integers(0, 600))}
            rounding, enlarge_only = ("half_up", "floor", "half_even")[number % 3], number % 2 == 0
            room = [64 * int(edge) for edge in rng.integers(1, 20, 2)]
            calls.append(
                ["resizedSize", height, width, {**sizes, "resize_rounding": rounding, "enlarge_only": enlarge_only}, room]
            )
            more = {"image_size": tuple(room), "rounding": rounding, "enlarge_only": enlarge_only}
            expected.append(list(training_size(height, width, **sizes, **more)))
        assert js(calls) == expected

    @pytest.mark.parametrize("old", [(33, 47), (120, 90), (1, 1), (1, 50), (64, 64), (301, 7)])
    def test_antialiased_is_pillow(self, js, old):
        image = random_image(np.random.default_rng(2), old)
        news = [(50, 71), (20, 17), (1, 1), (64, 64), (old[0], 13), (13, old[1])]
        how = {"antialias": True, "quantize": True}
        for new, picture in zip(news, js([["resize", as_js(image), new, how] for new in news]), strict=True):
            # Across, then down: which of them Pillow does first depends on its version.
            across = Image.fromarray(image).resize((new[1], old[0]), Image.Resampling.BILINEAR)
            expected = across.resize(new[::-1], Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(as_image(picture), np.asarray(expected), err_msg=str(new))

    @pytest.mark.parametrize(("antialias", "quantize"), [(True, True), (True, False), (False, True), (False, False)])
    @pytest.mark.parametrize("old", [(33, 47), (120, 90), (1, 50)])
    def test_as_the_library_resizes(self, js, old, antialias, quantize):
        image, news = random_image(np.random.default_rng(3), old), [(50, 71), (20, 17), old]
        how = {"antialias": antialias, "quantize": quantize}
        for new, picture in zip(news, js([["resize", as_js(image), new, how] for new in news]), strict=True):
            expected = resize_image(tf.constant(image), new, antialias=antialias, quantize=quantize).numpy()
            assert np.abs(as_image(picture) - expected).max() <= (1.01 if antialias else 0.0 if quantize else 0.5)

    @pytest.mark.parametrize("placement", ["top_left", "centre"])
    @pytest.mark.parametrize("size", [(64, 96), (31, 96), (1, 1), (50, 33)])
    def test_where_the_picture_lies(self, js, size, placement):
        image = random_image(np.random.default_rng(4), size)
        [padded] = js([["pad", as_js(image), [64, 96], placement]])
        np.testing.assert_array_equal(as_image(padded["picture"]), pad_image(tf.constant(image), (64, 96), placement))
        np.testing.assert_array_equal(padded["window"], image_window(tf.constant(size), (64, 96), placement))

    def test_alpha_is_left_out(self, js):
        [picture] = js([["pictureOf", {"height": 1, "width": 2, "data": [1, 2, 3, 0, 5, 6, 7, 255]}]])
        assert picture == {"height": 1, "width": 2, "pixels": [1, 2, 3, 5, 6, 7]}


class TestObjects:
    @pytest.mark.parametrize("inclusive", [False, True])
    @pytest.mark.parametrize("clip", [False, True])
    def test_restored_boxes(self, js, inclusive, clip):
        rng = np.random.default_rng(5)
        for size, window in [((37, 53), (0, 0, 60, 86)), ((480, 640), (16, 0, 112, 128)), ((1, 9), (3, 4, 4, 20))]:
            boxes = random_boxes(rng, 60, window[2:])
            how = {"inclusive": inclusive, "clip": clip}
            found = js([["restore", box, window, size, how] for box in boxes.tolist()])
            detections = {"detection_boxes": tf.constant(boxes[None]), "num_detections": tf.constant([60])}
            expected = restore_detections(detections, tf.constant([window], tf.float32), tf.constant([size]), **how)
            kept = np.float32([each["box"] for each in found if each["hasArea"]])
            count = int(expected["num_detections"][0])
            assert len(kept) == count
            np.testing.assert_allclose(kept, expected["detection_boxes"][0, :count], rtol=1e-6, atol=1e-5)
            assert 0 < count < 60

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 53)])
    def test_pasted_masks(self, js, rule, size):
        rng = np.random.default_rng(6)
        boxes, masks = random_boxes(rng, 40, size), rng.uniform(0.2, 1, (40, 28, 28)).astype(np.float32)
        masks[::2] = 1
        found = js([["pasteRegion", m.ravel().tolist(), b.tolist(), size, rule] for m, b in zip(masks, boxes, strict=True)])
        for mask, box, region in zip(masks, boxes, found, strict=True):
            pixels = np.array(region["pixels"], bool).reshape(region["height"], region["width"])
            # Sums of another order: what is within rounding of the threshold may be set or not.
            most, least = (paste_region(mask, box, size, 0.5 + way * 1e-6, rule) for way in (-1, 1))
            assert pixels.size == most[2].size
            if pixels.size:
                assert (region["top"], region["left"], pixels.shape) == (*most[:2], most[2].shape)
                assert (pixels <= most[2]).all()
                assert (pixels >= least[2]).all()
        assert any(any(region["pixels"]) for region in found)

    @pytest.mark.parametrize("rule", RULES)
    def test_a_pixel_at_the_threshold(self, js, rule):
        [region] = js([["pasteRegion", [0.5] * 784, [0, 0, 28, 28], [28, 28], rule]])
        assert region["pixels"][14 * region["width"] + 14] == (rule != "expanded")

    def test_colours(self, js):
        assert js([["colour", number] for number in range(50)]) == [list(instance_colour(number)) for number in range(50)]

    def test_how_large_the_view_is(self, js):
        assert js([["viewScale", size] for size in ([160, 120], [639, 2], [640, 9], [2048, 9], [9, 4096], [1, 1])]) == (
            [4, 2, 1, 1, 0.5, 640]
        )


@pytest.mark.filterwarnings(r"ignore:\s+Warning. tf.lite.Interpreter is deprecated")
class TestSignatures:
    @pytest.fixture(scope="class")
    def file(self):
        """A TFLite file whose signatures add and multiply with what they share, and are in another order than their subgraphs."""
        module, shared = tf.Module(), tf.Variable(np.arange(40, dtype=np.float32))
        module.shared = shared
        ways = {"first": tf.add, "second": tf.multiply, "third": tf.subtract}
        spec = tf.TensorSpec([40], tf.float32, name="x")
        functions = [
            tf.function(lambda x, way=way: {"y": way(x, shared)}, [spec]).get_concrete_function() for way in ways.values()
        ]
        signatures = dict(zip(ways, functions, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(module, folder, signatures=signatures)
            content = tf.lite.TFLiteConverter.from_saved_model(folder, list(ways)).convert()
        model = flatbuffer_utils.convert_bytearray_to_object(content)
        model.signatureDefs.reverse()
        return bytes(flatbuffer_utils.convert_object_to_bytearray(model))

    @pytest.mark.parametrize(
        "kept", [["first"], ["second"], ["third"], ["third", "first"], ["second", "third"], ["first", "second", "third"]]
    )
    def test_only_some_are_left(self, js, file, kept):
        x, shared = np.full(40, 3, np.float32), np.arange(40, dtype=np.float32)
        expected = {"first": x + shared, "second": x * shared, "third": x - shared}
        [content] = js([["withSignatures", {"bytes": list(file)}, kept]])
        assert len(content) == len(file)
        interpreter = tf.lite.Interpreter(model_content=bytes(content))
        assert sorted(interpreter.get_signature_list()) == sorted(kept)
        for name in kept:
            np.testing.assert_array_equal(interpreter.get_signature_runner(name)(x=x)["y"], expected[name])

    def test_the_file_itself_stays(self, js, file):
        assert js([["withSignatures", {"bytes": list(file)}, ["first", "second", "third"]]]) == [list(file)]


@pytest.fixture
def modules(tmp_path):
    """A folder with packages of the right names and versions, and nothing in them."""
    for name, files in PACKAGES.items():
        for file in files:
            path = tmp_path / "node_modules" / "@litertjs" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"version": VERSION}) if file == "package.json" else file)
    return tmp_path


def folders(path):
    return sorted(child.name for child in path.iterdir())


class TestFiles:
    def test_page_and_packages(self, modules, tmp_path):
        bundle = tmp_path / "bundle"
        assert write_web(bundle, modules) == bundle / "web"
        assert folders(bundle) == ["web"]
        for path in PAGE.iterdir():
            assert (bundle / "web" / path.name).read_bytes() == path.read_bytes()
        for name, files in PACKAGES.items():
            for file in files:
                source = modules / "node_modules" / "@litertjs" / name / file
                assert (bundle / "web" / "litertjs" / name / file).read_bytes() == source.read_bytes()

    def test_the_page_names_only_files_that_are_there(self, modules, tmp_path):
        web = write_web(tmp_path / "bundle", modules)
        for path in web.glob("*.*"):
            text = path.read_text(encoding="utf-8")
            named = re.findall(r"""(?:from|src=|href=|"@litertjs/[\w-]+":) ?"([^"@]+?)\"""", text)
            for name in named:
                assert name == "data:," or (web / name).is_file(), (path, name)
            assert named or path.name in ("flatbuffer.js", "geometry.js", "style.css")
            # Nothing from elsewhere: the one address is the reader's own.
            assert set(re.findall(r"https?://[^\s<\"]*|//cdn\S*", text)) <= {"http://localhost:8000/web/"}

    def test_none_is_written_over(self, modules, tmp_path):
        (tmp_path / "bundle" / "web").mkdir(parents=True)
        with pytest.raises(ExportError, match="web exists"):
            write_web(tmp_path / "bundle", modules)

    def test_faulty_packages_leave_nothing(self, modules, tmp_path):
        core, bundle = modules / "node_modules" / "@litertjs" / "core", tmp_path / "bundle"
        (core / "dist" / "index.js").unlink()
        with pytest.raises(ExportError, match=r"index\.js is missing"):
            write_web(bundle, modules)
        for content, message in [
            ('{"version": "2.4.0"}', f"expected version {VERSION}, got 2.4.0"),
            ("{", "not an npm package"),
            ("{}", "not an npm package"),
        ]:
            (core / "package.json").write_text(content)
            with pytest.raises(ExportError, match=message):
                write_web(bundle, modules)
        with pytest.raises(ExportError, match="no such package"):
            write_web(bundle, tmp_path / "elsewhere")
        assert folders(bundle) == []

    def test_without_npm(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ExportError, match="npm is not installed"):
            write_web(tmp_path / "bundle")
        assert folders(tmp_path / "bundle") == []

    @pytest.mark.skipif(os.name == "nt", reason="the npm that is put in its place is a shell script")
    def test_by_way_of_npm(self, modules, tmp_path, monkeypatch):
        npm = tmp_path / "bin" / "npm"
        npm.parent.mkdir()
        npm.write_text(
            f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\n'
            f'while [ "$1" != --prefix ]; do shift; done\ncp -r {modules}/node_modules $2\n'
        )
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")
        web = write_web(tmp_path / "bundle")
        assert (web / "litertjs" / "core" / "dist" / "index.js").is_file()
        assert f"@litertjs/core@{VERSION} @litertjs/wasm-utils@{VERSION}" in (tmp_path / "arguments").read_text()
        npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
        with pytest.raises(ExportError, match=r"npm cannot fetch .*: no network"):
            write_web(tmp_path / "other")
        assert folders(tmp_path / "other") == []


def decided(model):
    """Untrained, all scores are alike, and any rounding turns their order."""
    for weight in [*model.rpn_head.weights, *model.box_head.weights]:
        if weight.path in ("objectness/kernel", "class_logits/kernel"):
            weight.assign(weight * 300)
    return model


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        del arguments


@pytest.fixture(scope="session")
def bundle(tiny_config, pictures, tmp_path_factory):
    """Of a real export, wider than high, with the page; beside it the pictures."""
    needs = {"node": NODE, " or ".join(BROWSERS): BROWSER, "MRCNN_TF_WEB_MODULES": MODULES}
    if missing := [name for name, value in needs.items() if not value]:
        pytest.skip(f"no {', no '.join(missing)}; see docs/web.md")
    pytest.importorskip("ai_edge_litert")
    from mrcnn_tf.export.tflite import export_tflite

    keras.utils.set_random_seed(3)
    model = decided(with_edges(MaskRCNN(tiny_config)))
    folder = export_tflite(model, tmp_path_factory.mktemp("bundle") / "shapes", image_size=(128, 192))
    write_web(folder, Path(MODULES))
    for path in pictures.values():
        shutil.copy(path, folder)
    return folder


@contextmanager
def served(folder):
    """Address of a server of a folder."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def site(bundle):
    with served(bundle) as address:
        yield address


@pytest.fixture(scope="session")
def detector(bundle):
    """detect.py of the bundle, in LiteRT for Python."""
    spec = importlib.util.spec_from_file_location("detect_in_bundle", bundle / "detect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = module.Detector(bundle)
    return lambda path, threshold: run(module.load_image(path), score_threshold=threshold)


def open_page(**wanted):
    order = {"modules": MODULES, "chromium": BROWSER, **wanted}
    done = subprocess.run([NODE, DRIVER, json.dumps(order)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same(result, expected, *, boxes, scores):
    """What the page found is what `detect.py` found; two of nearly the same score may have changed places."""
    assert result["size"] == list(expected.image_size)
    assert result["scores"] == sorted(result["scores"], reverse=True)
    assert len(result["scores"]) == len(expected) > 0
    found_boxes = np.array(result["boxes"])
    order = [int(np.abs(found_boxes - box).max(axis=1).argmin()) for box in expected.boxes]
    assert sorted(order) == list(range(len(expected)))
    assert [result["names"][row] for row in order] == expected.category_names
    assert [result["classes"][row] for row in order] == expected.classes.tolist()
    np.testing.assert_allclose(found_boxes[order], expected.boxes, rtol=0, atol=boxes)
    np.testing.assert_allclose(np.array(result["scores"])[order], expected.scores, rtol=0, atol=scores)
    masks = np.array(result["masks"])[order].reshape(expected.mask_probs.shape)
    assert np.mean(np.abs(masks - expected.mask_probs) > 0.01) < 0.01


@pytest.mark.slow
class TestInABrowser:
    # A PNG gives the same pixels everywhere. Single levels differ of a JPEG, as decoders do, and of a high picture, which Pillow
    # from 13 on resizes down first; the page goes across first, as the library does.
    @pytest.mark.parametrize(
        ("kind", "boxes", "scores"),
        [
            ("png", 1e-3, 1e-4),
            ("turned_png", 0.5, 1e-2),
            ("one_pixel", 1e-3, 1e-4),
            ("jpeg", 0.5, 1e-2),
            ("turned", 0.5, 1e-2),
            ("grey", 0.5, 1e-2),
        ],
    )
    def test_finds_what_the_script_finds(self, site, pictures, detector, kind, boxes, scores):
        found = open_page(url=f"{site}web/?image=/{pictures[kind].name}")
        expected = detector(pictures[kind], 0.5)
        assert_same(found["result"], expected, boxes=boxes, scores=scores)
        assert found["result"]["accelerators"] == dict.fromkeys(STAGES, "wasm")
        assert list(found["result"]["times"]) == ["resize", *STAGES, "draw"]
        assert [text.rstrip(".0123456789") for text in found["listed"]] == expected.category_names
        assert found["errors"] == []

    def test_in_a_browser_without_relaxed_simd(self, site, pictures, detector):
        """Small modules are what LiteRT.js tries a browser with."""
        script = """
            const { instantiate } = WebAssembly;
            WebAssembly.instantiate = (module, ...more) =>
                module.byteLength < 500 ? Promise.reject(new Error("not supported")) : instantiate(module, ...more);
        """
        found = open_page(url=f"{site}web/?image=/{pictures['png'].name}", script=script)
        assert f"{site}web/litertjs/core/wasm/litert_wasm_compat_internal.wasm" in found["requests"]
        assert_same(found["result"], detector(pictures["png"], 0.5), boxes=1e-3, scores=1e-4)

    def test_asks_nobody_but_its_server(self, site, pictures):
        found = open_page(url=f"{site}web/", file=str(pictures["png"]))
        assert len(found["requests"]) > 5
        assert all(address.startswith((site, "data:", "blob:")) for address in found["requests"])
        assert found["refused"] == []
        assert found["result"]["scores"]

    def test_draws_what_it_finds(self, site, pictures, detector, tmp_path):
        drawing = tmp_path / "canvas.png"
        found = open_page(url=f"{site}web/", file=str(pictures["png"]), canvas=str(drawing))
        pixels = np.asarray(Image.open(drawing).convert("RGB"))
        assert pixels.shape == (666, 420, 3), "twice the picture"
        plain = np.asarray(Image.open(pictures["png"]).resize((420, 666)), np.int16)
        for number, box in enumerate(found["result"]["boxes"]):
            assert (pixels == instance_colour(number)).all(axis=2).sum() > 20
            assert box == pytest.approx(detector(pictures["png"], 0.5).boxes[number], abs=1e-3)
        changed = (np.abs(pixels - plain) > 40).any(axis=2)
        y1, x1, y2, x2 = 2 * np.array(found["result"]["boxes"]).T
        # Labels stand on their boxes, and may be wider.
        assert not changed[round(y2.max()) + 3 :].any()
        assert changed[round(y1.min()) : round(y2.max()), round(x1.min()) : round(x2.max())].mean() > 0.02

    def test_the_slider_lets_through_less_and_more(self, site, pictures, detector):
        for threshold in ("0.9", "0.1"):
            found = open_page(url=f"{site}web/?image=/{pictures['png'].name}", threshold=threshold)
            assert_same(found["result"], detector(pictures["png"], float(threshold)), boxes=1e-3, scores=1e-4)
        assert len(detector(pictures["png"], 0.1)) > len(detector(pictures["png"], 0.9)) > 0

    def test_frames_of_a_camera(self, site):
        fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        found = open_page(url=f"{site}web/", camera=3, arguments=fake)
        assert found["frames"] == 3
        assert found["status"] == "The camera is off."
        assert found["errors"] == []

    def test_on_a_graphics_card(self, site, pictures, detector):
        """Chromium's software in its place."""
        software = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
        found = open_page(url=f"{site}web/?accelerator=webgpu&image=/{pictures['png'].name}", arguments=software)
        if found["status"] == "This browser has no accelerator webgpu.":
            pytest.skip("this Chromium has no software for WebGPU")
        assert found["result"], found
        assert found["result"]["accelerators"] == {
            stage: "wasm" if stage in ("propose", "detect") else "webgpu" for stage in STAGES
        }
        assert_same(found["result"], detector(pictures["png"], 0.5), boxes=0.01, scores=1e-3)

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("?image=/model.json", "/model.json is not a picture that this browser can read."),
            ("?image=/missing.png", "/missing.png: the server answers 404."),
            ("?image=https://example.org/a.png", "the page reads from its own server only"),
            ("?accelerator=abacus", "This browser has no accelerator abacus."),
        ],
    )
    def test_faults_in_words(self, site, query, message):
        found = open_page(url=f"{site}web/{query}")
        assert message in found["status"]
        assert found["result"] is None
        assert all(address.startswith((site, "data:")) for address in found["requests"])

    def test_no_camera(self, site):
        found = open_page(url=f"{site}web/", camera=1)
        assert found["status"] == "No camera: there is none."

    @pytest.mark.parametrize(
        ("content", "message"), [(None, "model.json: the server answers 404"), ('{"format": 2}', "expected format 1, got 2")]
    )
    def test_no_bundle_of_this_format(self, bundle, tmp_path, content, message):
        shutil.copytree(bundle / "web", tmp_path / "web")
        if content:
            (tmp_path / "model.json").write_text(content)
        with served(tmp_path) as site:
            assert message in open_page(url=f"{site}web/")["status"]
