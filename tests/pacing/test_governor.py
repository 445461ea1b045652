"""One account decides on drafts, on the search and on plain steps."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import tiny_model

from swift_jax.decoding import policy
from swift_jax.model import skip_mask as skip_masks
from swift_jax.pacing.clock import Clock
from swift_jax.pacing.costs import PassCosts
from swift_jax.pacing.governor import Governor

BITS = skip_masks.uniform(4, 0.5).bits()
# A drafted token costs .4 plain steps.
MEASURED = PassCosts(1e-3, 0.1, 0.05, 0.05, (1.5, 2.0))
DRAFT = MEASURED.draft(BITS)
PLAIN = np.array([16, 0, 0, 0])
LAYERS = np.array([0, 12, 2, 0])


class Fixed(Clock):
  """Costs that stay fixed; a plain step takes a second."""

  def __init__(self):
    super().__init__(PassCosts(1.0, 0.2, 0.0, 0.0, (1.0, 1.0)))

  def observe(self, work, draft, seconds):
    return seconds


def governor(share=0.0, clock=None):
  made = Governor(share)
  made.begin(clock)
  return made


def record(one, seconds, steps=0, work=LAYERS, rounds=1):
  one.record(seconds, rounds, steps, work, BITS, 0.0)


def may_score(one, **how):
  """Whether a pass of one mask may be taken, on a window of the width 1."""
  return one.may_score(1, 1, (1,), **how)


def test_the_search_has_a_share_of_all_time():
  one = governor(0.25)
  assert not may_score(one)  # nothing has been decoded yet
  record(one, 3.0, rounds=3)
  one.add(0.9)
  assert not may_score(one)  # a pass is thought to take a round, 1 s
  one.add(0.1)
  assert may_score(one)
  one.pay(2.0, is_pass=True)  # it took twice as long as was thought
  assert (one.elapsed, one.spent) == (6.0, 2.0)
  assert not one.affords(1e-9)
  one.add(9.9)
  assert not may_score(one)
  one.add(0.1)  # 4 s of 16: as long again as the quickest pass
  assert may_score(one) and one.affords(2.0) and not one.affords(2.1)
  assert governor(1.0).may_score(99, 1, (1,))
  record(never := governor(0.0), 9.0)
  assert not may_score(never)


def test_before_the_first_pass_it_is_thought_to_cost_wide_verifies():
  """Where they are dearer than a round; a window of 50 is 6.25 of width 8."""
  one = governor(0.5, Fixed())
  one.add(100.0)
  record(one, 101.0, rounds=101, steps=200)
  assert one.affords(100.0) and not one.affords(102.0)
  for masks, passes in ((13, True), (17, False)):  # 100 s may be spent
    assert one.may_score(masks, 50, (4, 8)) == passes


def test_a_pass_costs_what_the_quickest_did():
  """The first pass may have compiled; other work shows no pass's time."""
  one = governor(0.5)
  one.pay(0.01)
  assert one.per_pass is None
  for seconds, quickest in ((9.0, 9.0), (0.5, 0.5), (3.0, 0.5)):
    one.pay(seconds, is_pass=True)
    assert one.per_pass == quickest


@given(
  share=st.floats(0, 0.99),
  times=st.lists(st.tuples(st.booleans(), st.floats(1e-3, 10)), max_size=40),
)
def test_no_more_than_a_pass_above_the_share(share, times):
  one, longest = governor(share), 0.0
  for wants_score, seconds in times:
    if wants_score and may_score(one):
      longest = max(longest, seconds)
      one.pay(seconds, is_pass=True)
    else:
      record(one, seconds)
    assert one.spent <= share * one.elapsed + longest + 1e-9


@pytest.mark.parametrize('keeps', [True, False])
def test_what_costs_more_than_a_pass_is_saved_up_for(keeps):
  """Else passes would spend the whole share; no larger expense would fit."""
  one = governor(0.1)
  one.per_pass = 0.05
  seconds = 0
  while seconds < 500 and not one.affords(8.0):
    seconds += 1
    one.add(1.0)
    while may_score(one, keeps_reserve=keeps):
      one.pay(0.05, is_pass=True)
  assert one.spent <= one.elapsed * 0.1
  assert (seconds < 500) == keeps


def test_a_long_rest_is_no_credit():
  one = governor(0.1)
  one.add(1000.0)
  one.pay(2.0)
  one.forfeit()
  assert not one.affords(1.0)
  one.add(9.9)
  assert not one.affords(1.0)
  one.add(0.2)
  assert one.affords(1.0)
  one.forfeit()
  assert not one.affords(1e-3)


def test_a_search_does_not_leave_the_run_behind_plain_decoding():
  one = governor(0.5, Fixed())
  record(one, 100.0, steps=100)
  assert one.affords(1.0) and not one.affords(1.1)
  record(one, 100.0, steps=130)
  assert one.affords(31.0) and not one.affords(33.0)
  one.pay(30.0)
  assert one.affords(2.0) and not one.affords(3.0)
  record(one, 100.0, steps=80)
  assert not one.affords(1e-3)
  unlimited = governor(1.0, Fixed())
  record(unlimited, 100.0, steps=10)
  assert unlimited.affords(100.0)


