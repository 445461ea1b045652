"""Predicts scores of masks that were not scored: a Gaussian process.

Masks of one size are points of {0, 1}^D, D = 2(L - 2). Let x, y be masks scored
at times t, u of the stream, s(x) the summed importance of the sublayers that x
skips, and near = exp(-sum_d w_d |x_d - y_d|), an ARD Hamming kernel. The
covariance is

  a s(x) s(y) + v near                  a mask's worth on any text
  + exp(-|t - u| / tau) (o + l near)    and on this window

The terms in time are Ornstein-Uhlenbeck processes: windows that lie close
together in the text are no independent evidence. The term in o takes up that a
window is easy or hard for all masks, the term in l that it suits one mask and
not another. The importances are a prior from outside. Their slope, which says
how far they can be trusted, is marginalised, so that useless importances do
little harm. Noise is learnt, on top of a known variance of each score.

The buffer has a fixed capacity and its spare rows a huge noise, so that fit and
suggestion compile once. Importing this file imports gpjax, which takes more
than a second and starts jax's backend (`jax.distributed.initialize` must come
before).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import gpjax as gpx
from gpjax.parameters import NonNegativeReal, PositiveReal, val
import jax
import jax.numpy as jnp
import lineax as lx
import optax
import paramax

from swift_jax.search import acquisition
from swift_jax.typing import Array, Bool, Float, Int

_PADDING_VARIANCE = 1e6
_JITTER = 1e-5
_FIT_STEPS = 5  # each fit starts where the last one ended; 40 gain nothing
_FIT_RATE = 0.05


class _MatrixForm(gpx.kernels.computations.AbstractKernelComputation):
  """Covariances as one matrix product instead of a vmap over pairs."""

  def _cross_covariance(self, kernel: Any, x: Array, y: Array) -> Array:
    return kernel.matrix(x, y)

  def _diagonal(self, kernel: Any, x: Array) -> lx.AbstractLinearOperator:
    diagonal = lx.DiagonalLinearOperator(kernel.variances(x))
    return lx.TaggedLinearOperator(diagonal, lx.positive_semidefinite_tag)


# One object for all kernels: it is static, and a new one would compile again.
_MATRIX_FORM = _MatrixForm()


class MaskKernel(gpx.kernels.AbstractKernel):
  """The kernel above; inputs are [mask bits, s(mask), time]."""

  weights: Any
  variance: Any
  slope: Any
  offset: Any
  local: Any
  tau: Any

  def __init__(self, size: int, num_skipped: int):
    # Two random masks of this size are e^-1 apart.
    weight = 0.5 / (num_skipped * (1 - num_skipped / size))
    self.weights = PositiveReal(jnp.full(size, weight, jnp.float32))
    self.tau = PositiveReal(jnp.float32(2.0))
    self.variance = NonNegativeReal(jnp.float32(1.0))
    self.slope = NonNegativeReal(jnp.float32(0.3))
    self.offset = NonNegativeReal(jnp.float32(0.3))
    self.local = NonNegativeReal(jnp.float32(0.3))
    super().__init__(compute_engine=_MATRIX_FORM)

  def parameters(self) -> list[Any]:
    """The parameters that are fitted."""
    scales = [self.variance, self.slope, self.offset, self.local, self.tau]
    return [self.weights, *scales]

  def _near(self, x: Array, y: Array) -> Array:
    w = val(self.weights)
    x, y = x[:, :-2], y[:, :-2]
    apart = (x @ w)[:, None] + (y @ w)[None] - 2 * (x * w) @ y.T
    return jnp.exp(-jnp.maximum(apart, 0.0))

  def _lasting(self, x: Array, y: Array, near: Array) -> Array:
    by_importance = jnp.outer(x[:, -2], y[:, -2])
    return val(self.variance) * near + val(self.slope) * by_importance

  def lasting(self, x: Array, y: Array) -> Array:
    """Covariances of the masks' worth on any text: the terms without time."""
    return self._lasting(x, y, self._near(x, y))

  def matrix(self, x: Array, y: Array) -> Array:
    near = self._near(x, y)
    in_time = jnp.exp(-jnp.abs(x[:, -1:] - y[:, -1:].T) / val(self.tau))
    of_window = val(self.offset) + val(self.local) * near
    return self._lasting(x, y, near) + in_time * of_window

  def variances(self, x: Array) -> Array:
    constant = val(self.variance) + val(self.offset) + val(self.local)
    return constant + val(self.slope) * x[:, -2] ** 2

  def __call__(self, x: Array, y: Array) -> Array:
    return self.matrix(x[None], y[None])[0, 0]


class _RowNoise(gpx.likelihoods.Gaussian):
  """Gaussian noise: a learnt variance plus a known variance of each row."""

  row_variance: Any = None

  def __init__(self, obs_stddev: Any, row_variance: Any):
    super().__init__(obs_stddev=obs_stddev)
    self.row_variance = row_variance

  def noise_vector(self, n: int) -> Array:
    del n
    return jnp.square(val(self.obs_stddev)) + val(self.row_variance)


class Hyper(NamedTuple):
  """The fitted hyperparameters; each fit starts from those of the last one."""

  kernel: MaskKernel
  noise: Any


