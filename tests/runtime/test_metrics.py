"""Figures have one definition, and none where they have no meaning."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.runtime.metrics import distinct_ngrams, ratio


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


def test_ratio():
  assert ratio(1, 4) == 0.25
  assert ratio(0, 0) is None
