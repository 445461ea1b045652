"""The trainer of the demo model: optax, stochastic depth, Orbax checkpoints.

Large models tolerate skipped sublayers by themselves. Stochastic depth (Huang et al.
1603.09382) is the published way to make a small model tolerate them. The sublayers
of layer l are dropped with a probability that grows linearly with depth; the first
and the last layer always run. The gates are real branches, so a dropped sublayer
costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from typing import Any

from absl import logging
from flax import nnx
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import optax.contrib
from orbax.checkpoint.experimental import v1 as ocp

from swift_jax import progress
from swift_jax.checkpoint import forms
from swift_jax.checkpoint.hf_config import one_line
from swift_jax.config.checks import require_int, require_number
from swift_jax.config.settings import ModelConfig
from swift_jax.demo import measuring
from swift_jax.errors import InputError
from swift_jax.model import llama, skip_mask
from swift_jax.model.skip_mask import SkipMask
from swift_jax.typing import Array, Int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How the demo model is trained.

  Attributes:
    steps: number of updates. A finished run that is started again with more steps
      goes on.
    batch_size: rows of a step.
    seq_len: tokens of a row.
    optimizer: `muon` (matrices by Muon, the rest by Adam) or `adamw`.
    matrix_lr, other_lr: peak learning rates of the matrices and of the rest.
    warmup: steps of linear warm-up.
    decay: share of the steps, at the end, over which the rates fall to zero.
    max_drop_rate: drop probability p of the sublayers. Layer l has p l / (L-1), but
      the last layer always runs.
    eval_every, save_every: steps between evaluations and between checkpoints.
    eval_rows: number of held-out rows for an evaluation.
    seed: seed of the initial weights, the order of rows and the drops.
  """

  steps: int = 1200
  batch_size: int = 16
  seq_len: int = 256
  optimizer: str = 'muon'
  matrix_lr: float = 0.02
  other_lr: float = 0.003
  warmup: int = 40
  decay: float = 0.4
  max_drop_rate: float = 0.6
  eval_every: int = 100
  save_every: int = 100
  eval_rows: int = 32
  seed: int = 0

  def __post_init__(self):
    if self.optimizer not in ('muon', 'adamw'):
      raise InputError(
        f'train.optimizer={self.optimizer!r}: expected muon or adamw'
      )
    for name in ('matrix_lr', 'other_lr'):
      require_number(f'train.{name}', getattr(self, name), 0, math.inf)
    require_number('train.decay', self.decay, 0, 1)
    require_number('train.max_drop_rate', self.max_drop_rate, 0, 0.99)
    for name in (
      'steps',
      'batch_size',
      'seq_len',
      'eval_every',
      'save_every',
      'eval_rows',
    ):
      require_int(f'train.{name}', getattr(self, name), 1)
    for name in ('warmup', 'seed'):
      require_int(f'train.{name}', getattr(self, name), 0)


def drop_mask(cfg: TrainConfig, num_layers: int, step: int) -> SkipMask:
  """The sublayers dropped in `step`; they depend on seed and step alone."""
  rng = np.random.default_rng((cfg.seed, step))
  rates = cfg.max_drop_rate * np.arange(num_layers) / (num_layers - 1)
  rates[[0, -1]] = 0.0
  drop = rng.random((2, num_layers)) < rates
  return SkipMask(attn=drop[0], mlp=drop[1])


def rows(
  tokens: np.ndarray, cfg: TrainConfig, step: int
) -> Iterator[Int[np.ndarray, 'b t+1']]:
  """Batches from `step` on: shuffled windows, cut anew in every epoch."""
  length = cfg.seq_len + 1
  # With any offset every batch is full.
  windows = (len(tokens) - length - cfg.seq_len + 1) // cfg.seq_len
  per_epoch = windows // cfg.batch_size
  while True:
    epoch, first = divmod(step, per_epoch)
    rng = np.random.default_rng((cfg.seed, 1, epoch))
    offset = rng.integers(cfg.seq_len)
    order = rng.permutation((len(tokens) - length - offset) // cfg.seq_len)
    for index in range(first, per_epoch):
      picked = order[index * cfg.batch_size : (index + 1) * cfg.batch_size]
      starts = offset + picked * cfg.seq_len
      yield np.stack([tokens[s : s + length] for s in starts]).astype(np.int32)
      step += 1


def schedule(cfg: TrainConfig, peak: float) -> optax.Schedule:
  """Linear warm-up, constant, linear decay to zero: 'trapezoidal'."""
  decay_steps = max(1, int(cfg.steps * cfg.decay))
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, cfg.warmup),
      optax.constant_schedule(peak),
      optax.linear_schedule(peak, 0.0, decay_steps),
    ],
    [cfg.warmup, cfg.steps - decay_steps],
  )


