"""Scores against passes of one token and against decoded rounds."""

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG

from swift_jax.config.settings import DraftConfig
from swift_jax.model import kv_cache
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.skip_mask import SkipMask
from swift_jax.runtime.engine import Engine
from swift_jax.search import matchness
from swift_jax.search.matchness import Scores

LAYERS = CFG.num_hidden_layers
FREE = skip_masks.num_free(LAYERS)
WINDOW = 11
# A full window, a short one, none; a text that is shorter than the window.
PROMPTS, LENGTHS = [3, 5, 2, 1], [30, 17, 2, 8]
COMPARED = [11, 11, 0, 7]
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, CFG.vocab_size, (4, 64)).astype(np.int32)
NOTHING = skip_masks.none_skipped(LAYERS)
MASKS = [NOTHING] + [
  skip_masks.from_bits(tiny_model.random_bits(RNG, ratio))
  for ratio in (0.2, 0.5, 1)
]


def one_at_a_time(mask):
  """Logits of each row's window, [B, T, V], and the places in the text that
  they predict. The gated model reads one token a pass, on the target's cache of
  the text before the window."""
  first = np.maximum(np.array(LENGTHS) - 1 - WINDOW, 0)
  cache = tiny_model.text(TOKENS, first + 1, PROMPTS).cache
  logits = []
  for step in range(WINDOW):
    tokens = np.take_along_axis(TOKENS, first[:, None] + step, axis=1)
    found, updates = tiny_model.run(tokens, mask, cache)
    cache = cache.write(updates).rollback(first + step + 1)
    logits.append(np.asarray(found[:, 0], np.float64))
  places = first[:, None] + 1 + np.arange(WINDOW)
  return places, np.stack(logits, axis=1)


def sampled_text():
  """Random tokens, as if sampled, and the target's argmax at each place."""
  target = np.full_like(TOKENS, -1)  # of prompts, that it did not write
  places, logits = one_at_a_time(NOTHING)
  np.put_along_axis(target, places, logits.argmax(2).astype(np.int32), axis=1)
  for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
    target[row, :prompt] = target[row, length:] = -1
  return tiny_model.text(TOKENS, LENGTHS, PROMPTS, target)


def stack(masks) -> SkipMask:
  """The masks as one, with a leading axis C."""
  return jax.tree.map(lambda *rows: np.stack(rows), *masks)


def score(text, masks=MASKS, is_vmapped=True) -> Scores:
  graphdef, params = tiny_model.weights()
  return jax.device_get(
    matchness.score(graphdef, params, text, stack(masks), WINDOW, is_vmapped)
  )


def test_scores_in_one_pass_are_those_of_a_pass_a_mask_and_a_token():
  text = sampled_text()
  vmapped, mapped = (score(text, is_vmapped=way) for way in (True, False))
  assert (vmapped.hits == mapped.hits).all()
  assert (vmapped.compared == mapped.compared).all()
  for name in ('log_probs', 'confidence'):
    one, two = getattr(vmapped, name), getattr(mapped, name)
    one, two = (np.where(vmapped.compared, part, 0) for part in (one, two))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
  assert vmapped.compared.sum(1).tolist() == COMPARED
  assert vmapped.positions == sum(COMPARED)
  prompts, lengths = np.array([PROMPTS, LENGTHS])[..., None]
  hits = []
  for number, mask in enumerate(MASKS):
    places, logits = one_at_a_time(mask)
    counts = (places >= prompts) & (places < lengths)  # the prompt's never do
    assert (vmapped.compared == counts).all()
    target = np.take_along_axis(np.asarray(text.target), places, axis=1)[counts]
    seen = [part[number][counts] for part in vmapped[:3]]
    best = logits[counts].argmax(1)
    log_probs = jax.nn.log_softmax(logits[counts])
    of_target = log_probs[np.arange(len(target)), target]
    assert (seen[0] == (best == target)).all()
    np.testing.assert_allclose(seen[1], of_target, rtol=1e-5, atol=1e-5)
    confidence = np.exp(log_probs.max(1))
    np.testing.assert_allclose(seen[2], confidence, rtol=1e-5, atol=1e-5)
    hits.append((best == target).sum())
  assert vmapped.num_hits().tolist() == hits
  # The full model hits all its own choices, on a text that it did not write.
  assert hits[0] == sum(COMPARED) > hits[3]
  as_if_written = score(text._replace(target=text.tokens))
  assert as_if_written.num_hits()[0] < sum(COMPARED) / 4


