"""Run lengths made in a graph against those of `mrcnn_tf.paste`, which are compared with pycocotools elsewhere."""

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from mrcnn_tf import paste
from mrcnn_tf.ops.mask_rle import encode_masks

RULES = ["centred", "expanded", "stretched"]


def encoder(rule):
    specs = [tf.TensorSpec([None, 28, 28]), tf.TensorSpec([None, 4]), tf.TensorSpec([None, 2], tf.int32)]
    return tf.function(lambda masks, boxes, sizes: encode_masks(masks, boxes, sizes, rule=rule), input_signature=specs)


def some_masks(random, count):
    """Noise, blobs, empty and full ones."""
    masks = random.random((count, 28, 28)).astype(np.float32)
    blobs = tf.image.resize(random.random((count, 4, 4, 1)), (28, 28))[..., 0].numpy()
    masks[1::2] = blobs[1::2]
    masks[0], masks[2] = 0, 1
    return masks


def some_boxes(random, count, size):
    start = random.uniform(-0.2, 0.9, (count, 2)) * size
    boxes = np.concatenate([start, start + random.exponential(0.4, (count, 2)) * size], axis=1).astype(np.float32)
    height, width = size
    odd = [
        (0, 0, height, width),
        (-5, -5, height + 7, width + 7),
        (3, 3, 3, 9),
        (0, 0, 0, 0),
        (5, 5, 2, 2),
        (0, width, 1, width + 9),
    ]
    boxes[2 : 2 + len(odd)] = odd
    return boxes


@pytest.mark.parametrize("rule", RULES)
def test_as_pasting_and_encoding(rule):
    random, encode = np.random.default_rng(0), encoder(rule)
    for size in [(1, 1), (40, 61), (211, 97), (3, 500)]:
        masks, boxes = some_masks(random, 40), some_boxes(random, 40, np.array(size))
        counts = encode(masks, boxes, np.tile(np.int32(size), (40, 1))).numpy()
        expected = paste.encode_masks(masks, boxes, size, rule=rule)
        for row, (got, rle) in enumerate(zip(counts, expected, strict=True)):
            assert got.decode() == rle["counts"], (rule, size, row, boxes[row])


def test_each_mask_has_its_own_picture():
    masks = np.ones((2, 28, 28), np.float32)
    counts = encoder("centred")(masks, np.float32([[0, 0, 2, 3], [0, 0, 2, 3]]), np.int32([[2, 3], [5, 4]])).numpy()
    decoded = [coco_mask.decode({"size": size, "counts": got}) for size, got in zip([[2, 3], [5, 4]], counts, strict=True)]
    assert decoded[0].all()
    assert decoded[1].sum() == 6
    assert decoded[1][:2, :3].all()


def test_nothing_to_encode():
    assert encoder("centred")(np.zeros((0, 28, 28)), np.zeros((0, 4)), np.zeros((0, 2), np.int32)).shape == (0,)


def test_runs_of_many_millions_of_pixels():
    masks = np.ones((1, 28, 28), np.float32)
    size = [9000, 12000]
    counts = encoder("stretched")(masks, np.float32([[8999, 11998, 9000, 11999]]), np.int32([size])).numpy()[0]
    assert coco_mask.area({"size": size, "counts": counts}) == 1
    assert coco_mask.toBbox({"size": size, "counts": counts}).tolist() == [11998, 8999, 1, 1]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"centred, expanded or stretched, got 'glued'"):
        encode_masks(tf.zeros([1, 28, 28]), tf.zeros([1, 4]), tf.ones([1, 2], tf.int32), rule="glued")
