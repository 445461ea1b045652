"""The search's turns while text is written."""

import numpy as np
import pytest
import tiny_model
from tiny_model import PROMPTS_OF_DIFFERENT_LENGTH

from swift_jax.model import skip_mask as skip_masks
from swift_jax.pacing.governor import Governor
from swift_jax.search.drift import Drift
from swift_jax.search.searcher import Searcher

LAYERS = tiny_model.CFG.num_hidden_layers
WINDOW = 11


class Words:
  def decode(self, ids, **_):
    return ' '.join(map(str, ids))


@pytest.fixture
def scored(monkeypatch):
  """For an engine, each pass from here on: (filled slots, masks, settings,
  positions compared in each row)."""

  def passes_of(engine):
    scorer, passes = engine.model.scorer, []
    real = scorer.score

    def score(text, candidates, *settings):
      scores = real(text, candidates, *settings)
      length = np.array(text.cache.length)
      compared = scores.compared.sum(1)
      passes.append((length, candidates, settings, compared))
      return scores

    monkeypatch.setattr(scorer, 'score', score)
    return passes

  return passes_of


def silent(*_):
  """Reads no text."""


@pytest.mark.parametrize('scoring', ['vmap', 'map'])
def test_no_text_is_scored_twice_and_no_mask_twice_on_a_text(scored, scoring):
  eos = tiny_model.reference(PROMPTS_OF_DIFFERENT_LENGTH[1], 40)[14:15]
  engine = tiny_model.engine(eos=eos, search={'scoring': scoring})
  passes, fresh = scored(engine), []
  searcher = engine.searcher
  observe = searcher.observe
  searcher.observe = lambda *args: (fresh.append(args[2]), observe(*args))
  seen = []
  for prompts in (PROMPTS_OF_DIFFERENT_LENGTH, [[3], [4, 5]]):
    session = engine.session(prompts, tiny_model.decode())
    prompt = np.array(session.state.cache.length)
    assert searcher._is_new_text
    list(session.run())
    for _ in range(2):  # where nothing new was written, nothing is scored
      session.turns.search(session.state)
    lengths = [length - prompt for length, *_ in passes]
    written = np.array([length.sum() for length in lengths])
    assert len(written) > 3
    assert written[0] >= WINDOW and (np.diff(written) > 0).all()
    assert fresh == np.diff(written, prepend=0).tolist()
    for _, bits, settings, _ in passes:
      assert len(np.unique(bits, axis=0)) == len(bits) == 3
      assert settings == (WINDOW, scoring)
    # Nor is a row that has ended since, while the others write on.
    grown = np.diff(lengths, axis=0, prepend=0)
    compared = np.array([compared for *_, compared in passes])
    assert ((compared > 0) == (grown > 0)).all()
    assert (compared <= np.minimum(lengths, WINDOW)).all()
    seen.append((grown == 0).sum())
    assert written[-1] == sum(len(row.text.tokens) for row in session.rows)
    passes.clear()
    fresh.clear()
  assert min(seen) > 3  # row 1 ends early; in the second batch row 2 is spare


@pytest.mark.parametrize('share', [0.0, 1.0])
def test_a_search_without_budget_never_scores(share):
  engine = tiny_model.engine(search={'time_budget': share, 'context_window': 1})
  engine.generate([[1, 2]], tiny_model.decode())
  assert (engine.searcher.iterations > 0) == (share == 1.0)
  assert (engine.searcher.governor.spent > 0) == (share == 1.0)


def test_the_search_takes_its_share_and_no_more_than_a_pass_above():
  engine = tiny_model.engine(search={'time_budget': 0.1, 'max_iterations': 999})
  decode = tiny_model.decode(max_new_tokens=60)
  engine.warmup(decode, 20)
  budget, turns = engine.searcher.governor, []
  pay = budget.pay

  def noted(seconds, is_pass=False):
    # What precedes a pass is one with it: nothing is asked in between.
    if is_pass:
      turns[-1] += seconds
    else:
      turns.append(seconds)
    pay(seconds, is_pass)
    assert budget.spent <= 0.1 * budget.elapsed + max(turns)

  budget.pay = noted
  search_s = 0.0
  for _ in range(6):
    result, *_ = engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, decode)
    search_s += result.metrics.search_s
  assert engine.searcher.iterations == len(turns) > 0
  assert budget.spent == pytest.approx(sum(turns)) == pytest.approx(search_s)


