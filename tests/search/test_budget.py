"""The time that a search may take, and the estimate of the set that drafts."""

import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.search.budget import Budget, Estimate


def test_the_budget_is_a_share_of_all_time():
  budget = Budget(0.25)
  assert not budget.allows(1.0)  # nothing has been decoded yet
  budget.add(3.9)
  assert not budget.allows(1.0)
  budget.add(0.1)
  assert budget.allows(1.0)
  budget.pay(2.0, is_pass=True)  # it took twice as long as guessed
  assert (budget.elapsed, budget.spent) == (6.0, 2.0)
  assert not budget.affords(1e-9)
  budget.add(9.9)
  assert not budget.allows(0.0)
  budget.add(0.1)  # 4 s of 16, whatever the guess was
  assert budget.allows(100.0)
  assert budget.affords(2.0) and not budget.affords(2.1)
  assert Budget(1.0).allows(100.0)
  assert not Budget(0.0).allows(1e-9)


def test_a_pass_costs_what_the_quickest_did():
  """The first pass may have compiled; other work shows no pass's time."""
  budget = Budget(0.5)
  budget.pay(0.01)
  assert budget.per_pass is None
  for seconds, quickest in ((9.0, 9.0), (0.5, 0.5), (3.0, 0.5)):
    budget.pay(seconds, is_pass=True)
    assert budget.per_pass == quickest


@given(
  share=st.floats(0, 0.99),
  times=st.lists(st.tuples(st.booleans(), st.floats(1e-3, 10)), max_size=40),
)
def test_no_more_than_a_pass_above_the_share(share, times):
  budget, longest = Budget(share), 0.0
  for may_score, seconds in times:
    if may_score and budget.allows(seconds):
      longest = max(longest, seconds)
      budget.pay(seconds, is_pass=True)
    else:
      budget.add(seconds)
    assert budget.spent <= share * budget.elapsed + longest + 1e-9


def test_what_is_known_fades():
  """Newer windows count more: each fades by 0.8 when the next one comes."""
  found = Estimate()
  assert (found.mean, found.stddev, found.low) == (None, None, 0.0)
  windows = [(50, 50), (10, 50), (3, 20)]
  for hits, positions in windows:
    found.add(hits, positions)
  kept = [0.8**2, 0.8, 1]
  hits = sum(k * h for k, (h, _) in zip(kept, windows, strict=True))
  positions = sum(k * p for k, (_, p) in zip(kept, windows, strict=True))
  assert found.mean == pytest.approx(hits / positions)
  share = (hits + 1) / (positions + 2)
  stddev = math.sqrt(share * (1 - share) / positions)
  assert found.stddev == pytest.approx(stddev)
  assert found.low == pytest.approx(hits / positions - stddev)
  assert found.passes == 3


@pytest.mark.parametrize('hits', [0, 50])
def test_a_set_that_always_or_never_hits_is_no_certainty(hits):
  found = Estimate()
  found.add(hits, 50)
  assert found.mean == hits / 50
  assert 0.01 < found.stddev < 0.03


@pytest.mark.parametrize('saves', [True, False])
def test_what_costs_more_than_a_pass_is_saved_up_for(saves):
  """Else passes would spend the whole share; no larger expense would fit."""
  budget = Budget(0.1)
  seconds = 0
  while seconds < 500 and not budget.affords(8.0):
    seconds += 1
    budget.add(1.0)
    while budget.allows(0.05, saves=saves):
      budget.pay(0.05, is_pass=True)
  assert budget.spent <= budget.elapsed * 0.1
  assert (seconds < 500) == saves


def test_a_long_rest_is_no_credit():
  budget = Budget(0.1)
  budget.add(1000.0)
  budget.pay(2.0)
  budget.forfeit()
  assert not budget.affords(1.0)
  budget.add(9.9)
  assert not budget.affords(1.0)
  budget.add(0.2)
  assert budget.affords(1.0)
  budget.forfeit()
  assert not budget.affords(1e-3)


def test_a_search_does_not_leave_the_run_behind_plain_decoding():
  budget = Budget(0.5)
  budget.add(1.0, plain_seconds=1.0)
  assert budget.affords(0.01) and not budget.affords(0.02)
  budget.add(1.0, plain_seconds=1.3)
  assert budget.affords(0.31) and not budget.affords(0.33)
  budget.pay(0.3)
  assert budget.affords(0.02) and not budget.affords(0.03)
  budget.add(1.0, plain_seconds=0.8)
  assert not budget.affords(1e-3)
  assert Budget(1.0, plain=1.0, written=9.0).affords(100.0)
