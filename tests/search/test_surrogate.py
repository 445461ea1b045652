"""The Gaussian process against linear algebra, and the rows that it keeps."""

import json

from gpjax.parameters import val
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from synthetic import BEST, COST, FREE, SKIPPED, random_bits

from swift_jax.search import acquisition, gaussian_process
from swift_jax.search.files import codec
from swift_jax.search.surrogate import Surrogate

VARIANCE = 0.005  # of a score


def observe(process, bits, scores, later=1.0):
  variances = np.full(len(bits), VARIANCE)
  process.observe(bits, np.asarray(scores), variances, later)


def suggest(process, incumbent):
  process.start(incumbent)
  return process.collect()


def scored(seed=0, count=12) -> tuple[np.ndarray, np.ndarray]:
  """Masks and their scores, with noise."""
  rng = np.random.default_rng(seed)
  bits = random_bits(rng, count)
  return bits, -(bits @ COST) + rng.normal(0, 0.05, count)


@pytest.mark.parametrize('importance', [None, COST])
def test_the_posterior_is_that_of_the_formula(importance):
  """With fixed hyperparameters, by dense solves in float64 over the buffer and
  the incumbent, which may be in the buffer or not."""
  process = Surrogate(FREE, SKIPPED)
  if importance is not None:
    process.trust(importance)
  bits, scores = scored()
  observe(process, bits[:6], scores[:6])
  observe(process, bits[6:], scores[6:], 2.5)
  for incumbent in (bits[3], random_bits(np.random.default_rng(9), 1)[0]):
    suggest(process, incumbent)
    kernel, noise = process._hyper  # as fitted
    w = np.float64(val(kernel.weights))
    v, a, o, local, tau, noise = (
      float(val(p))
      for p in (
        kernel.variance,
        kernel.slope,
        kernel.offset,
        kernel.local,
        kernel.tau,
        noise,
      )
    )
    x = np.float64([*bits, incumbent])
    centred = COST - COST.mean()
    spread = np.sqrt(SKIPPED * (1 - SKIPPED / FREE))
    s = x @ (centred / COST.std() / spread) * (importance is not None)
    near = np.exp(-(np.abs(x[:, None] - x) * w).sum(-1))
    worth = v * near + a * np.outer(s, s)
    t = np.repeat([1.0, 3.5], 6)
    in_time = np.exp(-np.abs(t[:, None] - t) / tau)
    scale = np.sqrt(scores.var() + 1e-6)
    known = noise**2 + VARIANCE / scale**2 + 1e-5
    seen = worth[:12, :12] + in_time * (o + local * near[:12, :12])
    gain = np.linalg.solve(seen + known * np.eye(12), worth[:12]).T
    means = gain[:12] @ (scores - scores.mean()) + scores.mean()
    np.testing.assert_allclose(process.means[:12], means, atol=2e-4)
    left = worth - gain @ worth[:12]
    doubts = np.diag(left) + left[-1, -1] - 2 * left[-1]
    doubts = scale * np.sqrt(np.maximum(doubts[:12], 0))
    np.testing.assert_allclose(process.doubts[:12], doubts, atol=1e-3)
  assert (process.means[12:] == -np.inf).all()


def test_a_mask_is_sure_to_be_as_good_as_itself():
  process = Surrogate(FREE, SKIPPED)
  bits, scores = scored()
  observe(process, bits, scores)
  suggest(process, bits[5])
  others = np.delete(process.doubts[:12], 5)
  assert process.doubts[5] < others.min() / 10


def test_what_all_share_in_a_window_says_nothing_of_masks():
  """A hard window lowers all its scores; masks are still worth the same."""
  process = Surrogate(FREE, SKIPPED)
  bits, scores = scored(count=24)
  for number in range(4):
    shift = 0.5 * (number % 2)
    observe(process, bits[:12], scores[:12] - shift, 4.0)
  suggest(process, bits[0])
  same = process.means[:48].reshape(4, 12)
  assert np.abs(same - same[0]).max() < 1e-5
  assert np.corrcoef(same[0], scores[:12])[0, 1] > 0.9


def test_suggestions_are_distinct_masks_of_the_right_size_from_one_program():
  """Also with a full buffer, with importances, and after a restart."""
  rng = np.random.default_rng(1)
  process = Surrogate(FREE, SKIPPED)
  compiled = set()
  for number in range(20):  # more than the buffer holds
    if number == 3:
      process.trust(COST)
    if number == 18:
      process.forget()
    bits = random_bits(rng, 8)
    observe(process, bits, rng.integers(20, 45, 8) / 50)
    assert not process.is_running
    process.start(bits[0])
    assert process.is_running
    found = process.collect()
    assert not process.is_running
    assert found.shape == (8, FREE) and found.dtype == bool
    assert (found.sum(1) == SKIPPED).all()
    assert len({row.tobytes() for row in found}) == 8
    compiled.add(gaussian_process.suggest._cache_size())
    if number == 17:
      assert process.count == 128
  restored = Surrogate(FREE, SKIPPED)
  restored.restore(process.state())
  suggest(restored, bits[0])
  assert len(compiled | {gaussian_process.suggest._cache_size()}) == 1
  small = Surrogate(FREE, SKIPPED, num_suggested=3, capacity=32)
  observe(small, bits, np.zeros(8))
  assert suggest(small, bits[0]).shape == (3, FREE)  # another size is another
  assert gaussian_process.suggest._cache_size() not in compiled