def test_the_search_compiles_beside_a_text_that_lasts(monkeypatch):
  engine = tiny_model.engine(
    search={'time_budget': 0.9, 'scoring': 'auto', 'max_iterations': 999}
  )
  decode = tiny_model.decode(max_new_tokens=60)
  engine.warmup(decode, 20, search=False)
  scorer, searcher = engine.model.scorer, engine.searcher
  jobs, called = [], []
  begin, call = scorer._begin, scorer._call

  def noted(*arguments):
    jobs.append(begin(*arguments))
    return jobs[-1]

  def checked(program, *arguments):
    called.append(program.name)
    assert scorer._programs[program].done()
    return call(program, *arguments)

  monkeypatch.setattr(scorer, '_begin', noted)
  monkeypatch.setattr(scorer, '_call', checked)

  def write():
    return [r.tokens for r in engine.generate([[1, 2]] * 2, decode)]

  first = write()
  assert not jobs and not called  # the text was short
  searcher.governor.add(1000)
  assert write() == first
  for job in jobs:
    job.result()
  assert write() == first
  assert searcher.iterations > 0
  assert len(jobs) == 3  # vmap, map and importance: once each
  assert {'vmap', 'map', 'importance'} == set(called)


@pytest.mark.parametrize('bayes_interval', [0, 1])
def test_the_process_starts_once_the_budget_affords_it(
  monkeypatch, bayes_interval
):
  started = []
  monkeypatch.setattr(Searcher, 'start_process', lambda _: started.append(True))
  engine = tiny_model.engine(
    search={'bayes_interval': bayes_interval, 'time_budget': 0.01}
  )
  engine.warmup(tiny_model.decode(), 20)
  budget = engine.searcher.governor
  budget.per_pass = 0.0  # passes are affordable, the process is not
  engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
  budget.spent = 0.0
  engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
  assert engine.searcher.iterations > 0 and not started
  budget.add(10_000)
  engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
  assert bool(started) == (bayes_interval > 0)


@pytest.mark.parametrize('importance', [True, False])
def test_sensitivities_are_asked_for_once_a_stream(monkeypatch, importance):
  engine = tiny_model.engine(search={'importance': importance})
  scorer, asked = engine.model.scorer, []
  real = scorer.importance

  def found(*settings):
    asked.append((engine.searcher.iterations, real(*settings)))
    assert settings[1:] == (WINDOW, 0.5)
    return asked[-1][1]

  monkeypatch.setattr(scorer, 'importance', found)
  sources = []
  engine.searcher.on_pass = lambda record: sources.append(record.sources)
  for _ in range(2):
    engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
  assert [iterations for iterations, _ in asked] == [0] * importance
  assert ('sensitivity' in sources[0]) == importance
  if importance:
    assert (engine.searcher._importance == asked[0][1]).all()
    engine.searcher.rest()
    engine.searcher._restart()
    engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
    assert len(asked) == 2


def test_a_reader_of_the_text_may_end_the_search():
  engine = tiny_model.engine(confidence_threshold=0.0)
  mask = skip_masks.from_lists([1], [2], LAYERS)
  engine.tokenizer = Words()
  engine.generate(
    [[1, 2]],
    tiny_model.decode(rounds_per_dispatch=9),
    lambda *_: engine.set_skip_mask(mask),
  )
  assert engine.searcher.iterations == 0
  assert engine.skip_mask.to_lists() == mask.to_lists()


@pytest.mark.parametrize('bayes_interval', [0, 1])
def test_warming_up_moves_neither_search_nor_budget(bayes_interval):
  engine = tiny_model.engine(search={'bayes_interval': bayes_interval})
  before, budget = engine.searcher.state(), Governor(1.0)
  engine.warmup(tiny_model.decode(), 20)
  assert engine.searcher.state() == before
  assert engine.searcher.governor == budget


def test_a_stream_that_drifts_is_searched_again(scored):
  """Truly: a draft that is always right, then one that often is not."""
  engine = tiny_model.engine(
    search={'max_iterations': 2},
    confidence_threshold=0.0,
    max_draft_length=6,
  )
  decode = tiny_model.decode(max_new_tokens=60)

  def write():
    return engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, decode)

  write()
  searcher = engine.searcher
  assert searcher.iterations == 2 and not searcher.active
  none = skip_masks.none_skipped(LAYERS)
  searcher.incumbent, searcher._drift = none.bits(), Drift()
  for _ in range(3):
    assert all(r.metrics.acceptance_rate == 1 for r in write())
  assert searcher._drift.blocks > 4 and searcher.restarts == 0
  passes = scored(engine)
  searcher.incumbent = skip_masks.from_lists([1, 2, 3], [], LAYERS).bits()
  assert all(r.metrics.acceptance_rate < 0.7 for r in write())
  assert searcher.restarts == 1 and searcher.iterations == 4
  assert len(passes) == 2 and not searcher.active
  # A set that the user gives drafts whatever becomes of it.
  engine.set_skip_mask(none)
  for _ in range(3):
    write()
  searcher.incumbent = skip_masks.from_lists([1, 2, 3], [], LAYERS).bits()
  write()
  assert searcher.restarts == 1 and len(passes) == 2
