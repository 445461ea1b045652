"""Times that can be compared: taken in turns, within one run.

A machine is not as fast now as it was a minute ago, so what is to be compared
runs A B A B, each ratio is one of neighbours, and a figure is a median with the
quartiles beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.runtime.model import Model
from swift_jax.typing import Array, Float, Int

Seconds = dict[str, list[float]]
_COLUMNS = 1024  # of the array whose reading is timed
_MOST_BYTES = 2**30  # of it: no cache holds as much
READS = 10  # of the array in one program


class Spread(NamedTuple):
  """A median between its quartiles."""

  median: float
  low: float
  high: float


def spread(values: Sequence[float]) -> Spread:
  """Of at least one value."""
  low, median, high = np.percentile(values, [25, 50, 75])
  return Spread(float(median), float(low), float(high))


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> Seconds:
  """Seconds of each run, all of them in turns.

  Args:
    runs: each gives what it computes, and is waited for. Each runs once more
      before, untimed: that compiles.
    repeats: how often; the order is reversed every second time.
  """
  for run in runs.values():
    jax.block_until_ready(run())
  taken: Seconds = {name: [] for name in runs}
  for number in range(repeats):
    for name in in_turn(list(runs), number):
      started = time.perf_counter()
      jax.block_until_ready(runs[name]())
      taken[name].append(time.perf_counter() - started)
  return taken


def in_turn(names: Sequence[str], number: int) -> list[str]:
  """The order of a repetition: A B C, then C B A, and so on."""
  return list(reversed(names)) if number % 2 else list(names)


def paired_ratio(taken: Seconds, over: str, under: str) -> Spread:
  """Of the ratios within each repetition."""
  pairs = zip(taken[over], taken[under], strict=True)
  return spread([one / two for one, two in pairs])


class Compilations:
  """Counts XLA compilations in this process from now on.

  Attributes:
    total: programs, those among them that a persistent cache had.
    hits: those.
    seconds: what all of them took.
  """

  def __init__(self):
    self.total, self.hits, self.seconds = 0, 0, 0.0
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    jax.monitoring.register_event_listener(self._on_event)

  def _on_duration(self, name: str, seconds: float, **_: Any) -> None:
    if name == '/jax/core/compile/backend_compile_duration':
      self.total += 1
      self.seconds += seconds

  def _on_event(self, name: str, **_: Any) -> None:
    self.hits += name == '/jax/compilation_cache/cache_hits'


class Reads(NamedTuple):
  """How an array is read, to learn the bandwidth of doing so.

  Attributes:
    runs: by name; each reads the array `READS` times.
    nbytes: of the array.
  """

  runs: dict[str, Callable[[], Any]]
  nbytes: int

  def bandwidth(self, taken: Seconds) -> tuple[str, float]:
    """The quicker way by its median, and its bytes a second."""
    medians = {name: spread(taken[name]).median for name in self.runs}
    best = min(medians, key=medians.get)
    return best, READS * self.nbytes / medians[best]


def reads(nbytes: int) -> Reads:
  """A sum and a matrix-vector product over a float32 array of ones.

  Args:
    nbytes: about how large it is to be; at most a GiB is taken.
  """
  rows = max(_COLUMNS, min(nbytes, _MOST_BYTES) // (4 * _COLUMNS))
  array = jnp.ones((rows, _COLUMNS), jnp.float32)
  runs = {
    'sum': lambda: _sums(array, READS),
    'matrix-vector product': lambda: _products(array, READS),
  }
  return Reads(runs, array.nbytes)


@jax.jit
def _sums(array: Float[Array, 'n k'], count: Int[Array, '']) -> Any:
  """Sums of all rows, each scaled by what came before: none can be saved."""

  def one(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    number, scale = carry
    sums = jnp.sum(array * scale, axis=1)
    return number + 1, sums[0] / array.shape[1]

  first = jnp.int32(0), jnp.float32(1)
  return jax.lax.while_loop(lambda carry: carry[0] < count, one, first)


@jax.jit
def _products(array: Float[Array, 'n k'], count: Int[Array, '']) -> Any:
  """Products with a vector that the one before gives."""

  def one(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    number, vector = carry
    columns = array.shape[1]
    return number + 1, (array @ vector)[:columns] / columns

  first = jnp.int32(0), jnp.ones(array.shape[1], jnp.float32)
  return jax.lax.while_loop(lambda carry: carry[0] < count, one, first)


def tree_bytes(tree: Any) -> int:
  """Bytes of all arrays."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def step_bytes(model: Model, batch: int, filled: int) -> int:
  """Bytes that a plain step cannot do without.

  All weights once, and the filled slots of the cache. Of an embedding that is not
  the head too, a step reads a row a token: that is left out.
  """
  cfg = model.cfg
  weights = tree_bytes(model.params)
  size = cfg.jax_dtype.itemsize
  if not cfg.tie_word_embeddings:
    weights -= cfg.vocab_size * cfg.hidden_size * size
  slot = 2 * cfg.num_hidden_layers * cfg.num_key_value_heads * cfg.head_dim
  return weights + batch * filled * slot * size