def test_only_what_counts_is_weighed():
  rng = np.random.default_rng(1)
  compared = rng.random((2, 5)) < 0.6
  log_probs = rng.normal(-4, 2, (3, 2, 5)).astype(np.float32)
  log_probs[1, 0, 0] = np.nan  # a draft may overflow
  compared[0, 0] = True
  hits = rng.random((3, 2, 5)) < 0.5
  scores = Scores(hits, log_probs, np.exp(log_probs), compared)
  places = np.argwhere(compared)
  assert scores.positions == len(places)
  closeness = scores.closeness()
  for c in range(3):
    assert scores.num_hits()[c] == sum(hits[c, b, t] for b, t in places)
    wanted = [log_probs[c, b, t] for b, t in places]
    wanted = [x if x > matchness._FLOOR else matchness._FLOOR for x in wanted]
    assert closeness[c].tolist() == wanted


def test_a_text_as_it_was_is_the_text_that_was_written_until_then():
  text = sampled_text()
  written = [min(n, p + 6) for p, n in zip(PROMPTS, LENGTHS, strict=True)]
  target = np.asarray(text.target)
  until_then = tiny_model.text(TOKENS, written, PROMPTS, target)
  before, wanted = score(matchness.as_of(text, 6)), score(until_then)
  assert before.compared.sum(1).tolist() == [6, 6, 0, 6]
  for part, other in zip(before, wanted, strict=True):
    np.testing.assert_array_equal(part, other)


def test_scoring_reads_the_cache_and_leaves_it():
  """No candidate returns a cache: the program's outputs are a few numbers."""
  graphdef, params = tiny_model.weights()
  float32 = jnp.dtype('float32')
  ints = jnp.zeros((2, 64), int)
  abstract = jax.eval_shape(
    lambda cache, masks: matchness.score(
      graphdef,
      params,
      matchness.Text(cache, ints, ints, jnp.ones(2, int)),
      masks,
      5,
    ),
    kv_cache.empty(LAYERS, 2, 3, 64, 8, float32),
    stack([NOTHING] * 3),
  )
  shapes = [leaf.shape for leaf in jax.tree.leaves(abstract)]
  assert shapes == [(3, 2, 5)] * 3 + [(2, 5)]


# ---- rounds


@st.composite
def scores(draw) -> Scores:
  """Any scores; in each row the positions that count are contiguous."""
  count, rows, length = (draw(st.integers(1, most)) for most in (3, 3, 20))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  shape = count, rows, length
  compared = np.zeros((rows, length), bool)
  for row in compared:
    begin, end = sorted(draw(st.integers(0, length)) for _ in range(2))
    row[begin:end] = True
  hits = rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
  confidence = rng.random(shape).astype(np.float32)
  return Scores(hits, np.log(confidence), confidence, compared)


def count_rounds(hits, sure, most) -> int:
  """The number of rounds over a text, walked as decoding does."""
  rounds = at = 0
  while at < len(hits):
    drafted = 1
    while (
      drafted < most and at + drafted < len(hits) and sure[at + drafted - 1]
    ):
      drafted += 1
    kept = 0
    while kept < drafted and hits[at + kept]:
      kept += 1
    at += kept + 1
    rounds += 1
  return rounds


@given(
  scores=scores(),
  threshold=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
  most=st.integers(1, 9),
)
def test_accepted_lengths_are_those_of_walked_rounds(scores, threshold, most):
  found = scores.accepted_lengths(threshold, most)
  for number, length in enumerate(found):
    rounds = sum(
      count_rounds(
        scores.hits[number, row][counts],
        scores.confidence[number, row][counts] >= threshold,
        most,
      )
      for row, counts in enumerate(scores.compared)
    )
    assert length == scores.positions / max(rounds, 1)


def engine_that_looks_back_no_further(**draft) -> Engine:
  """An engine whose last layer attends to nothing. So a mask of the layer
  before it drafts the same after a committed and after a drafted token."""
  graphdef, params = tiny_model.weights()
  kernel = params['layers'][LAYERS - 1]['self_attn']['o_proj']
  layers = dict(params['layers'])
  layers[LAYERS - 1] = {
    **layers[LAYERS - 1],
    'self_attn': {
      **layers[LAYERS - 1]['self_attn'],
      'o_proj': jax.tree.map(jnp.zeros_like, kernel),
    },
  }
  params = {**params, 'layers': layers}
  draft = DraftConfig(
    verify_widths=(4, 8, 32), tree=False, adaptive=False, **draft
  )
  return Engine(CFG, graphdef, params, draft=draft)