class Buffer(NamedTuple):
  """Scored masks; rows from `count` on are spare.

  Attributes:
    bits: float32[N, D].
    scores: float32[N].
    variances: sampling variance of each score, float32[N].
    times: when each mask was scored, in windows, float32[N].
    count: rows that hold a mask, int32[].
    now: the time to predict at, float32[].
    importance: of each sublayer, standardised, float32[D].
    incumbent: the mask with which others are compared, float32[D].
  """

  bits: Float[Array, 'n d']
  scores: Float[Array, ' n']
  variances: Float[Array, ' n']
  times: Float[Array, ' n']
  count: Int[Array, '']
  now: Float[Array, '']
  importance: Float[Array, ' d']
  incumbent: Float[Array, ' d']

  def inputs(self) -> Array:
    """The kernel's inputs; the present is time 0."""
    return self.at(self.bits, self.times - self.now)

  def at(self, bits: Array, times: Array | float = 0.0) -> Array:
    """The kernel's inputs for masks at given times."""
    times = jnp.broadcast_to(times, bits.shape[:1])[:, None]
    sums = (bits @ self.importance)[:, None]
    return jnp.concatenate([bits, sums, times], axis=1)


class Suggestion(NamedTuple):
  """The process's proposals, and its posterior for the masks in the buffer.

  Attributes:
    bits: masks to score next, bool[K, D].
    means: posterior mean of each mask's worth on any text, -inf for spare rows,
      float32[N].
    doubts: posterior deviation of each mask's lead over the incumbent, in worth
      on any text, float32[N].
  """

  bits: Bool[Array, 'k d']
  means: Float[Array, ' n']
  doubts: Float[Array, ' n']


@functools.partial(jax.jit, static_argnames=('num_skipped', 'num_suggested'))
def suggest(
  hyper: Hyper,
  initial: Hyper,
  buffer: Buffer,
  key: Array,
  num_skipped: int,
  num_suggested: int,
) -> tuple[Suggestion, Hyper]:
  """Fits to the buffer and proposes a batch of distinct masks.

  Returns:
    The suggestion, and the hyperparameters for the next fit.
  """
  fit_key, pool_key, climb_key = jax.random.split(key, 3)
  scale = _Scale.of(buffer)
  model, data = _fit(hyper, initial, buffer, scale, fit_key)
  posterior = model.condition(data)

  def predict(bits: Array) -> tuple[Array, Array]:
    found = posterior(buffer.at(bits), covariance='diagonal')
    return found.mean, jnp.sqrt(jnp.maximum(found.variance, 1e-8))

  means, doubts = _worth(model, data, posterior, buffer)
  means = jnp.where(scale.is_live, means, -jnp.inf)
  pool = acquisition.start_pool(buffer.bits, means, pool_key, num_skipped)
  pool, mean = acquisition.climb(pool, predict, climb_key)
  joint = posterior(buffer.at(pool), covariance='dense').covariance_matrix
  noise = jnp.square(val(model.likelihood.obs_stddev)) + scale.typical_noise
  picked = acquisition.pick(
    pool, mean, joint, noise, num_skipped, num_suggested
  )
  hyper = Hyper(model.prior.kernel, model.likelihood.obs_stddev)
  unscaled = means * scale.stddev + scale.mean
  return Suggestion(pool[picked] > 0.5, unscaled, doubts * scale.stddev), hyper


def _worth(
  model: Any, data: gpx.Dataset, posterior: Any, buffer: Buffer
) -> tuple[Array, Array]:
  """Means of the buffer's masks, and deviations of their leads over the
  incumbent.

  Both leave out the terms in time: they are of a mask, not of its window.
  """
  kernel = model.prior.kernel
  lasting = kernel.lasting(data.X, data.X)
  means = (lasting @ posterior.representer_weights)[:, 0]
  one = buffer.at(buffer.incumbent[None])
  beside = kernel.lasting(data.X, one)[:, 0]
  noise = model.likelihood.noise_vector(data.n) + _JITTER
  factor = jnp.linalg.cholesky(kernel.matrix(data.X, data.X) + jnp.diag(noise))
  known = jax.scipy.linalg.solve_triangular(
    factor, lasting - beside[:, None], lower=True
  )
  prior = jnp.diag(lasting) + kernel.lasting(one, one)[0, 0] - 2 * beside
  variance = prior - (known**2).sum(0)
  return means, jnp.sqrt(jnp.maximum(variance, 1e-8))


class _Scale(NamedTuple):
  """How to scale scores to mean 0 and deviation 1, and their known noise."""

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
    variance = buffer.variances / stddev**2
    typical = jnp.where(is_live, variance, 0.0).sum() / count
    variance = jnp.where(is_live, variance, _PADDING_VARIANCE)
    return cls(is_live, mean, stddev, variance, typical)


def _fit(
  hyper: Hyper, initial: Hyper, buffer: Buffer, scale: _Scale, key: Array
) -> tuple[Any, gpx.Dataset]:
  """Makes a few steps of Adam towards the maximum a posteriori."""
  targets = (buffer.scores - scale.mean) / scale.stddev
  data = gpx.Dataset(
    X=buffer.inputs(),
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
    return [jnp.log(val(p)) for p in (*kernel.parameters(), noise)]

  def objective(model: Any, data: gpx.Dataset) -> Array:
    now = logs(model.prior.kernel, model.likelihood.obs_stddev)
    pairs = zip(now, logs(*initial), strict=True)
    # The priors are log-normal around the initial values.
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


def initial(num_free: int, num_skipped: int) -> Hyper:
  """The hyperparameters from which fitting starts, centres of their priors."""
  noise = NonNegativeReal(jnp.float32(0.2))
  return Hyper(MaskKernel(num_free, num_skipped), noise)
