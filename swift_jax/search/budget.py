"""What a search may cost, and what it knows of the set that drafts."""

from __future__ import annotations

import dataclasses
import math

_BEHIND = 0.01  # of plain decoding's time, at most


@dataclasses.dataclass
class Budget:
  """At most a share of the wall time for the search; all times in seconds.

  Attributes:
    share: 1 is no limit.
    elapsed: time of prompts, rounds and search so far.
    spent: the search's part of it.
    per_pass: what a scoring pass takes, the quickest so far; None before.
    forfeited: of the share, by long rests: not to be spent at once.
    plain: what plain decoding would have taken for the text so far; None where
      nobody knows.
    written: what it took without the search, as far as `plain` is known.
  """

  share: float
  elapsed: float = 0.0
  spent: float = 0.0
  per_pass: float | None = None
  forfeited: float = 0.0
  plain: float | None = None
  written: float = 0.0

  def add(self, seconds: float, plain_seconds: float | None = None) -> None:
    """Time in which text was written.

    Args:
      plain_seconds: what plain decoding would have taken.
    """
    self.elapsed += seconds
    if plain_seconds is not None:
      self.plain = (self.plain or 0.0) + plain_seconds
      self.written += seconds

  def pay(self, seconds: float, is_pass: bool = False) -> None:
    """Time of the search; not all of it is scoring."""
    self.elapsed += seconds
    self.spent += seconds
    if is_pass:
      self.per_pass = min(seconds, self.per_pass or math.inf)

  def allows(self, guess: float, saves: bool = False) -> bool:
    """Whether one more pass fits.

    Args:
      guess: its time before the first.
      saves: half of the share is kept for something that costs more.
    """
    seconds = guess if self.per_pass is None else self.per_pass
    return self.affords(seconds, 0.5 if saves else 1.0)

  def affords(self, seconds: float, part: float = 1.0) -> bool:
    """Whether so much may be spent now, of a part of the share."""
    if self.share >= 1:
      return True
    used = self.spent + self.forfeited + seconds
    ahead = math.inf
    if self.plain is not None:
      # The search may not leave the run more than a little behind.
      lead = self.plain - self.written
      ahead = _BEHIND * self.elapsed + lead - self.spent
    return used <= part * self.share * self.elapsed and seconds <= ahead

  def forfeit(self) -> None:
    """Nothing that was saved up may be spent."""
    saved = self.share * self.elapsed - self.spent
    self.forfeited = max(self.forfeited, saved, 0.0)


_KEPT = 0.8  # of the evidence, from one window to the next


@dataclasses.dataclass
class Estimate:
  """A set's share of hits over the windows it was scored on, newer ones more.

  Windows of one text overlap, and a mask that was chosen for its score is
  flattered by it: the deviation is a lower bound.

  Attributes:
    hits, positions: what counts of them, after older ones have faded.
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
    """Binomial, with one hit and one miss added: all hits are no certainty."""
    if not self.positions:
      return None
    share = (self.hits + 1) / (self.positions + 2)
    return math.sqrt(share * (1 - share) / self.positions)

  @property
  def low(self) -> float:
    """A deviation below the mean; 0 before there is one."""
    return self.mean - self.stddev if self.positions else 0.0
