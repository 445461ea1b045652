"""Figures have one definition, and none where they have no meaning."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.runtime.metrics import Round, distinct_ngrams, ratio, totals


@pytest.mark.parametrize(
  'tokens, n, share',
  [
    ([1, 2, 3], 4, None),
    ([1, 2, 3, 4], 4, 1.0),
    ([7] * 13, 4, 0.1),
    ([1, 2, 1, 2, 1], 2, 0.5),
    ([], 1, None),
  ],
)
def test_distinct_ngrams(tokens, n, share):
  assert distinct_ngrams(tokens, n) == share


@given(st.lists(st.integers(0, 2), min_size=4), st.integers(1, 4))
def test_a_share_is_above_zero_and_at_most_one(tokens, n):
  assert 0 < distinct_ngrams(tokens, n) <= 1
  assert distinct_ngrams(range(len(tokens)), n) == 1


@given(
  st.integers(0, 5), st.integers(0, 5), st.booleans(), st.data(), st.booleans()
)
def test_a_round_is_cut_where_its_text_is(
  drafted, accepted, has_leaf, data, is_copy
):
  """Each kind of token is counted by itself, in the order of the text."""
  accepted = min(accepted, drafted)
  has_leaf &= accepted < drafted
  last = 'bonus' if has_leaf or accepted == drafted else 'corrected'
  text = ['accepted'] * accepted + ['leaf'] * has_leaf + [last]
  # The device cuts too, at the end of a text: then the last tokens are missing.
  text = text[: data.draw(st.integers(1, len(text)))]
  kept = text[: data.draw(st.integers(1, len(text)))]
  of_device = Round(
    drafted,
    text.count('accepted'),
    len(text),
    text.count('leaf'),
    'copy' if is_copy else 'layers',
  )
  found = of_device.cut(len(kept))
  sums = totals([found])
  assert found.returned == len(kept)
  assert sums == {
    'verify_passes': 1,
    'drafted': drafted,
    'accepted': kept.count('accepted'),
    'copied': drafted * is_copy,
    'copies_accepted': kept.count('accepted') * is_copy,
    'leaf_hits': kept.count('leaf'),
    'bonus_tokens': kept.count('bonus'),
    'corrected_tokens': kept.count('corrected'),
  }
  assert totals([found] * 3) == {name: 3 * n for name, n in sums.items()}


def test_ratio():
  assert ratio(1, 4) == 0.25
  assert ratio(0, 0) is None
