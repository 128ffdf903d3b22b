"""The arithmetic of matterport's Mask_RCNN, written anew from its description: no version of TensorFlow that it runs on can be
installed with the one of this project.

Independent of `mrcnn_tf`: TensorFlow's convolutions and pooling, the rest numpy. Parameters are `{"layer/weight": array}` by the
names and in the layouts of the published files. Boxes are normalised: the first pixel of the input is 0 and the last one is 1, on
both axes, and (y2, x2) is the last pixel of a box.
"""

from __future__ import annotations

import string

import numpy as np
import tensorflow as tf

from tests.parity.seeded import rng_for

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
STRIDES, SIZES, RATIOS = (4, 8, 16, 32, 64), (32, 64, 128, 256, 512), (0.5, 1, 2)
NORM_EPSILON = 1e-3
MEAN = np.array([123.7, 116.8, 103.9], np.float32)
BOX_STD = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
PRE_NMS, PROPOSALS, RPN_NMS = 6000, 1000, 0.7
MIN_CONFIDENCE, DETECTION_NMS, MAX_DETECTIONS = 0.7, 0.3, 100


def shapes(backbone, num_outputs):
    """Name to shape of every parameter; `num_outputs` counts the background."""
    found = _conv("conv1", 7, 3, 64) | _norm("bn_conv1", 64)
    channels = 64
    for stage, blocks in zip((2, 3, 4, 5), BLOCKS[backbone], strict=True):
        inner = 64 * 2 ** (stage - 2)
        for letter in string.ascii_lowercase[:blocks]:
            place = f"{stage}{letter}_branch"
            branches = [("2a", 1, channels, inner), ("2b", 3, inner, inner), ("2c", 1, inner, 4 * inner)]
            if letter == "a":
                branches.append(("1", 1, channels, 4 * inner))
            for branch, size, before, after in branches:
                found |= _conv(f"res{place}{branch}", size, before, after) | _norm(f"bn{place}{branch}", after)
            channels = 4 * inner
    for level, before in ((5, 2048), (4, 1024), (3, 512), (2, 256)):
        found |= _conv(f"fpn_c{level}p{level}", 1, before, 256) | _conv(f"fpn_p{level}", 3, 256, 256)
    found |= _conv("rpn_conv_shared", 3, 256, 512) | _conv("rpn_class_raw", 1, 512, 6) | _conv("rpn_bbox_pred", 1, 512, 12)
    found |= _conv("mrcnn_class_conv1", 7, 256, 1024) | _norm("mrcnn_class_bn1", 1024)
    found |= _conv("mrcnn_class_conv2", 1, 1024, 1024) | _norm("mrcnn_class_bn2", 1024)
    for name, outputs in (("mrcnn_class_logits", num_outputs), ("mrcnn_bbox_fc", 4 * num_outputs)):
        found |= {f"{name}/kernel": (1024, outputs), f"{name}/bias": (outputs,)}
    for index in range(1, 5):
        found |= _conv(f"mrcnn_mask_conv{index}", 3, 256, 256) | _norm(f"mrcnn_mask_bn{index}", 256)
    return found | _conv("mrcnn_mask_deconv", 2, 256, 256) | _conv("mrcnn_mask", 1, 256, num_outputs)


def _conv(name, size, before, after):
    return {f"{name}/kernel": (size, size, before, after), f"{name}/bias": (after,)}


def _norm(name, channels):
    return {f"{name}/{part}": (channels,) for part in ("gamma", "beta", "moving_mean", "moving_variance")}


GAINS = {
    "conv1/kernel": 0.02,
    "fpn_p2": 0.03,
    "fpn_p": 0.15,
    "rpn_class_raw": 1.0,
    "rpn_bbox_pred": 1.5,
    "mrcnn_class_logits": 10.0,
    "mrcnn_bbox_fc": 1.0,
    "mrcnn_mask/": 4.0,
}
"""Of a parameter whose name starts so: what spreads levels, scores, boxes and masks out."""
BRANCH_GAINS = {"resnet50": 0.3, "resnet101": 0.2}
"""Of the last norm of each block."""
PREDICTORS = ("rpn_class_raw", "rpn_bbox_pred", "mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask/")
"""Their kernels have no mean: what all regions have in common would otherwise give all of them one class."""


