"""Scoring against one by one, the search's rules."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG

from swift_jax import kv_cache
from swift_jax import skip_mask as skip_masks
from swift_jax.config import SearchConfig
from swift_jax.search import matchness
from swift_jax.search.searcher import Budget, Searcher

LAYERS = CFG.num_hidden_layers
FLOAT32 = jnp.dtype('float32')
WINDOW = 11


@jax.jit
def run(tokens, mask, cache):
  graphdef, params = tiny_model.weights()
  model = nnx.merge(graphdef, params)
  hidden, updates = model(tokens, mask, cache=cache)
  return jnp.argmax(model.logits(hidden), -1), updates


def text_cache(texts, filled):
  """The target's keys and values of `texts` [B, S], `filled` [B] of them."""
  batch, slots = texts.shape
  cache = kv_cache.empty(LAYERS, batch, 3, slots, 8, FLOAT32)
  whole = skip_masks.none_skipped(LAYERS)
  _, updates = run(jnp.asarray(texts), whole, cache)
  return cache.write(updates).rollback(jnp.asarray(filled))


def full_hits(text, prompt, length, mask) -> int:
  """Hits of one mask on one text, by a pass of its own over all 64 tokens: the
  gated model reads the window on top of the target's cache before it."""
  begin = max(length - 1 - WINDOW, 0)
  prefix = text_cache(text[None], [begin])
  padded = np.pad(text[begin:], (0, begin))[None]
  best = np.asarray(run(jnp.asarray(padded), mask, prefix)[0])[0]
  return sum(
    int(best[at - 1 - begin] == text[at])
    for at in range(max(prompt, begin + 1), length)
  )


def test_vmapped_scores_are_those_of_one_by_one():
  graphdef, params = tiny_model.weights()
  rng = np.random.default_rng(0)
  masks = [skip_masks.random(rng, LAYERS, ratio) for ratio in (0, 0.4, 0.5, 1)]
  prompts = [3, 5, 2]
  lengths = [30, 9, 2]  # a full window, a short one, none
  texts = rng.integers(0, CFG.vocab_size, (3, 64)).astype(np.int32)
  for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
    made = tiny_model.reference(texts[row, :prompt].tolist(), length - prompt)
    texts[row, prompt:length] = made
  cache = text_cache(texts, np.array(lengths) - 1)
  scores, mapped = (
    matchness.score(
      graphdef,
      params,
      cache,
      jnp.asarray(texts),
      jnp.asarray(prompts),
      skip_masks.stack(masks),
      WINDOW,
      is_vmapped,
    )
    for is_vmapped in (True, False)
  )
  assert mapped.hits.tolist() == scores.hits.tolist()
  assert int(mapped.positions) == int(scores.positions)
  compared = [min(n - p, WINDOW) for p, n in zip(prompts, lengths, strict=True)]
  assert int(scores.positions) == sum(compared) == 15
  for mask, hits in zip(masks, scores.hits.tolist(), strict=True):
    one_by_one = sum(
      full_hits(texts[row], prompts[row], lengths[row], mask)
      for row in range(3)
    )
    assert hits == one_by_one
  # The full model hits everything: the text is its own.
  assert int(scores.hits[0]) == int(scores.positions)
  assert int(scores.hits[3]) < int(scores.positions)


def searcher(**changes) -> Searcher:
  return Searcher(SearchConfig(num_candidates=4, **changes), 12)


def best_bit_hits(candidates) -> np.ndarray:
  """A score that a known set maximises: the first sublayers skipped."""
  return candidates.bits()[:, :9].sum(1)


def test_search_finds_a_better_set_and_keeps_the_ratio():
  search = searcher(max_iterations=200)
  start = best_bit_hits(skip_masks.stack([search.incumbent]))[0]
  while search.active:
    candidates = search.candidates()
    assert candidates.attn.shape == (4, 12)
    assert (candidates.bits().sum(1) == 9).all()
    assert (candidates.bits()[0] == search.incumbent.bits()).all()
    search.observe(candidates, best_bit_hits(candidates), 9)
  assert best_bit_hits(skip_masks.stack([search.incumbent]))[0] > start + 1


def test_incumbent_yields_only_to_a_better_score_on_the_same_text():
  search = searcher()
  before = search.incumbent
  candidates = search.candidates()
  search.observe(candidates, np.array([5, 5, 3, 5]), 50)
  assert search.incumbent is before
  search.observe(candidates, np.array([5, 5, 6, 5]), 50)
  assert (search.incumbent.bits() == candidates.bits()[2]).all()
  assert search.matchness == 6 / 50


