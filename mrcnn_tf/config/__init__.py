"""The configuration: typed, frozen, validated, and read from YAML.

A YAML file holds only what differs from the defaults. The defaults are the constants of the paper (He et al., ICCV 2017)
and of detectron2's FPN baselines. Sizes are (height, width), boxes and sizes are in pixels of the resized image.
"""

from mrcnn_tf.config.files import load_config, overridden, shipped_configs, stored_model_config
from mrcnn_tf.config.model import (
    MASK_SIZE,
    MAX_LOG_SCALE,
    BackboneConfig,
    BackboneName,
    Category,
    MaskHeadConfig,
    ModelConfig,
    NormName,
    PreprocessingConfig,
    PresetName,
    imagenet_preprocessing,
)
from mrcnn_tf.config.run import ColourJitterConfig, Config, DataConfig, StageConfig, TrainConfig
from mrcnn_tf.config.validation import ConfigError, parse