def make_optimizer(cfg: TrainConfig) -> optax.GradientTransformation:
  """Muon on the layers' matrices and Adam on the rest, or AdamW on all."""
  if cfg.optimizer == 'adamw':
    return optax.adamw(schedule(cfg, cfg.other_lr), b2=0.95, weight_decay=0.1)

  def dimensions(params: Any) -> Any:
    def spec(path: tuple[Any, ...], leaf: Array) -> Any:
      in_layer = getattr(path[0], 'key', None) == 'layers'
      if in_layer and leaf.ndim == 2:
        return optax.contrib.MuonDimensionNumbers()
      return None

    return jax.tree_util.tree_map_with_path(spec, params)

  return optax.contrib.muon(
    schedule(cfg, cfg.matrix_lr),
    adam_learning_rate=schedule(cfg, cfg.other_lr),
    adam_b2=0.95,
    ns_steps=4,
    preconditioning='aol',
    muon_weight_dimension_numbers=dimensions,
  )


def make_loss(graphdef: llama.GraphDef) -> Callable[..., Array]:
  """A function for the mean cross-entropy of rows int[B, T+1], in nats a token."""

  def loss(params: Any, rows: Int[Array, 'b t'], mask: SkipMask) -> Array:
    model = nnx.merge(graphdef, params)
    hidden, _ = model(rows[:, :-1], mask)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      model.logits(hidden), rows[:, 1:]
    )
    return losses.mean()

  return loss


def check_batch(cfg: TrainConfig) -> None:
  """Refuses a batch that cannot be split over all devices."""
  if cfg.batch_size % jax.device_count():
    raise InputError(
      f'train.batch_size={cfg.batch_size}: expected a multiple of the'
      f' {jax.device_count()} devices'
    )


@contextlib.contextmanager
def _checkpoints(
  directory: pathlib.Path,
) -> Iterator[tuple[ocp.training.Checkpointer, Callable[[int, Any], None]]]:
  """Orbax's checkpointer, and a function that saves a step with it.

  A full disk gives one line. Orbax itself would log the error of each thread,
  and raise the error again when it is closed.
  """
  refused: InputError | None = None

  def save(step: int, state: Any) -> None:
    nonlocal refused
    try:
      checkpointer.save(step, state, overwrite=True)
    except (OSError, ValueError) as error:  # Orbax's storage raises ValueErrors
      refused = InputError(
        f'{directory}: step {step} cannot be written: {one_line(error):.300};'
        ' earlier checkpoints are whole'
      )
      raise refused from error

  logger = logging.get_absl_logger()
  logger.addFilter(_is_no_traceback)
  keep_two = ocp.training.preservation_policies.LatestN(2)
  try:
    with ocp.training.Checkpointer(
      directory, preservation_policy=keep_two
    ) as checkpointer:
      yield checkpointer, save
  except (OSError, ValueError):
    if refused is None:
      raise
    raise refused from None
  finally:
    logger.removeFilter(_is_no_traceback)


def _is_no_traceback(record: Any) -> bool:
  return not (record.exc_info and 'orbax' in record.pathname)