def test_stops():
  search = searcher(target_matchness=0.5)
  search.observe(search.candidates(), np.array([25, 0, 0, 0]), 50)
  assert search.active  # at the target is not above it
  search.observe(search.candidates(), np.array([26, 0, 0, 0]), 50)
  assert not search.active
  # A challenger's winning score flatters it: it is scored again first.
  search = searcher(target_matchness=0.5)
  search.observe(search.candidates(), np.array([20, 40, 0, 0]), 50)
  assert search.active and search.matchness == 40 / 50
  search.observe(search.candidates(), np.array([30, 0, 0, 0]), 50)
  assert not search.active
  search = searcher(patience=2)
  for hits in ([1, 2, 0, 0], [2, 1, 0, 0], [2, 2, 0, 0]):
    assert search.active
    search.observe(search.candidates(), np.array(hits), 50)
  assert not search.active
  assert not searcher(max_iterations=0).active
  assert not searcher(enabled=False).active
  assert not searcher(skip_ratio=0.0).active  # no two masks to choose from
  search = searcher()
  search.observe(search.candidates(), np.zeros(4, int), 0)
  assert search.iterations == 0  # nothing was compared


def test_the_budget_is_a_share_of_all_time():
  budget = Budget(0.25)
  assert not budget.allows(1.0)  # nothing has been decoded yet
  budget.add(3.9)
  assert not budget.allows(1.0)
  budget.add(0.1)
  assert budget.allows(1.0)
  budget.add(2.0, is_search=True)  # it took twice as long as guessed
  assert not budget.allows(0.0)
  budget.add(9.9)
  assert not budget.allows(0.0)
  budget.add(0.1)  # 4 s of 16
  assert budget.allows(100.0)
  assert Budget(1.0).allows(100.0)
  assert not Budget(0.0).allows(1e-9)


@pytest.mark.parametrize('share', [0.0, 1.0])
def test_a_search_without_budget_never_scores(share):
  engine = tiny_model.engine(search={'time_budget': share, 'context_window': 1})
  engine.generate([[1, 2]], tiny_model.decode())
  assert (engine.searcher.iterations > 0) == (share == 1.0)
  spent = engine.searcher.budget.spent
  assert (spent > 0) == (share == 1.0)


def test_a_reader_of_the_text_may_end_the_search():
  engine = tiny_model.engine(confidence_threshold=0.0)
  mask = skip_masks.from_lists([1], [2], LAYERS)

  def on_text(*_):
    engine.set_skip_mask(mask)

  class Words:
    def decode(self, ids, **_):
      return ' '.join(map(str, ids))

  engine.tokenizer = Words()
  engine.generate([[1, 2]], tiny_model.decode(rounds_per_dispatch=9), on_text)
  assert engine.searcher.iterations == 0
  assert engine.skip_mask.to_lists() == mask.to_lists()


def test_warming_up_moves_neither_search_nor_budget():
  engine = tiny_model.engine()
  before = engine.skip_mask.bits()
  engine.warmup(tiny_model.decode(), 20)
  assert engine.searcher.budget.elapsed == engine.searcher.iterations == 0
  assert (engine.skip_mask.bits() == before).all()


def test_candidates_are_random_masks_and_neighbours():
  search = searcher()  # four: the incumbent, a random mask, two neighbours
  for _ in range(20):
    bits = search.candidates().bits()
    apart = (bits != search.incumbent.bits()).sum(1)
    assert apart[0] == 0
    assert list(apart[2:]) == [2, 2]
    assert apart[1] % 2 == 0


@pytest.mark.parametrize('scoring', ['vmap', 'map'])
def test_scoring_is_as_the_setting_says(scoring, monkeypatch):
  seen = []

  def score(*_, is_vmapped):
    seen.append(is_vmapped)
    return matchness.Scores(np.zeros(3, int), np.int32(1))

  monkeypatch.setattr(matchness, 'score', score)
  engine = tiny_model.engine(search={'scoring': scoring})
  engine.generate([[1, 2]], tiny_model.decode())
  assert set(seen) == {scoring == 'vmap'}


def test_same_seed_same_candidates():
  one, two, other = searcher(), searcher(), searcher(seed=1)
  for _ in range(3):
    a, b, c = (s.candidates().bits() for s in (one, two, other))
    assert (a == b).all()
    assert (a[1:] != c[1:]).any()


def test_scoring_reads_the_cache_and_leaves_it():
  """No candidate returns a cache: the program's outputs are a few integers."""
  graphdef, params = tiny_model.weights()
  abstract = jax.eval_shape(
    lambda c, m: matchness.score(
      graphdef, params, c, jnp.zeros((1, 64), int), jnp.ones(1, int), m, 5
    ),
    kv_cache.empty(LAYERS, 1, 3, 64, 8, FLOAT32),
    skip_masks.stack([skip_masks.none_skipped(LAYERS)] * 2),
  )
  assert [leaf.shape for leaf in jax.tree.leaves(abstract)] == [(2,), ()]