def test_a_prompt_is_no_lag():
  one = governor(0.5, Fixed())
  one.add(100.0)
  assert one.plain == one.written == 100.0
  assert one.affords(1.0) and one.may_draft


def test_no_set_wins_where_even_right_drafts_are_slower():
  layers = 4
  dear = PassCosts(1.0, 0.5, 0.25, 0.25, (3.0, 9.0))
  one = governor(0.1, Clock(dear))
  assert not one.may_win(layers, 4, (4, 8))
  assert governor(1.0, Clock(dear)).may_win(layers, 4, (4, 8))
  assert governor(0.1).may_win(layers, 4, (4, 8))  # nobody knows
  assert governor(0.1, Clock(MEASURED)).may_win(layers, 4, (4, 8))


def dispatches(one, number, steps, cost):
  """Records dispatches; returns whether drafts rested before each."""
  seen = []
  for _ in range(number):
    seen.append(not one.may_draft)
    rests = not one.may_draft
    record(one, *((8, 8) if rests else (cost, steps)), work=PLAIN)
  return seen


def test_drafts_go_on_while_they_pay():
  for steps, cost in (9, 8), (8, 8.05):
    one = governor(clock=Fixed())
    assert not any(dispatches(one, 100, steps, cost))


@pytest.mark.parametrize('cost', [8.4, 12, 80])
def test_drafts_that_do_not_pay_cost_little(cost):
  """Drafting is tried again, more and more rarely up to a limit."""
  one, plain, taken = governor(clock=Fixed()), 0, 0
  rests = dispatches(one, 3000, 8, cost)
  for is_rest in rests:
    plain += 8
    taken += 8 if is_rest else cost
  assert taken < 1.03 * plain
  trials = [n for n in range(1, 3000) if rests[n - 1] and not rests[n]]
  gaps = np.diff(trials)
  assert len(trials) > 3 and (gaps[1:4] > gaps[:3]).all()


def seconds(work, dear=1.0):
  """Time in which drafts are `dear` times as dear as measured."""
  draft = [DRAFT, *MEASURED.verify]
  return 1e-3 * float(work @ [1, *np.multiply(dear, draft)])


@pytest.mark.parametrize('dear', [1.0, 1.3, 1.8])
@pytest.mark.parametrize(
  ('speed', 'rests'),
  [(0.6, True), (0.8, True), (0.9, True), (1.05, False), (1.6, False)],
)
def test_drafts_that_were_thought_cheaper_are_found_out(dear, speed, rests):
  """Where the policy chooses no plain step, some are made all the same, to know
  what they cost by now."""
  one, rested = governor(clock=Clock(MEASURED)), 0
  brought = speed * 1e3 * seconds(LAYERS, dear)  # plain steps
  for _ in range(600):
    if one.may_draft:
      record(one, seconds(LAYERS, dear), brought)
    else:
      rested += one.rounds(8) == 8
      record(one, seconds(PLAIN), 16, PLAIN)
  assert (rested > 500) if rests else rested == 0


def test_plain_steps_are_made_rarely():
  """And then in one round, not in as many as a rest would take."""
  one, made = governor(clock=Clock(MEASURED)), 0
  for _ in range(2000):
    if one.may_draft:
      record(one, seconds(LAYERS), 12)
    else:
      assert one.rounds(8) == 1
      made += 1
      record(one, seconds(PLAIN), 16, PLAIN)
  spent = 2000 * 1e3 * seconds(LAYERS)
  assert 2 < made and 16 * made < 0.05 * spent


def test_drafts_go_on_for_good_once_they_pay():
  one = governor(clock=Fixed())
  dispatches(one, 40, 8, 80)
  assert not any(dispatches(one, 200, 16, 8)[60:])


def test_drafts_are_judged_apart_for_each_clock():
  first, second = Fixed(), Fixed()
  one = governor(clock=first)
  dispatches(one, 3, 8, 80)
  for clock, may_draft in ((first, False), (second, True), (first, False)):
    one.begin(clock)
    assert one.may_draft == may_draft
  assert one.elapsed > 80  # the time is of all texts


def test_drafts_rest_for_a_short_time_where_a_machine_gets_slower():
  """It looks like dearer drafts until the plain steps of the rest show it."""
  one, rested = governor(clock=Clock(MEASURED)), 0
  brought = 1.2 * 1e3 * seconds(LAYERS)  # plain steps: drafts pay
  for number in range(400):
    slow = 2 if number > 100 else 1
    if one.may_draft:
      record(one, slow * seconds(LAYERS), brought)
    else:
      rested += one.rounds(8) == 8
      record(one, slow * seconds(PLAIN), 16, PLAIN)
  assert rested < 40


