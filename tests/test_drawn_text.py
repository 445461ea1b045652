"""Sampled text has the target's distribution, through the whole jitted engine."""

import drawn_text
from drawn_text import FALSE_ALARM, SETTINGS, blocks, make_engine, p_values
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swift_jax import sampling as samplings
from swift_jax.config import DecodeConfig
from swift_jax.decoding import verification
from swift_jax.sampling_config import SamplingConfig


@pytest.fixture(scope='module', params=['tree', 'chain'])
def engine(request):
  return make_engine(request.param == 'tree')


def worst(engine, method, batch, count, **settings):
  texts, places = blocks(engine, method, batch, count, **settings)
  found = p_values(texts, places, settings)
  return drawn_text.smallest(found), found, places


@pytest.mark.parametrize('name', SETTINGS)
def test_drawn_text_has_the_targets_distribution(engine, name):
  """200,000 blocks over all settings, of chain and tree."""
  p, found, places = worst(engine, 'swift', 5, 12_500, **SETTINGS[name])
  assert p > FALSE_ALARM
  assert {place for place, _ in found} >= {0, 1, 2}
  assert (places == 0).sum() >= 12_500


@pytest.mark.parametrize('name', ['temperature 1', 'all'])
@pytest.mark.parametrize('method, batch', [('swift', 1), ('plain', 5)])
def test_so_has_a_batch_of_one_and_plain_decoding(engine, name, method, batch):
  p, _, _ = worst(engine, method, batch, 2_500, **SETTINGS[name])
  assert p > FALSE_ALARM


@pytest.mark.parametrize('batch', [1, 5])
@pytest.mark.parametrize('penalty', [1.0, 1.4])
def test_greedy_text_is_the_targets_best(engine, batch, penalty):
  settings = {'temperature': 0.0, 'repetition_penalty': penalty}
  texts, places = blocks(engine, 'swift', batch, 500, **settings)
  laws = drawn_text.exact(texts, {**settings, 'temperature': 1.0, 'top_k': 1})
  best = laws.argmax(-1)[:, :-1]
  live = places[:, 1:] >= 0
  assert (texts[:, 1:] == best)[live].all()
  assert len(set(texts[:, 1:][live])) > 2


def test_no_two_rows_draw_alike_and_every_kind_of_token_comes(engine):
  """What the tests above weigh: leaves, bonus and corrected tokens."""
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


def raw_bonus(path, tree, draft, target_probs, keys, length):
  """The official code's first defect: the bonus token's distribution is not
  warped."""
  rows = jnp.arange(len(length))
  node = jnp.where(path.leaf_hit, path.leaf, path.num_accepted)
  raw = target_probs[rows, node] ** SETTINGS['temperature .6']['temperature']
  raw = raw / raw.sum(-1, keepdims=True)
  place = length + path.num_accepted + path.leaf_hit
  is_bonus = path.leaf_hit | (path.num_accepted + 1 == tree.num_chain)
  return jnp.where(is_bonus, samplings.draw(keys, raw, place), path.own)


def padded_path(path, tree, draft, target_probs, keys, length):
  """Its second: after a sibling comes a token 0 of padding, drafted with
  probability 1, and its refusal takes the sibling's draft off the target."""
  rows = jnp.arange(len(length))
  target = target_probs[rows, path.leaf]
  place = length + path.num_accepted + 1
  key = samplings.noise_keys(keys, samplings.ACCEPT, place)
  takes_padding = verification._uniform(key) < target[:, 0]
  excess = jnp.maximum(target - draft.probs[rows, path.num_accepted], 0)
  refused = samplings.draw(keys, excess / excess.sum(-1, keepdims=True), place)
  wrong = jnp.where(takes_padding, 0, refused)
  return jnp.where(path.leaf_hit, wrong, path.own)


@pytest.mark.parametrize('defect', [raw_bonus, padded_path])
def test_the_test_sees_the_official_codes_defects(monkeypatch, defect):
  accept = verification.accept_draws

  def defective(*arguments):
    path = accept(*arguments)
    return path._replace(own=defect(path, *arguments))

  # Of short chains with many leaves: leaves are what the second is about.
  engine = make_engine(
    True, max_draft_length=2, tree_widths=(7, 7, 7), verify_widths=(15,)
  )
  settings = SETTINGS['temperature .6']
  jax.clear_caches()  # the right program is in there
  with monkeypatch.context() as patch:
    patch.setattr(verification, 'accept_draws', defective)
    p, _, _ = worst(engine, 'swift', 5, 12_500, **settings)
  jax.clear_caches()  # and now the wrong one
  assert p < FALSE_ALARM
  right, _, _ = worst(engine, 'swift', 5, 12_500, **settings)
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
