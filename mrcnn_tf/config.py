"""The configuration: typed, frozen, validated, and read from YAML.

A YAML file holds only what differs from the defaults. The defaults are the constants of the paper (He et al., ICCV 2017)
and of detectron2's FPN baselines. Sizes are (height, width), boxes and sizes are in pixels of the resized image.
"""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

NormName = Literal["frozen", "batch", "sync_batch", "group", "none"]
BackboneName = Literal[
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
]
MASK_SIZE = 56
"""Side of the ground-truth mask crops in the batch."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key and what was expected."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Category(_Section):
    """One class of the data set: its own id there and its name."""

    id: int
    name: str


def imagenet_preprocessing(backbone: str) -> dict[str, Any]:
    """`pixel_mean`, `pixel_std` and `channel_order` that the ImageNet weights of a trunk were trained with.

    EfficientNet-Lite: its authors' constants. ResNets: those of keras.applications (and, but for decimals, of detectron2).
    """
    if backbone.startswith("efficientnet_lite"):
        return {"pixel_mean": (127.0, 127.0, 127.0), "pixel_std": (128.0, 128.0, 128.0), "channel_order": "rgb"}
    return {"pixel_mean": (103.939, 116.779, 123.68), "pixel_std": (1.0, 1.0, 1.0), "channel_order": "bgr"}


class PreprocessingConfig(_Section):
    """How an image becomes the network's input.

    Where a configuration does not give mean, std and channel order they are `imagenet_preprocessing` of its trunk.
    """

    pixel_mean: tuple[float, float, float] = (103.939, 116.779, 123.68)
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["rgb", "bgr"] = "bgr"
    """Order in which the network sees the channels; mean and std are given in this order."""
    min_size: int = Field(800, ge=1)
    """Shortest edge at inference, pixels."""
    max_size: int = Field(1333, ge=1)
    """Upper bound of the longest edge at inference, pixels."""
    antialias: bool = True
    """Low-pass when shrinking, as Pillow does. torchvision does not."""


class BackboneConfig(_Section):
    """The trunk C2..C5."""

    name: BackboneName = "resnet50"
    stride_in: Literal["1x1", "3x3"] = "1x1"
    """Which convolution of a ResNet bottleneck carries the stride (ignored by EfficientNet-Lite). keras.applications and the
    original ResNets: 1x1; torchvision and ResNeXt: 3x3."""
    norm: Literal["frozen", "batch", "sync_batch", "group"] = "frozen"
    norm_epsilon: float | None = Field(None, ge=0)
    """None: the architecture's own (1e-5 for ResNets, 1e-3 for EfficientNet-Lite)."""
    frozen_stages: int = Field(2, ge=0, le=5)
    """0 trains everything, 1 freezes the stem, 2 the stem and C2, ... 5 the whole trunk."""
    weights: str | None = "imagenet"
    """"imagenet", or None for random weights."""


class FpnConfig(_Section):
    """The feature pyramid (Lin et al., CVPR 2017): P2..P5 and P6 by pooling."""

    width: int = Field(256, ge=1)
    norm: NormName = "none"


class AnchorConfig(_Section):
    """Reference boxes, one tuple of sizes per level P2..P6."""

    sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    """Square roots of the areas, pixels."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    rounded: bool = False
    """Round half sizes to whole pixels, as torchvision does."""

    @model_validator(mode="after")
    def _check(self) -> AnchorConfig:
        if len(self.sizes) != 5:
            raise ValueError(f"sizes needs one tuple for each of the 5 levels P2..P6, got {len(self.sizes)}")
        if len({len(level) for level in self.sizes}) != 1 or not self.sizes[0]:
            raise ValueError("sizes needs the same number (at least one) of sizes on every level")
        if min(min(level) for level in self.sizes) <= 0 or not self.aspect_ratios or min(self.aspect_ratios) <= 0:
            raise ValueError("sizes and aspect_ratios must be positive and not empty")
        return self


class RpnConfig(_Section):
    """The region proposal network (Ren et al., 2015)."""

    width: int | None = None
    """Channels of the hidden convolutions; None: the pyramid's width."""
    num_convs: int = Field(1, ge=1)
    foreground_iou_threshold: float = Field(0.7, ge=0, le=1)
    background_iou_threshold: float = Field(0.3, ge=0, le=1)
    num_samples: int = Field(256, ge=1)
    positive_fraction: float = Field(0.5, gt=0, le=1)
    pre_nms_top_k_train: int = Field(2000, ge=1)
    pre_nms_top_k_test: int = Field(1000, ge=1)
    post_nms_top_k_train: int = Field(1000, ge=1)
    post_nms_top_k_test: int = Field(1000, ge=1)
    nms_iou_threshold: float = Field(0.7, ge=0, le=1)
    min_box_size: float = Field(0.0, ge=0)
    box_loss: Literal["l1", "smooth_l1"] = "l1"
    smooth_l1_beta: float = Field(1 / 9, gt=0)
    class_loss_weight: float = Field(1.0, ge=0)
    box_loss_weight: float = Field(1.0, ge=0)


class RoiAlignConfig(_Section):
    """How features are pooled at a box."""

    kind: Literal["align", "pool"] = "align"
    """ROIAlign, or the RoIPool of Fast R-CNN (the paper's ablation; not under XLA)."""
    sampling_ratio: Literal[0, 1, 2, 4] = 2
    """Samples per bin and axis; 0 is detectron2's adaptive ceil(roi / bins) (not under XLA)."""
    aligned: bool = True
    """Shift by half a pixel so that bins are centred (detectron2); False is torchvision's."""
    level_epsilon: float = 1e-8
    """Added to the relative box size inside log2, so that sizes on the border of two levels take the upper one."""


