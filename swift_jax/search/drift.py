"""Whether the stream has changed: a lasting fall of the acceptance.

Acceptance is watched in blocks of drafted tokens. A self-starting CUSUM
(Hawkins, 1987) compares each block with the blocks before it. The block's
distance from their mean, in their deviations, is t-distributed as long as
nothing changes, whatever the mean and the deviation are. It is transformed to a
standard normal; its falls beyond a half are summed, and a sum above five is
called drift. So a set that was always bad raises no alarm, a stream that was
always uneven needs more to raise one, and one bad block is not enough.

For independent blocks with normal acceptance there is a false alarm once in
some 930 blocks on average (the run length of a one-sided CUSUM with these two
constants). A fall by two deviations is found after some four blocks.
"""

from __future__ import annotations

import math

from scipy import special

BLOCK = 64  # drafted tokens
_ALLOWANCE = 0.5  # half of the fall to find, in deviations
_LIMIT = 5.0  # of the summed falls, in deviations
_MIN_BLOCKS = 4  # blocks before the first that is judged
_MAX_FALL = 4.0  # deviations that one block counts at most: below the limit
_MIN_STDDEV = 0.02  # a few equal blocks do not show how uneven a stream is


class Drift:
  """Watches one set while it drafts.

  Attributes:
    blocks: complete blocks so far.
    mean: mean acceptance of these blocks.
    fall: the sum of falls that is compared with the limit.
  """

  def __init__(self):
    self.blocks, self.mean, self.fall = 0, 0.0, 0.0
    self._squares = 0.0  # summed squared distances from the mean
    self._drafted, self._accepted = 0, 0

  def add(self, drafted: int, accepted: int) -> bool:
    """Adds drafted and accepted tokens; returns whether the stream drifted."""
    self._drafted += drafted
    self._accepted += accepted
    if self._drafted < BLOCK:
      return False
    acceptance = self._accepted / self._drafted
    self._drafted = self._accepted = 0
    if self.blocks >= _MIN_BLOCKS:
      fallen = min(-self._score(acceptance), _MAX_FALL)
      self.fall = max(0.0, self.fall + fallen - _ALLOWANCE)
    self._learn(acceptance)
    return self.fall > _LIMIT

  def _score(self, acceptance: float) -> float:
    """A block's acceptance as a standard normal, given the blocks before it."""
    n = self.blocks
    stddev = max(math.sqrt(self._squares / (n - 1)), _MIN_STDDEV)
    t = math.sqrt(n / (n + 1)) * (acceptance - self.mean) / stddev
    tail = float(special.stdtr(n - 1, -abs(t)))
    z = -float(special.ndtri(max(tail, 1e-300)))
    return math.copysign(z, t)

  def _learn(self, acceptance: float) -> None:
    """Adds a block to the mean and the squares (Welford's update)."""
    self.blocks += 1
    distance = acceptance - self.mean
    self.mean += distance / self.blocks
    self._squares += distance * (acceptance - self.mean)
