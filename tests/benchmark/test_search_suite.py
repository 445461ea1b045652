"""The search's benchmark: what it replays is what decoding would have scored."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_model

from swift_jax.benchmark.replay import Pace, Stream, replay
from swift_jax.benchmark.suites import search as suite
from swift_jax.config.settings import DraftConfig, SearchConfig
from swift_jax.model import skip_mask as skip_masks
from swift_jax.search import matchness
from swift_jax.search.searcher import Searcher

LAYERS = tiny_model.CFG.num_hidden_layers
WINDOW, NEW = 11, 30
PROMPTS = [[3, 1, 4], [1, 5, 9], [2, 6, 5]]


@pytest.fixture(scope='module')
def engine():
  return tiny_model.engine()


@pytest.fixture(scope='module')
def stream(engine):
  return Stream(engine, PROMPTS, NEW)


def masks(count=4):
  rng = np.random.default_rng(0)
  return np.stack([tiny_model.random_bits(rng, 0.5) for _ in range(count)])


@pytest.mark.parametrize('written', [WINDOW, 17, NEW])
def test_a_replayed_text_is_scored_as_a_live_one(engine, stream, written):
  decode = tiny_model.decode(
    'plain', batch_size=3, max_new_tokens=NEW + 9, ignore_eos=True
  )
  session = engine.session(PROMPTS, decode)
  session.state = session.advance(written)
  session.turns.scored_at = [-1, -1, -1]  # every row has something new
  live = session.turns.score(session.state, masks())
  replayed = engine.model.scorer.score(
    matchness.as_of(stream.text(0, 1, 2), written), masks(), WINDOW, 'map'
  )
  assert live.positions == replayed.positions == 3 * WINDOW
  assert (live.hits == replayed.hits).all()
  np.testing.assert_allclose(live.log_probs, replayed.log_probs, atol=1e-4)


def test_the_pace_of_the_stream():
  pace = Pace(new_tokens=30, tokens_per_mask=3, window=11)
  seen = pace.windows(count=2, first=1, masks=3)
  assert [next(seen) for _ in range(5)] == [
    (1, 11),
    (1, 20),
    (1, 29),
    (0, 11),
    (0, 20),
  ]


@pytest.mark.parametrize('recipe', suite.RECIPES)
def test_every_recipe_replays(engine, stream, recipe):
  make, changes = suite.RECIPES[recipe]
  cfg = SearchConfig(
    num_candidates=3,
    context_window=WINDOW,
    skip_ratio=0.5,
    target_matchness=1.0,
    time_budget=1.0,
  )
  searcher = make(dataclasses.replace(cfg, **changes), LAYERS)
  texts = [stream.text(row) for row in range(3)]
  pace = Pace(NEW, 3, WINDOW)
  found = replay(engine.model, texts, searcher, pace, 0, (5, 12), 2)
  assert list(found) == [5, 12]
  wanted = skip_masks.num_to_skip(LAYERS, 0.5)
  assert all(bits.sum() == wanted for bits in found.values())
  charged = 2 if cfg.importance and recipe == 'ours' else 0
  evaluated = searcher.evaluations + charged
  assert 12 - searcher.num_candidates < evaluated <= 12


def test_fresh_matchness_is_the_share_of_both_windows(engine, stream):
  text = stream.text(0, 1, 2)
  draft = DraftConfig()
  fresh = suite.Fresh(engine.model, [text], WINDOW, draft)
  bits = skip_masks.uniform(LAYERS, 0.5).bits()
  hits, rounds = 0, 0.0
  for seen in (text, matchness.as_of(text, WINDOW)):
    scores = engine.model.scorer.score(seen, bits[None], WINDOW, 'vmap')
    hits += int(scores.num_hits()[0])
    rounds += 3 * WINDOW / scores.accepted_lengths(0.8, 25)[0]
  length = fresh.accepted_length(bits)
  assert length == pytest.approx(2 * 3 * WINDOW / rounds)
  assert fresh.matchness(bits) == hits / (2 * 3 * WINDOW)
  assert fresh.matchness(np.zeros_like(bits)) == 1.0


def test_a_stream_counts_both_runs():
  engine = tiny_model.engine(search={'time_budget': 1.0})
  plain, swift = (
    tiny_model.decode(method, batch_size=1, ignore_eos=True)
    for method in ('plain', 'swift')
  )
  figures = suite.stream(plain, swift, engine, PROMPTS)
  assert figures['new_tokens'] == 3 * plain.sampling.max_new_tokens
  assert figures['passes'] == engine.searcher.iterations > 0
  assert 0 < figures['search_share'] < 1
  assert figures['identical']
  assert figures['process_started'] == engine.searcher.has_process
  taken = figures['plain_seconds'] / figures['swift_seconds']
  assert figures['swift_over_plain'] == pytest.approx(taken)


def test_a_change_of_domain_is_told_to_both_searches():
  made = []

  def make_engine(restart):
    made.append(tiny_model.engine(search={'restart': restart}))
    return made[-1]

  decode = tiny_model.decode(batch_size=1, max_new_tokens=20)
  other = [[7, 7, 7], [8, 8], [9]]
  figures = suite.change_of_domain(make_engine, decode, PROMPTS, other)
  assert list(figures) == ['restart', 'no restart']
  assert figures['no restart']['restarts'] == 0
  parts = ('before', 'at', 'later', 'after')
  assert all(0 <= figures['restart'][part] <= 1 for part in parts)
  assert [e.searcher.cfg.restart for e in made] == [True, False]


def test_a_change_that_is_staged_brings_one_search_back(monkeypatch):
  """The acceptance that is watched falls when the other prompts come."""
  watch = Searcher.watch

  def staged(self, drafted, accepted):
    del drafted, accepted
    for _ in range(8):
      is_new = getattr(self, 'is_new', False)
      watch(self, 64, 20 if is_new else 50)

  monkeypatch.setattr(Searcher, 'watch', staged)

  def make_engine(restart):
    engine = tiny_model.engine(search={'restart': restart})
    encode = engine.encode

    def seen(prompts, arguments):
      engine.searcher.is_new = prompts[0] in ([7, 7], [8, 8], [9, 9])
      return encode(prompts, arguments)

    engine.encode = seen
    return engine

  decode = tiny_model.decode(batch_size=1, max_new_tokens=20)
  other = [[7, 7], [8, 8], [9, 9]]
  figures = suite.change_of_domain(make_engine, decode, PROMPTS, other)
  assert figures['restart']['restarts_before'] == 0
  assert figures['restart']['restarts'] >= 1
  assert figures['no restart']['restarts'] == 0


def test_compilations_are_counted():
  engine = tiny_model.engine(search={'target_matchness': 1.0})
  decode = tiny_model.decode(batch_size=1)
  seen = suite.compilations(engine, decode, PROMPTS, (6, 40))
  assert seen['warm_up'] > 3
  assert seen['after_6'] == seen['after_40'] == 0
  # The counter counts.
  count = suite.Compilations()
  jax.block_until_ready(jax.jit(lambda x: x * 3 + 1)(np.float32(2)))
  assert count.total == 1


def test_suggestions_and_their_overlap_are_timed(engine):
  assert suite.suggestion_ms(LAYERS, 0.5, repeats=2) > 0
  decode = tiny_model.decode(batch_size=1)
  taken = suite.overlap(engine, decode, [3, 1], repeats=2)
  assert set(taken) == {'rounds', 'suggestion', 'both', 'waiting'}
  assert all(value > 0 for value in taken.values())


@pytest.mark.parametrize(
  'flags, named',
  [
    (['--suite=speed'], "--suite='speed'"),
    (['--seeds=0'], '--seeds=0'),
    (['--output=nowhere/x.json'], "--output='nowhere/x.json'"),
    (['--config.search.recipe=other'], "recipe='other'"),
    (['--config.model.path=nowhere'], 'nowhere'),
  ],
)
def test_wrong_input_ends_with_one_line(tmp_path, flags, named):
  script = pathlib.Path(__file__).resolve().parents[2] / 'launch/benchmark.py'
  done = subprocess.run(
    [sys.executable, script, *flags],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 2
  assert done.stdout == ''
  assert named in done.stderr
  assert done.stderr.count('\n') == 1
  assert not list(tmp_path.iterdir())
