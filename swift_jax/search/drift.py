"""Whether the stream has changed: a lasting fall of the acceptance.

Acceptance is watched in blocks of drafted tokens. A self-starting CUSUM (Hawkins,
1987) compares each block with those before it: the block's distance from their
mean, in their deviations, is t-distributed as long as nothing changes, whatever
mean and deviation are; brought to a normal, its falls beyond a half are summed,
and a sum above five is called drift. So a set that was never better does not call,
a stream that was always uneven needs more to call, and one bad block does not.

For independent blocks with normal acceptance a false alarm comes once in some 930
blocks on average (the run length of a one-sided CUSUM with these two constants).
A fall by two deviations is found after some four blocks.
"""

from __future__ import annotations

import math

from scipy import special

BLOCK = 64  # drafted tokens
_ALLOWANCE = 0.5  # half of the fall to find, in deviations
_LIMIT = 5.0
_MIN_BLOCKS = 4  # before the first is judged
_MOST = 4.0  # deviations that one block alone may fall by: below the limit
_MIN_STDDEV = 0.02  # equal blocks say little of how uneven a stream is


class Drift:
  """Watches one set while it drafts.

  Attributes:
    blocks: complete blocks so far.
    mean: their mean acceptance.
    fall: the sum that is compared with the limit.
  """

  def __init__(self):
    self.blocks, self.mean, self.fall = 0, 0.0, 0.0
    self._squares = 0.0  # summed squared distances from the mean
    self._drafted, self._accepted = 0, 0

  def add(self, drafted: int, accepted: int) -> bool:
    """Takes what some rounds drafted and accepted; whether it drifted by now."""
    self._drafted += drafted
    self._accepted += accepted
    if self._drafted < BLOCK:
      return False
    acceptance = self._accepted / self._drafted
    self._drafted = self._accepted = 0
    if self.blocks >= _MIN_BLOCKS:
      fallen = min(-self._score(acceptance), _MOST)
      self.fall = max(0.0, self.fall + fallen - _ALLOWANCE)
    self._learn(acceptance)
    return self.fall > _LIMIT

  def _score(self, acceptance: float) -> float:
    """A block as a standard normal, given those before it."""
    n = self.blocks
    stddev = max(math.sqrt(self._squares / (n - 1)), _MIN_STDDEV)
    t = math.sqrt(n / (n + 1)) * (acceptance - self.mean) / stddev
    tail = float(special.stdtr(n - 1, -abs(t)))
    z = -float(special.ndtri(max(tail, 1e-300)))
    return math.copysign(z, t)

  def _learn(self, acceptance: float) -> None:
    self.blocks += 1
    before = acceptance - self.mean
    self.mean += before / self.blocks
    self._squares += before * (acceptance - self.mean)