def train(
  model_cfg: ModelConfig,
  cfg: TrainConfig,
  tokens: np.ndarray,
  held_out: np.ndarray,
  directory: pathlib.Path,
  must_stop: Callable[[], bool] = lambda: False,
) -> tuple[llama.GraphDef, Any, dict[str, Any]]:
  """Trains, or goes on from the last checkpoint in `directory`.

  Rows are split over all devices. The optimizer runs on the first device, since its
  matrix products already use every core of a CPU.

  Args:
    model_cfg: the model; float32 while training.
    cfg: the settings of the training.
    tokens: training text, int[n].
    held_out: text for evaluation, int[m].
    directory: folder of the Orbax checkpoints.
    must_stop: called after each step; True ends the training.

  Returns:
    graphdef, parameters as a nested dict, and the figures of the last evaluation.

  Raises:
    InputError: the batch cannot be split over the devices, the loss is no longer
      finite, or a checkpoint cannot be written (earlier checkpoints stay).
    KeyboardInterrupt: `must_stop` returned True; the step is saved.
  """
  check_batch(cfg)
  graphdef, params = llama.init_model(model_cfg, cfg.seed)
  # The parameters are separate: Muon makes each matrix orthogonal, so q, k and v
  # must not be one matrix.
  params = forms.split(nnx.to_pure_dict(params))
  optimizer = make_optimizer(cfg)
  state = {
    'params': params,
    'opt_state': jax.jit(optimizer.init)(params),
    'seconds': np.float64(0),
  }
  mesh = jax.make_mesh(
    (jax.device_count(),), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  everywhere = NamedSharding(mesh, PartitionSpec())
  by_row = NamedSharding(mesh, PartitionSpec('data'))
  loss_of_model = make_loss(graphdef)

  def join(params: Any) -> Any:
    return forms.join(params, model_cfg, jax.default_backend())

  def loss(params: Any, rows: Array, mask: SkipMask) -> Array:
    return loss_of_model(join(params), rows, mask)

  grad = jax.jit(
    jax.value_and_grad(loss), out_shardings=(everywhere, everywhere)
  )
  eval_loss = jax.jit(loss)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  held_rows = measuring.spread_rows(held_out, cfg.seq_len, cfg.eval_rows)
  masks = {
    'loss': skip_mask.none_skipped(model_cfg.num_hidden_layers),
    'loss_skipped': skip_mask.uniform(model_cfg.num_hidden_layers, 0.45),
  }
  figures: dict[str, Any] = {}
  with _checkpoints(directory) as (checkpointer, save):
    step = 0
    if checkpointer.latest is not None:
      step = checkpointer.latest.step
      state = checkpointer.load(step, state)
      logging.info('going on at step %d', step)
    bar = progress.bar(total=cfg.steps, done=step, unit='step', mininterval=5)
    started = time.perf_counter() - float(state['seconds'])
    batches = rows(tokens, cfg, step)
    while step < cfg.steps:
      batch = jax.device_put(next(batches), by_row)
      mask = drop_mask(cfg, model_cfg.num_hidden_layers, step)
      params = jax.device_put(state['params'], everywhere)
      train_loss, grads = grad(params, batch, mask)
      grads = jax.device_put(grads, jax.devices()[0])
      state['params'], state['opt_state'] = update(
        state['params'], state['opt_state'], grads
      )
      step += 1
      if not math.isfinite(train_loss):
        raise InputError(
          f'the loss is {float(train_loss)} at step {step}: lower'
          f' train.matrix_lr={cfg.matrix_lr} or train.other_lr={cfg.other_lr}'
        )
      bar.set_postfix_str(f'loss {float(train_loss):.3f}', refresh=False)
      bar.update()
      if step % cfg.eval_every == 0 or step == cfg.steps:
        figures = {
          name: measuring.evaluate(eval_loss, state['params'], held_rows, mask)
          for name, mask in masks.items()
        }
        bar.write(f'step {step}: held-out {figures}')
      stopped = must_stop()
      if stopped or step % cfg.save_every == 0 or step == cfg.steps:
        state['seconds'] = np.float64(time.perf_counter() - started)
        save(step, state)
      if stopped:
        raise KeyboardInterrupt
    if not figures:
      figures = {
        name: measuring.evaluate(eval_loss, state['params'], held_rows, mask)
        for name, mask in masks.items()
      }
  figures['seconds'] = float(state['seconds'])
  figures['tokens'] = step * cfg.batch_size * cfg.seq_len
  return graphdef, join(state['params']), figures
