"""Finds masks of one size where an acquisition function is high.

The function is an upper confidence bound, mean + kappa deviations. Local search
climbs it by exchanges of one to three sublayers, from the best masks and from
random masks. The batch is picked with rising kappas. To round a maximum over
the cube [0, 1]^D to a mask would be worse: most of its coordinates are far from
0 and 1.
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

# From masks float32[M, D] to their means and deviations, float32[M] each.
Predict = Callable[[Array], tuple[Array, Array]]


def start_pool(bits: Array, means: Array, key: Array, k: int) -> Array:
  """The masks from which to climb: the best so far, and random masks."""
  elites = bits[jax.lax.top_k(means, _ELITES)[1]]  # needs N >= _ELITES
  draws = jax.random.uniform(key, (_POOL, bits.shape[1]))
  drawn = (
    jnp.zeros_like(draws)
    .at[jnp.arange(_POOL)[:, None], jax.lax.top_k(draws, k)[1]]
    .set(1.0)
  )
  # Spare rows of the buffer do not have this size: replace them.
  is_mask = elites.sum(1, keepdims=True) > k - 0.5
  elites = jnp.where(is_mask, elites, drawn[:_ELITES])
  return jnp.concatenate([elites, drawn[_ELITES:]])


def climb(pool: Array, predict: Any, key: Array) -> tuple[Array, Array]:
  """Climbs mean + kappa/2 deviations, of the largest kappa.

  Returns:
    The pool, and its means.
  """
  swaps = jnp.tile(jnp.array([1, 1, 2, 3]), _NEIGHBOURS // 4)

  def upper(mean: Array, stddev: Array) -> Array:
    return mean + _MAX_KAPPA / 2 * stddev

  def climb_once(
    carry: tuple[Array, Array, Array], key: Array
  ) -> tuple[Any, None]:
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
  (pool, mean, _), _ = jax.lax.scan(climb_once, (pool, *predict(pool)), keys)
  return pool, mean


def _swap(bits: Array, counts: Array, key: Array) -> Array:
  """Exchanges a random 1 and 0 of row i `counts[i]` times, at most three."""
  draws = jax.random.uniform(key, bits.shape)
  rows = jnp.arange(bits.shape[0])

  def swap_once(bits: Array, number: Array) -> tuple[Array, None]:
    # One draw serves all exchanges, shifted by the golden ratio each time.
    turned = (draws + 0.6180339 * number) % 1.0
    ones = jnp.argmax(jnp.where(bits > 0.5, turned, -1.0), axis=1)
    zeros = jnp.argmax(jnp.where(bits < 0.5, turned, -1.0), axis=1)
    swapped = bits.at[rows, ones].set(0.0).at[rows, zeros].set(1.0)
    return jnp.where((number < counts)[:, None], swapped, bits), None

  return jax.lax.scan(swap_once, bits, jnp.arange(3))[0]


def pick(
  pool: Array,
  mean: Array,
  joint: Array,
  noise: Array,
  k: int,
  num_suggested: int,
) -> Array:
  """Picks a batch of distinct masks, each with a larger kappa, from 0 up.

  After each pick the variances fall as if the mask had been scored; the score
  itself does not matter for them (GP-BUCB, Desautels et al. 2014).

  Args:
    joint: covariances of the pool.
    noise: variance of a score's noise.
    k: sublayers that each mask skips.

  Returns:
    Indices in the pool.
  """

  def take(carry: tuple[Array, Array], kappa: Array) -> tuple[Any, Array]:
    joint, is_used = carry
    stddev = jnp.sqrt(jnp.maximum(jnp.diag(joint), 1e-8))
    bound = jnp.where(is_used, -jnp.inf, mean + kappa * stddev)
    at = jnp.argmax(bound)
    row = joint[at]
    joint = joint - jnp.outer(row, row) / (row[at] + noise)
    return (joint, is_used | (pool @ pool[at] > k - 0.5)), at

  kappas = jnp.linspace(0.0, _MAX_KAPPA, num_suggested)
  unused = jnp.zeros(pool.shape[0], bool)
  return jax.lax.scan(take, (joint, unused), kappas)[1]
