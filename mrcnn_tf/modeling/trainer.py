"""The training step: `compile` and `fit` for a model whose `training_graph` gives loss terms.

Keras' own step is replaced for three reasons, all seen in Keras 3.15.1:

* `compile(jit_compile=True)` puts XLA around the whole distributed step, which fails under `MirroredStrategy`. Here XLA compiles
  the forward pass (and with it its gradient); all-reduce and update stay outside.
* A loss must be normalised by what all replicas have sampled, so sums and normalisers are reduced before the division.
* Keras clips gradients before it adds them up over the replicas. Here they are added up first.
"""

from __future__ import annotations

import logging
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.ops.static_graph import static_graph

_log = logging.getLogger("mrcnn_tf.train")
_INFERENCE_KEYS = ("images", "image_sizes")


class RcnnTrainer(keras.Model):
    """A model with `training_graph` (batch and seeds to loss terms) and `loss_weights` that `fit` and `evaluate` understand."""

    training_graph: keras.Model
    loss_weights: dict[str, float]

    def compile(
        self,
        optimizer: Any = "sgd",
        *,
        jit_compile: bool | str = "auto",
        seed: int = 0,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
    ) -> None:
        """Prepare for `fit`. The losses are the model's own.

        Args:
            optimizer: a Keras optimizer or its name.
            jit_compile: compile forward and backward pass with XLA; "auto" does so on GPUs.
            seed: of the sampling of anchors and proposals.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras; above 1 it fails under a distribution strategy (a Keras bug).
        """
        super().compile(
            optimizer=optimizer, loss=None, run_eagerly=run_eagerly, steps_per_execution=steps_per_execution, jit_compile=False
        )
        self._rcnn_compile = {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "jit_compile": jit_compile,
            "seed": seed,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
        }
        self._seed = seed
        self._xla = self._resolve_xla(jit_compile)
        self._terms = self._make_terms()
        self.loss_trackers = {name: keras.metrics.Mean(name=name) for name in ("loss", *self.loss_weights)}
        self.optimizer.build(self.trainable_variables)

    def get_compile_config(self) -> dict:
        """What `compile` was called with, for the `.keras` file."""
        return dict(self._rcnn_compile) if self.compiled else {}

    def compile_from_config(self, config: dict) -> None:
        """Compile as before saving, so that `fit` goes on with the optimizer's state."""
        if config:
            self.compile(**{**config, "optimizer": keras.saving.deserialize_keras_object(config["optimizer"])})

    @property
    def metrics(self) -> list:
        """The trackers that Keras resets at the start of an epoch."""
        return list(self.loss_trackers.values()) if self.compiled else []

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step: losses, gradients, update."""
        variables = self.trainable_variables
        values = [variable.value for variable in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            local, reported = self._loss_shares(data, training=True)
            scaled = self.optimizer.scale_loss(tf.add_n(list(local.values())))
        gradients = self._all_reduce_and_clip(tape.gradient(scaled, values))
        # A step for which the data has run out fails only when its batch is read. Whatever does not depend on the batch, as the
        # count of iterations, would already have been updated by then.
        with tf.control_dependencies(list(local.values())):
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return self._track(reported)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Losses of a batch, without an update."""
        _, reported = self._loss_shares(data, training=False)
        return self._track(reported)

    def predict_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Detections of a batch; ground truth in it is ignored."""
        batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self({key: batch[key] for key in _INFERENCE_KEYS}, training=False)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing: model, trackers and optimizer are built in `__init__` and `compile`.

        Keras 3.15.1 would average a batch over the replicas here, which fails for booleans (`gt_crowd`).
        """

    def _loss_shares(self, data: Any, *, training: bool) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """This replica's share of each weighted loss, whose sum over replicas is the loss; and that whole loss, for the logs."""
        batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if "mask_loss" in self.loss_weights and "gt_masks" not in batch:
            raise ValueError(
                "the batch has no gt_masks, which this model trains on; box-only data needs model.mask_head.enabled=false"
            )
        batch = {**batch, "seeds": self._image_seeds(batch["images"])}
        terms = self._terms(batch, training)
        stacked = tf.stack([terms[name] for name in self.loss_weights])
        everywhere = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(stacked))
        normalisers = tf.maximum(everywhere[:, 1], 1.0)
        weights = tf.constant(list(self.loss_weights.values()), tf.float32)
        local = stacked[:, 0] / normalisers * weights
        total = everywhere[:, 0] / normalisers * weights
        names = list(self.loss_weights)
        return dict(zip(names, tf.unstack(local), strict=True)), dict(zip(names, tf.unstack(total), strict=True))

    def _image_seeds(self, images: tf.Tensor) -> tf.Tensor:
        """[B, 2] int32: one seed per image of the global batch and step, so that the sample does not depend on the replicas."""
        context = tf.distribute.get_replica_context()
        count = images.shape[0] if images.shape[0] is not None else tf.shape(images)[0]
        replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
        step = tf.cast(self.optimizer.iterations.value, tf.int32) if self.optimizer is not None else 0
        first = (step * context.num_replicas_in_sync + replica) * count
        return tf.stack([tf.fill([count], 2 * self._seed), first + tf.range(count)], axis=1)

    def _make_terms(self) -> Any:
        if not self._xla:
            return lambda batch, training: self.training_graph(batch, training=training)

        @tf.function(jit_compile=True, autograph=False)
        def compiled(batch: dict, training: bool) -> dict:
            with static_graph():
                return self.training_graph(batch, training=training)

        return compiled

    def _resolve_xla(self, jit_compile: bool | str) -> bool:
        wanted = bool(tf.config.list_physical_devices("GPU")) if jit_compile == "auto" else bool(jit_compile)
        if wanted and self._has_synchronised_norm():
            _log.warning(
                "XLA is off: synchronised batch norm talks to the other replicas in the forward pass, which XLA cannot compile"
            )
            return False
        return wanted

    def _has_synchronised_norm(self) -> bool:
        return any(getattr(layer, "synchronized", False) for layer in self._flatten_layers())

    def _all_reduce_and_clip(self, gradients: list) -> list:
        """Add up over replicas before clipping; the optimizer's own clipping and sum then change nothing more.

        Keras 3.15.1 clips each replica's gradients before it adds them up.
        """
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        optimizer = self.optimizer
        if replicas == 1 or not (optimizer.global_clipnorm or optimizer.clipnorm or optimizer.clipvalue):
            return gradients
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if optimizer.global_clipnorm:
            gradients, _ = tf.clip_by_global_norm(gradients, optimizer.global_clipnorm)
        if optimizer.clipnorm:
            gradients = [tf.clip_by_norm(gradient, optimizer.clipnorm) for gradient in gradients]
        if optimizer.clipvalue:
            gradients = [tf.clip_by_value(gradient, -optimizer.clipvalue, optimizer.clipvalue) for gradient in gradients]
        return [gradient / replicas for gradient in gradients]

    def _track(self, losses: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        self.loss_trackers["loss"].update_state(tf.add_n(list(losses.values())))
        for name, value in losses.items():
            self.loss_trackers[name].update_state(value)
        return {name: tracker.result() for name, tracker in self.loss_trackers.items()}
