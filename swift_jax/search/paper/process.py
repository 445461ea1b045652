"""The Gaussian process of the official recipe, to compare ours with.

It has a Matern 5/2 kernel with one length scale over the relaxed cube [0, 1]^D
and a noise variance of 1e-2. An upper confidence bound with kappa 2.5 is
maximised by random points and by ascent from the best of them. The maximum is
rounded to a mask by its largest coordinates. Unlike the official code, this
process observes the mask that was scored, not the unrounded point. Importing
this file imports gpjax.
"""

from __future__ import annotations

import functools
from typing import Any
import warnings

import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from swift_jax.search.files import codec
from swift_jax.typing import Array, Bool, Float

_KAPPA = 2.5
_NOISE_VARIANCE = 1e-2  # of scores with deviation 1
_CAPACITY = 256  # newest scores kept; the official code keeps all
_FIT_STEPS = 20
_POINTS = 2048
_LEARNT = ('_bits', '_scores', '_count')
_STARTS, _ASCENT_STEPS, _ASCENT_RATE = 16, 40, 0.05


class _Noise(gpx.likelihoods.Gaussian):
  """Fixed noise; spare rows have so much that they have no effect."""

  row_variance: Any = None

  def __init__(self, row_variance: Array):
    super().__init__(obs_stddev=jnp.float32(_NOISE_VARIANCE**0.5))
    self.row_variance = row_variance

  def noise_vector(self, n: int) -> Array:
    del n
    return self.row_variance


@functools.partial(jax.jit, static_argnames='num_skipped')
def suggest(
  bits: Float[Array, 'n d'],
  scores: Float[Array, ' n'],
  count: Array,
  key: Array,
  num_skipped: int,
) -> Bool[Array, ' d']:
  """The mask that is nearest to the maximum of the bound."""
  is_live = jnp.arange(scores.size) < count
  mean = jnp.where(is_live, scores, 0.0).sum() / count
  spread = jnp.where(is_live, (scores - mean) ** 2, 0.0).sum() / count
  scaled = jnp.where(is_live, scores - mean, 0.0) / jnp.sqrt(spread + 1e-6)
  variance = jnp.where(is_live, _NOISE_VARIANCE, 1e6)
  data = gpx.Dataset(X=bits, y=scaled[:, None])
  posterior_at = functools.partial(_posterior, data, variance)

  def loss(log_scale: Array) -> Array:
    model = _model(jnp.exp(log_scale), variance)
    return -gpx.objectives.conjugate_mll(model, data)

  optimizer = optax.adam(0.1)
  start = jnp.log(jnp.sqrt(bits.shape[1] / 2.0))

  def fit(carry: tuple[Array, Any], _: None) -> tuple[Any, None]:
    log_scale, state = carry
    step, state = optimizer.update(jax.grad(loss)(log_scale), state)
    return (optax.apply_updates(log_scale, step), state), None

  first = start, optimizer.init(start)
  (log_scale, _), _ = jax.lax.scan(fit, first, length=_FIT_STEPS)
  posterior = posterior_at(jnp.exp(log_scale))

  def bound(points: Array) -> Array:
    found = posterior(points, covariance='diagonal')
    return found.mean + _KAPPA * jnp.sqrt(jnp.maximum(found.variance, 1e-8))

  points = jax.random.uniform(key, (_POINTS, bits.shape[1]))
  best = points[jax.lax.top_k(bound(points), _STARTS)[1]]

  def ascend(points: Array, _: None) -> tuple[Array, None]:
    slope = jax.grad(lambda p: bound(p).sum())(points)
    norm = jnp.linalg.norm(slope, axis=1, keepdims=True) + 1e-12
    return jnp.clip(points + _ASCENT_RATE * slope / norm, 0.0, 1.0), None

  best, _ = jax.lax.scan(ascend, best, length=_ASCENT_STEPS)
  top = best[jnp.argmax(bound(best))]
  chosen = jax.lax.top_k(top, num_skipped)[1]
  return jnp.zeros(bits.shape[1], bool).at[chosen].set(True)


def _model(scale: Array, variance: Array) -> Any:
  kernel = gpx.kernels.Matern52(lengthscale=scale)
  prior = gpx.Prior(kernel=kernel, mean_function=gpx.mean_functions.Zero())
  return prior * _Noise(variance)


def _posterior(data: gpx.Dataset, variance: Array, scale: Array) -> Any:
  return _model(scale, variance).condition(data)


class PaperProcess:
  """The process with its scored masks, the newest last."""

  def __init__(self, num_free: int, num_skipped: int, seed: int):
    self._num_skipped = num_skipped
    self._cpu = jax.local_devices(backend='cpu')[0]
    self._bits = np.zeros((_CAPACITY, num_free), np.float32)
    self._scores = np.zeros(_CAPACITY, np.float32)
    self._count = 0
    with jax.default_device(self._cpu):
      # Committed to a device, as a restored key is: one program serves both.
      self._key = jax.device_put(jax.random.key(seed), self._cpu)

  def observe(self, bits: Bool[np.ndarray, ' d'], score: float) -> None:
    if self._count == _CAPACITY:
      self._bits[:-1], self._scores[:-1] = self._bits[1:], self._scores[1:]
      self._count -= 1
    self._bits[self._count], self._scores[self._count] = bits, score
    self._count += 1

  def state(self) -> dict[str, Any]:
    """As `Surrogate`'s."""
    key = jax.device_get(jax.random.key_data(self._key))
    return {**{name: getattr(self, name) for name in _LEARNT}, 'key': key}

  def restore(self, state: dict[str, Any]) -> None:
    """As `Surrogate`'s."""
    codec.replace_fields(self, _LEARNT, state)
    key = jax.device_put(np.asarray(state['key'], np.uint32), self._cpu)
    with jax.default_device(self._cpu):
      self._key = jax.random.wrap_key_data(key)

  def suggest(self) -> Bool[np.ndarray, ' d']:
    """The next mask to score; the call waits for it."""
    with jax.default_device(self._cpu), warnings.catch_warnings():
      # As for our own process, float32 is on purpose.
      warnings.filterwarnings('ignore', message='.*not of type float64.*')
      self._key, key = jax.random.split(self._key)
      arrays = self._bits.copy(), self._scores.copy(), np.int32(self._count)
      arrays = jax.device_put(arrays, self._cpu)
      return jax.device_get(suggest(*arrays, key, self._num_skipped))
