"""What the clock says while text is written: of costs that were measured before, and
of plain decoding that would have been quicker."""

from __future__ import annotations

import math

import numpy as np

from swift_jax import costs

# Of ratios to measured seconds: how far all of them are off together, and each beside
# that (standard deviations).
_COMMON, _APART = 1.0, 0.15
_NOISE = 0.1  # of a dispatch's seconds
_OUTLIER = 1.3  # a dispatch that takes longer by more counts as if by this
_KEPT = 0.98  # of what was observed, from one dispatch to the next
_SMALLEST_RATIO = 0.1
_ALLOWED = 3.0  # plain steps that a run may fall behind plain decoding
_BANKED = (
  8.0  # those that it may be ahead for it: what was won long ago counts little
)
_MEMORY = 256.0  # plain steps after which they count 1/e
_REST = 64.0  # plain steps that it then takes at least


class Clock:
  """Costs as the clock corrects them while text is written.

  A dispatch's seconds are compared with what its passes were measured to take. The
  ratios of plain steps, drafted tokens and verify by width are fitted by Bayesian
  linear regression with forgetting: all may be off by a common factor, since a
  machine is busier at times, and each by a little of its own.

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
    prior = _COMMON**2 + _APART**2 * np.eye(size)
    self._prior = np.linalg.inv(prior)
    self._precision, self._shift = np.zeros((size, size)), np.zeros(size)
    self.ratios, self.costs = np.ones(size), measured
    self.guard = Guard()

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
    expected = cost.step_s * float(passes @ self.ratios)
    if expected <= 0:
      return
    # Somebody else's seconds, or a compilation's.
    seconds = min(max(seconds, expected / _OUTLIER), expected * _OUTLIER)
    weight = cost.step_s / (_NOISE * expected)
    features = passes * weight
    rest = (seconds / cost.step_s - passes.sum()) * weight
    self._precision = _KEPT * self._precision + np.outer(features, features)
    self._shift = _KEPT * self._shift + features * rest
    moved = np.linalg.solve(self._prior + self._precision, self._shift)
    self.ratios = np.maximum(1 + moved, _SMALLEST_RATIO)
    self.costs = self._corrected()
    self.guard.add(steps, seconds / self.costs.step_s)

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

  Whatever the policy expects, this goes by what came and how long it took.
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
      self._rest *= 2
