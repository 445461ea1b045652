"""Sources of candidates: distinct masks of one size, as close as promised."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from swift_jax.model import skip_mask as skip_masks
from swift_jax.search import proposals
from swift_jax.search.proposals import Proposal

LAYERS, RATIO = 12, 0.45
FREE = skip_masks.num_free(LAYERS)
SKIPPED = skip_masks.num_to_skip(LAYERS, RATIO)
SEEDS = st.integers(0, 2**32 - 1)


def bits_of(stream, count) -> np.ndarray:
  return np.stack([p.bits for p in itertools.islice(stream, count)])


@given(SEEDS)
def test_every_stream_keeps_the_number_of_skipped_sublayers(seed):
  rng = np.random.default_rng(seed)
  bits = skip_masks.random(rng, FREE, SKIPPED)
  streams = {
    'random': proposals.random(rng, FREE, SKIPPED),
    'neighbour': proposals.neighbours(rng, bits),
    'sensitivity': proposals.by_importance(rng, rng.normal(size=FREE), SKIPPED),
  }
  for source, stream in streams.items():
    assert next(stream).source == source
    assert (bits_of(stream, 20).sum(1) == SKIPPED).all()


@given(SEEDS)
def test_neighbours_are_one_exchange_away(seed):
  rng = np.random.default_rng(seed)
  bits = skip_masks.random(rng, FREE, SKIPPED)
  found = bits_of(proposals.neighbours(rng, bits), 20)
  assert ((found != bits).sum(1) == 2).all()


def test_all_neighbours_come():
  bits = skip_masks.uniform(5, 0.5).bits()  # 3 of 6: nine exchanges
  stream = proposals.neighbours(np.random.default_rng(0), bits)
  assert len(np.unique(bits_of(stream, 200), axis=0)) == 9


@given(SEEDS, st.floats(1e-6, 1e6), st.floats(-1e6, 1e6))
def test_the_first_by_importance_skips_what_matters_least(seed, scale, shift):
  rng = np.random.default_rng(seed)
  rank = rng.permutation(FREE)
  importance = shift + scale * 10 * rank
  stream = proposals.by_importance(rng, importance, SKIPPED)
  assert (bits_of(stream, 1)[0] == (rank < SKIPPED)).all()


def test_later_ones_by_importance_are_blurred_more():
  """The mean importance they skip rises, but stays below random masks'."""
  rng = np.random.default_rng(1)
  importance = np.random.default_rng(2).normal(size=FREE)
  runs = [
    bits_of(proposals.by_importance(rng, importance, SKIPPED), 3) @ importance
    for _ in range(200)
  ]
  first, second, third = np.mean(runs, axis=0)
  assert first < second < third < SKIPPED * importance.mean()
  equal = proposals.by_importance(rng, np.zeros(FREE), SKIPPED)
  assert (bits_of(equal, 3).sum(1) == SKIPPED).all()


@given(st.integers(3, 7), st.floats(0, 1), SEEDS, st.integers(1, 12), st.data())
def test_there_are_always_as_many_and_none_twice_but_the_first(
  layers, ratio, seed, count, data
):
  """Also where fewer masks exist."""
  rng = np.random.default_rng(seed)
  skipped = skip_masks.num_to_skip(layers, ratio)
  sizes = skip_masks.num_free(layers), skipped
  first = Proposal(skip_masks.random(rng, *sizes), 'incumbent')
  some = [skip_masks.random(rng, *sizes) for _ in range(4)]
  shares = [data.draw(st.integers(0, count)) for _ in range(2)]
  plan = [
    (shares[0], proposals.given(some, 'gp')),
    (shares[1], proposals.random(rng, *sizes)),
  ]
  chosen = proposals.distinct(first, plan, count)
  assert len(chosen) == count and chosen[0] is first
  names = [p.bits.tobytes() for p in chosen]
  others = [name for name in names if name != names[0]]
  assert len(set(others)) == len(others)
  # The first mask fills the rest, at the end.
  filled = names.count(names[0])
  assert all(p is first for p in chosen[count - filled + 1 :])
  assert all(p.bits.sum() == skipped for p in chosen)


@pytest.mark.parametrize('layers, masks', [(3, 2), (4, 6)])
def test_where_there_are_fewer_masks_all_of_them_come(layers, masks):
  """Half of two sublayers, of four: 2 masks, 6."""
  rng = np.random.default_rng(3)
  first = Proposal(skip_masks.uniform(layers, 0.5).bits(), 'incumbent')
  plan = [(12, proposals.random(rng, 2 * (layers - 2), layers - 2))]
  chosen = proposals.distinct(first, plan, 12)
  assert len({p.bits.tobytes() for p in chosen}) == masks
  assert len(chosen) == 12


def test_each_stream_gives_its_share_in_turn():
  rng = np.random.default_rng(4)
  bits = skip_masks.uniform(LAYERS, RATIO).bits()
  given_masks = [bits, *(skip_masks.neighbour(rng, bits) for _ in range(2))]
  plan = [
    (4, proposals.given(given_masks, 'gp')),  # one of the three is known
    (2, proposals.random(rng, FREE, SKIPPED)),
    (9, proposals.neighbours(rng, bits)),
  ]
  chosen = proposals.distinct(Proposal(bits, 'incumbent'), plan, 8)
  sources = [p.source for p in chosen]
  assert sources == [
    'incumbent',
    *['gp'] * 2,
    *['random'] * 2,
    *['neighbour'] * 3,
  ]
