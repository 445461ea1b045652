"""Scoring on a model: in the way that is set, or in the quicker way."""

from compilations import Compilations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from swift_jax.model import skip_mask as skip_masks
from swift_jax.search import matchness

LAYERS = tiny_model.CFG.num_hidden_layers
WINDOW = 11
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, tiny_model.CFG.vocab_size, (2, 40)).astype(np.int32)
BITS = np.stack([tiny_model.random_bits(RNG, 0.5) for _ in range(3)])


@pytest.fixture
def scorer():
  return tiny_model.engine().model.scorer


@pytest.fixture(scope='module')
def text():
  return tiny_model.text(TOKENS, [40, 31], [4, 9])


@pytest.fixture
def ways(monkeypatch):
  """The list of each pass's `is_vmapped`; nothing is computed."""
  seen = []

  def score(*arguments):
    *_, is_vmapped = arguments
    seen.append(is_vmapped)
    empty = np.zeros((3, 1, 1), bool)
    return matchness.Scores(empty, empty, empty, empty[0])

  monkeypatch.setattr(matchness, 'score', score)
  return seen


@pytest.mark.parametrize('scoring', ['vmap', 'map'])
def test_the_way_is_the_settings(scorer, text, ways, scoring):
  scorer.score(text, BITS, WINDOW, scoring)
  assert ways == [scoring == 'vmap'] and not scorer.seconds


@pytest.mark.parametrize('quicker', ['vmap', 'map'])
def test_auto_takes_the_quicker_way_and_times_a_shape_once(
  scorer, text, ways, monkeypatch, quicker
):
  timed = []

  def seconds(text, bits, window, way):
    timed.append((way, len(bits), window))
    return 0.1 if way == quicker else 0.2

  monkeypatch.setattr(scorer, '_seconds', seconds)
  both = [('vmap', 3, WINDOW), ('map', 3, WINDOW)]
  for _ in range(3):
    scorer.score(text, BITS, WINDOW, 'auto')
    assert timed == both
  assert ways == [quicker == 'vmap'] * 3
  two = BITS[:2]
  scorer.score(text, two, WINDOW, 'auto')  # other shapes are others
  scorer.score(text, two, 5, 'auto')
  assert timed[2:] == [
    (way, 2, window) for window in (WINDOW, 5) for way in ('vmap', 'map')
  ]
  wanted = {quicker: 0.1, ({'vmap', 'map'} - {quicker}).pop(): 0.2}
  assert scorer.seconds == {
    (2, 40, 3, WINDOW): wanted,
    (2, 40, 2, WINDOW): wanted,
    (2, 40, 2, 5): wanted,
  }


def test_the_quickest_of_some_passes_counts_and_never_the_first(
  scorer, text, ways, monkeypatch
):
  """The first compiles: its time does not count, even if it is the shortest."""
  clock = iter([0, 1, 1, 4, 4, 6, 6, 10])
  monkeypatch.setattr('time.perf_counter', lambda: next(clock))
  assert scorer._seconds(text, BITS, WINDOW, 'map') == 2
  assert ways == [False] * 4


def test_a_mask_alone_is_a_pass_behind_gates(scorer, text, ways):
  scorer.score(text, BITS[:1], WINDOW, 'auto')
  assert ways == [False] and not scorer.seconds


@pytest.mark.parametrize('scoring', ['vmap', 'map', 'auto'])
def test_scores_are_on_the_host_and_those_of_the_function(
  scorer, text, scoring
):
  found = scorer.score(text, BITS, WINDOW, scoring)
  masks = skip_masks.from_bits(BITS)
  wanted = matchness.score(*tiny_model.weights(), text, masks, WINDOW)
  assert all(isinstance(part, np.ndarray) for part in found)
  assert (found.hits == np.asarray(wanted.hits)).all()
  assert (found.compared == np.asarray(wanted.compared)).all()
  np.testing.assert_allclose(
    found.log_probs, wanted.log_probs, rtol=1e-5, atol=1e-4
  )


def test_importances_come_through(scorer, text):
  found = scorer.importance(text, WINDOW, 0.4)
  wanted = matchness.sensitivities(
    *tiny_model.weights(), text, jnp.float32(0.4), WINDOW
  )
  assert isinstance(found, np.ndarray)
  assert found.shape == (skip_masks.num_free(LAYERS),)
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
  'scoring, importance, count',
  [('vmap', False, 1), ('map', True, 2), ('auto', True, 3)],
)
def test_what_was_compiled_ahead_is_what_runs(
  scorer, text, scoring, importance, count
):
  given = jax.tree.map(jnp.copy, text)
  how = given, BITS, WINDOW, scoring, importance
  assert not scorer.is_ready(*how, begins=False) and not scorer._programs
  scorer.is_ready(*how, begins=True)
  jax.tree.map(lambda array: array.delete(), given)  # the next round's
  jobs = list(scorer._programs.values())
  assert len(jobs) == count
  for job in jobs:
    job.result()
  how = text, *how[1:]
  assert scorer.is_ready(*how, begins=False)
  jax.clear_caches()  # what was compiled for other tests
  compilations = Compilations()
  found = scorer.score(text, BITS, WINDOW, scoring)
  if importance:
    slopes = scorer.importance(text, WINDOW, 0.4)
  assert compilations.count == 0
  model = tiny_model.weights()
  wanted = matchness.score(*model, text, skip_masks.from_bits(BITS), WINDOW)
  assert (found.hits == np.asarray(wanted.hits)).all()
  if importance:
    ratio = jnp.float32(0.4)
    wanted = matchness.sensitivities(*model, text, ratio, WINDOW)
    np.testing.assert_allclose(slopes, wanted, rtol=1e-6)


def test_what_ran_is_ready(scorer, text):
  scorer.score(text, BITS, WINDOW, 'auto')
  assert scorer.is_ready(text, BITS, WINDOW, 'auto', False, begins=False)
  assert not scorer.is_ready(text, BITS, 5, 'auto', False, begins=False)
  assert not scorer.is_ready(text, BITS, WINDOW, 'auto', True, begins=False)
  scorer.importance(text, WINDOW, 0.4)
  assert scorer.is_ready(text, BITS, WINDOW, 'auto', True, begins=True)
  assert set(scorer._programs.values()) == {None}
