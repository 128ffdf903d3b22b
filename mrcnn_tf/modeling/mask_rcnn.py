"""Mask R-CNN: the one place where the stages are wired.

`MaskRCNN` is a functional Keras model, images to detections. It holds a second functional graph, images and ground truth to
loss terms, over the same sub-models: nothing is computed twice and every weight is shared.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.config import MASK_SIZE, Config, ConfigError, ModelConfig
from mrcnn_tf.modeling.backbones import build_backbone
from mrcnn_tf.modeling.box_head import BoxLosses, DetectBoxes, RoiSampler, build_box_head
from mrcnn_tf.modeling.fpn import build_fpn
from mrcnn_tf.modeling.layers import Normalize
from mrcnn_tf.modeling.mask_head import MaskLoss, MaskPredictor, MaskProbabilities, MaskTargets, build_mask_head
from mrcnn_tf.modeling.observations import OBSERVED, PositivesPerImage, ProposalRecall
from mrcnn_tf.modeling.recompute import Recomputable
from mrcnn_tf.modeling.rois import FlattenRows, GatherRows, RoiAlign, RoiPool, RoiResize, ScatterRows
from mrcnn_tf.modeling.rpn import Anchors, Proposals, RpnLosses, build_rpn_head
from mrcnn_tf.modeling.trainer import RcnnTrainer
from mrcnn_tf.modeling.windows import ImageWindows, InputWindows, MoveEnds
from mrcnn_tf.ops.suppression import Suppression

STRIDES = (4, 8, 16, 32, 64)
"""Input pixels per pixel of P2..P6."""
BOX_POOL_SIZE, MASK_POOL_SIZE, MASK_OUTPUT_SIZE = 7, 14, 28
_LEVELS = ("p2", "p3", "p4", "p5", "p6")


@keras.saving.register_keras_serializable(package="mrcnn_tf")
class MaskRCNN(RcnnTrainer):
    """Mask R-CNN, or Faster R-CNN when `mask_head.enabled` is False.

    Call with `{"images": [B, H, W, 3] 0..255, "image_sizes": [B, 2] int32}`, H and W multiples of 32; the answer is the
    detections dict of `docs/contracts.md`. `fit` takes batches as described there. The dtype policy is the one set in
    Keras when the model is made; geometry, sampling, pooling and losses stay float32.

    Attributes:
        config: `ModelConfig`, architecture, preprocessing and categories.
        backbone, fpn, rpn_head, box_head, mask_head: the sub-models that hold the weights (`mask_head` is None without masks).
        cell_anchors: [A, 4] float32 anchors of one location, for each level.
        training_graph: the functional graph from a batch to loss terms.
    """

    def __init__(self, config: Config | ModelConfig, *, pretrained: bool = True, name: str = "mask_rcnn", **kwargs: Any) -> None:
        """Build the model.

        Args:
            config: with categories (`Config.with_categories`).
            pretrained: load the weights that `config.weights`, or else `config.backbone.weights`, names.
            name: of the Keras model.
            **kwargs: for `keras.Model`.

        Raises:
            ConfigError: the configuration has no categories.
        """
        config = config.model if isinstance(config, Config) else config
        if not config.categories:
            raise ConfigError("The model has no categories; call config.with_categories() or give model.categories")
        if pretrained:
            from mrcnn_tf.weights import complete

            config = complete(config)
        stages = _Stages(config)
        inputs = {
            "images": keras.Input((None, None, 3), name="images", dtype="float32"),
            "image_sizes": keras.Input((2,), name="image_sizes", dtype="int32"),
        }
        super().__init__(inputs=inputs, outputs=stages.detect(inputs), name=name, **kwargs)
        self.config = config
        self.backbone = stages.backbone
        self.fpn = stages.fpn
        self.rpn_head = stages.rpn_head
        self.box_head = stages.box_head
        self.mask_head = stages.mask_head
        self.mask_predictor = stages.mask_predictor
        self.cell_anchors = stages.anchors.cells
        self._stages = stages
        self.training_graph = stages.training_graph()
        self.loss_weights = stages.loss_weights()
        self.observed = OBSERVED
        if pretrained:
            from mrcnn_tf.weights import load_weights

            load_weights(self)

    def split(self) -> tuple[keras.Model, keras.Model]:
        """The inference graph in two, over the same weights.

        Returns:
            The trunk, from the inputs to `{"features", "objectness", "deltas"}`, lists over levels: all convolutions before the
            proposals, with shapes that depend on nothing but those of the inputs. And the rest, from `{"images", "image_sizes",
            "trunk"}` to the detections.
        """
        inputs, trunk = dict(self.input), self._stages.trunk
        return keras.Model(inputs, trunk, name="trunk"), keras.Model({**inputs, "trunk": trunk}, self.output, name="rest")

    def stages(self) -> dict[str, keras.Model]:
        """The inference graph without its heads, cut where convolutions end and geometry begins, over the same weights.

        Between them stand `box_head` and, after them, `mask_head` and `mask_predictor`.

        Returns:
            `trunk` as in `split`; `propose`, from `{"images", "image_sizes", "trunk"}` to `{"proposals", "is_valid",
            "box_regions"}`; `detect`, from `{"images", "image_sizes", "known": {"features", "proposals", "is_valid",
            "class_logits", "box_deltas"}}`, the features being those that are pooled, to the detections without masks and, with
            masks, `mask_regions`.
        """
        inputs, stages = dict(self.input), self._stages
        known = {"features": stages.trunk["features"][: stages.num_roi_levels], **stages.answered}
        known |= {name: stages.proposed[name] for name in ("proposals", "is_valid")}
        return {
            "trunk": keras.Model(inputs, stages.trunk, name="trunk"),
            "propose": keras.Model({**inputs, "trunk": stages.trunk}, stages.proposed, name="propose"),
            "detect": keras.Model({**inputs, "known": known}, stages.detected, name="detect"),
        }

    def halves(self) -> tuple[keras.Model, keras.Model | None]:
        """The inference graph in two, cut where the boxes are known, so that masks can be asked for at any boxes.

        Returns:
            From the inputs to the detections without masks and `features`, a list over the levels that are pooled. And from
            `{"features", "boxes": [B, D, 4] pixels of the input, "classes": [B, D] int32, 0 in padding rows}`, D being
            `max_detections`, to masks as in the detections; None where the model has none.
        """
        stages = self._stages
        features = stages.trunk["features"][: stages.num_roi_levels]
        known = {name: value for name, value in stages.detected.items() if name != "mask_regions"}
        boxes = keras.Model(dict(self.input), {**known, "features": features}, name="boxes")
        if self.mask_head is None:
            return boxes, None
        num_rows = self.config.box_head.max_detections
        at = keras.Input((num_rows, 4), name="boxes", dtype="float32")
        classes = keras.Input((num_rows,), name="classes", dtype="int32")
        _, masks = stages.masks_at(features, stages.inside(at), classes)
        return boxes, keras.Model({"features": features, "boxes": at, "classes": classes}, masks, name="masks")

    def with_policy(self, policy: str) -> MaskRCNN:
        """The same model with another dtype policy ("float32", "mixed_bfloat16"...) and a copy of the weights."""
        model = self.from_config({**self.get_config(), "policy": policy})
        model.set_weights(self.get_weights())
        return model

    def get_config(self) -> dict:
        """What the `.keras` file keeps."""
        return {
            "config": self.config.model_dump(mode="json"),
            "name": self.name,
            "trainable": self.trainable,
            "policy": self.dtype_policy.name,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> MaskRCNN:
        """Rebuild from `get_config`, without downloading weights."""
        del custom_objects
        with _policy(config["policy"]):
            model = cls(ModelConfig.model_validate(config["config"]), pretrained=False, name=config["name"])
        model.trainable = config["trainable"]
        return model


def load_model(path: str | Path, *, compile: bool = False) -> MaskRCNN:
    """Read a `.keras` file.

    Args:
        path: the file.
        compile: also restore the optimizer, to go on training.

    Returns:
        The model.

    Raises:
        ValueError: the file is no complete `.keras` file, or holds another kind of model.
    """
    try:
        model = keras.saving.load_model(path, compile=compile)
    except (OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a .keras file: {error}") from error
    if not isinstance(model, MaskRCNN):
        raise ValueError(f"{path} holds a {type(model).__name__}, expected a mrcnn_tf.MaskRCNN")
    return model


class _Stages:
    """The layers of one model, and the two graphs they make."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        preprocessing, rpn, box, mask = config.preprocessing, config.rpn, config.box_head, config.mask_head
        self.normalize = Normalize(
            preprocessing.pixel_mean,
            preprocessing.pixel_std,
            channel_order=preprocessing.channel_order,
            padding_value=preprocessing.padding_value,
            name="normalize",
        )
        self.image_windows = ImageWindows(centred=preprocessing.placement == "centre", name="image_windows")
        self.input_windows = InputWindows(name="input_windows")
        # By how much boxes, and so their sides, are smaller inside of the network.
        self.end_shift = {"exclusive": 0.0, "inclusive": -1.0}[config.box_ends]
        self.inside, self.outside = _end_movers(self.end_shift)
        trunk = build_backbone(
            config.backbone.name,
            stride_in=config.backbone.stride_in,
            padding=config.backbone.padding,
            pool_padding=config.backbone.pool_padding,
            norm=config.backbone.norm,
            norm_epsilon=config.backbone.norm_epsilon,
            frozen_stages=config.backbone.frozen_stages,
        )
        self.backbone = Recomputable(trunk.input, trunk.output, name=trunk.name)
        channels = {level: feature.shape[-1] for level, feature in self.backbone.output.items()}
        width = config.fpn.width
        self.fpn = build_fpn(channels, width=width, norm=config.fpn.norm, norm_epsilon=config.fpn.norm_epsilon, p6=config.fpn.p6)
        self.anchors = Anchors(
            config.anchors.sizes,
            config.anchors.aspect_ratios,
            STRIDES,
            rounded=config.anchors.rounded,
            offset=config.anchors.offset,
            measured_strides=config.anchors.stride == "measured",
            name="anchors",
        )
        num_anchors = len(config.anchors.sizes[0]) * len(config.anchors.aspect_ratios)
        self.rpn_head = build_rpn_head(
            width,
            width=rpn.width or width,
            num_convs=rpn.num_convs,
            num_anchors=num_anchors,
            norm=rpn.norm,
            norm_epsilon=rpn.norm_epsilon,
        )
        self.box_head = build_box_head(
            width,
            pool_size=BOX_POOL_SIZE,
            kind=box.kind,
            norm=box.norm,
            norm_epsilon=box.norm_epsilon,
            conv_width=box.conv_width,
            fc_width=box.fc_width,
            num_classes=config.num_classes,
            class_agnostic=box.class_agnostic_boxes,
        )
        self.num_roi_levels = _LEVELS.index(f"p{config.roi_align.max_level}") + 1
        self.box_pool = self._pool(BOX_POOL_SIZE, "box_pool")
        self.mask_head: Any = None
        self.mask_predictor: Any = None
        if mask.enabled:
            self.mask_pool = self._pool(MASK_POOL_SIZE, "mask_pool")
            self.mask_head = build_mask_head(
                width,
                pool_size=MASK_POOL_SIZE,
                num_convs=mask.num_convs,
                width=mask.width,
                norm=mask.norm,
                norm_epsilon=mask.norm_epsilon,
            )
            self.mask_predictor = MaskPredictor(1 if mask.class_agnostic else config.num_classes, name="mask_predictor")

    def _pool(self, size: int, name: str) -> keras.layers.Layer:
        align = self.config.roi_align
        strides = STRIDES[: self.num_roi_levels]
        levels: dict[str, Any] = {"level_epsilon": align.level_epsilon, "level_rounding": align.level_rounding}
        if align.kind == "pool":
            return RoiPool(size, strides=strides, name=name, **levels)
        if align.kind == "crop":
            return RoiResize(size, strides=strides, inclusive=self.end_shift < 0, name=name, **levels)
        return RoiAlign(
            size,
            strides=strides,
            sampling_ratio=align.sampling_ratio,
            aligned=align.aligned,
            minimum_size=align.minimum_size,
            name=name,
            **levels,
        )

    def _trunk(self, inputs: dict) -> dict[str, list]:
        """Features P2..P6, objectness and deltas, each a list over levels: all of the convolutions before the proposals."""
        windows = self.image_windows(inputs["images"], inputs["image_sizes"])
        pyramid = self.fpn(self.backbone(self.normalize(inputs["images"], windows)))
        features = [pyramid[level] for level in _LEVELS]
        objectness, deltas = self.rpn_head(features)
        return {"features": features, "objectness": objectness, "deltas": deltas}

    def _anchors(self, features: list) -> list:
        return [self.inside(level) for level in self.anchors(features)]

    def _windows(self, inputs: dict, of: str) -> Any:
        """What boxes are cut at, [B, 4]: the "image" or the whole "input"."""
        windows: Any = {"image": self.image_windows, "input": self.input_windows}[of]
        return self.inside(windows(inputs["images"], inputs["image_sizes"]))

    def _proposals(self, pre_nms_top_k: int, post_nms_top_k: int, name: str) -> Proposals:
        rpn = self.config.rpn
        return Proposals(
            pre_nms_top_k=pre_nms_top_k,
            post_nms_top_k=post_nms_top_k,
            nms_iou_threshold=rpn.nms_iou_threshold,
            min_box_size=rpn.min_box_size + self.end_shift,
            joint_levels=rpn.joint_levels,
            ranking=rpn.ranking,
            box_weights=rpn.box_weights,
            max_log_scale=self.config.max_log_scale,
            name=name,
        )

    def detect(self, inputs: dict) -> dict:
        """The inference graph."""
        rpn, box = self.config.rpn, self.config.box_head
        trunk = self._trunk(inputs)
        features = trunk["features"]
        propose = self._proposals(rpn.pre_nms_top_k_test, rpn.post_nms_top_k_test, "proposals")
        windows = self._windows(inputs, rpn.clip_to)
        proposals, is_valid = propose(trunk["objectness"], trunk["deltas"], self._anchors(features), windows)
        features = features[: self.num_roi_levels]
        rows = FlattenRows(name="box_rows")(is_valid)
        box_regions = self.box_pool(features, proposals, rows)
        class_logits, box_deltas = self.box_head(box_regions)
        detect = DetectBoxes(
            box_weights=box.box_weights,
            score_threshold=box.score_threshold,
            suppression=Suppression(box.nms, box.nms_iou_threshold, box.soft_nms_sigma, box.soft_nms_min_score),
            max_detections=box.max_detections,
            min_box_size=box.min_box_size + self.end_shift,
            best_class_only=box.best_class_only,
            max_log_scale=self.config.max_log_scale,
            pre_nms_top_k=box.pre_nms_top_k,
            name="detect_boxes",
        )
        scatter = ScatterRows(name="box_scatter")
        boxes, classes, scores, count = detect(
            scatter(class_logits, rows, is_valid),
            scatter(box_deltas, rows, is_valid),
            proposals,
            is_valid,
            self._windows(inputs, box.clip_to),
        )
        detections = {
            "detection_boxes": self.outside(boxes),
            "detection_classes": classes,
            "detection_scores": scores,
            "num_detections": count,
        }
        # Where convolutions end and geometry begins, and the other way round.
        self.trunk = trunk
        self.proposed = {"proposals": proposals, "is_valid": is_valid, "box_regions": box_regions}
        self.answered = {"class_logits": class_logits, "box_deltas": box_deltas}
        self.detected = dict(detections)
        if self.mask_head is not None:
            self.detected["mask_regions"], detections["detection_masks"] = self.masks_at(features, boxes, classes)
        return detections

    def masks_at(self, features: list, boxes: Any, classes: Any) -> tuple[Any, Any]:
        """What is pooled at the boxes, a row for each that is looked at, and the masks [B, D, 28, 28]."""
        is_detection = keras.ops.greater(classes, 0)
        rows = FlattenRows(name="mask_rows")(is_detection)
        regions = self.mask_pool(features, boxes, rows)
        row_classes = GatherRows(name="mask_classes")(classes, rows)
        logits = self.mask_predictor(self.mask_head(regions), row_classes)
        probabilities = MaskProbabilities(name="mask_probabilities")(logits)
        return regions, ScatterRows(name="mask_scatter")(probabilities, rows, is_detection)

    def training_graph(self) -> keras.Model:
        """Batch and seeds to loss terms and what else is observed, each [2] = (sum, normaliser)."""
        rpn, box = self.config.rpn, self.config.box_head
        inputs = _training_inputs(with_masks=self.mask_head is not None)
        gt_boxes = self.inside(inputs["gt_boxes"])
        ground_truth = [gt_boxes, inputs["gt_classes"], inputs["gt_crowd"]]
        trunk = self._trunk(inputs)
        features, objectness, deltas = (trunk[name] for name in ("features", "objectness", "deltas"))
        anchors = self._anchors(features)
        rpn_losses = RpnLosses(
            foreground_iou_threshold=rpn.foreground_iou_threshold,
            background_iou_threshold=rpn.background_iou_threshold,
            num_samples=rpn.num_samples,
            positive_fraction=rpn.positive_fraction,
            crowd_overlap_threshold=self.config.crowd_overlap_threshold,
            box_loss=rpn.box_loss,
            smooth_l1_beta=rpn.smooth_l1_beta,
            box_weights=rpn.box_weights,
            divide_by_drawn=rpn.loss_normaliser == "drawn",
            name="rpn_losses",
        )
        terms = {}
        terms["rpn_class_loss"], terms["rpn_box_loss"], terms["rpn_positives"] = rpn_losses(
            objectness, deltas, anchors, *ground_truth, inputs["seeds"]
        )
        propose = self._proposals(rpn.pre_nms_top_k_train, rpn.post_nms_top_k_train, "train_proposals")
        proposals, is_valid = propose(objectness, deltas, anchors, self._windows(inputs, rpn.clip_to))
        sampler = RoiSampler(
            num_samples=box.num_samples,
            positive_fraction=box.positive_fraction,
            foreground_iou_threshold=box.foreground_iou_threshold,
            crowd_overlap_threshold=self.config.crowd_overlap_threshold,
            name="roi_sampler",
        )
        sampled = sampler(proposals, is_valid, *ground_truth, inputs["seeds"])
        terms["proposal_recall"] = ProposalRecall(name="proposal_recall")(proposals, is_valid, *ground_truth)
        terms["roi_positives"] = PositivesPerImage(name="roi_positives")(sampled["class_targets"])
        features = features[: self.num_roi_levels]
        terms["class_loss"], terms["box_loss"] = self._box_terms(features, sampled, gt_boxes)
        if self.mask_head is not None:
            terms["mask_loss"] = self._mask_term(features, sampled, inputs["gt_masks"], gt_boxes)
        return keras.Model(inputs, terms, name="training_graph")

    def _box_terms(self, features: list, sampled: dict, gt_boxes: Any) -> tuple:
        box = self.config.box_head
        rows = FlattenRows(name="sampled_rows")(keras.ops.greater_equal(sampled["class_targets"], 0))
        class_logits, deltas = self.box_head(self.box_pool(features, sampled["rois"], rows))
        matched_boxes = GatherMatched(name="matched_boxes")(gt_boxes, sampled["matched_indices"])
        box_losses = BoxLosses(
            box_weights=box.box_weights, box_loss=box.box_loss, smooth_l1_beta=box.smooth_l1_beta, name="box_losses"
        )
        of_rows = GatherRows(name="sampled_values")
        return box_losses(
            class_logits,
            deltas,
            of_rows(sampled["rois"], rows),
            of_rows(sampled["class_targets"], rows),
            of_rows(matched_boxes, rows),
        )

    def _mask_term(self, features: list, sampled: dict, gt_masks: Any, gt_boxes: Any) -> Any:
        box = self.config.box_head
        # Foreground rows come first, so the mask head's share of the sample is a slice.
        share = int(box.num_samples * box.positive_fraction)
        rois, classes, matched = (sampled[key][:, :share] for key in ("rois", "class_targets", "matched_indices"))
        targets = MaskTargets(MASK_OUTPUT_SIZE, soft=self.config.mask_head.soft_targets, name="mask_targets")(
            gt_masks, gt_boxes, rois, matched
        )
        rows = FlattenRows(name="foreground_rows")(keras.ops.greater(classes, 0))
        of_rows = GatherRows(name="foreground_values")
        row_classes = of_rows(classes, rows)
        logits = self.mask_predictor(self.mask_head(self.mask_pool(features, rois, rows)), row_classes)
        return MaskLoss(name="mask_loss")(logits, of_rows(targets, rows), row_classes)

    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss in the sum."""
        rpn, box, mask = self.config.rpn, self.config.box_head, self.config.mask_head
        weights = {
            "rpn_class_loss": rpn.class_loss_weight,
            "rpn_box_loss": rpn.box_loss_weight,
            "class_loss": box.class_loss_weight,
            "box_loss": box.box_loss_weight,
        }
        return {**weights, "mask_loss": mask.loss_weight} if mask.enabled else weights


class GatherMatched(keras.layers.Layer):
    """Ground truth of each region: gt_boxes [B, G, 4] and matched_indices [B, R] -> [B, R, 4]."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)

    def call(self, gt_boxes: tf.Tensor, matched_indices: tf.Tensor) -> tf.Tensor:
        """Gather."""
        return tf.gather(gt_boxes, matched_indices, batch_dims=1)


def _end_movers(shift: float) -> tuple[Callable, Callable]:
    """From boxes [..., 4] as the contract has them to those inside of the network, and back."""
    if shift == 0:
        return (lambda boxes: boxes), (lambda boxes: boxes)
    return MoveEnds(shift, name="inside_ends"), MoveEnds(-shift, name="outside_ends")


def _training_inputs(*, with_masks: bool) -> dict:
    inputs = {
        "images": keras.Input((None, None, 3), name="images", dtype="float32"),
        "image_sizes": keras.Input((2,), name="image_sizes", dtype="int32"),
        "gt_boxes": keras.Input((None, 4), name="gt_boxes", dtype="float32"),
        "gt_classes": keras.Input((None,), name="gt_classes", dtype="int32"),
        "gt_crowd": keras.Input((None,), name="gt_crowd", dtype="bool"),
        "seeds": keras.Input((2,), name="seeds", dtype="int32"),
    }
    if with_masks:
        inputs["gt_masks"] = keras.Input((None, MASK_SIZE, MASK_SIZE), name="gt_masks", dtype="uint8")
    return inputs


@contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
