"""Costs that the clock corrects, and disturbances that they do not follow."""

import numpy as np
import pytest
import tiny_model

from swift_jax.model import skip_mask as skip_masks
from swift_jax.pacing.clock import Clock, Guard
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
      clock.observe(work, DRAFT, 1, seconds(work, **ratios))
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
  assert step == pytest.approx(1.2, abs=0.02)
  assert wide == pytest.approx(1.5, abs=0.1)
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


def test_a_machine_that_is_slower_as_a_whole_changes_no_choice():
  """Also for passes that are not observed."""
  clock = observed(40, (PLAIN,), step=2.0)
  np.testing.assert_allclose(clock.ratios, 2, rtol=0.07)
  assert clock.costs.step_s == pytest.approx(2e-3, rel=0.07)
  np.testing.assert_allclose(clock.costs.verify, MEASURED.verify, rtol=0.07)
  none = np.zeros(0, bool)  # of two layers, which always run
  told = clock.for_policy(none, 1e-4)
  wanted = MEASURED.draft(none, 1e-4)
  assert float(told.draft) == pytest.approx(wanted, rel=0.07)


def test_one_dispatch_that_was_disturbed_decides_little():
  clock = observed(30, (PLAIN,))
  clock.observe(LAYERS, DRAFT, 9, 1000 * seconds(LAYERS))
  disturbed = clock.ratios[1]
  assert 1.0 < disturbed < 1.25
  assert clock.ratios[0] == pytest.approx(1, abs=0.02)
  clock.observe(LAYERS, DRAFT, 9, seconds(LAYERS))
  assert 1.0 < clock.ratios[1] < disturbed


def test_what_is_not_seen_again_is_as_measured_again():
  clock = observed(30, (PLAIN, LAYERS), draft=1.6)
  dear = clock.ratios[1]
  assert dear > 1.2
  observed(500, (PLAIN,), clock)
  assert 1 <= clock.ratios[1] < 1 + (dear - 1) / 5


def test_nothing_is_learnt_from_no_work():
  clock = observed(3, (np.array([0, 0, 0, 0]),))
  np.testing.assert_array_equal(clock.ratios, 1)


def test_costs_stay_costs():
  """Verify is never cheaper than a plain step, nor at a larger width."""
  clock = observed(60, step=3.0, verify=(0.3, 0.1))
  assert clock.costs.verify[0] >= 1
  assert list(clock.costs.verify) == sorted(clock.costs.verify)


class Seen(Clock):
  """A clock that notes what it observes."""

  def __init__(self):
    super().__init__(PassCosts(1e-3, 0.2, 0.0, 0.0, (1.0, 1.0, 1.0)))
    self.work, self.steps, self.seconds = [], [], []

  def observe(self, work, draft, steps, seconds):
    assert draft == pytest.approx(0.2)
    self.work.append(work)
    self.steps.append(steps)
    self.seconds.append(seconds)


@pytest.mark.parametrize('phases', [0, 2])
def test_every_pass_is_counted_once(phases):
  """For two texts, each with its own passes; also with rounds in halves."""
  engine = tiny_model.engine(
    skip_masks.uniform(tiny_model.CFG.num_hidden_layers, 0.5), adaptive=True
  )
  clock = Seen()
  engine.model.clock = lambda *_: clock
  decode = tiny_model.decode(
    batch_size=1, max_new_tokens=60, phase_interval=phases
  )
  results = engine.generate([[5], [7, 8, 9] * 6], decode)
  assert sum(clock.steps) == 2 * 60
  assert len(clock.work) > 2 and min(clock.seconds) > 0
  steps, drafted, *verified = sum(clock.work)
  m = [r.metrics for r in results]
  passes = sum(x.verify_passes for x in m)
  assert steps and drafted
  assert steps + sum(verified) == passes
  assert drafted == sum(x.drafted - x.copied for x in m)


def test_a_batch_is_as_far_as_its_last_row():
  """Rows have different lengths; plain steps are counted for all together."""
  engine = tiny_model.engine(
    skip_masks.uniform(tiny_model.CFG.num_hidden_layers, 0.5), adaptive=True
  )
  clock = Seen()
  engine.model.clock = lambda *_: clock
  decode = tiny_model.decode(max_new_tokens=30, rounds_per_dispatch=1)
  engine.generate([[5], [7, 8, 9] * 6, list(range(20, 40))], decode)
  assert sum(clock.steps) == 30
  assert min(clock.steps) >= 0


def dispatches(guard, number, steps, cost):
  """Gives the guard dispatches; returns whether it was closed before each."""
  seen = []
  for _ in range(number):
    seen.append(guard.is_closed)
    guard.add(8 if guard.is_closed else steps, 8 if guard.is_closed else cost)
  return seen


def test_the_guard_stays_open_while_speculation_pays():
  assert not any(dispatches(Guard(), 100, steps=9, cost=8))
  assert not any(dispatches(Guard(), 100, steps=8, cost=8.05))


