"""Importers of foreign weights, one module per format."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from mrcnn_tf.config import BackboneConfig


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
        from mrcnn_tf.weights.assign import PretrainedWeightsError

        raise PretrainedWeightsError(f'model.backbone.weights must be "imagenet" or null, got {config.weights!r}')
    if config.name.startswith("efficientnet_lite"):
        from mrcnn_tf.weights import efficientnet_lite

        efficientnet_lite.load_imagenet(backbone, config.name)
    else:
        from mrcnn_tf.weights import keras_applications

        keras_applications.load_imagenet(backbone, config.name)