@pytest.mark.parametrize('threshold, most', [(0.0, 4), (0.3, 25), (0.6, 6)])
def test_accepted_lengths_are_those_of_the_engine(threshold, most):
  """They are equal with `engine_that_looks_back_no_further`. Otherwise a mask
  that drafts on top of its own draft sees another cache than when it is scored,
  and the two agree only about as well as these caches do."""
  engine = engine_that_looks_back_no_further(
    confidence_threshold=threshold, max_draft_length=most
  )
  mask = skip_masks.from_lists([LAYERS - 2], [LAYERS - 2], LAYERS)
  engine.set_skip_mask(mask)
  prompts = [[5], [9, 8, 7, 6, 5, 4, 3], list(range(20, 40))]
  session = engine.session(prompts, tiny_model.decode())
  list(session.run())
  state, model = session.state, engine.model
  text = matchness.Text(
    state.cache, state.tokens, state.target, state.prompt_length
  )
  masks = stack([mask])
  scores = jax.device_get(
    matchness.score(model.graphdef, model.params, text, masks, 40)
  )
  assert scores.positions == sum(len(r.text.tokens) for r in session.rows)
  rounds = [one for row in session.rows for one in row.rounds]
  accepted = sum(one.accepted for one in rounds)
  assert 0 < accepted < sum(one.drafted for one in rounds)
  (length,) = scores.accepted_lengths(threshold, most)
  assert length == scores.positions / len(rounds) > 1


# ---- shares of a sublayer


def random_masks():
  rng = np.random.default_rng(2)
  ratios = 0, 0.3, 0.6, 1
  bits = [tiny_model.random_bits(rng, ratio) for ratio in ratios]
  return list(map(skip_masks.from_bits, bits))


@pytest.mark.parametrize('number', range(4))
def test_whole_shares_are_booleans(number):
  mask = random_masks()[number]
  shares = SkipMask(mask.attn.astype(np.float32), mask.mlp.astype(np.float32))
  half = jax.tree.map(lambda row: np.abs(row - np.float32(0.5)), shares)
  whole, wanted, other = (
    np.asarray(tiny_model.run(TOKENS, m)[0]) for m in (shares, mask, half)
  )
  np.testing.assert_allclose(whole, wanted, atol=1e-4)
  assert np.abs(other - wanted).max() > 1


def test_sensitivities_are_slopes():
  """Central differences of the log-probabilities that `score` gives, at a model
  in which every free sublayer counts by 1 - skip_ratio."""
  graphdef, params = tiny_model.weights()
  text, ratio, step = sampled_text(), 0.45, 0.02
  found = matchness.sensitivities(
    graphdef, params, text, jnp.float32(ratio), WINDOW
  )

  def shares(change) -> SkipMask:
    skipped = np.full(FREE, ratio) - change
    attn, mlp = np.split(np.pad(skipped.reshape(2, -1), [(0, 0), (1, 1)]), 2)
    return SkipMask(np.float32(attn[0]), np.float32(mlp[0]))

  ends = [shares(sign * step * row) for sign in (1, -1) for row in np.eye(FREE)]
  scores = score(text, ends)
  gains = scores.log_probs[:, scores.compared].mean(1, dtype=np.float64)
  slopes = (gains[:FREE] - gains[FREE:]) / (2 * step)
  assert np.abs(slopes).max() > 0.1
  np.testing.assert_allclose(found, slopes, atol=0.01 * np.abs(slopes).max())


def test_what_is_judged_in_pieces_is_the_same(monkeypatch):
  """Values and derivatives, where the last piece is shorter."""
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(3, 11, 4)))
  targets = jnp.asarray(rng.integers(0, 9, (3, 11)))

  def judge(hidden, targets):
    return jnp.sin(hidden.sum(-1)) * targets

  def total(hidden):
    return (matchness._in_pieces(judge, hidden, targets) ** 2).sum()

  found = []
  for positions in (33, 7):  # one piece, and six
    monkeypatch.setattr(matchness, '_POSITIONS', positions)
    judged = matchness._in_pieces(judge, hidden, targets)
    found.append((judged, jax.grad(total)(hidden)))
  assert matchness.positions_at_once(3, 11) == 2
  for one, two in zip(*found, strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-6)
