"""The Gaussian process against linear algebra, and on an objective with a known
best set."""

import builtins

import jax
import numpy as np
import pytest

from swift_jax import skip_mask as skip_masks
from swift_jax.config import SearchConfig
from swift_jax.errors import InputError
from swift_jax.search import acquisition, surrogate
from swift_jax.search.searcher import Searcher
from swift_jax.search.surrogate import Surrogate

FREE, SKIPPED = 20, 9


def random_bits(rng, count):
  bits = np.zeros((count, FREE), bool)
  for row in bits:
    row[rng.permutation(FREE)[:SKIPPED]] = True
  return bits


def test_posterior_means_are_those_of_the_formula():
  """With hyper-parameters held, by a dense solve in float64."""
  rng = np.random.default_rng(0)
  process = Surrogate(FREE, SKIPPED)
  bits = random_bits(rng, 12)
  scores = rng.integers(20, 45, 12) / 50
  process.observe(bits[:6], scores[:6], 50)
  process.observe(bits[6:], scores[6:], 50)
  process.start()
  process.collect()
  kernel, stddev = process._hyper  # as fitted
  w = np.float64(surrogate.val(kernel.weights))
  variance, offset, tau, noise = (
    float(surrogate.val(p))
    for p in (kernel.variance, kernel.offset, kernel.tau, stddev)
  )
  x, t = bits.astype(float), np.repeat([1.0, 2.0], 6)
  apart = (np.abs(x[:, None] - x[None]) * w).sum(-1)
  of_bits = variance * np.exp(-apart)
  in_time = offset * np.exp(-np.abs(t[:, None] - t) / tau)
  scale = np.sqrt(scores.var() + 1e-6)
  binomial = scores * (1 - scores) / 50 / scale**2
  covariance = of_bits + in_time + np.diag(noise**2 + binomial + 1e-5)
  residual = (scores - scores.mean()) / scale
  wanted = of_bits @ np.linalg.solve(covariance, residual)
  wanted = wanted * scale + scores.mean()
  np.testing.assert_allclose(process.means[:12], wanted, atol=2e-4)
  assert (process.means[12:] == -np.inf).all()


def test_suggestions_are_distinct_masks_of_the_right_size():
  rng = np.random.default_rng(1)
  process = Surrogate(FREE, SKIPPED, capacity=32)
  compiled = []
  for _ in range(8):  # twice the buffer
    bits = random_bits(rng, 8)
    process.observe(bits, rng.integers(20, 45, 8) / 50, 50)
    process.start()
    assert process.is_running
    found = process.collect()
    assert not process.is_running
    assert found.shape == (8, FREE)
    assert (found.sum(1) == SKIPPED).all()
    assert len({row.tobytes() for row in found}) == 8
    compiled.append(surrogate.suggest._cache_size())
  assert process.count == 32
  assert compiled[0] == compiled[-1]


def test_the_best_masks_leave_a_full_buffer_last():
  rng = np.random.default_rng(2)
  process = Surrogate(FREE, SKIPPED, capacity=32)
  process.observe(random_bits(rng, 32), np.linspace(0.2, 0.9, 32), 50)
  process.start()
  process.collect()
  incumbent = process._bits[int(np.argmax(process.means))].copy()
  for _ in range(8):
    # Scored again and again, an incumbent fills no more than one place.
    process.observe(incumbent[None], np.array([0.9]), 50)
    best = {process._bits[at].tobytes() for at in process._best_rows()}
    assert len(best) == 16
    process.observe(random_bits(rng, 5), np.full(5, 0.1), 50)
    assert best <= {row.tobytes() for row in process._bits}
    process.start()
    process.collect()
  assert process.count == 32


def test_the_incumbent_yields_by_a_margin_only():
  process = Surrogate(FREE, SKIPPED)
  bits = random_bits(np.random.default_rng(3), 2)
  process.observe(bits, np.array([0.6, 0.8]), 50)
  process.means[:2] = [0.70, 0.705]
  assert process.best(bits[0], 0.01).score == pytest.approx(0.6)
  process.means[1] = 0.72
  best = process.best(bits[0], 0.01)
  assert (best.bits == bits[1]).all()
  assert (best.score, best.mean) == pytest.approx((0.8, 0.72))


