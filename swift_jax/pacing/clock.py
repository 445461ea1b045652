"""Corrects measured costs by the clock while text is written.

It also finds where plain decoding would be quicker, and stops drafting there.
"""

from __future__ import annotations

import math

import numpy as np

from swift_jax.decoding import policy
from swift_jax.model.skip_mask import Bits
from swift_jax.pacing import costs

# Errors are ratios of seconds to measured seconds, less 1: a common error of
# all passes plus an own error of each kind of pass. Their standard deviations:
# of the common error at the start, of its step from one dispatch to the next,
# and of each own error.
_COMMON, _COMMON_STEP, _OWN = 1.0, 0.05, 0.3
_OWN_KEPT = 0.995  # share of the own errors kept from one dispatch to the next
_NOISE = 0.1  # deviation of a dispatch's seconds, as a share of them
_OUTLIER = 1.2  # seconds over expected seconds count no more than this
_SMALLEST_RATIO = 0.1
# Plain steps' time without a plain step after which some are made; at the start
# it is the shorter one.
_MAX_UNSEEN, _FIRST_UNSEEN = 512.0, 128.0
_MAX_BEHIND = 3.0  # plain steps that a run may fall behind plain decoding
_MAX_AHEAD = 8.0  # lead in plain steps that counts at most: old gains fade
_MEMORY = 256.0  # plain steps after which a lead or a lag counts 1/e
_REST, _LONGEST_REST = 64.0, 16384.0  # plain steps: of the first, at most


class Clock:
  """Costs, corrected by the clock while text is written.

  The seconds of a dispatch are compared with the measured seconds of its
  passes. A Kalman filter follows the ratios of plain steps, of drafted tokens
  and of verify by width. All ratios share a common error, which wanders as the
  machine gets more or less busy; each has an error of its own, which stays for
  long.

  Attributes:
    measured: the costs to start from; a ratio that is not observed for long
      returns to them.
    ratios: seconds over measured seconds: of a plain step, of a drafted token,
      of verify by width.
    costs: the corrected costs, in plain steps as long as they are now.
    guard: it is given the same dispatches.
  """

  def __init__(self, measured: costs.PassCosts):
    self.measured = measured
    size = 2 + len(measured.verify)
    # The common error, then each kind's own error.
    self._errors = np.zeros(1 + size)
    self._covariance = np.diag([_COMMON**2, *size * [_OWN**2]])
    self.ratios, self.costs = np.ones(size), measured
    self.guard = Guard()
    self._unseen = _MAX_UNSEEN - _FIRST_UNSEEN

  @property
  def wants_plain_steps(self) -> bool:
    """Whether the clock needs to see some plain steps.

    Without any, a machine on which drafts got dearer looks like a machine that
    got slower as a whole, and so the guard would stay open.
    """
    return self._unseen >= _MAX_UNSEEN

  def for_policy(self, bits: Bits, saved_s: float) -> policy.Costs:
    """The corrected costs for the policy, as host arrays.

    They are in plain steps as long as they are now.

    Args:
      bits: those of the mask that drafts.
      saved_s: as in `PassCosts.draft`.
    """
    step, draft, *_ = self.ratios
    draft *= self.measured.draft(bits, saved_s) / step
    return policy.Costs(
      np.asarray(draft, np.float32),
      np.asarray(self.costs.verify, np.float32),
    )

  def observe(
    self, work: np.ndarray, draft: float, steps: int, seconds: float
  ) -> None:
    """Learns from a dispatch.

    Args:
      work: the dispatch's passes; see `DecodeState`.
      draft: measured cost of a drafted token, in plain steps.
      steps: plain steps that would have brought the batch as far.
      seconds: wall time of the dispatch.
    """
    cost = self.measured
    passes = work * np.array([1, draft, *cost.verify])
    self._unseen = 0.0 if work[0] else self._unseen + float(passes.sum())
    if not passes.any():
      return
    kept = np.array([1.0, *len(work) * [_OWN_KEPT]])
    moved = [_COMMON_STEP**2, *len(work) * [(1 - _OWN_KEPT**2) * _OWN**2]]
    errors = kept * self._errors
    covariance = np.outer(kept, kept) * self._covariance + np.diag(moved)
    expected = float(passes @ self._ratios(errors))
    # Longer dispatches include another program's time, or a compilation.
    taken = min(seconds / cost.step_s, expected * _OUTLIER)
    seen = np.array([passes.sum(), *passes])
    shared = covariance @ seen
    gain = shared / (seen @ shared + (_NOISE * expected) ** 2)
    self._errors = errors + gain * (taken - expected)
    self._covariance = covariance - np.outer(gain, shared)
    self.ratios = self._ratios(self._errors)
    self.costs = self._corrected()
    self.guard.add(steps, taken / float(self.ratios[0]))

  def _ratios(self, errors: np.ndarray) -> np.ndarray:
    ratios: np.ndarray = np.maximum(1 + errors[0] + errors[1:], _SMALLEST_RATIO)
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
  """Lets plain decoding run for a while where speculation has fallen behind it.

  Whatever the policy expects, the guard counts the tokens that came and the
  time that they took. While it is closed, nothing is drafted: a rest.
  """

  def __init__(self) -> None:
    self._behind, self._rest_left, self._next_rest = 0.0, 0.0, _REST

  @property
  def is_closed(self) -> bool:
    """Whether nothing is to be drafted."""
    return self._rest_left > 0

  def add(self, steps: float, cost: float) -> None:
    """Counts a dispatch.

    Args:
      steps: plain steps that would have brought the batch as far.
      cost: the dispatch's time, in plain steps.
    """
    if self.is_closed:
      self._rest_left -= cost
      return
    kept = self._behind * math.exp(-cost / _MEMORY)
    self._behind = max(kept + cost - steps, -_MAX_AHEAD)
    if self._behind < 0:
      self._next_rest = _REST
    if self._behind > _MAX_BEHIND:
      # After the rest half of the allowance is left for another try. Each rest
      # is longer than the one before.
      self._behind, self._rest_left = _MAX_BEHIND / 2, self._next_rest
      self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
