"""Sampled text has the target's distribution, through the whole jitted engine."""

import functools

import drawn_text
from drawn_text import FALSE_ALARM, SETTINGS, blocks, make_engine, p_values
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DecodeConfig
from swift_jax.decoding import sampling as samplings

NIGHTLY = pytest.mark.nightly


@pytest.fixture(
  scope='module', params=['tree', pytest.param('chain', marks=NIGHTLY)]
)
def engine(request):
  return make_engine(request.param == 'tree')


def worst(engine, method, batch, count, **settings):
  texts, places = blocks(engine, method, batch, count, **settings)
  found = p_values(texts, places, settings)
  return drawn_text.smallest(found), found, places


def test_drawn_text_has_the_targets_distribution(engine):
  check(engine, 'all', 4_000)


@NIGHTLY
@pytest.mark.parametrize('name', SETTINGS)
def test_so_it_has_in_any_setting(engine, name):
  """With 200,000 blocks over all settings, of chain and tree."""
  check(engine, name, 12_500)


def check(engine, name, count):
  p, found, places = worst(engine, 'swift', 5, count, **SETTINGS[name])
  assert p > FALSE_ALARM
  assert {place for place, _ in found} >= {0, 1, 2}
  assert (places == 0).sum() >= count


@NIGHTLY
@pytest.mark.parametrize('name', ['temperature 1', 'all'])
@pytest.mark.parametrize('method, batch', [('swift', 1), ('plain', 5)])
def test_so_has_a_batch_of_one_and_plain_decoding(engine, name, method, batch):
  p, _, _ = worst(engine, method, batch, 2_500, **SETTINGS[name])
  assert p > FALSE_ALARM


@pytest.mark.parametrize('batch', [pytest.param(1, marks=NIGHTLY), 5])
@pytest.mark.parametrize('penalty', [pytest.param(1.0, marks=NIGHTLY), 1.4])
def test_greedy_text_is_the_targets_best(engine, batch, penalty):
  settings = {'temperature': 0.0, 'repetition_penalty': penalty}
  texts, places = blocks(engine, 'swift', batch, 500, **settings)
  laws = drawn_text.exact(texts, {**settings, 'temperature': 1.0, 'top_k': 1})
  best = laws.argmax(-1)[:, :-1]
  live = places[:, 1:] >= 0
  assert (texts[:, 1:] == best)[live].all()
  assert len(set(texts[:, 1:][live])) > 2


def test_no_two_rows_draw_alike_and_every_kind_of_token_comes(engine):
  """So the tests above see leaves, bonus and corrected tokens."""
  sampling = SamplingConfig(temperature=1.0, top_k=0, max_new_tokens=300)
  decode = DecodeConfig(batch_size=5, sampling=sampling)
  results = engine.generate([[3]] * 5, decode)
  assert len({tuple(r.tokens) for r in results}) == 5
  for result in results:
    m = result.metrics
    assert min(m.accepted, m.bonus_tokens, m.corrected_tokens) > 10
    made = m.accepted + m.leaf_hits + m.bonus_tokens + m.corrected_tokens
    assert made == m.new_tokens == 300
    assert (m.leaf_hits > 10) == (engine.model.shapes.num_leaves > 0)


def raw_depths(choose, logits, context, sampling, samples):
  """The official code's defect: only the first token of a block is warped."""
  raw = logits * sampling.temperature
  is_deep = context.depth[..., None] > 0
  return choose(jnp.where(is_deep, raw, logits), context, sampling, samples)


def noise_of_the_round(choose, logits, context, sampling, samples):
  """All tokens of a block are drawn with the noise of its first place."""
  first = context._replace(depth=0 * context.depth)
  return choose(logits, first, sampling, samples)


@NIGHTLY
@pytest.mark.parametrize('defect', [raw_depths, noise_of_the_round])
def test_the_test_sees_what_is_wrong(monkeypatch, defect):
  engine = make_engine(True)
  settings = SETTINGS['temperature .6']
  jax.clear_caches()  # the right program is in there
  with monkeypatch.context() as patch:
    wrong = functools.partial(defect, samplings.choose)
    patch.setattr(samplings, 'choose', wrong)
    p, _, _ = worst(engine, 'swift', 5, 4_000, **settings)
  jax.clear_caches()  # and now the wrong one
  assert p < FALSE_ALARM
  right, _, _ = worst(engine, 'swift', 5, 4_000, **settings)
  assert right > FALSE_ALARM


def test_the_oracles_order_is_hugging_faces_by_another_way():
  """On one law by hand: temperature, then top-k, top-p, min-p."""
  texts = np.zeros((1, 3), np.int32)
  logits = np.asarray(drawn_text._logits()(texts))[0, 0].astype(np.float64)
  p = np.exp(logits / 0.5)
  p /= p.sum()
  order = np.argsort(-p)
  p[order[4:]] = 0
  p /= p.sum()
  total, kept = 0.0, []
  for token in order:
    if total < 0.7:
      kept.append(token)
    total += p[token]
  p = np.where(np.isin(np.arange(8), kept), p, 0)
  p = np.where(p >= 0.2 * p.max(), p, 0)
  settings = {'temperature': 0.5, 'top_k': 4, 'top_p': 0.7, 'min_p': 0.2}
  got = drawn_text.exact(texts, settings)[0, 0]
  np.testing.assert_allclose(got, p / p.sum(), atol=1e-12)