@pytest.mark.parametrize('cost', [8.4, 12, 80])
def test_the_guard_costs_little_where_it_does_not(cost):
  """Drafting is tried again, more and more rarely up to a limit."""
  guard, plain, taken = Guard(), 0, 0
  closed = dispatches(guard, 3000, 8, cost)
  for is_closed in closed:
    plain += 8
    taken += 8 if is_closed else cost
  assert taken < 1.03 * plain
  trials = [n for n in range(1, 3000) if closed[n - 1] and not closed[n]]
  gaps = np.diff(trials)
  assert len(trials) > 3 and (gaps[1:4] > gaps[:3]).all()


@pytest.mark.parametrize('dear', [1.0, 1.3, 1.8])
@pytest.mark.parametrize(
  ('speed', 'closed'), [(0.6, True), (0.8, True), (1.05, False), (1.6, False)]
)
def test_drafts_that_were_thought_cheaper_are_found_out(dear, speed, closed):
  """Where the policy chooses no plain step, some are made all the same: else
  dear drafts would look like a machine that is slower as a whole."""
  clock, shut = Clock(MEASURED), 0
  believed = float(LAYERS @ [1, DRAFT, *MEASURED.verify])
  brought = speed * dear * believed  # plain steps
  for _ in range(600):
    is_closed = clock.guard.is_closed
    shut += is_closed
    if is_closed or clock.wants_plain_steps:
      clock.observe(PLAIN, DRAFT, 16, seconds(PLAIN))
    else:
      cost = seconds(LAYERS, 1, dear, (dear, dear))
      clock.observe(LAYERS, DRAFT, brought, cost)
  assert (shut > 500) if closed else shut == 0


def test_plain_steps_are_made_rarely():
  clock, made = Clock(MEASURED), 0
  for _ in range(2000):
    if clock.wants_plain_steps:
      made += 1
      clock.observe(PLAIN, DRAFT, 16, seconds(PLAIN))
    else:
      clock.observe(LAYERS, DRAFT, 12, seconds(LAYERS))
  spent = 2000 * float(LAYERS @ [1, DRAFT, *MEASURED.verify])
  assert 2 < made and 16 * made < 0.05 * spent


def test_the_guard_opens_for_good_once_it_pays():
  guard = Guard()
  dispatches(guard, 40, 8, 80)
  assert not any(dispatches(guard, 200, 16, 8)[60:])


@pytest.mark.parametrize('step_s', [1e-12, 1e6])
def test_drafts_end_where_the_clock_is_against_them(step_s):
  """However much the policy expects of them; and the text stays the same."""
  engine = tiny_model.engine(
    skip_masks.none_skipped(tiny_model.CFG.num_hidden_layers), adaptive=True
  )

  class Wrong(Clock):
    """Costs of a machine on which drafting loses all its time, or none."""

    def observe(self, work, draft, steps, seconds):
      self.guard.add(steps, seconds / step_s)

  clock = Wrong(PassCosts(1e-3, 0.1, 0.0, 0.0, (1.0, 1.0, 1.0)))
  engine.model.clock = lambda *_: clock
  decode = tiny_model.decode(
    batch_size=1, max_new_tokens=60, rounds_per_dispatch=2
  )
  results = engine.generate([[5], [9, 8, 7]], decode)
  for result, prompt in zip(results, ([5], [9, 8, 7]), strict=True):
    assert result.tokens == tiny_model.reference(prompt, 60)
  drafted = sum(r.metrics.drafted for r in results)
  assert drafted < 40 if step_s < 1 else drafted > 60


def test_what_was_won_long_ago_counts_little():
  guard = Guard()
  dispatches(guard, 200, 16, 8)
  assert any(dispatches(guard, 6, 8, 12))


def test_rests_are_short_again_after_a_win():
  guard = Guard()
  dispatches(guard, 500, 8, 80)
  while guard.is_closed:
    guard.add(8, 8)
  dispatches(guard, 50, 16, 8)
  closed = dispatches(guard, 60, 8, 12)
  first = closed.index(True)
  assert closed[first : first + 9] == [True] * 8 + [False]


@pytest.mark.parametrize('closed', [False, True])
def test_a_closed_guard_drafts_in_no_half_either(closed):
  engine = tiny_model.engine(
    skip_masks.none_skipped(tiny_model.CFG.num_hidden_layers), adaptive=True
  )
  clock = Seen()
  clock.guard._rest_left = 1e9 if closed else 0.0
  engine.model.clock = lambda *_: clock
  decode = tiny_model.decode(batch_size=1, phase_interval=1)
  (result,) = engine.generate([[5]], decode)
  assert result.tokens == tiny_model.reference([5], 40)
  assert (result.metrics.drafted == 0) == closed
  assert (result.metrics.draft_s == 0) == closed