@pytest.mark.parametrize('bayes_interval', [1, 3])
def test_it_climbs_higher_than_random_search(bayes_interval):
  """Scores of a window of 50 on an objective whose best set is known."""
  cost = np.random.default_rng(4).exponential(size=FREE) * 0.05

  def run(**settings):
    search = Searcher(
      SearchConfig(target_matchness=1.0, **settings), FREE // 2 + 2
    )
    noise = np.random.default_rng(5)
    for _ in range(15):
      candidates = search.candidates()
      true = 1 - candidates.bits() @ cost
      search.observe(candidates, noise.binomial(50, true), 50)
    search.candidates()
    return 1 - search.incumbent.bits() @ cost

  random_only = np.mean(
    [
      max(1 - random_bits(np.random.default_rng(s), 105) @ cost)
      for s in range(5)
    ]
  )
  assert run(bayes_interval=bayes_interval) > random_only


def test_same_seed_same_search():
  def run(seed):
    search = Searcher(SearchConfig(bayes_interval=1, seed=seed), 12)
    for _ in range(3):
      candidates = search.candidates()
      search.observe(candidates, candidates.bits()[:, :9].sum(1), 9)
    return search.candidates().bits()

  assert (run(0) == run(0)).all()
  assert (run(0)[1:] != run(1)[1:]).any()


def test_without_gpjax_the_setting_is_named(monkeypatch):
  real = builtins.__import__

  def no_gpjax(name, *args, **kwargs):
    if name == 'swift_jax.search.surrogate':
      raise ImportError("No module named 'gpjax'")
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', no_gpjax)
  with pytest.raises(InputError, match='search.bayes_interval=2: needs gpjax'):
    Searcher(SearchConfig(bayes_interval=2), 12)
  assert Searcher(SearchConfig(bayes_interval=0), 12).active


def test_picks_spread_where_the_variance_is():
  """Two pairs of twins: a pick of one makes its twin worthless to explore."""
  pool = np.eye(4, dtype=np.float32)
  joint = np.kron(np.eye(2), np.full((2, 2), 1.0)) + 1e-3 * np.eye(4)
  picked = acquisition.pick(
    jax.numpy.asarray(pool),
    jax.numpy.zeros(4),
    jax.numpy.asarray(joint, jax.numpy.float32),
    jax.numpy.float32(0.01),
    1,
    2,
  )
  assert {int(at) // 2 for at in picked} == {0, 1}


@pytest.mark.parametrize('layers', [4, 12])
def test_masks_of_a_searcher_with_a_process_keep_the_ratio(layers):
  search = Searcher(SearchConfig(bayes_interval=1, num_candidates=4), layers)
  wanted = skip_masks.num_to_skip(layers, search.cfg.skip_ratio)
  for _ in range(4):
    candidates = search.candidates()
    assert candidates.attn.shape == (4, layers)
    assert (candidates.bits().sum(1) == wanted).all()
    assert (candidates.bits()[0] == search.incumbent.bits()).all()
    search.observe(candidates, candidates.bits()[:, : layers - 3].sum(1), 99)


def test_between_its_turns_the_process_still_names_the_incumbent():
  search = Searcher(
    SearchConfig(bayes_interval=99, num_candidates=4, max_iterations=12), 12
  )
  start = search.incumbent.bits()
  while search.active:
    candidates = search.candidates()
    search.observe(candidates, candidates.bits()[:, :9].sum(1) * 10, 99)
  # The last pass was weighed too.
  assert search.iterations == 12
  assert not search._surrogate.is_running
  assert (search.incumbent.bits() != start).any()
  assert search.incumbent.bits()[:9].sum() > start[:9].sum()


def test_a_high_posterior_mean_ends_the_search():
  search = Searcher(SearchConfig(bayes_interval=1, target_matchness=0.5), 12)
  for _ in range(4):
    candidates = search.candidates()
    search.observe(candidates, np.full(8, 45), 50)
  assert not search.active and search.iterations < 4
  assert search.matchness == pytest.approx(0.9)


def test_a_set_that_is_given_stays():
  """While a suggestion is computed, too."""
  search = Searcher(SearchConfig(bayes_interval=1), 12)
  candidates = search.candidates()
  search.observe(candidates, candidates.bits()[:, :9].sum(1), 9)
  mask = skip_masks.from_lists([3], [4], 12)
  search.start_from(mask)
  search.observe(candidates, np.arange(8), 9)
  search.rest()
  assert search.incumbent.to_lists() == mask.to_lists()
  assert not search.active and search.matchness is None