@pytest.mark.parametrize('scores', [[0.5] * 8, [-3.0] * 4 + [0.0] * 4])
def test_scores_without_a_spread_or_with_a_wild_one(scores):
  process = Surrogate(FREE, SKIPPED)
  bits = random_bits(np.random.default_rng(2), 8)
  for _ in range(3):
    observe(process, bits, scores)
    found = suggest(process, bits[0])
  assert np.isfinite(process.means[:24]).all()
  assert np.isfinite(process.doubts[:24]).all()
  assert (found.sum(1) == SKIPPED).all()


def test_where_nothing_can_be_computed_nothing_is_said():
  """And the failed fit's hyperparameters are thrown away."""
  process = Surrogate(FREE, SKIPPED)
  bits, scores = scored()
  observe(process, bits, np.where(np.arange(12) == 3, np.nan, scores))
  assert suggest(process, bits[0]).shape == (0, FREE)
  assert (process.best(bits[0], 0.0) == bits[0]).all()
  process.forget()
  observe(process, bits, scores)
  assert suggest(process, bits[0]).shape == (8, FREE)
  assert np.isfinite(process.means[:12]).all()


def test_the_best_masks_leave_a_full_buffer_last():
  rng = np.random.default_rng(2)
  process = Surrogate(FREE, SKIPPED)
  observe(process, random_bits(rng, 128), np.linspace(0.2, 0.9, 128))
  suggest(process, process._bits[0] > 0.5)
  incumbent = process._bits[int(np.argmax(process.means))] > 0.5
  for _ in range(16):
    # Scored again and again, an incumbent fills no more than one place.
    observe(process, incumbent[None], [0.9])
    best = {process._bits[at].tobytes() for at in process._best_rows()}
    assert len(best) == 16
    observe(process, random_bits(rng, 20), np.full(20, 0.1))
    assert best <= {row.tobytes() for row in process._bits}
    suggest(process, incumbent)
  assert process.count == 128
  # The other rows left in turn: the rest are of the last windows.
  ages = np.sort(process._now - process._times)
  assert ages[128 - 17] < 16


def test_the_incumbent_yields_by_a_margin_only():
  process = Surrogate(FREE, SKIPPED)
  bits = random_bits(np.random.default_rng(3), 3)
  observe(process, bits[[0, 1, 0]], [0.6, 0.8, 0.6])
  process.means[:3], process.doubts[:3] = [0.70, 0.75, 0.72], 0.1
  assert (process.best(bits[0], 0.5) == bits[0]).all()  # 0.03 is not 0.05
  assert (process.best(bits[0], 0.2) == bits[1]).all()
  process.doubts[1] = 0.05
  assert (process.best(bits[0], 0.5) == bits[1]).all()
  # An incumbent that the process has not observed yields at once.
  assert (process.best(bits[2], 9.9) == bits[1]).all()


def test_importances_are_a_prior_with_a_deviation_of_one():
  """In any unit; importances that are all equal have no effect."""
  process = Surrogate(FREE, SKIPPED)
  masks = random_bits(np.random.default_rng(4), 20_000)
  for importance in (COST, 1e4 * COST - 7):
    process.trust(importance)
    sums = masks @ process._importance
    assert abs(sums.mean()) < 0.05 and abs(sums.std() - 1) < 0.05
    order = np.argsort(process._importance, kind='stable')
    assert (order == np.argsort(COST, kind='stable')).all()
  process.trust(np.full(FREE, 0.1, np.float32))
  assert np.abs(process._importance).max() < 1e-3


def test_importances_help_and_useless_ones_do_little_harm():
  """By the first proposals after a pass, and by a later incumbent."""

  def run(importance, passes, seeds):
    found = []
    for seed in range(seeds):
      search = synthetic.searcher(bayes_interval=1, seed=seed, importance=False)
      search.start_process()
      if importance is not None:
        search._surrogate.trust(importance)
      synthetic.run(search, passes, seed)
      search.candidates()
      first = search._suggested[0] if passes == 1 else search.incumbent
      found.append(-(first @ COST))
    return np.mean(found)

  useless = np.random.default_rng(5).normal(size=FREE)
  assert run(COST, 1, 4) > run(None, 1, 4) + 0.05
  assert run(useless, 8, 2) > 1.15 * BEST


