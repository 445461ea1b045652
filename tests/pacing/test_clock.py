"""Costs that the clock corrects, and disturbances that they do not follow."""

import numpy as np
import pytest

from swift_jax.pacing.clock import Clock
from swift_jax.pacing.costs import PassCosts

MEASURED = PassCosts(1e-3, 0.1, 0.05, 0.05, (1.5, 2.0))
DRAFT = 0.4  # cost of a drafted token, in plain steps
PLAIN = np.array([16, 0, 0, 0])
LAYERS = np.array([0, 12, 2, 0])
COPIES = np.array([8, 0, 0, 3])


def seconds(work, step=1.0, draft=1.0, verify=(1.0, 1.0)):
  """A clock that saw passes take these multiples of their measured times."""
  narrow, wide = np.multiply(MEASURED.verify, verify)
  return 1e-3 * float(work @ [step, draft * DRAFT, narrow, wide])


def observed(rounds, works=(PLAIN, LAYERS, COPIES), clock=None, **ratios):
  clock = clock or Clock(MEASURED)
  for _ in range(rounds):
    for work in works:
      clock.observe(work, DRAFT, seconds(work, **ratios))
  return clock


def is_near(clock):
  """Whether the policy gets about the measured costs."""
  none = np.zeros(0, bool)  # of two layers, which always run
  return clock.for_policy(none, 0).is_near(Clock(MEASURED).for_policy(none, 0))


def test_what_is_as_measured_stays():
  clock = observed(5)
  np.testing.assert_allclose(clock.ratios, 1)
  assert is_near(clock)


def test_wrong_costs_are_corrected():
  """Each kind of pass by itself, in plain steps as long as they are now."""
  clock = observed(40, step=1.2, draft=0.9, verify=(1.2, 1.5))
  step, draft, narrow, wide = clock.ratios
  # Drafted tokens and their verify are only observed together.
  assert step == pytest.approx(1.2, abs=0.03)
  assert wide == pytest.approx(1.5, abs=0.12)
  made = seconds(LAYERS, step, draft, (narrow, wide))
  assert made == pytest.approx(seconds(LAYERS, 1, 0.9, (1.2, 1)), rel=0.02)
  costs = clock.costs
  assert not is_near(clock)
  assert costs.step_s == pytest.approx(1e-3 * step)
  assert costs.verify[1] == pytest.approx(2 * wide / step)
  none = np.zeros(0, bool)  # of two layers, which always run
  for saved_s in (0, 1e-4):  # of a program without gates
    wanted = MEASURED.draft(none, saved_s) * draft / step
    told = clock.for_policy(none, saved_s)
    assert float(told.draft) == pytest.approx(wanted)
    np.testing.assert_allclose(told.verify, costs.verify, rtol=1e-6)


def test_a_machine_that_is_slower_as_a_whole_changes_little():
  """And soon nothing for passes that were not observed meanwhile."""
  slower = {'step': 2.0, 'draft': 2.0, 'verify': (2.0, 2.0)}

  def found(clock, work):
    """The time that the clock expects, over the true time."""
    step, draft, *verify = clock.ratios
    return seconds(work, step, draft, verify) / seconds(work, **slower)

  clock = observed(40, **slower)
  for work in (PLAIN, LAYERS, COPIES):
    assert found(clock, work) == pytest.approx(1, abs=0.07)
  clock = observed(40, (PLAIN,), **slower)
  assert found(clock, PLAIN) == pytest.approx(1, abs=0.03)
  assert found(clock, LAYERS) == 0.5
  for _ in range(20):
    observed(1, (LAYERS,), clock, **slower)
  assert found(clock, LAYERS) > 0.9


def test_one_dispatch_that_was_disturbed_decides_little():
  clock = observed(30, (PLAIN,))
  clock.observe(LAYERS, DRAFT, 1000 * seconds(LAYERS))
  disturbed = clock.ratios[1]
  assert 1.0 < disturbed < 1.25
  assert clock.ratios[0] == 1
  clock.observe(LAYERS, DRAFT, seconds(LAYERS))
  assert 1.0 < clock.ratios[1] < disturbed


def test_what_is_not_seen_again_is_as_measured_again():
  clock = observed(30, (PLAIN, LAYERS), draft=1.6)
  dear = clock.ratios[1]
  assert dear > 1.2
  observed(900, (PLAIN,), clock)
  assert 1 <= clock.ratios[1] < 1 + (dear - 1) / 5


def test_nothing_is_learnt_from_no_work():
  clock = observed(3, (np.array([0, 0, 0, 0]),))
  np.testing.assert_array_equal(clock.ratios, 1)


def test_costs_that_were_far_too_dear_are_forgotten_soon():
  """As where other work ran while they were measured; then the machine slows."""
  clock = Clock(MEASURED)
  for _ in range(3000):
    clock.observe(PLAIN, DRAFT, seconds(PLAIN) / 20)
  for _ in range(99):
    clock.observe(PLAIN, DRAFT, seconds(PLAIN))
  assert clock.ratios[0] == pytest.approx(1, rel=0.05)


def test_costs_stay_costs():
  """Verify is never cheaper than a plain step, nor at a larger width."""
  clock = observed(60, step=3.0, verify=(0.3, 0.1))
  assert clock.costs.verify[0] >= 1
  assert list(clock.costs.verify) == sorted(clock.costs.verify)
