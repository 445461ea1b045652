"""The estimate of the set that drafts."""

import math

import pytest

from swift_jax.search.estimate import Estimate


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
