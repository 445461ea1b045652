"""What the clock says while text is written: of costs that were measured before, and
of plain decoding that would have been quicker."""

from __future__ import annotations

import math

import numpy as np

from swift_jax.decoding import policy
from swift_jax.model.skip_mask import SkipMask
from swift_jax.pacing import costs

# Of ratios to measured seconds, standard deviations: how far all of them are off
# together to begin with, by how much that moves from one dispatch to the next, and
# how far each is off beside it.
_COMMON, _DRIFT, _APART = 1.0, 0.05, 0.3
_KEPT = 0.995  # of what is off apart, from one dispatch to the next
_NOISE = 0.1  # of a dispatch's seconds
_OUTLIER = 1.2  # a dispatch that takes longer by more counts as if by this
_SMALLEST_RATIO = 0.1
_UNSEEN = 512.0  # plain steps' time without one, after which some are made
_FIRST_LOOK = 128.0  # the first time
_ALLOWED = 3.0  # plain steps that a run may fall behind plain decoding
_BANKED = (
  8.0  # those that it may be ahead for it: what was won long ago counts little
)
_MEMORY = 256.0  # plain steps after which they count 1/e
_REST, _LONGEST_REST = 64.0, 16384.0  # plain steps that it then takes


class Clock:
  """Costs as the clock corrects them while text is written.

  A dispatch's seconds are compared with what its passes were measured to take. A
  Kalman filter follows the ratios of plain steps, drafted tokens and verify by width:
  all are off by a common factor, which wanders as a machine is busier or less, and
  each by something of its own, which stays for long.

  Attributes:
    measured: where it starts from, and what is not observed goes back to.
    ratios: seconds over measured seconds: of a plain step, of a drafted token, of
      verify by width.
    costs: in plain steps as they are by now.
    guard: told of the same dispatches.
  """

  def __init__(self, measured: costs.PassCosts):
    self.measured = measured
    size = 2 + len(measured.verify)
    # What is common, then what is apart.
    self._off = np.zeros(1 + size)
    self._covariance = np.diag([_COMMON**2, *size * [_APART**2]])
    self.ratios, self.costs = np.ones(size), measured
    self.guard = Guard()
    self._unseen = _UNSEEN - _FIRST_LOOK

  @property
  def wants_plain_steps(self) -> bool:
    """Without any, a machine on which drafts are dearer than they were looks like
    one that is slower as a whole, and the guard would believe it."""
    return self._unseen >= _UNSEEN

  def for_policy(self, skip_mask: SkipMask, saved_s: float) -> policy.Costs:
    """As host arrays, in plain steps as they are by now.

    Args:
      saved_s: as in `PassCosts.draft`.
    """
    step, draft, *_ = self.ratios
    draft *= self.measured.draft(skip_mask, saved_s) / step
    return policy.Costs(
      np.asarray(draft, np.float32),
      np.asarray(self.costs.verify, np.float32),
    )

  def observe(
    self, work: np.ndarray, draft: float, steps: int, seconds: float
  ) -> None:
    """Takes a dispatch.

    Args:
      work: what was done; see `DecodeState`.
      draft: measured cost of a drafted token, in plain steps.
      steps: plain steps that would have brought the batch as far.
      seconds: what it took.
    """
    cost = self.measured
    passes = work * np.array([1, draft, *cost.verify])
    self._unseen = 0.0 if work[0] else self._unseen + float(passes.sum())
    if not passes.any():
      return
    kept = np.array([1.0, *len(work) * [_KEPT]])
    moved = [_DRIFT**2, *len(work) * [(1 - _KEPT**2) * _APART**2]]
    off = kept * self._off
    covariance = np.outer(kept, kept) * self._covariance + np.diag(moved)
    expected = float(passes @ self._ratios(off))
    # What is longer has somebody else's seconds in it, or a compilation's.
    taken = min(seconds / cost.step_s, expected * _OUTLIER)
    seen = np.array([passes.sum(), *passes])
    shared = covariance @ seen
    gain = shared / (seen @ shared + (_NOISE * expected) ** 2)
    self._off = off + gain * (taken - expected)
    self._covariance = covariance - np.outer(gain, shared)
    self.ratios = self._ratios(self._off)
    self.costs = self._corrected()
    self.guard.add(steps, taken / float(self.ratios[0]))

  def _ratios(self, off: np.ndarray) -> np.ndarray:
    ratios: np.ndarray = np.maximum(1 + off[0] + off[1:], _SMALLEST_RATIO)
    return ratios

  def _corrected(self) -> costs.PassCosts:
    cost, (step, draft, *verify) = self.measured, self.ratios.tolist()
    return costs.PassCosts(
      step_s=cost.step_s * step,
      head=cost.head * draft / step,
      attn=cost.attn * draft / step,
      mlp=cost.mlp * draft / step,
      verify=costs.rising(
        [w * v / step for w, v in zip(cost.verify, verify, strict=True)]
      ),
    )


class Guard:
  """Plain decoding for a while where speculation has fallen behind it.

  Whatever the policy expects, this goes by what came and how long that took.
  """

  def __init__(self) -> None:
    self._behind, self._left, self._rest = 0.0, 0.0, _REST

  @property
  def is_closed(self) -> bool:
    """Nothing is to be drafted."""
    return self._left > 0

  def add(self, steps: float, cost: float) -> None:
    """Takes a dispatch.

    Args:
      steps: plain steps that would have brought the batch as far.
      cost: what it took, in plain steps.
    """
    if self.is_closed:
      self._left -= cost
      return
    kept = self._behind * math.exp(-cost / _MEMORY)
    self._behind = max(kept + cost - steps, -_BANKED)
    if self._behind < 0:
      self._rest = _REST
    if self._behind > _ALLOWED:
      # Half of it is left to try again with, after a longer rest each time.
      self._behind, self._left = _ALLOWED / 2, self._rest
      self._rest = min(2 * self._rest, _LONGEST_REST)