def seeded(backbone, num_outputs, seed):
    """Parameters as a function of (seed, name, shape)."""
    return {name: _seeded(backbone, seed, name, shape) for name, shape in shapes(backbone, num_outputs).items()}


def _seeded(backbone, seed, name, shape):
    rng = rng_for(seed, name)
    gain = next((gain for start, gain in GAINS.items() if name.startswith(start)), 1.0)
    if name.endswith("branch2c/gamma"):
        gain = BRANCH_GAINS[backbone]
    if name.endswith("moving_variance"):
        values = rng.uniform(0.8, 1.2, shape)
    elif name.endswith("gamma"):
        values = gain * rng.uniform(0.9, 1.1, shape)
    elif name == "rpn_bbox_pred/bias":  # larger than the anchors, so that all levels are pooled from
        values = np.tile([0, 0, 3, 3], 3) + rng.normal(0, 0.1, shape)
    elif name == "mrcnn_class_logits/bias":  # some regions are background
        values = rng.normal(0, 0.1, shape) + 20 * (np.arange(shape[0]) == 0)
    elif len(shape) == 1:
        values = rng.normal(0, 0.1, shape)
    else:
        values = gain * rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        if name.startswith(PREDICTORS):
            values -= values.mean(axis=-2, keepdims=True)
    return values.astype(np.float32)


def mold(image, side):
    """A picture that needs no resizing, in the middle of a black square.

    Returns:
        The network's input [1, side, side, 3] and the window (y1, x1, y2, x2) of the picture in it, y2 and x2 after its end.
    """
    height, width = image.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 3), np.float32)
    square[top : top + height, left : left + width] = image
    return (square - MEAN)[None], (top, left, top + height, left + width)


def pyramid(arrays, backbone, x):
    """P2..P6 of the network's input."""
    x = np.pad(x, [(0, 0), (3, 3), (3, 3), (0, 0)])
    x = tf.nn.relu(_normed(arrays, "bn_conv1", _convolved(arrays, "conv1", x, 2, "VALID")))
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    stages = []
    for stage, blocks in zip((2, 3, 4, 5), BLOCKS[backbone], strict=True):
        for letter in string.ascii_lowercase[:blocks]:
            x = _bottleneck(arrays, f"{stage}{letter}_branch", x, stride=2 if letter == "a" and stage > 2 else 1)
        stages.append(x)
    top, merged = None, []
    for level in (5, 4, 3, 2):
        lateral = _convolved(arrays, f"fpn_c{level}p{level}", stages[level - 2])
        top = lateral if top is None else lateral + np.repeat(np.repeat(top, 2, axis=1), 2, axis=2)
        merged.insert(0, top)
    levels = [_convolved(arrays, f"fpn_p{level}", x) for level, x in zip((2, 3, 4, 5), merged, strict=True)]
    return [level.numpy() for level in levels] + [levels[-1].numpy()[:, ::2, ::2]]


def _bottleneck(arrays, place, x, stride):
    def branch(name, x, stride=1):
        return _normed(arrays, f"bn{place}{name}", _convolved(arrays, f"res{place}{name}", x, stride))

    shortcut = branch("1", x, stride) if f"res{place}1/kernel" in arrays else x
    x = tf.nn.relu(branch("2b", tf.nn.relu(branch("2a", x, stride))))
    return tf.nn.relu(branch("2c", x) + shortcut)


def _convolved(arrays, name, x, stride=1, padding="SAME"):
    return tf.nn.conv2d(x, arrays[f"{name}/kernel"], stride, padding) + arrays[f"{name}/bias"]


def _normed(arrays, name, x):
    gamma, beta, mean, variance = (arrays[f"{name}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance"))
    return gamma * (x - mean) / np.sqrt(variance + np.float32(NORM_EPSILON)) + beta


def rpn(arrays, levels):
    """For each level logits [H, W, 3, 2] (background, foreground) and deltas [H, W, 3, 4]."""
    outputs = []
    for level in levels:
        shared = tf.nn.relu(_convolved(arrays, "rpn_conv_shared", level))
        logits, deltas = (_convolved(arrays, name, shared)[0].numpy() for name in ("rpn_class_raw", "rpn_bbox_pred"))
        outputs.append((logits.reshape(*logits.shape[:2], 3, 2), deltas.reshape(*deltas.shape[:2], 3, 4)))
    return outputs


