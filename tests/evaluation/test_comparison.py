"""Figures, speedups and equality against numbers worked out by hand."""

import dataclasses

import answer_files
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from swift_jax.evaluation.report import comparison, equality, figures
from swift_jax.evaluation.report.comparison import bootstrap
from swift_jax.evaluation.report.equality import Difference
from swift_jax.evaluation.report.figures import Position

PLAIN, SWIFT = answer_files.plain(), answer_files.swift()
near = pytest.approx


def foreign(answers):
  """The same answers as another method's file would hold them."""
  return tuple(
    dataclasses.replace(
      answer,
      index=None,
      method=None,
      skip_ratio=None,
      matchness=None,
      turns=tuple(
        dataclasses.replace(turn, detail=None) for turn in answer.turns
      ),
    )
    for answer in answers
  )


def with_tokens(answer, *texts):
  """The answer with other tokens in its turns, as many as are given."""
  turns = tuple(
    answer_files.turn(tokens, 1.0, (1,) * len(tokens), phases=(0, 1, 0))
    for tokens in texts
  )
  return dataclasses.replace(answer, turns=turns)


def test_figures_of_plain_decoding():
  found = figures.figures(PLAIN)
  assert (found.questions, found.texts) == (3, 4)
  assert (found.new_tokens, found.wall_s, found.passes) == (20, 10.0, 20)
  assert found.tokens_per_second == 2.0
  assert found.mean_tokens_per_second == near((4 + 2 + 1.6) / 3)
  assert found.mean_accepted_length == found.mean_accept_lengths == 1.0
  assert found.acceptance is None
  assert dataclasses.asdict(found.time) == {
    'prefill': near(0.25),
    'decode': near(0.7),
    'draft': None,
    'verify': None,
    'search': 0.0,
    'other': near(0.05),
  }


def test_figures_of_swift():
  found = figures.figures(SWIFT, figures.sampled_draft_share(SWIFT))
  assert (found.new_tokens, found.wall_s, found.passes) == (20, 4.0, 8)
  assert found.tokens_per_second == 5.0
  assert found.mean_tokens_per_second == near((4 + 8 + 4) / 3)
  assert found.mean_accepted_length == found.mean_accept_lengths == 2.5
  assert (found.acceptance.drafted, found.acceptance.accepted) == (18, 12)
  assert found.acceptance.rate == near(2 / 3)
  assert found.acceptance.by_position == (
    Position(1, 7, 5, 5 / 7),
    Position(2, 5, 4, 0.8),
    Position(3, 4, 2, 0.5),
    Position(4, 2, 1, 0.5),
  )
  assert dataclasses.asdict(found.time) == {
    'prefill': near(0.25),
    'decode': None,
    'draft': near(0.125),  # a quarter of half the time
    'verify': near(0.375),
    'search': near(0.15625),
    'other': near(0.09375),
  }


def test_the_share_of_drafting_is_that_of_the_sample():
  # 1/8 s of drafting and 3/8 s of verifying were timed apart.
  assert figures.sampled_draft_share(SWIFT) == 0.25
  assert figures.sampled_draft_share(SWIFT[2:]) is None
  assert figures.sampled_draft_share(PLAIN) is None
  unsampled = figures.figures(SWIFT[2:]).time
  assert (unsampled.draft, unsampled.verify) == (None, None)
  assert unsampled.decode == 0.5


def test_distinct_4grams_are_pooled_over_texts():
  # 1 of 1, 1 of 5, 1 of 1, 1 of 1.
  assert figures.distinct_4grams(PLAIN) == near(4 / 8)
  assert figures.loops(PLAIN) == (2,)
  assert figures.distinct_4grams(PLAIN[1:2]) == near(0.2)
  short = with_tokens(PLAIN[0], (1, 2, 3))
  assert figures.distinct_4grams([short]) is None
  assert figures.loops([short]) == ()


def test_a_text_with_half_of_its_4grams_distinct_does_not_loop():
  half = with_tokens(PLAIN[0], (1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3))
  assert figures.distinct_4grams([half]) == 0.5
  assert figures.loops([half]) == ()
  one_turn = with_tokens(PLAIN[0], (1, 2, 3, 4), (5,) * 9)
  assert figures.loops([one_turn]) == (1,)


