"""One small model and its export, shared by the tests of this folder."""

import keras
import pytest

from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.modeling.mask_rcnn import MaskRCNN
from tests.export.pictures import with_edges, write_pictures


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    keras.utils.set_random_seed(3)
    return with_edges(MaskRCNN(tiny_config))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Files by name: JPEG and PNG of several sizes and kinds, upright and turned."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def exported(tiny_model, pictures, tmp_path_factory):
    """Version 1 of the served model, warmed up with one of the pictures."""
    return export_saved_model(tiny_model, tmp_path_factory.mktemp("served"), max_batch_size=2, warmup=[pictures["jpeg"]])
