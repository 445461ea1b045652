"""Where an acquisition function is high, over masks of one size.

An upper confidence bound, mean + kappa deviations, is climbed by exchanges of one
to three sublayers from the best masks and from random ones; the batch is picked
with a ladder of kappas. To round a maximum over the cube would be worse: most of
its coordinates lie in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swift_jax.typing import Array

_POOL = 256
_ELITES = 32
_NEIGHBOURS = 512
_CLIMBS = 4  # rounds of local search
_MAX_KAPPA = 3.0

# Masks float32[M, D] to their means and deviations, float32[M] each.
Predict = Callable[[Array], tuple[Array, Array]]


def start_pool(bits: Array, means: Array, key: Array, k: int) -> Array:
  """The best masks so far, and random ones."""
  elites = bits[jax.lax.top_k(means, _ELITES)[1]]  # N must be as many
  draws = jax.random.uniform(key, (_POOL, bits.shape[1]))
  drawn = (
    jnp.zeros_like(draws)
    .at[jnp.arange(_POOL)[:, None], jax.lax.top_k(draws, k)[1]]
    .set(1.0)
  )
  # Spare rows of the buffer are no masks of this size.
  is_mask = elites.sum(1, keepdims=True) > k - 0.5
  elites = jnp.where(is_mask, elites, drawn[:_ELITES])
  return jnp.concatenate([elites, drawn[_ELITES:]])


def climb(pool: Array, predict: Any, key: Array) -> tuple[Array, Array]:
  """Local search on mean + kappa/2 deviations; the pool and its means."""
  swaps = jnp.tile(jnp.array([1, 1, 2, 3]), _NEIGHBOURS // 4)

  def upper(mean: Array, stddev: Array) -> Array:
    return mean + _MAX_KAPPA / 2 * stddev

  def once(carry: tuple[Array, Array, Array], key: Array) -> tuple[Any, None]:
    pool, mean, stddev = carry
    best = pool[jax.lax.top_k(upper(mean, stddev), _ELITES)[1]]
    near = jnp.repeat(best, _NEIGHBOURS // _ELITES, axis=0)
    near = _swap(near, swaps, key)
    found = (near, *predict(near))
    pool, mean, stddev = (
      jnp.concatenate(pair) for pair in zip(carry, found, strict=True)
    )
    kept = jax.lax.top_k(upper(mean, stddev), _POOL)[1]
    return (pool[kept], mean[kept], stddev[kept]), None

  keys = jax.random.split(key, _CLIMBS)
  (pool, mean, _), _ = jax.lax.scan(once, (pool, *predict(pool)), keys)
  return pool, mean


def _swap(bits: Array, counts: Array, key: Array) -> Array:
  """`counts[i]` random exchanges of a 1 and a 0 in row i, at most three."""
  draws = jax.random.uniform(key, bits.shape)
  rows = jnp.arange(bits.shape[0])

  def once(bits: Array, number: Array) -> tuple[Array, None]:
    # One draw serves all exchanges, turned by the golden ratio each time.
    turned = (draws + 0.6180339 * number) % 1.0
    ones = jnp.argmax(jnp.where(bits > 0.5, turned, -1.0), axis=1)
    zeros = jnp.argmax(jnp.where(bits < 0.5, turned, -1.0), axis=1)
    swapped = bits.at[rows, ones].set(0.0).at[rows, zeros].set(1.0)
    return jnp.where((number < counts)[:, None], swapped, bits), None

  return jax.lax.scan(once, bits, jnp.arange(3))[0]


def pick(
  pool: Array,
  mean: Array,
  joint: Array,
  noise: Array,
  k: int,
  num_suggested: int,
) -> Array:
  """A batch by a ladder of kappas from 0 up.

  After each pick the variances fall as if it had been scored; what the score
  would be does not matter for that (GP-BUCB, Desautels et al. 2014).
  """

  def take(carry: tuple[Array, Array], kappa: Array) -> tuple[Any, Array]:
    joint, is_used = carry
    stddev = jnp.sqrt(jnp.maximum(jnp.diag(joint), 1e-8))
    worth = jnp.where(is_used, -jnp.inf, mean + kappa * stddev)
    at = jnp.argmax(worth)
    row = joint[at]
    joint = joint - jnp.outer(row, row) / (row[at] + noise)
    return (joint, is_used | (pool @ pool[at] > k - 0.5)), at

  kappas = jnp.linspace(0.0, _MAX_KAPPA, num_suggested)
  unused = jnp.zeros(pool.shape[0], bool)
  return jax.lax.scan(take, (joint, unused), kappas)[1]
