"""The sections `data` and `train`, and the whole configuration of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from mrcnn_tf.config.model import Category, ModelConfig
from mrcnn_tf.config.validation import ConfigError, Section, parse


class SplitConfig(Section):
    """One COCO JSON and its image folder."""

    images: str | None = None
    annotations: str | None = None


class DataConfig(Section):
    """Where the data is and how it is shaped for training."""

    root: str | None = None
    """Relative paths of the splits start here; None: the working directory."""
    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    min_sizes: tuple[int, ...] = (800,)
    """Shortest edges drawn from in training, pixels."""
    max_size: int = Field(1333, ge=1)
    image_size: tuple[int, int] = (1344, 1344)
    """Padded (height, width) of a training image; multiples of 64. Longer edges than this shrink the image further."""
    horizontal_flip: float = Field(0.5, ge=0, le=1)
    """Probability."""
    max_ground_truth: int = Field(100, ge=1)
    """Upper bound of the ground-truth rows per image. The rows are as many as the data needs, at most this."""
    keep_empty: bool = False
    """Train on images without objects."""
    num_workers: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not self.min_sizes or min(self.min_sizes) < 1:
            raise ValueError(f"min_sizes needs positive pixel counts, got {self.min_sizes}")
        if any(side % 64 or side < 64 for side in self.image_size):
            height, width = (max(64, -(-side // 64) * 64) for side in self.image_size)
            raise ValueError(f"image_size must be multiples of 64, got {self.image_size}; use ({height}, {width})")
        return self

    def path(self, split: Literal["train", "val"], what: Literal["images", "annotations"]) -> Path:
        """Full path of a split's image folder or annotation file.

        Raises:
            ConfigError: the configuration does not name it.
        """
        value = getattr(getattr(self, split), what)
        if value is None:
            raise ConfigError(f"data.{split}.{what} is not set; give it in the YAML file or as data.{split}.{what}=PATH")
        return Path(self.root or ".").expanduser() / Path(value).expanduser()


class TrainConfig(Section):
    """The optimisation."""

    batch_size: int = Field(16, ge=1)
    """Images of one step over all replicas."""
    schedule: Literal["1x", "3x", "steps", "cosine"] = "1x"
    """1x and 3x are detectron2's 90k and 270k steps at batch 16; steps and cosine last num_steps."""
    num_steps: int = Field(90_000, ge=1)
    """Used by steps and cosine."""
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """Fractions of num_steps at which the rate falls tenfold (schedule steps)."""
    learning_rate: float = Field(0.02, gt=0)
    """For reference_batch_size images a step."""
    reference_batch_size: int = Field(16, ge=1)
    """The rate is scaled linearly from this batch size to batch_size (the lengths of 1x and 3x from their 16)."""
    warmup_steps: int = Field(1000, ge=0)
    warmup_factor: float = Field(0.001, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    """Upper bound of the global gradient norm; None: no clipping."""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    xla: bool | Literal["auto"] = "auto"
    """on, off, or auto: on for GPUs, off for CPUs."""
    strategy: Literal["auto", "none", "mirrored"] = "auto"
    """auto: mirrored when there are several GPUs."""
    epoch_steps: int | None = Field(None, ge=1)
    """Steps between two lines of metrics.csv; None: one pass over the data."""
    eval_every: int = Field(1, ge=0)
    """COCO AP on the validation set each so many epochs; 0: never."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after this many minutes of training steps, at the end of a step."""
    seed: int = 0


class Config(Section):
    """The whole configuration of a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def with_categories(self, categories: Iterable[Category | Mapping[str, Any]] | None = None) -> Config:
        """The same configuration with the model's classes filled in.

        Args:
            categories: `{"id", "name"}` in class order; None takes those of `data.train.annotations`.

        Raises:
            ConfigError: no categories are given and no training annotations are named, or a category is not as above.
        """
        if categories is None:
            from mrcnn_tf.data.coco import read_categories

            categories = read_categories(self.data.path("train", "annotations"))
        parsed = tuple(_category(category, number) for number, category in enumerate(categories, 1))
        return self.model_copy(update={"model": self.model.model_copy(update={"categories": parsed})})

    def to_yaml(self) -> str:
        """The full configuration as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _category(value: Category | Mapping[str, Any], number: int) -> Category:
    if isinstance(value, Category):
        return value
    # COCO's categories have more keys (supercategory, keypoints): only these two are kept
    return parse(Category, {key: value[key] for key in ("id", "name") if key in value}, f"category {number}")
