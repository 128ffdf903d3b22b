import numpy as np
import pytest

from mrcnn_tf.data.transforms import training_size


@pytest.mark.parametrize("image_size", [(64, 64), (64, 256), (320, 64)])
def test_the_training_size_fits_the_padded_input(image_size):
    random = np.random.default_rng(1)
    for height, width in [(1, 1), (1, 900), (900, 1), *random.integers(1, 900, (60, 2)).tolist()]:
        size = training_size(height, width, min_size=200, max_size=333, image_size=image_size)
        assert 1 <= size[0] <= image_size[0]
        assert 1 <= size[1] <= image_size[1]
        if min(size) > 1:
            assert size[0] / size[1] == pytest.approx(height / width, rel=1.6 / min(size))


def test_the_training_size_follows_the_rule_of_inference():
    given = {"min_size": 240, "max_size": 400, "image_size": (448, 448)}
    assert training_size(480, 641, **given) == (240, 321)  # 320.5
    assert training_size(480, 641, **given, rounding="floor") == (240, 320)
    assert training_size(480, 641, **given, rounding="half_even") == (240, 320)
    assert training_size(300, 350, **given) == (240, 280)
    assert training_size(300, 350, **given, enlarge_only=True) == (300, 350)


def test_the_training_size_is_the_usual_one_where_it_fits():
    assert training_size(480, 640, min_size=240, max_size=400, image_size=(320, 320)) == (240, 320)
    assert training_size(480, 640, min_size=240, max_size=400, image_size=(320, 256)) == (192, 256)