def test_foreign_files_give_what_they_can():
  found = figures.figures(foreign(SWIFT))
  assert (found.tokens_per_second, found.mean_accepted_length) == (5.0, 2.5)
  assert (found.acceptance, found.time, found.distinct_4grams) == (None,) * 3
  assert found.loops == ()


def test_spec_benchs_length_is_that_of_the_recorded_lengths():
  counted = dataclasses.replace(foreign(SWIFT)[0], accept_lengths=(3, 2, 1, 4))
  found = figures.figures([counted])
  assert (found.mean_accepted_length, found.mean_accept_lengths) == (2.0, 2.5)


def test_what_took_no_time_has_no_speed():
  still = [
    dataclasses.replace(
      answer,
      turns=tuple(dataclasses.replace(t, wall_s=0.0) for t in answer.turns),
    )
    for answer in PLAIN
  ]
  found = figures.figures(still)
  assert (found.tokens_per_second, found.time) == (None, None)
  assert found.mean_tokens_per_second is None
  compared = comparison.compare(PLAIN, still)
  assert (compared.speedup, compared.low, compared.high) == (None,) * 3
  assert compared.baseline_tokens_per_second == 2.0


def test_nothing_has_no_figures():
  found = figures.figures([])
  assert (found.questions, found.tokens_per_second) == (0, None)
  compared = comparison.compare([], SWIFT)
  assert (compared.questions, compared.speedup, compared.low) == (0, None, None)


def test_speedup_is_total_over_total_and_spec_benchs_a_ratio_of_means():
  found = comparison.compare(PLAIN, SWIFT)
  assert found.questions == 3
  assert found.baseline_tokens_per_second == 2.0
  assert found.tokens_per_second == 5.0
  assert found.speedup == 2.5
  assert 1 <= found.low <= 2.5 <= found.high <= 4  # of the prompts: 1, 4, 2.5
  assert found.spec_bench_baseline == near(7.6 / 3)
  assert found.spec_bench_candidate == near(16 / 3)
  assert found.spec_bench_speedup == near(16 / 7.6)


