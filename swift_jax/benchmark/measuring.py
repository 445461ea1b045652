"""Takes times that can be compared: in turns, within one run.

A machine's speed changes within a minute. So runs that are compared take turns
(A B A B), each ratio is taken of neighbours, and a figure is a median with its
quartiles.
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
_COLUMNS = 1024  # columns of the array whose reading is timed
_MOST_BYTES = (
  2**30
)  # size limit of the array: no processor's cache holds so much
READS = 10  # how often one program reads the array


class Spread(NamedTuple):
  """A median between its quartiles."""

  median: float
  low: float
  high: float


def spread(values: Sequence[float]) -> Spread:
  """Median and quartiles of at least one value."""
  low, median, high = np.percentile(values, [25, 50, 75])
  return Spread(float(median), float(low), float(high))


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> Seconds:
  """Times runs in turns: for each run its seconds.

  Args:
    runs: functions that return their arrays, which are waited for. Each function
      runs once more before, untimed, so that it is compiled.
    repeats: number of repetitions; every second one has the reversed order.
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
  """Median and quartiles of the ratios, each within one repetition."""
  pairs = zip(taken[over], taken[under], strict=True)
  return spread([one / two for one, two in pairs])


class Compilations:
  """Counts XLA compilations in this process from now on.

  Attributes:
    total: number of programs, with those that a persistent cache had.
    hits: number of programs that a persistent cache had.
    seconds: seconds of all these compilations.
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
  """Ways to read an array, which measure the bandwidth of reading.

  Attributes:
    runs: the ways by name; each reads the array `READS` times.
    nbytes: size of the array in bytes.
  """

  runs: dict[str, Callable[[], Any]]
  nbytes: int

  def bandwidth(self, taken: Seconds) -> tuple[str, float]:
    """The way with the smallest median, and its bytes a second."""
    medians = {name: spread(taken[name]).median for name in self.runs}
    best = min(medians, key=medians.get)
    return best, READS * self.nbytes / medians[best]


def reads(nbytes: int) -> Reads:
  """A sum and a matrix-vector product over a float32 array of ones.

  Args:
    nbytes: approximate size of the array in bytes; at most 1 GiB is used.
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
  """Sums all rows `count` times, scaled by the last result: no read can be saved."""

  def one(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    number, scale = carry
    sums = jnp.sum(array * scale, axis=1)
    return number + 1, sums[0] / array.shape[1]

  first = jnp.int32(0), jnp.float32(1)
  return jax.lax.while_loop(lambda carry: carry[0] < count, one, first)


@jax.jit
def _products(array: Float[Array, 'n k'], count: Int[Array, '']) -> Any:
  """Multiplies the array `count` times by a vector from the product before."""

  def one(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    number, vector = carry
    columns = array.shape[1]
    return number + 1, (array @ vector)[:columns] / columns

  first = jnp.int32(0), jnp.ones(array.shape[1], jnp.float32)
  return jax.lax.while_loop(lambda carry: carry[0] < count, one, first)


def tree_bytes(tree: Any) -> int:
  """Bytes of all arrays of a tree."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def step_bytes(model: Model, batch: int, filled: int) -> int:
  """Bytes that a plain step must read.

  These are all weights once, and the filled slots of the cache. An embedding that is
  not the head too is left out: a step reads only one row of it for each token.
  """
  cfg = model.cfg
  weights = tree_bytes(model.params)
  size = cfg.jax_dtype.itemsize
  if not cfg.tie_word_embeddings:
    weights -= cfg.vocab_rows * cfg.hidden_size * size
  slot = 2 * cfg.num_hidden_layers * cfg.kv_heads * cfg.head_dim
  return weights + batch * filled * slot * size
