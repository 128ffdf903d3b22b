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
    skip_bad: bool = False
    """Read all data once before training and leave out what is faulty; otherwise the first fault stops the run."""
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


class StageConfig(Section):
    """A stretch of the run in which some parts are not trained (`train.stages`)."""

    start: int = Field(ge=0)
    """Its first step; it lasts until the next stage, or to the end."""
    frozen_stages: int | None = Field(None, ge=0, le=5)
    """As model.backbone.frozen_stages, which is the least it can be; None: the same."""
    freeze: tuple[Literal["fpn", "rpn_head", "box_head", "mask_head"], ...] = ()
    """Parts that are not trained either."""
    learning_rate_factor: float = Field(1.0, gt=0)
    """The rate of the schedule is multiplied by it."""


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
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has momentum and coupled weight decay (detectron2), adamw decoupled weight decay."""
    learning_rate: float = Field(0.02, gt=0)
    """For reference_batch_size images a step. Where it is not given: 0.02 for sgd, 0.0001 for adamw."""
    reference_batch_size: int = Field(16, ge=1)
    """The rate is scaled linearly from this batch size to batch_size (the lengths of 1x and 3x from their 16)."""
    warmup_steps: int = Field(1000, ge=0)
    warmup_factor: float = Field(0.001, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(1e-4, ge=0)
    """Where it is not given: 0.0001 for sgd, 0.05 for adamw."""
    clip_norm: float | None = Field(None, gt=0)
    """Upper bound of the global gradient norm; None: no clipping."""
    average_momentum: float | None = Field(None, gt=0, lt=1)
    """Keep a moving average of the weights, 0.9998 for instance, for evaluation, best.keras and averaged.keras; None: none."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """A batch is computed in so many parts, one after the other; the update is by the mean of their gradients."""
    stages: tuple[StageConfig, ...] = ()
    """Fine-tuning by stages: which parts are trained when. The first starts at 0."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    xla: bool | Literal["auto"] = "auto"
    """on, off, or auto: on for GPUs, off for CPUs."""
    strategy: Literal["auto", "none", "mirrored"] = "auto"
    """auto: mirrored when there are several GPUs."""
    epoch_steps: int | None = Field(None, ge=1)
    """Steps between two lines of metrics.csv; None: one pass over the data."""
    eval_every: int = Field(1, ge=0)
    """COCO AP on the validation set each so many epochs; 0: never."""
    tensorboard_images: int = Field(4, ge=0)
    """Validation pictures drawn for TensorBoard after each evaluation; 0: none."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a new best AP (of masks, or of boxes where there are none); None: never."""
    steps_per_execution: int = Field(1, ge=1)
    """Steps that TensorFlow makes before Python is asked again; losses are looked at and SIGTERM is heeded between."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after this many minutes of training steps, at the end of a step."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """The rate and the decay that an optimizer is used with, where they are not given."""
        if isinstance(values, Mapping) and values.get("optimizer") == "adamw":
            return {"learning_rate": 1e-4, "weight_decay": 0.05, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        parts = self.gradient_accumulation_steps
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size must be a multiple of gradient_accumulation_steps, got {self.batch_size} and {parts}; use "
                f"batch_size={-(-self.batch_size // parts) * parts}"
            )
        if self.early_stopping_patience is not None and not self.eval_every:
            raise ValueError("early_stopping_patience counts evaluations, and eval_every=0 makes none; set eval_every=1")
        starts = [stage.start for stage in self.stages]
        if starts and (starts[0] != 0 or starts != sorted(set(starts))):
            raise ValueError(f"stages must start at ascending steps, the first at 0; got {', '.join(map(str, starts))}")
        return self


class Config(Section):
    """The whole configuration of a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        least = self.model.backbone.frozen_stages
        for number, stage in enumerate(self.train.stages):
            if stage.frozen_stages is not None and stage.frozen_stages < least:
                raise ValueError(
                    f"train.stages.{number}.frozen_stages is {stage.frozen_stages}, but model.backbone.frozen_stages={least} "
                    f"keeps those frozen for the whole run; set model.backbone.frozen_stages={stage.frozen_stages}"
                )
        if self.train.early_stopping_patience is not None and self.data.val.annotations is None:
            raise ValueError("train.early_stopping_patience needs a validation set; set data.val.images and data.val.annotations")
        return self

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
