"""What the scores so far say of masks that were not scored: a Gaussian process.

Masks of one size are points of {0, 1}^D, D = 2(L - 2). The kernel is

  k(x, y) = v exp(-sum_d w_d |x_d - y_d|) + o exp(-|t - u| / tau)

an ARD Hamming kernel and an Ornstein-Uhlenbeck term on the time of the
observation, which takes up windows of text that are easier or harder. Noise is
learnt, plus the binomial variance of each score.

The buffer has a fixed capacity, its spare rows a huge noise, so fit and
suggestion compile once. Importing this file imports gpjax, which takes more than
a second and starts jax's backend (`jax.distributed.initialize` comes before it).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple
import warnings

import gpjax as gpx
from gpjax.parameters import NonNegativeReal, PositiveReal, val
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import paramax

from swift_jax.search import acquisition
from swift_jax.typing import Array, Bool, Float, Int

_PADDING_VARIANCE = 1e6
_JITTER = 1e-5
_FIT_STEPS = 5  # warm-started at every call; 40 gain nothing
_FIT_RATE = 0.05
_KEPT = 16  # best masks that leave a full buffer last


class _MatrixForm(gpx.kernels.computations.AbstractKernelComputation):
  """Covariances as one matrix product instead of a vmap over pairs."""

  def _cross_covariance(self, kernel: Any, x: Array, y: Array) -> Array:
    return kernel.matrix(x, y)

  def _diagonal(self, kernel: Any, x: Array) -> lx.AbstractLinearOperator:
    diagonal = lx.DiagonalLinearOperator(kernel.variances(x))
    return lx.TaggedLinearOperator(diagonal, lx.positive_semidefinite_tag)


# One object for all kernels: it is static, and another would compile again.
_MATRIX_FORM = _MatrixForm()


class MaskKernel(gpx.kernels.AbstractKernel):
  """The kernel above; inputs are [mask bits, time]."""

  weights: Any
  variance: Any
  offset: Any
  tau: Any

  def __init__(self, size: int, num_skipped: int):
    # Two random masks of this size are e^-1 apart.
    weight = 0.5 / (num_skipped * (1 - num_skipped / size))
    self.weights = PositiveReal(jnp.full(size, weight, jnp.float32))
    self.tau = PositiveReal(jnp.float32(8.0))
    self.variance = NonNegativeReal(jnp.float32(1.0))
    self.offset = NonNegativeReal(jnp.float32(0.2))
    super().__init__(compute_engine=_MATRIX_FORM)

  def of_bits(self, x: Array, y: Array) -> Array:
    """Covariances of the part that depends on the masks alone."""
    w = val(self.weights)
    apart = (x @ w)[:, None] + (y @ w)[None] - 2 * (x * w) @ y.T
    return val(self.variance) * jnp.exp(-jnp.maximum(apart, 0.0))

  def matrix(self, x: Array, y: Array) -> Array:
    apart = jnp.abs(x[:, -1:] - y[:, -1:].T)
    in_time = val(self.offset) * jnp.exp(-apart / val(self.tau))
    return self.of_bits(x[:, :-1], y[:, :-1]) + in_time

  def variances(self, x: Array) -> Array:
    variance = val(self.variance) + val(self.offset)
    return jnp.full(x.shape[0], variance)

  def __call__(self, x: Array, y: Array) -> Array:
    return self.matrix(x[None], y[None])[0, 0]


class _RowNoise(gpx.likelihoods.Gaussian):
  """A learnt variance plus a known one for each row."""

  row_variance: Any = None

  def __init__(self, obs_stddev: Any, row_variance: Array):
    super().__init__(obs_stddev=obs_stddev)
    self.row_variance = row_variance

  def noise_vector(self, n: int) -> Array:
    del n
    return jnp.square(val(self.obs_stddev)) + val(self.row_variance)


class Hyper(NamedTuple):
  """What is fitted, warm-started from call to call."""

  kernel: MaskKernel
  noise: Any


class Buffer(NamedTuple):
  """Scored masks; rows from `count` on are spare.

  Attributes:
    bits: float32[N, D].
    scores: float32[N].
    positions: compared positions behind each score, float32[N].
    times: when each was scored, float32[N].
    count: int32[].
    now: the time to predict at, float32[].
  """

  bits: Float[Array, 'n d']
  scores: Float[Array, ' n']
  positions: Float[Array, ' n']
  times: Float[Array, ' n']
  count: Int[Array, '']
  now: Float[Array, '']


class Best(NamedTuple):
  """A mask: its bits, its last score, and its posterior mean."""

  bits: Bool[np.ndarray, ' d']
  score: float
  mean: float


class Suggestion(NamedTuple):
  """What the process proposes.

  Attributes:
    bits: masks to score next, bool[K, D].
    means: posterior mean of the score of each mask in the buffer at present,
      -inf for spare rows, float32[N].
  """

  bits: Bool[Array, 'k d']
  means: Float[Array, ' n']


@functools.partial(jax.jit, static_argnames=('num_skipped', 'num_suggested'))
def suggest(
  hyper: Hyper,
  initial: Hyper,
  buffer: Buffer,
  key: Array,
  num_skipped: int,
  num_suggested: int,
) -> tuple[Suggestion, Hyper]:
  """Fits to the buffer and proposes a batch of distinct masks."""
  fit_key, pool_key, climb_key = jax.random.split(key, 3)
  scale = _Scale.of(buffer)
  model, data = _fit(hyper, initial, buffer, scale, fit_key)
  kernel = model.prior.kernel
  posterior = model.condition(data)

  def predict(bits: Array) -> tuple[Array, Array]:
    found = posterior(_now(bits), covariance='diagonal')
    return found.mean, jnp.sqrt(jnp.maximum(found.variance, 1e-8))

  # Without the time term: a mask's own worth, not the ease of its window.
  means = (
    kernel.of_bits(buffer.bits, buffer.bits) @ posterior.representer_weights
  )
  means = means[:, 0]
  means = jnp.where(scale.is_live, means, -jnp.inf)

  pool = acquisition.start_pool(buffer.bits, means, pool_key, num_skipped)
  pool, mean = acquisition.climb(pool, predict, climb_key)
  joint = posterior(_now(pool), covariance='dense').covariance_matrix
  noise = jnp.square(val(model.likelihood.obs_stddev)) + scale.typical_noise
  picked = acquisition.pick(
    pool, mean, joint, noise, num_skipped, num_suggested
  )
  hyper = Hyper(kernel, model.likelihood.obs_stddev)
  unscaled = means * scale.stddev + scale.mean
  return Suggestion(pool[picked] > 0.5, unscaled), hyper


class _Scale(NamedTuple):
  """Scores brought to mean 0 and deviation 1, and their binomial noise."""

  is_live: Array
  mean: Array
  stddev: Array
  row_variance: Array
  typical_noise: Array

  @classmethod
  def of(cls, buffer: Buffer) -> _Scale:
    is_live = jnp.arange(buffer.scores.shape[0]) < buffer.count
    count = jnp.maximum(buffer.count, 1)
    mean = jnp.where(is_live, buffer.scores, 0.0).sum() / count
    spread = jnp.where(is_live, (buffer.scores - mean) ** 2, 0.0).sum() / count
    stddev = jnp.sqrt(spread + 1e-6)
    p = jnp.clip(buffer.scores, 0.02, 0.98)
    variance = p * (1 - p) / jnp.maximum(buffer.positions, 1.0) / stddev**2
    typical = jnp.where(is_live, variance, 0.0).sum() / count
    variance = jnp.where(is_live, variance, _PADDING_VARIANCE)
    return cls(is_live, mean, stddev, variance, typical)


def _now(bits: Array) -> Array:
  """Masks with the present time, which is 0."""
  return jnp.concatenate([bits, jnp.zeros((bits.shape[0], 1))], axis=1)


def _fit(
  hyper: Hyper, initial: Hyper, buffer: Buffer, scale: _Scale, key: Array
) -> tuple[Any, gpx.Dataset]:
  """A few steps of Adam towards the maximum a posteriori."""
  inputs = [buffer.bits, (buffer.times - buffer.now)[:, None]]
  targets = (buffer.scores - scale.mean) / scale.stddev
  data = gpx.Dataset(
    X=jnp.concatenate(inputs, axis=1),
    y=jnp.where(scale.is_live, targets, 0.0)[:, None],
  )
  prior = gpx.Prior(
    kernel=hyper.kernel,
    mean_function=gpx.mean_functions.Zero(),
    jitter=_JITTER,
  )
  noise = paramax.non_trainable(scale.row_variance)
  model = prior * _RowNoise(hyper.noise, noise)

  def logs(kernel: MaskKernel, noise: Any) -> list[Array]:
    fitted = (kernel.weights, kernel.variance, kernel.offset, kernel.tau, noise)
    return [jnp.log(val(p)) for p in fitted]

  def objective(model: Any, data: gpx.Dataset) -> Array:
    now = logs(model.prior.kernel, model.likelihood.obs_stddev)
    pairs = zip(now, logs(*initial), strict=True)
    # Log-normal around where they began.
    penalty = sum(jnp.sum((a - b) ** 2) for a, b in pairs) / 2
    return penalty - gpx.objectives.conjugate_mll(model, data)

  model, _ = gpx.fit(
    model=model,
    objective=objective,
    train_data=data,
    optim=optax.adam(_FIT_RATE),
    key=key,
    num_iters=_FIT_STEPS,
    verbose=False,
    safe=False,
  )
  return model, data


class Surrogate:
  """The process with its buffer, on the host's CPU.

  `start` returns at once and `collect` waits: between them the device decodes.

  Attributes:
    count: masks in the buffer.
    means: posterior means of the buffer's masks at the last `collect`.
  """

  def __init__(
    self,
    num_free: int,
    num_skipped: int,
    num_suggested: int = 8,
    capacity: int = 128,
    seed: int = 0,
  ):
    """Begins with an empty buffer.

    Args:
      num_free: sublayers that may be skipped, D.
      num_skipped: how many of them every mask skips.
      num_suggested: masks a suggestion proposes, K.
      capacity: rows of the buffer, N.
      seed: of fits and pools.
    """
    self._num_skipped, self._num_suggested = num_skipped, num_suggested
    self._cpu = jax.local_devices(backend='cpu')[0]
    self._bits = np.zeros((capacity, num_free), np.float32)
    self._scores, self._positions, self._times = (
      np.zeros(capacity, np.float32) for _ in range(3)
    )
    self.count, self._now = 0, 0.0
    self.means = np.full(capacity, -np.inf, np.float32)
    self._running: Any = None
    with jax.default_device(self._cpu):
      kernel = MaskKernel(num_free, num_skipped)
      initial = Hyper(kernel, NonNegativeReal(jnp.float32(0.2)))
      # Committed, as what comes back will be: one program for both.
      self._initial = jax.device_put(initial, self._cpu)
      self._key = jax.random.key(seed)
    self._hyper = self._initial

  def observe(
    self,
    bits: Bool[np.ndarray, 'c d'],
    scores: Float[np.ndarray, ' c'],
    positions: int,
  ) -> None:
    """Adds masks scored on one text.

    When the buffer is full the oldest row goes, but never the newest row of one
    of the best masks.
    """
    self._now += 1
    for row, score in zip(bits, scores, strict=True):
      at = self.count
      if self.count < len(self._scores):
        self.count += 1
      else:
        ages = self._times.copy()
        ages[self._best_rows()] = np.inf
        at = int(np.argmin(ages))
      self._bits[at], self._scores[at] = row, score
      self._positions[at], self._times[at] = positions, self._now
      self.means[at] = -np.inf

  def _best_rows(self) -> list[int]:
    """The newest row of each of the best masks; new rows have only a score."""
    worth = np.where(np.isfinite(self.means), self.means, self._scores)
    rows: dict[bytes, int] = {}
    for at in np.lexsort((-self._times, -worth)):
      rows.setdefault(self._bits[at].tobytes(), int(at))
      if len(rows) == _KEPT:
        break
    return list(rows.values())

  def start(self) -> None:
    """Sets off a fit and a suggestion."""
    buffer = Buffer(
      self._bits.copy(),
      self._scores.copy(),
      self._positions.copy(),
      self._times.copy(),
      np.int32(self.count),
      np.float32(self._now + 1),
    )
    with jax.default_device(self._cpu), warnings.catch_warnings():
      # float32 on purpose: as good as float64 here in half the time.
      warnings.filterwarnings('ignore', message='.*not of type float64.*')
      self._key, key = jax.random.split(self._key)
      self._running = suggest(
        self._hyper,
        self._initial,
        jax.device_put(buffer, self._cpu),
        key,
        self._num_skipped,
        self._num_suggested,
      )

  @property
  def is_running(self) -> bool:
    """Whether there is something to collect."""
    return self._running is not None

  def collect(self) -> Bool[np.ndarray, 'k d']:
    """Waits for the suggestion that `start` set off; the masks to score next."""
    suggestion, self._hyper = self._running
    self._running = None
    bits, means = jax.device_get(suggestion)
    self.means = np.array(means)
    return bits

  def best(self, incumbent: Bool[np.ndarray, ' d'], margin: float) -> Best:
    """The mask to draft with.

    The incumbent, unless the posterior mean of another is better by `margin`:
    one score on one window has an error larger than most gains.
    """
    at = int(np.argmax(self.means))
    same = (self._bits[: self.count] > 0.5) == incumbent
    rows = np.flatnonzero(same.all(axis=1))
    if rows.size and self.means[rows].max() + margin > self.means[at]:
      at = int(rows[np.argmax(self._times[rows])])
    bits, score = self._bits[at] > 0.5, float(self._scores[at])
    return Best(bits, score, float(self.means[at]))