class BoxHeadConfig(_Section):
    """Classification and box regression of the proposals."""

    kind: Literal["2fc", "4conv1fc"] = "2fc"
    norm: NormName = "none"
    """Of the convolutions of 4conv1fc."""
    conv_width: int = Field(256, ge=1)
    fc_width: int = Field(1024, ge=1)
    class_agnostic_boxes: bool = False
    num_samples: int = Field(512, ge=1)
    positive_fraction: float = Field(0.25, gt=0, le=1)
    foreground_iou_threshold: float = Field(0.5, ge=0, le=1)
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Scale of (dy, dx, dh, dw)."""
    box_loss: Literal["l1", "smooth_l1"] = "l1"
    smooth_l1_beta: float = Field(1.0, gt=0)
    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms_iou_threshold: float = Field(0.5, ge=0, le=1)
    max_detections: int = Field(100, ge=1)
    min_box_size: float = Field(0.0, ge=0)
    """Detections with a side below this many pixels are dropped (torchvision: 0.01)."""
    class_loss_weight: float = Field(1.0, ge=0)
    box_loss_weight: float = Field(1.0, ge=0)


class MaskHeadConfig(_Section):
    """Fully convolutional mask branch."""

    enabled: bool = True
    """False is Faster R-CNN."""
    num_convs: int = Field(4, ge=0)
    width: int = Field(256, ge=1)
    norm: NormName = "none"
    class_agnostic: bool = False
    soft_targets: bool = False
    """Train against coverage (torchvision) instead of coverage >= 0.5 (detectron2)."""
    loss_weight: float = Field(1.0, ge=0)


class ModelConfig(_Section):
    """Everything the `.keras` file keeps."""

    categories: tuple[Category, ...] = ()
    """Position i is class i + 1. Empty in a YAML file: taken from the training annotations."""
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    backbone: BackboneConfig = BackboneConfig()
    fpn: FpnConfig = FpnConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RpnConfig = RpnConfig()
    roi_align: RoiAlignConfig = RoiAlignConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()
    crowd_overlap_threshold: float = Field(0.7, ge=0, le=1)
    """No negative is drawn where a crowd region covers more than this part of the anchor or proposal (Detectron)."""

    @model_validator(mode="before")
    @classmethod
    def _match_trunk(cls, values: Any) -> Any:
        """Fill in the pixel statistics of the trunk where none are given."""
        if not isinstance(values, Mapping):
            return values
        backbone, preprocessing = values.get("backbone", {}), values.get("preprocessing", {})
        if not isinstance(preprocessing, Mapping):
            return values
        name = backbone.get("name", "") if isinstance(backbone, Mapping) else getattr(backbone, "name", "")
        constants = imagenet_preprocessing(str(name))
        return {**values, "preprocessing": {**constants, **preprocessing}}

    @property
    def num_classes(self) -> int:
        """Foreground classes K."""
        return len(self.categories)


class SplitConfig(_Section):
    """One COCO JSON and its image folder."""

    images: str | None = None
    annotations: str | None = None


class DataConfig(_Section):
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


class TrainConfig(_Section):
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


class Config(_Section):
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


SectionT = TypeVar("SectionT", bound=BaseModel)


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = importlib.resources.files("mrcnn_tf.configs")
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration.

    Args:
        source: path of a YAML file, or the name of a shipped configuration (`shipped_configs()`).
        overrides: `section.key=value` strings; values are YAML (`train.batch_size=4`, `data.min_sizes=[256]`).

    Returns:
        The validated, frozen configuration.

    Raises:
        ConfigError: no such file or name, broken YAML, an unknown key (the nearest valid one is named) or a wrong value.
    """
    text, origin = _read_source(source)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold a mapping of sections, got {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return parse(Config, values, origin)


def parse(section: type[SectionT], values: Mapping[str, Any], origin: str) -> SectionT:
    """Validate `values` as `section`, with errors a user can act on.

    Raises:
        ConfigError: says `origin`, the key, what was expected and what came.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [_explain(section, item) for item in error.errors()]
        raise ConfigError("\n".join([f"{origin}:", *(f"  {line}" for line in lines)])) from error


def _category(value: Category | Mapping[str, Any], number: int) -> Category:
    if isinstance(value, Category):
        return value
    # COCO's categories have more keys (supercategory, keypoints): only these two are kept
    return parse(Category, {key: value[key] for key in ("id", "name") if key in value}, f"category {number}")


def _read_source(source: str | Path) -> tuple[str, str]:
    path = Path(source).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    name = str(source)
    if name in shipped_configs():
        return importlib.resources.files("mrcnn_tf.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name
    near = difflib.get_close_matches(name, shipped_configs(), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"No configuration file {name}, and no shipped one of that name: {', '.join(shipped_configs())}.{hint}")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"An override is written section.key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {key} is not valid YAML: {text!r}") from error
    *sections, last = key.split(".")
    node = values
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {section} is a value, not a section")
        node = child
    node[last] = value


def _explain(section: type[BaseModel], item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "(top)"
    if item["type"] != "extra_forbidden":
        return f"{key}: {item['msg']} (got {item['input']!r})"
    fields = _fields_at(section, location[:-1])
    near = difflib.get_close_matches(location[-1], fields, n=1)
    hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known keys: {', '.join(fields)}"
    return f"{key}: unknown key; {hint}"


def _fields_at(section: type[BaseModel], location: list[str]) -> list[str]:
    for name in location:
        if name.isdigit():  # a row of a tuple of sections, whose type the name before it has led to
            continue
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        annotation = next(iter(get_args(annotation)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)
