"""Corrects measured costs by the clock while text is written."""

from __future__ import annotations

import math

import numpy as np

from swift_jax.decoding import policy
from swift_jax.model.skip_mask import Bits
from swift_jax.pacing import costs

_RATE = 0.2  # share of a dispatch's error that is corrected
_KEPT = 0.998  # share of corrections kept from one dispatch to the next
_OUTLIER = 1.2  # seconds over expected seconds count no more than this
_SMALLEST = 0.1  # of the same, so that one dispatch decides little


class Clock:
  """Costs, corrected by the clock while text is written.

  Each kind of pass has a running ratio of its seconds to its measured seconds.
  The seconds of a dispatch are compared with the expected seconds of its
  passes, and the kinds are corrected by their shares of them. Where a machine
  gets slower as a whole, kinds that were not observed meanwhile look too cheap
  at first. Each dispatch that has them corrects them, upwards by at most 4 %.

  Attributes:
    measured: the costs to start from; the ratio of a kind that is not observed
      for long returns to 1.
    ratios: seconds over measured seconds: of a plain step, of a drafted token,
      of verify by width.
    costs: the corrected costs, in plain steps as long as they are now.
  """

  def __init__(self, measured: costs.PassCosts):
    self.measured = measured
    self._logs = np.zeros(2 + len(measured.verify))  # of the ratios
    self.ratios, self.costs = np.exp(self._logs), measured

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

  def observe(self, work: np.ndarray, draft: float, seconds: float) -> float:
    """Learns from a dispatch.

    Args:
      work: the dispatch's passes; see `DecodeState`.
      draft: measured cost of a drafted token, in plain steps.
      seconds: wall time of the dispatch.

    Returns:
      The dispatch's time in plain steps as long as they are now, without what
      made it an outlier; 0 for a dispatch without a pass.
    """
    passes = work * np.array([1, draft, *self.measured.verify])
    if not passes.any():
      return 0.0
    expected = float(passes @ self.ratios)
    shares = passes * self.ratios / expected
    # Longer dispatches include another program's time, or a compilation.
    taken = min(seconds / self.measured.step_s, expected * _OUTLIER)
    error = math.log(max(taken / expected, _SMALLEST))
    # The smallest change of the logarithms that corrects so much of the error.
    change = _RATE * error * shares / (shares @ shares)
    self._logs = _KEPT * self._logs + change
    self.ratios = np.exp(self._logs)
    self.costs = self._corrected()
    return taken / float(self.ratios[0])

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
