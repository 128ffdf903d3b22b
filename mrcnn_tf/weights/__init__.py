"""Importers of foreign weights, one module per format."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from mrcnn_tf.config import BackboneConfig, ModelConfig
    from mrcnn_tf.modeling.mask_rcnn import MaskRCNN


def complete(config: ModelConfig) -> ModelConfig:
    """The configuration with what follows from the weights that it names (stride, eps and pixel statistics of a trunk's file).

    Args:
        config: of a model to be made.

    Returns:
        The completed configuration.

    Raises:
        PretrainedWeightsError: the file of the trunk's weights does not fit the configuration.
    """
    if config.weights is not None or config.backbone.weights in (None, "imagenet"):
        return config
    from mrcnn_tf.weights import trunks

    return trunks.follow_trunk(config)


def load_weights(model: MaskRCNN) -> None:
    """Fill a new model with the weights that its configuration names: of a whole model, or of a trunk.

    Raises:
        PretrainedWeightsError: there are no such weights, or they cannot be had or do not fit; the message says what to do.
    """
    if model.config.weights is None:
        load_backbone_weights(model.backbone, model.config.backbone)
        return
    from mrcnn_tf.weights import fine_tune

    fine_tune.start_from(model, model.config.weights)


def load_backbone_weights(backbone: keras.Model, config: BackboneConfig) -> None:
    """Fill a trunk with the weights that the configuration names; with `weights=None` it stays as it is.

    Args:
        backbone: `build_backbone` of the same configuration.
        config: names the trunk and its weights.

    Raises:
        PretrainedWeightsError: there are no such weights, or they cannot be had or do not fit; the message says what to do.
    """
    if config.weights is None:
        return
    if config.weights != "imagenet":
        from mrcnn_tf.weights import trunks

        trunks.load_file(backbone, config)
    elif config.name.startswith("efficientnet_lite"):
        from mrcnn_tf.weights import efficientnet_lite

        efficientnet_lite.load_imagenet(backbone, config.name)
    else:
        from mrcnn_tf.weights import keras_applications

        keras_applications.load_imagenet(backbone, config.name)
