"""The training step: `compile` and `fit` for a model whose `training_graph` gives loss terms.

Keras' own step is replaced for these reasons, all seen in Keras 3.15.1:

* `compile(jit_compile=True)` puts XLA around the whole distributed step, which fails under `MirroredStrategy`. Here XLA compiles
  the forward pass (and with it its gradient); all-reduce and update stay outside.
* A loss must be normalised by what all replicas have sampled, so sums and normalisers are reduced before the division.
* Keras clips gradients, and looks for overflow of scaled ones, before it adds them up over the replicas. Here they are added up
  first.
* Several steps per execution fail under a strategy (`mrcnn_tf.modeling.executions`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.modeling.executions import Executions, make_executions, num_batches
from mrcnn_tf.modeling.gradients import leave_the_sum_to_us, sum_and_clip
from mrcnn_tf.modeling.loss_scale import DynamicLossScale, steps_made, unwrapped
from mrcnn_tf.modeling.recompute import recomputing
from mrcnn_tf.ops.static_graph import static_graph, xla_on_cpu

_log = logging.getLogger("mrcnn_tf.train")
_INFERENCE_KEYS = ("images", "image_sizes")


class RcnnTrainer(keras.Model):
    """A model that `fit` and `evaluate` understand.

    Attributes:
        training_graph: from a batch and seeds to a dict of [2] = (sum, normaliser): the losses, and what else is to be logged.
        loss_weights: the losses by name, with their weight in the sum.
        observed: the names of the others.
    """

    training_graph: keras.Model
    loss_weights: dict[str, float]
    observed: tuple[str, ...]
    train_function: Callable | None
    test_function: Callable | None

    def compile(
        self,
        optimizer: Any = "sgd",
        *,
        jit_compile: bool | str = "auto",
        seed: int = 0,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        gradient_accumulation_steps: int = 1,
        recompute: bool = False,
    ) -> None:
        """Prepare for `fit`. The losses are the model's own.

        Args:
            optimizer: a Keras optimizer or its name. A mixed_float16 model wraps it in `DynamicLossScale`.
            jit_compile: compile forward and backward pass with XLA; "auto" does so on GPUs.
            seed: of the sampling of anchors and proposals.
            run_eagerly: as in Keras.
            steps_per_execution: steps that TensorFlow makes before Python is asked again; the last execution of an epoch makes
                what is left of it.
            gradient_accumulation_steps: each replica's share of a batch is computed in so many equal parts, one after the other,
                and the update is by the mean of their gradients. It takes the memory of one part.
            recompute: keep of the trunk only C2..C5 for the gradient, and compute the rest of its activations a second time
                (`mrcnn_tf.modeling.recompute`).

        Raises:
            ValueError: the optimizer accumulates gradients itself.
        """
        optimizer = keras.optimizers.get(optimizer)
        if unwrapped(optimizer).gradient_accumulation_steps:
            raise ValueError(
                "the optimizer has gradient_accumulation_steps, with which Keras counts its steps otherwise; give the number to "
                "compile(gradient_accumulation_steps=...)"
            )
        if self.dtype_policy.name == "mixed_float16" and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = DynamicLossScale(optimizer)
        super().compile(
            optimizer=optimizer,
            loss=None,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=False,
            auto_scale_loss=False,
        )
        self._rcnn_compile = {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "jit_compile": jit_compile,
            "seed": seed,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "recompute": recompute,
        }
        self._seed = seed
        self._num_parts = gradient_accumulation_steps
        self._recompute = recompute
        self._xla = self._resolve_xla(jit_compile)
        self._terms = self._make_terms()
        self.loss_trackers = {name: keras.metrics.Mean(name=name) for name in ("loss", *self.loss_weights, *self.observed)}
        self.optimizer.build(self.trainable_variables)
        leave_the_sum_to_us(self.optimizer)

    def forget_traces(self) -> None:
        """Have the step traced anew, after parts of the model have been frozen or thawed; the optimizer keeps its state."""
        self._terms = self._make_terms()
        self.train_function = self.test_function = self.predict_function = None

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

    def fit(self, x: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """As in Keras."""
        self._train_executions = Executions(self.steps_per_execution, kwargs.get("steps_per_epoch") or num_batches(x))
        return super().fit(x, **kwargs)

    def evaluate(self, x: Any = None, **kwargs: Any) -> Any:
        """As in Keras: the losses, and what else is logged."""
        self._test_executions = Executions(self.steps_per_execution, kwargs.get("steps") or num_batches(x))
        return super().evaluate(x, **kwargs)

    def make_train_function(self, force: bool = False) -> Callable:
        """Make what `fit` calls for each execution."""
        if self.train_function is None or force:
            self.train_function = self._make_executions(self.train_step, lambda: self._train_executions)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        """Make what `evaluate` calls for each execution."""
        if self.test_function is None or force:
            self.test_function = self._make_executions(self.test_step, lambda: self._test_executions)
        return self.test_function

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step: losses, gradients, update."""
        variables = self.trainable_variables
        values = [variable.value for variable in variables]
        first, *others = self._parts(data)
        gradients, logs = self._gradients(first, values, after=[])
        for part in others:
            more, logs = self._gradients(part, values, after=gradients)
            gradients = [before + new for before, new in zip(gradients, more, strict=True)]
        gradients = sum_and_clip(gradients, self.optimizer)
        # The count of iterations, too, waits for the batch (see `_track`). What an optimizer can compute without the gradients,
        # decayed momenta for instance, would else be computed before the backward pass and lie in memory through it.
        with tf.control_dependencies([*gradients, *logs.values()]):
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return logs

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Losses of a batch, without an update."""
        return self._track(self._terms_everywhere(self._with_seeds(data), training=False)[1])

    def predict_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Detections of a batch; ground truth in it is ignored."""
        batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        inputs = {key: batch[key] for key in _INFERENCE_KEYS}
        num_images = tf.shape(inputs["images"])[0]
        return {name: value[:num_images] for name, value in self(_at_least_one(inputs), training=False).items()}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing: model, trackers and optimizer are built in `__init__` and `compile`.

        Keras 3.15.1 would average a batch over the replicas here, which fails for booleans (`gt_crowd`).
        """

    def _with_seeds(self, data: Any) -> dict[str, tf.Tensor]:
        batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if "mask_loss" in self.loss_weights and "gt_masks" not in batch:
            raise ValueError(
                "the batch has no gt_masks, which this model trains on; box-only data needs model.mask_head.enabled=false"
            )
        return {**batch, "seeds": self._image_seeds(batch["images"])}

    def _parts(self, data: Any) -> list[dict[str, tf.Tensor]]:
        """This replica's share of the batch, in the parts that are computed one after the other."""
        batch = self._with_seeds(data)
        if self._num_parts == 1:
            return [batch]
        size = batch["images"].shape[0]
        if size is not None and size % self._num_parts:
            raise ValueError(
                f"each replica's share of a batch must be a multiple of gradient_accumulation_steps={self._num_parts}, "
                f"it has {size} images"
            )
        split = {name: tf.split(value, self._num_parts) for name, value in batch.items()}
        return [{name: values[number] for name, values in split.items()} for number in range(self._num_parts)]

    def _gradients(self, part: dict, values: list, *, after: list) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """The gradients of a part, computed when those `after` are there, so that no two parts are in memory; and the logs."""
        with tf.control_dependencies(after):
            part = {name: tf.identity(value) for name, value in part.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            local, everywhere = self._terms_everywhere(part, training=True)
            scaled = self.optimizer.scale_loss(local) / self._num_parts
        return tape.gradient(scaled, values), self._track(everywhere)

    def _terms_everywhere(self, batch: dict[str, tf.Tensor], *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """This replica's share of the loss, whose sum over the replicas is the loss, and all terms [T, 2], added up over them."""
        terms = self._terms(_at_least_one(batch), training)
        stacked = tf.stack([terms[name] for name in (*self.loss_weights, *self.observed)])
        stacked = tf.where(tf.shape(batch["images"])[0] > 0, stacked, 0.0)
        everywhere = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(stacked))
        count = len(self.loss_weights)
        return tf.reduce_sum(self._weighted(stacked[:count, 0], everywhere[:count, 1])), everywhere

    def _weighted(self, totals: tf.Tensor, normalisers: tf.Tensor) -> tf.Tensor:
        return totals / tf.maximum(normalisers, 1.0) * tf.constant(list(self.loss_weights.values()), tf.float32)

    def _track(self, terms: tf.Tensor) -> dict[str, tf.Tensor]:
        """Take the terms of a batch into the means that are logged; what is no loss counts as often as it was there."""
        count = len(self.loss_weights)
        losses = self._weighted(terms[:count, 0], terms[:count, 1])
        # A step for which the data has run out fails only when its batch is read. Whatever does not depend on the batch, as the
        # number of values in a mean, would already have been updated by then.
        with tf.control_dependencies([terms]):
            # Not `add_n`, which adds in an order that depends on which of its inputs is used elsewhere at the time.
            self.loss_trackers["loss"].update_state(tf.reduce_sum(losses))
            for name, value in zip(self.loss_weights, tf.unstack(losses), strict=True):
                self.loss_trackers[name].update_state(value)
            for name, (total, normaliser) in zip(self.observed, map(tf.unstack, tf.unstack(terms[count:])), strict=True):
                self.loss_trackers[name].update_state(total / tf.maximum(normaliser, 1.0), sample_weight=normaliser)
            return {name: tracker.result() for name, tracker in self.loss_trackers.items()}

    def _image_seeds(self, images: tf.Tensor) -> tf.Tensor:
        """[B, 2] int32: one seed per image of the global batch and step, so that the sample does not depend on the replicas."""
        context = tf.distribute.get_replica_context()
        replica, replicas = tf.cast(context.replica_id_in_sync_group, tf.int32), context.num_replicas_in_sync
        step = tf.cast(steps_made(self.optimizer).value, tf.int32)
        count = images.shape[0]
        if count is not None:
            first = (step * replicas + replica) * count
        else:
            # Replicas can have unequal shares of the last batch.
            count = tf.shape(images)[0]
            counts = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.one_hot(replica, replicas, count, 0))
            first = step * tf.reduce_sum(counts) + tf.reduce_sum(counts[:replica])
        return tf.stack([tf.fill([count], 2 * self._seed), first + tf.range(count)], axis=1)

    def _make_executions(self, step: Callable, executions: Callable[[], Executions]) -> Callable:
        return make_executions(step, self.distribute_strategy, executions, self.loss_trackers, eager=self.run_eagerly)

    def _make_terms(self) -> Any:
        def terms(batch: dict, training: bool) -> dict:
            with recomputing(self._recompute and training):
                return self.training_graph(batch, training=training)

        if not self._xla:
            return terms

        graph = xla_on_cpu if _only_cpus() else static_graph

        @tf.function(jit_compile=True, autograph=False)
        def compiled(batch: dict, training: bool) -> dict:
            with graph():
                return terms(batch, training)

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


def _only_cpus() -> bool:
    return all(device.device_type == "CPU" for device in tf.config.list_physical_devices())


def _at_least_one(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The batch, or an image of zeros in place of none: oneDNN's convolutions give a wrong shape for no image at all.

    A replica has none when the last batch has fewer images than there are replicas.
    """
    if batch["images"].shape[0]:
        return batch
    missing = tf.maximum(0, 1 - tf.shape(batch["images"])[0])
    return {name: tf.pad(value, [[0, missing], *[[0, 0]] * (len(value.shape) - 1)]) for name, value in batch.items()}
