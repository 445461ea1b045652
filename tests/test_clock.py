"""Costs that the clock corrects: what they come to, and what they do not follow."""

import numpy as np
import pytest
import tiny_model

from swift_jax import skip_mask as skip_masks
from swift_jax.costs import Clock, PassCosts

MEASURED = PassCosts(1e-3, 0.1, 0.05, 0.05, (1.5, 2.0))
DRAFT = 0.4  # of a token, in plain steps
PLAIN = np.array([16, 0, 0, 0])
LAYERS = np.array([0, 12, 2, 0])
COPIES = np.array([8, 0, 0, 3])


def seconds(work, step=1.0, draft=1.0, verify=(1.0, 1.0)):
  """Of a machine on which passes take so many times what was measured."""
  narrow, wide = np.multiply(MEASURED.verify, verify)
  return 1e-3 * float(work @ [step, draft * DRAFT, narrow, wide])


def observed(rounds, works=(PLAIN, LAYERS, COPIES), clock=None, **ratios):
  clock = clock or Clock(MEASURED)
  for _ in range(rounds):
    for work in works:
      clock.observe(work, DRAFT, seconds(work, **ratios))
  return clock


def test_what_is_as_measured_stays():
  clock = observed(5)
  np.testing.assert_allclose(clock.ratios, 1)
  assert clock.costs.is_near(MEASURED)


def test_wrong_costs_are_corrected():
  """Each kind apart, and in plain steps as they are."""
  clock = observed(40, step=1.2, draft=0.9, verify=(1.2, 1.5))
  step, draft, narrow, wide = clock.ratios
  # Drafted tokens and the verify behind them are only ever seen together.
  assert step == pytest.approx(1.2, abs=0.03)
  assert wide == pytest.approx(1.5, abs=0.04)
  made = seconds(LAYERS, step, draft, (narrow, wide))
  assert made == pytest.approx(seconds(LAYERS, 1, 0.9, (1.2, 1)), rel=0.02)
  costs = clock.costs
  assert not costs.is_near(MEASURED)
  assert costs.step_s == pytest.approx(1e-3 * step)
  assert costs.verify[1] == pytest.approx(2 * wide / step)
  none = skip_masks.none_skipped(2)
  whole = MEASURED.draft(none) * draft / step
  assert costs.draft(none) == pytest.approx(whole)


def test_a_machine_that_is_slower_as_a_whole_changes_no_choice():
  """Also of what is not observed."""
  clock = observed(40, (PLAIN,), step=2.0)
  np.testing.assert_allclose(clock.ratios, 2, rtol=0.03)
  assert clock.costs.step_s == pytest.approx(2e-3, rel=0.03)
  np.testing.assert_allclose(clock.costs.verify, MEASURED.verify, rtol=0.03)


def test_one_dispatch_that_was_disturbed_decides_little():
  clock = observed(30, (PLAIN,))
  clock.observe(LAYERS, DRAFT, 1000 * seconds(LAYERS))
  disturbed = clock.ratios[1]
  assert 1.0 < disturbed < 1.25
  assert clock.ratios[0] == pytest.approx(1, abs=0.02)
  clock.observe(LAYERS, DRAFT, 0.0)
  assert 0.8 < clock.ratios[1] < disturbed


def test_what_is_not_seen_again_is_as_measured_again():
  clock = observed(30, (PLAIN, LAYERS), draft=1.6)
  dear = clock.ratios[1]
  assert dear > 1.2
  observed(250, (PLAIN,), clock)
  assert 1 <= clock.ratios[1] < 1 + (dear - 1) / 5


def test_nothing_is_learnt_from_no_work():
  clock = observed(3, (np.array([0, 0, 0, 0]),))
  np.testing.assert_array_equal(clock.ratios, 1)


def test_costs_stay_costs():
  """No pass is cheaper than a step, nor a wider one than a narrower."""
  clock = observed(60, step=3.0, verify=(0.3, 0.1))
  assert clock.costs.verify[0] >= 1
  assert list(clock.costs.verify) == sorted(clock.costs.verify)


class Seen(Clock):
  """Writes down what it is told."""

  def __init__(self):
    super().__init__(PassCosts(1e-3, 0.2, 0.0, 0.0, (1.0, 1.0, 1.0)))
    self.work, self.seconds = [], []

  def observe(self, work, draft, seconds):
    assert draft == pytest.approx(0.2)
    self.work.append(work)
    self.seconds.append(seconds)


@pytest.mark.parametrize('phases', [0, 2])
def test_every_pass_is_counted_once(phases):
  """Two texts: each counts its own. Also where rounds run in halves."""
  engine = tiny_model.engine(
    skip_masks.uniform(tiny_model.CFG.num_hidden_layers, 0.5), adaptive=True
  )
  clock = Seen()
  engine.model.clock = lambda *_: clock
  decode = tiny_model.decode(
    batch_size=1, max_new_tokens=60, phase_interval=phases
  )
  results = engine.generate([[5], [7, 8, 9] * 6], decode)
  assert len(clock.work) > 2 and min(clock.seconds) > 0
  steps, drafted, *verified = sum(clock.work)
  m = [r.metrics for r in results]
  passes = sum(x.verify_passes for x in m)
  assert steps and drafted
  assert steps + sum(verified) == passes
  assert drafted == sum(x.drafted - x.copied for x in m)