def test_speed_py_counts_the_baselines_text_again():
  # A token a letter and one in front, which speed.py takes away again.
  found = comparison.compare(PLAIN, SWIFT, 0, lambda text: len(text) + 1)
  assert found.spec_bench_speedup == near(16 / 7.6)
  # Two letters a token: 1, 3 and 1 + 1 of them, over 1, 4 and 5 seconds.
  found = comparison.compare(PLAIN, SWIFT, 0, lambda text: len(text) // 2)
  assert found.spec_bench_baseline == near((1 + 0.75 + 0.4) / 3)
  assert found.spec_bench_candidate == near(16 / 3)
  assert found.baseline_tokens_per_second == 2.0


def test_speedups_are_over_what_both_have():
  found = comparison.compare(PLAIN, SWIFT[::-1][:2])
  assert found.questions == 2
  assert found.baseline_tokens_per_second == near(16 / 9)
  assert found.tokens_per_second == near(16 / 3)
  assert found.speedup == near(3.0)
  # As their script has it, each file by itself.
  assert found.spec_bench_baseline == near(7.6 / 3)
  assert found.spec_bench_candidate == near(6.0)


def test_tasks_are_those_of_spec_benchs_report():
  folded = comparison.task_names([PLAIN, SWIFT], folds_mt_bench=True)
  assert folded == {1: 'qa', 2: 'qa', 3: 'mt_bench'}
  named = comparison.task_names([PLAIN[1:], SWIFT], folds_mt_bench=False)
  assert named == {2: 'qa', 3: 'writing', 1: 'qa'}
  groups = comparison.by_task(SWIFT, folded)
  assert groups == {'qa': list(SWIFT[:2]), 'mt_bench': [SWIFT[2]]}
  assert list(comparison.by_task(SWIFT[2:], folded)) == ['mt_bench']


def test_speedups_of_each_task():
  pairs = zip(
    *(
      comparison.by_task(a, {1: 'qa', 2: 'qa', 3: 'mt'}).values()
      for a in (PLAIN, SWIFT)
    ),
    strict=True,
  )
  qa, mt_bench = (comparison.compare(*pair) for pair in pairs)
  assert (qa.baseline_tokens_per_second, qa.tokens_per_second) == (2.4, 6.0)
  assert (qa.speedup, qa.spec_bench_speedup) == (near(2.5), near(2.0))
  # Of two prompts a draw has one alone or both.
  assert (qa.low, qa.high) == (near(1.0), near(4.0))
  assert mt_bench.speedup == near(2.5)
  assert (mt_bench.low, mt_bench.high) == (None, None)  # a single prompt


PROMPT = st.tuples(*[st.floats(0.1, 100)] * 4)


def test_the_same_prompts_are_drawn_for_tokens_and_seconds():
  """Long and short texts of one speed: no draw has another speedup."""
  tokens = np.array([[1, 1], [10, 12], [100, 90], [1000, 1000]], float)
  found = bootstrap(tokens, tokens / [10, 25], 0)
  assert found == pytest.approx((2.5, 2.5))


@given(st.lists(PROMPT, min_size=2, max_size=12), st.integers(0, 2**32))
def test_the_interval_holds_the_ratio_and_is_reproducible(prompts, seed):
  tokens, seconds = np.split(np.array(prompts), 2, axis=1)
  low, high = bootstrap(tokens, seconds, seed)
  speeds = tokens.sum(0) / seconds.sum(0)
  assert low - 1e-9 <= speeds[1] / speeds[0] <= high + 1e-9
  assert bootstrap(tokens, seconds, seed) == (low, high)
  # No draw can leave the range of the prompts' own ratios of totals.
  each = tokens / seconds
  assert each[:, 1].min() / each[:, 0].max() <= low * (1 + 1e-9)
  assert high <= each[:, 1].max() / each[:, 0].min() * (1 + 1e-9)


def test_prompts_that_are_all_alike_leave_no_doubt():
  tokens, seconds = np.full((9, 2), 8.0), np.tile([4.0, 2.0], (9, 1))
  assert bootstrap(tokens, seconds, 3) == (2.0, 2.0)


def test_the_same_prompts_are_drawn_for_both():
  # Speeds differ a hundredfold from prompt to prompt, the speedup never.
  seconds = np.array([[1.0, 0.5], [100.0, 50.0], [10.0, 5.0]])
  assert bootstrap(np.full((3, 2), 8.0), seconds, 0) == near((2.0, 2.0))


def test_the_interval_is_as_wide_as_theory_has_it():
  """For many prompts: 1.96 standard errors of the mean to each side."""
  rng = np.random.default_rng(0)
  tokens = np.column_stack([np.full(400, 10.0), rng.uniform(10, 30, 400)])
  low, high = bootstrap(tokens, np.ones((400, 2)), 0)
  error = tokens[:, 1].std() / 10 / np.sqrt(400)
  assert high - low == near(2 * 1.96 * error, rel=0.1)


def test_draws_without_a_speedup_are_left_out():
  tokens = np.array([[0.0, 4.0], [4.0, 4.0]])
  low, high = bootstrap(tokens, np.ones((2, 2)), 0)
  assert (low, high) == (1.0, 2.0)
  assert bootstrap(0 * tokens, np.ones((2, 2)), 0) == (None, None)


def test_equal_texts_are_equal():
  for candidate in (SWIFT, SWIFT[::-1], foreign(SWIFT)):
    found = equality.check(PLAIN, candidate)
    assert found.is_identical
    assert (found.texts, found.equal) == (4, 4)
    assert (found.different, found.missing, found.extra) == (0, 0, 0)
    assert found.differences == ()


def test_the_first_token_that_differs_is_found():
  other = (*SWIFT[:2], with_tokens(SWIFT[2], (1, 2, 3, 4), (5, 6, 9, 8)))
  found = equality.check(PLAIN, other)
  assert not found.is_identical
  assert (found.equal, found.different) == (3, 1)
  assert found.differences == (
    Difference(3, 1, 'token', 2, 7, 9, 'efgh', 'efih'),
  )


def test_tokens_decide_where_both_record_them():
  # Another end-of-text token, which no text shows.
  turn = SWIFT[0].turns[0]
  detail = dataclasses.replace(turn.detail, tokens=(1, 2, 3, 99))
  other = dataclasses.replace(
    SWIFT[0], turns=(dataclasses.replace(turn, detail=detail),)
  )
  (difference,) = equality.check(PLAIN[:1], [other]).differences
  assert (difference.index, difference.expected, difference.found) == (3, 4, 99)
  assert equality.check(PLAIN[:1], foreign([other])).is_identical


def test_without_tokens_characters_are_compared():
  other = foreign([with_tokens(SWIFT[0], (1, 9, 3, 4))])
  for pair in ((PLAIN[:1], other), (foreign(PLAIN[:1]), other)):
    (difference,) = equality.check(*pair).differences
    assert difference == Difference(
      1, 0, 'character', 1, 'b', 'i', 'abcd', 'aicd'
    )


@pytest.mark.parametrize(
  'tokens, index, expected, found',
  [((1, 2), 2, 3, None), ((1, 2, 3, 4, 5), 4, None, 5), ((), 0, 1, None)],
)
def test_a_text_that_ends_elsewhere_is_different(
  tokens, index, expected, found
):
  other = with_tokens(SWIFT[0], tokens)
  (difference,) = equality.check(PLAIN[:1], [other]).differences
  assert difference.index == index
  assert (difference.expected, difference.found) == (expected, found)


def test_what_surrounds_a_difference_is_short():
  long = [i % 26 + 1 for i in range(200)]
  other = [*long[:100], 26, *long[101:]]
  (difference,) = equality.check(
    [with_tokens(PLAIN[0], long)], [with_tokens(PLAIN[0], other)]
  ).differences
  text = ''.join(chr(ord('a') + token - 1) for token in long)
  assert difference.expected_text == text[80:140]
  assert difference.found_text == text[80:100] + 'z' + text[101:140]


def test_missing_and_extra_texts_are_counted():
  found = equality.check(PLAIN, SWIFT[:2])
  assert not found.is_identical
  assert (found.texts, found.equal, found.missing) == (4, 2, 2)
  assert (found.missing_questions, found.extra_questions) == ((3,), ())
  found = equality.check(PLAIN[:2], SWIFT)
  assert found.is_identical  # all that there is to compare
  assert (found.texts, found.equal, found.extra) == (2, 2, 2)
  assert (found.missing_questions, found.extra_questions) == ((), (3,))


@pytest.mark.parametrize('count', [1, 3])
def test_another_number_of_turns_is_not_equal(count):
  turns = ((1, 2, 3, 4), (5, 6, 7, 8), (9,))[:count]
  found = equality.check(PLAIN, [*SWIFT[:2], with_tokens(SWIFT[2], *turns)])
  assert not found.is_identical
  assert found.turn_counts == (3,)
  assert found.different == 0
  assert (found.missing, found.extra) == ((1, 0) if count == 1 else (0, 1))
  assert found.equal + found.different + found.missing == found.texts


TOKENS = st.lists(st.integers(1, 3), max_size=4).map(tuple)
FILES = st.dictionaries(
  st.integers(1, 5), st.lists(TOKENS, min_size=1, max_size=3), max_size=4
)


@given(FILES, FILES)
def test_counts_add_up(ours, theirs):
  files = [
    [
      with_tokens(answer_files.answer(key, 'swift', (), (), 0.0), *texts)
      for key, texts in texts_of.items()
    ]
    for texts_of in (ours, theirs)
  ]
  found = equality.check(*files)
  assert found.texts == sum(map(len, ours.values()))
  assert found.equal + found.different + found.missing == found.texts
  given_ = sum(map(len, theirs.values()))
  assert found.equal + found.different + found.extra == given_
  assert len(found.differences) == found.different
  same = all(theirs.get(key) == texts for key, texts in ours.items())
  assert found.is_identical == same