def softmax(logits):
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def normalised(boxes, shape):
    """Pixels, ends exclusive, to normalised."""
    height, width = shape
    return ((boxes - [0, 0, 1, 1]) / [height - 1, width - 1, height - 1, width - 1]).astype(np.float32)


def pixels(boxes, shape):
    """The inverse of `normalised`, not rounded."""
    height, width = shape
    return boxes * np.float32([height - 1, width - 1, height - 1, width - 1]) + np.float32([0, 0, 1, 1])


def anchors(side):
    """All anchors [N, 4] of a square input, normalised: level by level, row by row, by rising ratio of width to height."""
    found = []
    for size, stride in zip(SIZES, STRIDES, strict=True):
        count = -(-side // stride)
        for y in range(count):
            for x in range(count):
                for ratio in RATIOS:
                    half = np.array([size / np.sqrt(ratio), size * np.sqrt(ratio)]) / 2
                    centre = np.array([y, x]) * stride
                    found.append(np.concatenate([centre - half, centre + half]))
    return normalised(np.array(found), (side, side))


def moved(boxes, deltas):
    """Boxes after deltas (dy, dx, log dh, log dw), which already are times the standard deviations."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + np.float32(0.5) * size + deltas[:, :2] * size
    size = size * np.exp(deltas[:, 2:])
    start = centre - np.float32(0.5) * size
    return np.concatenate([start, start + size], axis=1)


def clipped(boxes, window):
    """Boxes cut at a window."""
    window = np.float32(window)
    return np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))


def suppress(boxes, scores, threshold, limit):
    """Greedy non-maximum suppression: rows of the boxes that stay, by falling score."""
    order = np.argsort(-scores, kind="stable")
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = []
    while len(order) and len(kept) < limit:
        best, order = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        union = area[best] + area[order] - shared
        order = order[shared <= threshold * union]
    return np.array(kept, int)


def proposals(outputs, side):
    """At most 1000 normalised boxes from the RPN's outputs of all levels."""
    scores = softmax(np.concatenate([logits.reshape(-1, 2) for logits, _ in outputs]))[:, 1]
    deltas = np.concatenate([deltas.reshape(-1, 4) for _, deltas in outputs]) * BOX_STD
    best = np.argsort(-scores, kind="stable")[:PRE_NMS]
    boxes = clipped(moved(anchors(side)[best], deltas[best]), [0, 0, 1, 1])
    return boxes[suppress(boxes, scores[best], RPN_NMS, PROPOSALS)]


def levels_of(boxes, side):
    """Pyramid level, 2 to 5, of normalised boxes."""
    size = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    with np.errstate(divide="ignore"):
        levels = np.round(np.log2(size / np.float32(224 / side)))
    return np.clip(4 + levels, 2, 5).astype(int)


def pooled(levels, boxes, size):
    """Features [N, size, size, C] at normalised boxes: one bilinear sample each, from edge to edge."""
    side = levels[0].shape[1] * STRIDES[0]
    out = np.zeros((len(boxes), size, size, levels[0].shape[-1]), np.float32)
    for level, rows in ((level, np.flatnonzero(levels_of(boxes, side) == level)) for level in (2, 3, 4, 5)):
        feature = levels[level - 2][0]
        y, x = (_grid(boxes[rows, axis], boxes[rows, axis + 2], feature.shape[axis], size) for axis in (0, 1))
        for (low_y, weight_y), (low_x, weight_x) in ((a, b) for a in _corners(y) for b in _corners(x)):
            weight = weight_y[:, :, None, None] * weight_x[:, None, :, None]
            low_y, low_x = np.minimum(low_y, feature.shape[0] - 1), np.minimum(low_x, feature.shape[1] - 1)
            out[rows] += weight.astype(np.float32) * feature[low_y[:, :, None], low_x[:, None, :]]
    return out


def _grid(start, end, cells, size):
    steps = np.arange(size, dtype=np.float32) / np.float32(size - 1)
    return (start[:, None] + steps * (end - start)[:, None]) * np.float32(cells - 1)


def _corners(positions):
    """The two pixels around each position, and their weights."""
    low = np.floor(positions).astype(int)
    return (low, 1 - (positions - low)), (low + 1, positions - low)


def box_head(arrays, regions):
    """Class logits [N, K + 1] and deltas [N, K + 1, 4] of pooled features [N, 7, 7, 256]."""
    x = regions
    for index, padding in ((1, "VALID"), (2, "VALID")):
        x = tf.nn.relu(_normed(arrays, f"mrcnn_class_bn{index}", _convolved(arrays, f"mrcnn_class_conv{index}", x, 1, padding)))
    x = np.asarray(x)[:, 0, 0]
    logits, deltas = (x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"] for name in ("mrcnn_class_logits", "mrcnn_bbox_fc"))
    return logits, deltas.reshape(len(x), -1, 4)


def detections(boxes, logits, deltas, window, side):
    """Normalised boxes, classes and scores of at most 100 objects, by falling score."""
    scores = softmax(logits)
    classes = scores.argmax(axis=1)
    rows = np.arange(len(boxes))
    scores, deltas = scores[rows, classes], deltas[rows, classes] * BOX_STD
    boxes = clipped(moved(boxes, deltas), normalised(np.array(window), (side, side)))
    kept = []
    for number in np.unique(classes[(classes > 0) & (scores >= MIN_CONFIDENCE)]):
        members = np.flatnonzero((classes == number) & (scores >= MIN_CONFIDENCE))
        kept += members[suppress(boxes[members], scores[members], DETECTION_NMS, MAX_DETECTIONS)].tolist()
    kept = sorted(kept, key=lambda row: -scores[row])[:MAX_DETECTIONS]
    return boxes[kept], classes[kept], scores[kept]


def masks(arrays, regions, classes):
    """Probabilities [N, 28, 28] of each region's class, from pooled features [N, 14, 14, 256]."""
    x = regions
    for index in (1, 2, 3, 4):
        x = tf.nn.relu(_normed(arrays, f"mrcnn_mask_bn{index}", _convolved(arrays, f"mrcnn_mask_conv{index}", x)))
    # A transposed convolution whose stride is its size: every pixel becomes a block of its own.
    x, kernel = np.asarray(x), arrays["mrcnn_mask_deconv/kernel"]
    blocks = np.einsum("nyxi,abio->nyaxbo", x, kernel.transpose(0, 1, 3, 2), optimize=True)
    x = np.maximum(blocks.reshape(len(x), 28, 28, -1) + arrays["mrcnn_mask_deconv/bias"], 0)
    logits = np.asarray(_convolved(arrays, "mrcnn_mask", x))[np.arange(len(x)), :, :, classes]
    return 1 / (1 + np.exp(-logits))


def in_picture(boxes, window, side, shape):
    """Whole pixels of the original picture [N, 4] int, ends exclusive, of normalised boxes."""
    y1, x1, y2, x2 = normalised(np.array(window), (side, side))
    relative = (boxes - [y1, x1, y1, x1]) / [y2 - y1, x2 - x1, y2 - y1, x2 - x1]
    return np.around(pixels(relative, shape)).astype(int)


def pasted(mask, box, shape):
    """A mask [28, 28] resized to its box of whole pixels and cut at one half: bool [height, width] of the picture."""
    y1, x1, y2, x2 = box
    rows, columns = (_stretch(size, mask.shape[0]) for size in (y2 - y1, x2 - x1))
    full = np.zeros(shape, bool)
    full[y1:y2, x1:x2] = rows @ mask @ columns.T >= 0.5
    return full


def _stretch(size, cells):
    """[size, cells] weights of bilinear interpolation at pixel centres, zeros outside of the mask."""
    weights = np.zeros((size, cells))
    for pixel in range(size):
        position = (pixel + 0.5) * cells / size - 0.5
        low = int(np.floor(position))
        for cell, weight in ((low, 1 - (position - low)), (low + 1, position - low)):
            if 0 <= cell < cells:
                weights[pixel, cell] = weight
    return weights
