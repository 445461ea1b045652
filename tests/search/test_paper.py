"""The official recipe: which masks it scores, when, and with what effect."""

import json

import jax
import numpy as np
import pytest
import synthetic
from synthetic import FREE, SKIPPED
import tiny_model

from swift_jax.model.skip_mask import from_bits
from swift_jax.search import matchness
from swift_jax.search.paper import process as paper_process
from swift_jax.search.paper.process import PaperProcess
from swift_jax.search.paper.recipe import BAYES_INTERVAL

CAPACITY = 32


@pytest.fixture
def small(monkeypatch):
  """Makes the process compile and run faster."""
  monkeypatch.setattr(paper_process, '_CAPACITY', CAPACITY)
  monkeypatch.setattr(paper_process, '_POINTS', 64)


def searcher(**changes):
  return synthetic.searcher(recipe='paper', **changes)


def observe(search, hits):
  """Makes a pass with so many hits of 50 positions; returns its mask."""
  candidates = search.candidates()
  assert candidates.shape == (1, FREE)
  assert candidates.sum() == SKIPPED
  search.observe(candidates, synthetic.with_hits(hits), 20)
  return candidates[0]


def test_a_mask_drafts_when_its_score_is_above_the_best_so_far():
  """The first scored mask replaces the start, which is never scored; the best
  score carries over from text to text."""
  search = searcher()
  start = search.incumbent
  drafts = []
  for hits in (10, 25, 24, 25, 26, 5):
    search.new_text()
    drafts.append((observe(search, hits), search.incumbent))
  assert (drafts[0][0] != start).any()
  for number, best in enumerate((0, 1, 1, 1, 4, 4)):
    assert (drafts[number][1] == drafts[best][0]).all()
  assert search.matchness == 26 / 50 and search.source == 'random'
  assert search.iterations == search.evaluations == 6
  assert not search.wants_importance


def test_a_mask_without_a_hit_is_not_above_nothing():
  search = searcher()
  start = search.incumbent
  observe(search, 0)
  assert search.incumbent is start and search.source == 'start'


def test_stops():
  search = searcher(target_matchness=0.5)
  observe(search, 25)
  assert search.active  # at the target is not above it
  observe(search, 26)  # no error bar, no second look
  assert not search.active
  search = searcher(patience=3)
  for hits in (20, 20, 20, 30, 20, 30):
    observe(search, hits)
    assert search.active
  observe(search, 29)
  assert not search.active and search.iterations == 7
  search = searcher(max_iterations=2)
  for _ in range(2):
    assert search.active
    observe(search, 5)
  assert not search.active and not search.may_search


def test_every_25th_mask_is_the_processs_which_is_told_what_was_scored(small):
  search, records = searcher(bayes_interval=1, target_matchness=1.0), []
  search.on_pass = records.append
  synthetic.run(search, 10)
  search.start_process()  # late: it is told of these, too
  synthetic.run(search, 41)
  sources = [source for record in records for source in record.sources]
  turns = [n for n, source in enumerate(sources, 1) if source == 'paper']
  assert turns == [BAYES_INTERVAL, 2 * BAYES_INTERVAL]
  assert set(sources) == {'random', 'paper'}
  masks = [[int(bit) for bit in record.masks[0]] for record in records]
  assert {sum(mask) for mask in masks} == {SKIPPED}
  # The newest, each in the order of the stream, and its share of hits.
  process = search._surrogate
  assert process._bits.tolist() == masks[-CAPACITY:]
  shares = [record.hits[0] / record.positions for record in records]
  np.testing.assert_allclose(process._scores, shares[-CAPACITY:], rtol=1e-6)


def test_without_the_process_all_masks_are_random():
  search, records = searcher(target_matchness=1.0), []
  search.on_pass = records.append
  synthetic.run(search, BAYES_INTERVAL + 1)
  assert {record.sources for record in records} == {('random',)}


def test_the_process_proposes_what_its_scores_favour(small):
  """Nine sublayers cost nothing: it skips more of them than chance would."""
  rng = np.random.default_rng(0)
  found = []
  for seed in range(6):
    process = PaperProcess(FREE, SKIPPED, seed)
    for bits in synthetic.random_bits(rng, 30):
      process.observe(bits, bits[:SKIPPED].mean())
    first = process.suggest()
    assert first.shape == (FREE,) and first.sum() == SKIPPED
    found.append(first[:SKIPPED].sum())
  assert np.mean(found) > 1.3 * SKIPPED**2 / FREE


def test_it_goes_on_from_its_state_with_the_process(small):
  def started():
    search = searcher(bayes_interval=1, target_matchness=1.0)
    search.start_process()
    return search

  unbroken, first, second = started(), started(), searcher(bayes_interval=1)
  records = {True: [], False: []}
  unbroken.on_pass = records[False].append
  first.on_pass = second.on_pass = records[True].append
  synthetic.run(unbroken, BAYES_INTERVAL + 3)
  synthetic.run(first, BAYES_INTERVAL - 2)
  second.cfg = first.cfg
  second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
  synthetic.run(second, 5)
  assert records[True] == records[False]
  assert 'paper' in {record.sources[0] for record in records[True]}
  assert second.state() == unbroken.state()


def test_only_the_first_window_of_a_text_is_scored(monkeypatch):
  """A text of any length is scored as if only the window had been written."""
  window, prompt = 11, [9, 8, 7]
  engine = tiny_model.engine(
    search={'recipe': 'paper', 'context_window': window},
    confidence_threshold=0.0,
  )
  scorer, passes = engine.model.scorer, []

  def score(text, candidates, *settings):
    scores = real(text, candidates, *settings)
    passes.append((candidates, scores, np.array(text.cache.length)))
    return scores

  real = scorer.score
  monkeypatch.setattr(scorer, 'score', score)
  decode = tiny_model.decode(max_new_tokens=60)
  (result,) = engine.generate([prompt], decode)
  assert engine.searcher.iterations == len(passes) > 3
  tokens = np.zeros((3, 90), np.int32)  # two rows are spare
  tokens[0, : len(prompt) + 60] = prompt + result.tokens
  end = len(prompt) + window
  text = tiny_model.text(tokens, [end, 1, 1], [len(prompt), 1, 1])
  for candidates, scores, length in passes:
    assert length.tolist() == [end - 1, 0, 0]
    assert len(candidates) == 1 and scores.positions == window
    wanted = jax.device_get(
      matchness.score(
        *tiny_model.weights(), text, from_bits(candidates), window
      )
    )
    assert (scores.hits == wanted.hits).all()
    np.testing.assert_allclose(scores.log_probs, wanted.log_probs, atol=1e-3)
  best = max(scores.num_hits()[0] for _, scores, _ in passes)
  assert engine.matchness == best / window > 0
