"""The time that a search may take, and its estimate of the set that drafts."""

from __future__ import annotations

import dataclasses
import math

_MAX_BEHIND = 0.01  # share of the elapsed time


@dataclasses.dataclass
class Budget:
  """At most a share of the wall time for the search; all times in seconds.

  Attributes:
    share: 1 is no limit.
    elapsed: time of prompts, rounds and search so far.
    spent: the search's part of `elapsed`.
    per_pass: time of the quickest scoring pass so far; None before the first.
    forfeited: time that would be the search's by its share, but was lost in
      long rests, so that it is not all spent at once.
    plain: time that plain decoding would have taken for the text so far; None
      where it is unknown.
    written: time that this text took without the search, as far as `plain` is
      known.
  """

  share: float
  elapsed: float = 0.0
  spent: float = 0.0
  per_pass: float | None = None
  forfeited: float = 0.0
  plain: float | None = None
  written: float = 0.0

  def add(self, seconds: float, plain_seconds: float | None = None) -> None:
    """Adds time in which text was written.

    Args:
      plain_seconds: the time that plain decoding would have taken.
    """
    self.elapsed += seconds
    if plain_seconds is not None:
      self.plain = (self.plain or 0.0) + plain_seconds
      self.written += seconds

  def pay(self, seconds: float, is_pass: bool = False) -> None:
    """Adds time of the search, whether of a scoring pass or of other work."""
    self.elapsed += seconds
    self.spent += seconds
    if is_pass:
      self.per_pass = min(seconds, self.per_pass or math.inf)

  def allows(self, guess: float, saves: bool = False) -> bool:
    """Whether the budget allows one more scoring pass.

    Args:
      guess: the time to assume before the first pass.
      saves: half of the share is kept for a later expense that costs more.
    """
    seconds = guess if self.per_pass is None else self.per_pass
    return self.affords(seconds, 0.5 if saves else 1.0)

  def affords(self, seconds: float, fraction: float = 1.0) -> bool:
    """Whether `seconds` may be spent now, within a fraction of the share."""
    if self.share >= 1:
      return True
    used = self.spent + self.forfeited + seconds
    within_lead = math.inf
    if self.plain is not None:
      # The search may put the run only a little behind plain decoding.
      lead = self.plain - self.written
      within_lead = _MAX_BEHIND * self.elapsed + lead - self.spent
    allowed = fraction * self.share * self.elapsed
    return used <= allowed and seconds <= within_lead

  def forfeit(self) -> None:
    """Gives up all time that the search has not spent so far."""
    unspent = self.share * self.elapsed - self.spent
    self.forfeited = max(self.forfeited, unspent, 0.0)


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
