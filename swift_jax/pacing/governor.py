"""One account of a run's time, and every decision that goes by it.

SWIFT may not be slower than plain decoding. So the time that was taken is compared
with the time that plain decoding would have taken for the same text. This decides
whether drafts are made, whether the search may have a turn, and when plain steps
are made only to see what they cost.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from swift_jax.decoding import policy
from swift_jax.model.skip_mask import Bits
from swift_jax.pacing.clock import Clock
from swift_jax.pacing.costs import PassCosts

_MAX_BEHIND = 0.01  # share of the elapsed time that the search may cost a run
# All below are in plain steps. Time without a plain step after which one round
# makes some; at the start it is the shorter one.
_MAX_UNSEEN, _FIRST_UNSEEN = 512.0, 128.0
_MAX_LAG = 3.0  # lag behind plain decoding from which drafts rest
_MAX_LEAD = 8.0  # lead that counts at most: old gains fade
_MEMORY = 256.0  # time after which a lead or a lag counts 1/e
_REST, _LONGEST_REST = 64.0, 16384.0  # the first rest, and the longest


@dataclasses.dataclass
class _Drafts:
  """What is known of drafts at the costs of one clock; in plain steps.

  Attributes:
    lead: plain decoding's time for the text so far, less the time it took.
    rest_left: time for which drafts still rest.
    next_rest: length of the next rest.
    unseen: time since the last plain step.
  """

  lead: float = 0.0
  rest_left: float = 0.0
  next_rest: float = _REST
  unseen: float = _MAX_UNSEEN - _FIRST_UNSEEN


@dataclasses.dataclass
class Governor:
  """The account of an engine; times are in seconds unless they say otherwise.

  Attributes:
    share: share of the time that the search may take; 1 is no limit.
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

  def __post_init__(self) -> None:
    self._per_round = math.inf  # seconds of a round of the last dispatch
    self._all_drafts: dict[Clock | None, _Drafts] = {}
    self.begin(None)

  def account(self) -> dict[str, Any]:
    """The account, as a saved search keeps it."""
    return dataclasses.asdict(self)

  def begin(self, clock: Clock | None) -> None:
    """A batch begins.

    Args:
      clock: what its passes cost; None where the policy does not weigh costs.
        Drafts are judged apart for each clock.
    """
    self._clock = clock
    self._drafts = self._all_drafts.setdefault(clock, _Drafts())

  @property
  def costs(self) -> PassCosts | None:
    """What passes cost by now, where the policy weighs it."""
    return self._clock.costs if self._clock else None

  # What happened.

  def add(self, seconds: float) -> None:
    """Adds time that plain decoding would have taken too, as for a prompt."""
    self._add(seconds, seconds)

  def record(
    self,
    seconds: float,
    rounds: int,
    steps: int,
    work: np.ndarray | None,
    bits: Bits,
    saved_s: float,
  ) -> None:
    """Adds a dispatch.

    Args:
      seconds: its wall time.
      rounds: rounds that it was asked for.
      steps: plain steps that would have brought the batch as far.
      work: its passes; see `DecodeState`. None: they are not judged by the
        clock, which differs between processes that must decide alike.
      bits: those of the mask that drafted.
      saved_s: as in `PassCosts.draft`.
    """
    self._per_round = seconds / rounds
    if self._clock is not None and work is not None:
      draft = self._clock.measured.draft(bits, saved_s)
      cost = self._clock.observe(work, draft, seconds)
      self._judge_drafts(steps, cost, has_plain_steps=bool(work[0]))
    step_s = self.costs.step_s if self.costs else 0.0
    self._add(seconds, steps * step_s)

  def pay(self, seconds: float, is_pass: bool = False) -> None:
    """Adds time of the search, whether of a scoring pass or of other work."""
    self.elapsed += seconds
    self.spent += seconds
    if is_pass:
      self.per_pass = min(seconds, self.per_pass or math.inf)

  def forfeit(self) -> None:
    """Gives up all time that the search has not spent so far."""
    unspent = self.share * self.elapsed - self.spent
    self.forfeited = max(self.forfeited, unspent, 0.0)

  def _add(self, seconds: float, plain: float) -> None:
    self.elapsed += seconds
    if self._clock is not None:
      self.plain = (self.plain or 0.0) + plain
      self.written += seconds

  def _judge_drafts(
    self, steps: float, cost: float, has_plain_steps: bool
  ) -> None:
    """Lets drafts rest where they have fallen behind plain decoding.

    Whatever the policy expects of drafts, the tokens count that came, and the
    time that they took. A machine that got slower looks like drafts that got
    dearer, until the plain steps of a rest show it.
    """
    known = self._drafts
    known.unseen = 0.0 if has_plain_steps else known.unseen + cost
    if known.rest_left > 0:
      known.rest_left -= cost
      return
    kept = known.lead * math.exp(-cost / _MEMORY)
    known.lead = min(kept + steps - cost, _MAX_LEAD)
    if known.lead > 0:
      known.next_rest = _REST
    if known.lead < -_MAX_LAG:
      # After the rest half of the allowance is left for another try. Each rest
      # is longer than the one before.
      known.lead, known.rest_left = -_MAX_LAG / 2, known.next_rest
      known.next_rest = min(2 * known.next_rest, _LONGEST_REST)

  # What may be done.

  @property
  def may_draft(self) -> bool:
    """Whether the next dispatch may draft; else all its rounds are plain.

    Drafts rest where they lost time. Beside that, some plain steps are made
    now and then: without any, nobody knows what a plain step costs by now.
    """
    return self._drafts.rest_left <= 0 and self._drafts.unseen < _MAX_UNSEEN

  def rounds(self, most: int) -> int:
    """Rounds of the next dispatch: one, if it is only to see plain steps."""
    return most if self.may_draft or self._drafts.rest_left > 0 else 1

  def for_policy(self, bits: Bits, saved_s: float) -> policy.Costs | None:
    """What the policy decides by; None where it does not weigh costs.

    Args:
      bits: those of the mask that drafts.
      saved_s: as in `PassCosts.draft`.
    """
    if self._clock is None:
      return None
    costs = self._clock.for_policy(bits, saved_s)
    return costs if self.may_draft else costs.never()

  @property
  def is_unlimited(self) -> bool:
    """Whether the search may take all the time that it wants."""
    return self.share >= 1

  def may_score(
    self,
    num_masks: int,
    window: int,
    widths: Sequence[int],
    keeps_reserve: bool = False,
  ) -> bool:
    """Whether the search may take one more scoring pass.

    The quickest pass so far says what it takes. Before the first, a mask is
    thought to take a round, or as many of the widest verify as make a window.

    Args:
      num_masks: masks of the pass.
      window: tokens on which they are scored.
      widths: widths of verify.
      keeps_reserve: half of the share is kept for a later expense that costs
        more.
    """
    seconds = self.per_pass
    if seconds is None:
      seconds = self._per_round
      if self.costs is not None:
        passes = window / widths[-1]
        verify_s = self.costs.verify[-1] * self.costs.step_s
        seconds = max(seconds, passes * verify_s)
      seconds *= num_masks
    return self.affords(seconds, 0.5 if keeps_reserve else 1.0)

  def may_win(
    self, num_layers: int, num_skipped: int, widths: Sequence[int]
  ) -> bool:
    """Whether a better mask of so many skipped sublayers could win time.

    True where costs are not measured, and where the search may have all the time.
    """
    if self.costs is None or self.is_unlimited:
      return True
    return self.costs.highest_speed(num_layers, num_skipped, widths) > 1

  def affords(self, seconds: float, fraction: float = 1.0) -> bool:
    """Whether the search may spend `seconds` now.

    Args:
      fraction: the part of its share that it may use.
    """
    if self.is_unlimited:
      return True
    used = self.spent + self.forfeited + seconds
    within_lead = math.inf
    if self.plain is not None:
      # The search may put the run only a little behind plain decoding.
      lead = self.plain - self.written
      within_lead = _MAX_BEHIND * self.elapsed + lead - self.spent
    allowed = fraction * self.share * self.elapsed
    return used <= allowed and seconds <= within_lead

  def has_written_for(self, seconds: float) -> bool:
    """Whether plain decoding would have taken so long for the text so far."""
    written = self.elapsed if self.plain is None else self.plain
    return written >= seconds
