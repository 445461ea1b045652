"""The scored masks and the Gaussian process, on the host.

Importing this file imports gpjax (see `gaussian_process.py`).
"""

from __future__ import annotations

from typing import Any
import warnings

import jax
import numpy as np

from swift_jax.search import gaussian_process
from swift_jax.search.files import codec
from swift_jax.search.gaussian_process import Buffer
from swift_jax.typing import Bool, Float

_NUM_BEST = 16  # best masks, which leave a full buffer last
# Attributes that are saved as they are; the hyperparameters come beside them.
_LEARNT = (
  '_bits',
  '_scores',
  '_variances',
  '_times',
  '_importance',
  'means',
  'doubts',
  'count',
  '_now',
)


def _standardised(
  importance: Float[np.ndarray, ' d'], num_skipped: int
) -> Float[np.ndarray, ' d']:
  """Scaled so that the mean is 0, and a random mask's sum has deviation 1."""
  spread = np.sqrt(num_skipped * (1 - num_skipped / importance.size))
  centred = importance - importance.mean()
  return (centred / (importance.std() * spread + 1e-12)).astype(np.float32)


class Surrogate:
  """The Gaussian process with its buffer, on the host's CPU.

  `start` returns at once and `collect` waits: between them the device decodes.

  Attributes:
    count: rows of the buffer that hold a mask.
    means, doubts: as in `Suggestion`, of the buffer's masks at the last
      `collect`; a newer row has the mean -inf.
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
      num_skipped: how many of these every mask skips.
      num_suggested: masks that a suggestion proposes, K.
      capacity: rows of the buffer, N.
      seed: random seed of fits and pools.
    """
    self._num_skipped, self._num_suggested = num_skipped, num_suggested
    self._cpu = jax.local_devices(backend='cpu')[0]
    self._capacity = capacity
    self._bits = np.zeros((capacity, num_free), np.float32)
    self._importance = np.zeros(num_free, np.float32)
    self.forget()
    with jax.default_device(self._cpu):
      initial = gaussian_process.initial(num_free, num_skipped)
      # Committed to a device, as results are, so that one program serves both.
      self._initial = jax.device_put(initial, self._cpu)
      self._key = jax.device_put(jax.random.key(seed), self._cpu)
    self._hyper = self._initial

  def forget(self) -> None:
    """Empties the buffer for a new stream; the hyperparameters stay."""
    self._bits[:] = 0
    self._scores, self._variances, self._times, self.doubts = (
      np.zeros(self._capacity, np.float32) for _ in range(4)
    )
    self.means = np.full(self._capacity, -np.inf, np.float32)
    self.count, self._now = 0, 0.0
    self._running: Any = None

  def trust(self, importance: Float[np.ndarray, ' d']) -> None:
    """Takes importances of the sublayers; high means: better kept."""
    self._importance = _standardised(importance, self._num_skipped)

  def observe(
    self,
    bits: Bool[np.ndarray, 'c d'],
    scores: Float[np.ndarray, ' c'],
    variances: Float[np.ndarray, ' c'],
    later: float = 1.0,
  ) -> None:
    """Adds masks that were scored on one text.

    In a full buffer the oldest row is replaced, but never the newest row of one
    of the best masks.

    Args:
      variances: known variance of each score; further noise is learnt.
      later: distance of this text from the last one, in windows.
    """
    self._now += later
    for row, score, variance in zip(bits, scores, variances, strict=True):
      at = self.count
      if self.count < self._capacity:
        self.count += 1
      else:
        ages = self._times.copy()
        ages[self._best_rows()] = np.inf
        at = int(np.argmin(ages))
      self._bits[at], self._scores[at] = row, score
      self._variances[at], self._times[at] = variance, self._now
      self.means[at] = -np.inf

  def _best_rows(self) -> list[int]:
    """The newest row of each of the best masks."""
    # Rows that are newer than the last `collect` have a score but no mean.
    worth = np.where(np.isfinite(self.means), self.means, self._scores)
    rows: dict[bytes, int] = {}
    for at in np.lexsort((-self._times, -worth)):
      rows.setdefault(self._bits[at].tobytes(), int(at))
      if len(rows) == _NUM_BEST:
        break
    return list(rows.values())

  def start(self, incumbent: Bool[np.ndarray, ' d']) -> None:
    """Sets off a fit and a suggestion; masks are compared with `incumbent`."""
    buffer = Buffer(
      self._bits.copy(),
      self._scores.copy(),
      self._variances.copy(),
      self._times.copy(),
      np.int32(self.count),
      np.float32(self._now + 1),
      self._importance,
      incumbent.astype(np.float32),
    )
    with jax.default_device(self._cpu), warnings.catch_warnings():
      # float32 on purpose: as good as float64 here in half the time.
      warnings.filterwarnings('ignore', message='.*not of type float64.*')
      self._key, key = jax.random.split(self._key)
      self._running = gaussian_process.suggest(
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
    """Waits for the suggestion that `start` set off.

    Returns:
      The masks to score next; none where the fit has failed.
    """
    suggestion, self._hyper = self._running
    self._running = None
    bits, means, doubts = jax.device_get(suggestion)
    rows = slice(self.count)
    if not np.isfinite([means[rows], doubts[rows]]).all():
      # The covariance could not be factored: forget the fit and its means.
      self._hyper = self._initial
      self.means[:] = -np.inf
      return bits[:0]
    self.means, self.doubts = np.array(means), np.array(doubts)
    return bits

  def best(
    self, incumbent: Bool[np.ndarray, ' d'], margin: float
  ) -> Bool[np.ndarray, ' d']:
    """The mask that should draft.

    It is the incumbent, unless another mask's posterior mean is higher by more
    than `margin` deviations of the difference.
    """
    at = int(np.argmax(self.means))
    if not np.isfinite(self.means[at]):
      return incumbent
    same = (self._bits[: self.count] > 0.5) == incumbent
    rows = np.flatnonzero(same.all(axis=1))
    if rows.size:
      lead = self.means[at] - self.means[rows].max()
      if lead <= margin * self.doubts[at]:
        return incumbent
    return self._bits[at] > 0.5

  def state(self) -> dict[str, Any]:
    """Arrays and numbers; a running suggestion must be collected before."""
    return {
      **{name: getattr(self, name) for name in _LEARNT},
      'hyper': jax.device_get(jax.tree.leaves(self._hyper)),
      'key': jax.device_get(jax.random.key_data(self._key)),
    }

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on from a state that `state` returned.

    Raises:
      KeyError, TypeError, ValueError: the state is of a process of other sizes.
    """
    codec.replace_fields(self, _LEARNT, state)
    if self.count > self._capacity:
      raise ValueError(f'count={self.count} in a buffer of {self._capacity}')
    for name in _LEARNT:  # only means may be infinite: of rows without one
      if name != 'means' and not np.isfinite(getattr(self, name)).all():
        raise ValueError(f'{name} is not finite')
    old, tree = jax.tree.flatten(self._initial)
    new = [np.asarray(leaf, np.float32) for leaf in state['hyper']]
    if [leaf.shape for leaf in new] != [leaf.shape for leaf in old]:
      raise TypeError('hyper has another form')
    self._hyper = jax.device_put(jax.tree.unflatten(tree, new), self._cpu)
    key = jax.device_put(np.asarray(state['key'], np.uint32), self._cpu)
    with jax.default_device(self._cpu):
      self._key = jax.random.wrap_key_data(key)
    self._running = None
