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
    """One COCO JSON and its image folder; or a data set that `mrcnn-tf prepare-data` has written."""

    images: str | None = None
    annotations: str | None = None
    tfds: str | None = None
    """Folder of prepared data, local or in a bucket, instead of images and annotations."""
    split: str | None = None
    """Of the prepared data; None: train for data.train, val for data.val."""

    @model_validator(mode="after")
    def _check(self) -> SplitConfig:
        if self.tfds is not None and not (self.images is None and self.annotations is None):
            raise ValueError(f"images and annotations, or tfds, not both; to take prepared data only, set {{tfds: {self.tfds}}}")
        if self.split is not None and self.tfds is None:
            raise ValueError(f"split={self.split} names a part of prepared data; set tfds to its folder")
        return self

    @property
    def is_set(self) -> bool:
        """Whether it names data."""
        return self.annotations is not None or self.tfds is not None


class ColourJitterConfig(Section):
    """Random changes of colour in training, as torchvision's ColorJitter; 0 is none."""

    brightness: float = Field(0.0, ge=0)
    """Multiplied by 1 - this .. 1 + this, at least 0."""
    contrast: float = Field(0.0, ge=0)
    """Distance from the mean grey, likewise."""
    saturation: float = Field(0.0, ge=0)
    """Distance from the picture in grey, likewise."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Turned by at most this part of the circle."""


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
    buckets: tuple[tuple[int, int], ...] = ()
    """Padded sizes instead of image_size, one for each batch; an image goes to that of the nearest aspect ratio."""
    scale_jitter: tuple[float, float] | None = None
    """Instead of min_sizes: a scale drawn from this range, 1 being the largest that fits image_size; then cut to image_size."""
    min_visible_area: float = Field(1.0, ge=0)
    """Square pixels that must be left of an object which is cut or covered."""
    horizontal_flip: float = Field(0.5, ge=0, le=1)
    """Probability."""
    colour_jitter: ColourJitterConfig = ColourJitterConfig()
    copy_paste: bool = False
    """Paste objects of another image, each with a probability of one half."""
    copy_paste_blur: float = Field(0.0, ge=0)
    """Standard deviation of the blur of pasted edges, pixels."""
    repeat_threshold: float | None = Field(None, gt=0, le=1)
    """Repeat images with classes that fewer than this part of the images have; None: each image once an epoch."""
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
        for name, size in (("image_size", self.image_size), *(("a bucket", bucket) for bucket in self.buckets)):
            if any(side % 64 or side < 64 for side in size):
                height, width = (max(64, -(-side // 64) * 64) for side in size)
                raise ValueError(f"{name} must be multiples of 64, got {size}; use ({height}, {width})")
        if self.scale_jitter and not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(f"scale_jitter must be two rising numbers above 0, got {self.scale_jitter}")
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

    def prepared(self, split: Literal["train", "val"]) -> tuple[str, str] | None:
        """Folder of the prepared data of a split, and its name there; None where images and annotations are used."""
        section: SplitConfig = getattr(self, split)
        if section.tfds is None:
            return None
        # A path would lose one of the slashes of gs://bucket.
        folder = (
            section.tfds if "://" in section.tfds else str(Path(self.root or ".").expanduser() / Path(section.tfds).expanduser())
        )
        return folder, section.split or split


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
    recompute: bool = False
    """Compute the trunk's activations a second time for the gradient instead of keeping them: less memory, more time."""
    stages: tuple[StageConfig, ...] = ()
    """Fine-tuning by stages: which parts are trained when. The first starts at 0."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    xla: bool | Literal["auto"] = "auto"
    """on, off, or auto: on for GPUs, off for CPUs."""
    strategy: Literal["auto", "none", "mirrored", "multi_worker", "tpu"] = "auto"
    """auto: multi_worker where the environment names several machines (`cluster`), else mirrored when there are several GPUs."""
    cluster: Literal["tf_config", "slurm", "kubernetes"] = "tf_config"
    """Who names the machines: the variable TF_CONFIG, the variables of a Slurm step, or Kubernetes."""
    cluster_timeout: float = Field(300.0, gt=0)
    """Seconds to wait at the start for the other machines."""
    communication: Literal["auto", "ring", "nccl"] = "auto"
    """How machines add up their gradients: TensorFlow's ring, NCCL, or its choice."""
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
        if self.train.early_stopping_patience is not None and not self.data.val.is_set:
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
