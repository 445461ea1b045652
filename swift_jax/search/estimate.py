"""A search's estimate of the set that drafts."""

from __future__ import annotations

import dataclasses
import math

_KEPT = 0.8  # share of the evidence that stays from one window to the next


@dataclasses.dataclass
class Estimate:
  """A set's share of hits over the windows of its scoring passes.

  Newer windows count more. The deviation is a lower bound: windows of one text
  overlap, and a mask that was chosen for its score has a score that is too
  good.

  Attributes:
    hits, positions: their sums over the windows, after older ones have faded.
    passes: windows so far.
  """

  hits: float = 0.0
  positions: float = 0.0
  passes: int = 0

  def add(self, hits: int, positions: int) -> None:
    self.hits = _KEPT * self.hits + hits
    self.positions = _KEPT * self.positions + positions
    self.passes += 1

  @property
  def mean(self) -> float | None:
    return self.hits / self.positions if self.positions else None

  @property
  def stddev(self) -> float | None:
    """Binomial, with a hit and a miss added: even all hits are no certainty."""
    if not self.positions:
      return None
    share = (self.hits + 1) / (self.positions + 2)
    return math.sqrt(share * (1 - share) / self.positions)

  @property
  def low(self) -> float:
    """The mean less one deviation; 0 before the first window."""
    return self.mean - self.stddev if self.positions else 0.0