def test_a_process_that_forgets_keeps_only_what_was_fitted():
  process, fresh = (Surrogate(FREE, SKIPPED) for _ in range(2))
  bits, scores = scored()
  observe(process, bits, scores)
  suggest(process, bits[0])
  process.forget()
  assert process.count == 0 and (process.means == -np.inf).all()
  fresh._hyper, fresh._key = process._hyper, process._key
  bits, scores = scored(seed=6)
  for one in (process, fresh):
    observe(one, bits, scores)
  assert (suggest(process, bits[0]) == suggest(fresh, bits[0])).all()
  assert (process.means == fresh.means).all()


def test_a_process_goes_on_from_its_state():
  process, other = (Surrogate(FREE, SKIPPED, seed=s) for s in (0, 1))
  process.trust(COST)
  bits, scores = scored()
  observe(process, bits, scores, 0.3)
  suggest(process, bits[0])
  state = json.dumps(codec.encode(process.state()), allow_nan=False)
  other.restore(codec.decode(json.loads(state)))
  best = process.best(bits[0], 0.1)
  assert (other.best(bits[0], 0.1) == best).all()
  for one in (process, other):
    observe(one, bits[:3], scores[:3] + 0.1, 0.3)
  assert (suggest(process, bits[0]) == suggest(other, bits[0])).all()
  for name in ('means', 'doubts'):
    assert (getattr(process, name) == getattr(other, name)).all()
  smaller = Surrogate(FREE, SKIPPED, capacity=32)
  with pytest.raises(TypeError, match='_bits has another form'):
    smaller.restore(process.state())


# ---- what is proposed


def test_picks_spread_where_the_variance_is():
  """Two pairs of twins: once one is picked, its twin is not worth exploring."""
  pool = np.eye(4, dtype=np.float32)
  joint = np.kron(np.eye(2), np.full((2, 2), 1.0)) + 1e-3 * np.eye(4)
  picked = acquisition.pick(
    jnp.asarray(pool),
    jnp.zeros(4),
    jnp.asarray(joint, jnp.float32),
    jnp.float32(0.01),
    1,
    2,
  )
  assert {int(at) // 2 for at in picked} == {0, 1}


def test_climbing_keeps_to_masks_and_finds_the_top_of_a_known_hill():
  """From a pool that holds scored masks; spare rows are replaced."""
  bits = np.zeros((40, FREE), np.float32)
  bits[:9] = random_bits(np.random.default_rng(7), 9)
  means = np.where(np.arange(40) < 9, np.arange(40), -np.inf)
  one, two = jax.random.split(jax.random.key(0))
  pool = acquisition.start_pool(
    jnp.asarray(bits), jnp.asarray(means, jnp.float32), one, SKIPPED
  )
  rows = {row.tobytes() for row in np.asarray(pool)}
  assert {row.tobytes() for row in bits[:9]} <= rows
  assert (np.asarray(pool).sum(1) == SKIPPED).all()
  cost = jnp.asarray(COST, jnp.float32)
  climbed, mean = acquisition.climb(
    pool, lambda masks: (-(masks @ cost), jnp.zeros(len(masks))), two
  )
  assert (np.asarray(climbed).sum(1) == SKIPPED).all()
  start = -(np.asarray(pool) @ COST).min()
  assert start < mean.max() <= BEST + 1e-6
  assert BEST - mean.max() < 0.3 * (BEST - start)


def test_climbing_goes_where_little_is_known():
  """All means are equal; only the deviation has a slope to climb."""
  first, second = jax.random.split(jax.random.key(0))
  bits = random_bits(np.random.default_rng(7), 40).astype(np.float32)
  pool = acquisition.start_pool(
    jnp.asarray(bits), jnp.zeros(40), first, SKIPPED
  )
  unknown = jnp.linspace(0, 1, FREE)

  def predict(masks):
    return jnp.zeros(len(masks)), masks @ unknown

  climbed, _ = acquisition.climb(pool, predict, second)
  most = np.sort(np.asarray(unknown))[-SKIPPED:].sum()
  start, found = (np.asarray(p @ unknown) for p in (pool, climbed))
  assert found.mean() > start.max()
  assert most - found.max() < 0.3 * (most - start.max())


def test_exchanges_keep_the_size_and_go_no_further_than_said():
  bits = random_bits(np.random.default_rng(8), 300).astype(np.float32)
  counts = np.resize([1, 2, 3], 300)
  swapped = acquisition._swap(
    jnp.asarray(bits), jnp.asarray(counts), jax.random.key(1)
  )
  apart = np.abs(np.asarray(swapped) - bits).sum(1)
  assert (np.asarray(swapped).sum(1) == SKIPPED).all()
  assert (apart[counts == 1] == 2).all()
  assert (apart <= 2 * counts).all()
  assert (apart == 2 * counts).mean() > 0.8