def test_while_drafts_rest_no_rate_is_high_enough():
  one = governor(clock=Clock(MEASURED))
  assert governor().for_policy(BITS, 0) is None  # no policy weighs costs
  before = one.for_policy(BITS, 0)
  assert before.min_rate == np.float32(policy.MIN_RATE)
  record(one, 1e3 * seconds(LAYERS))
  assert not one.may_draft
  after = one.for_policy(BITS, 0)
  assert after.min_rate == np.inf and not after.is_near(before)


class Still(Clock):
  """Costs that stay fixed; no dispatch takes any of the governor's time."""

  def observe(self, work, draft, seconds):
    return 0.0


CHEAP = PassCosts(1e-3, 0.2, 0.0, 0.0, (1.0, 1.0, 1.0))


class Noting(Governor):
  """A governor that notes what it is given."""

  def __post_init__(self):
    super().__post_init__()
    self.given = []

  def record(self, seconds, rounds, steps, work, mask, saved_s):
    self.given.append((seconds, steps, work))
    super().record(seconds, rounds, steps, work, mask, saved_s)


def noted(prompts, **changes):
  """What a governor is given for these prompts; and the results."""
  engine = tiny_model.engine(
    skip_masks.uniform(tiny_model.CFG.num_hidden_layers, 0.5), adaptive=True
  )
  engine.model.clock = lambda *_: Still(CHEAP)
  engine.searcher.governor = Noting(0.1)
  results = engine.generate(prompts, tiny_model.decode(**changes))
  return *zip(*engine.searcher.governor.given, strict=True), results


@pytest.mark.parametrize(
  'phases', [0, pytest.param(2, marks=pytest.mark.nightly)]
)
def test_every_pass_is_counted_once(phases):
  """For two texts, each with its own passes; also with rounds in halves."""
  seconds, steps, work, results = noted(
    [[5], [7, 8, 9] * 6],
    batch_size=1,
    max_new_tokens=60,
    phase_interval=phases,
  )
  assert sum(steps) == 2 * 60
  assert len(work) > 2 and min(seconds) > 0
  plain, drafted, *verified = sum(work)
  m = [r.metrics for r in results]
  passes = sum(x.verify_passes for x in m)
  assert plain and drafted
  assert plain + sum(verified) == passes
  assert drafted == sum(x.drafted - x.copied for x in m)


def test_a_batch_is_as_far_as_its_last_row():
  """Rows have different lengths; plain steps are counted for all together."""
  prompts = [[5], [7, 8, 9] * 6, list(range(20, 40))]
  _, steps, *_ = noted(prompts, max_new_tokens=30, rounds_per_dispatch=1)
  assert sum(steps) == 30
  assert min(steps) >= 0


@pytest.mark.parametrize('cost', [24.0, 0.0])
def test_drafts_end_where_the_clock_is_against_them(cost):
  """However much the policy expects of them; and the text stays the same."""
  engine = tiny_model.engine(
    skip_masks.none_skipped(tiny_model.CFG.num_hidden_layers), adaptive=True
  )

  class Wrong(Clock):
    """Each dispatch takes as long as so many plain steps."""

    def observe(self, work, draft, seconds):
      return cost

  clock = Wrong(PassCosts(1e-3, 0.1, 0.0, 0.0, (1.0, 1.0, 1.0)))
  engine.model.clock = lambda *_: clock
  decode = tiny_model.decode(
    batch_size=1, max_new_tokens=60, rounds_per_dispatch=2
  )
  results = engine.generate([[5], [9, 8, 7]], decode)
  for result, prompt in zip(results, ([5], [9, 8, 7]), strict=True):
    assert result.tokens == tiny_model.reference(prompt, 60)
  drafted = sum(r.metrics.drafted for r in results)
  assert drafted < 40 if cost else drafted > 60


def test_what_was_won_long_ago_counts_little():
  one = governor(clock=Fixed())
  dispatches(one, 200, 16, 8)
  assert any(dispatches(one, 6, 8, 12))


def test_rests_are_short_again_after_a_win():
  one = governor(clock=Fixed())
  dispatches(one, 500, 8, 80)
  while not one.may_draft:
    record(one, 8, 8, PLAIN)
  dispatches(one, 50, 16, 8)
  rests = dispatches(one, 60, 8, 12)
  first = rests.index(True)
  assert rests[first : first + 9] == [True] * 8 + [False]


@pytest.mark.parametrize('rests', [False, True])
def test_drafts_that_rest_are_made_in_no_half_either(rests):
  engine = tiny_model.engine(
    skip_masks.none_skipped(tiny_model.CFG.num_hidden_layers), adaptive=True
  )
  clock = Still(CHEAP)
  engine.model.clock = lambda *_: clock
  one = engine.searcher.governor
  one.begin(clock)
  if rests:
    one._drafts.rest_left = 1e9
  decode = tiny_model.decode(batch_size=1, phase_interval=1)
  (result,) = engine.generate([[5]], decode)
  assert result.tokens == tiny_model.reference([5], 40)
  assert (result.metrics.drafted == 0) == rests
  assert (result.metrics.draft_s == 0) == rests
