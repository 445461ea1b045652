"""SWIFT's text is plain decoding's, drawn or not, whatever the draft does."""

import dataclasses

from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG, CHUNK, Letters

from swift_jax.config.settings import METHODS, DraftConfig
from swift_jax.model import llama
from swift_jax.model import skip_mask as skip_masks
from swift_jax.runtime.engine import Engine

RNG = np.random.default_rng(0)
PROMPTS = [
  [3],  # nothing to prefill
  RNG.integers(0, CFG.vocab_size, CHUNK).tolist(),  # a chunk's tokens
  RNG.integers(0, CFG.vocab_size, CHUNK + 1).tolist(),  # its last is not cached
  RNG.integers(0, CFG.vocab_size, 2 * CHUNK + 3).tolist(),
]
NOTHING = skip_masks.none_skipped(CFG.num_hidden_layers)
EVERYTHING = skip_masks.uniform(CFG.num_hidden_layers, 1.0)
HALF = skip_masks.from_bits(tiny_model.random_bits(RNG, 0.5))
MASKS = {'nothing': NOTHING, 'everything': EVERYTHING, 'half': HALF}


def tokens(engine, prompts, **decode):
  results = engine.generate(prompts, tiny_model.decode(**decode))
  return [result.tokens for result in results]


def test_plain_decoding_is_a_full_pass_a_token():
  wanted = [tiny_model.reference(prompt, 40) for prompt in PROMPTS]
  assert tokens(tiny_model.engine(), PROMPTS, method='plain') == wanted
  # The text must have something to get wrong.
  assert all(len(set(row)) > 8 for row in wanted)


@pytest.mark.parametrize('tree', [True, False])
@pytest.mark.parametrize('threshold', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('cap', [1, 25])
@pytest.mark.parametrize('mask', MASKS)
def test_grid(mask, cap, threshold, tree):
  engine = tiny_model.engine(
    MASKS[mask],
    max_draft_length=cap,
    confidence_threshold=threshold,
    tree=tree,
  )
  wanted = [tiny_model.reference(prompt, 40) for prompt in PROMPTS]
  assert tokens(engine, PROMPTS) == wanted


def test_batch_of_one_is_the_same():
  engine = tiny_model.engine(HALF, confidence_threshold=0.2)
  wanted = [tiny_model.reference(prompt, 40) for prompt in PROMPTS]
  assert tokens(engine, PROMPTS, batch_size=1) == wanted


def test_drafts_are_accepted_and_rejected():
  """The grid must reach every branch of a round, or equality proves little."""
  engine = tiny_model.engine(HALF, confidence_threshold=0.0, max_draft_length=6)
  results = engine.generate(PROMPTS, tiny_model.decode())
  total = {
    name: sum(getattr(result.metrics, name) for result in results)
    for name in ('drafted', 'accepted', 'leaf_hits')
  }
  assert 0 < total['accepted'] < total['drafted']
  assert total['leaf_hits'] > 0
  # A draft that skips nothing is always right.
  engine = tiny_model.engine(NOTHING, confidence_threshold=0.0, tree=False)
  for result in engine.generate(PROMPTS, tiny_model.decode()):
    assert result.metrics.accepted == result.metrics.drafted > 30


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('limit', [0, 1, 2])
def test_short_limits(method, limit):
  engine = tiny_model.engine(NOTHING, confidence_threshold=0.0)
  got = tokens(engine, PROMPTS, method=method, max_new_tokens=limit)
  assert got == [tiny_model.reference(prompt, limit) for prompt in PROMPTS]


@pytest.mark.parametrize('method', METHODS)
def test_context_is_filled_exactly(method):
  engine = tiny_model.engine(NOTHING, confidence_threshold=0.0)
  full = RNG.integers(0, CFG.vocab_size, CFG.max_position_embeddings).tolist()
  prompts = [full[:-1], full, full[:-5]]
  results = engine.generate(
    prompts, tiny_model.decode(method, max_new_tokens=1000)
  )
  assert [len(result.tokens) for result in results] == [1, 0, 5]
  assert [result.finish_reason for result in results] == ['length'] * 3
  for prompt, result in zip(prompts, results, strict=True):
    assert result.tokens == tiny_model.reference(prompt, 1000)


def test_rows_end_at_different_times_in_the_middle_of_a_block():
  texts = [tiny_model.reference(prompt, 40) for prompt in PROMPTS]
  for position in (0, 1, 4, 9):
    eos = [texts[1][position], texts[-1][position + 2]]
    wanted = [tiny_model.reference(prompt, 40, eos) for prompt in PROMPTS]
    engine = tiny_model.engine(NOTHING, eos, confidence_threshold=0.0)
    for method in METHODS:
      results = engine.generate(PROMPTS, tiny_model.decode(method))
      assert [result.tokens for result in results] == wanted
      for result in results:
        ended = result.tokens[-1] in eos
        assert result.finish_reason == ('eos' if ended else 'length')
        assert result.metrics.new_tokens == len(result.tokens)
    assert tokens(engine, PROMPTS, ignore_eos=True) == texts


@pytest.mark.parametrize('span', [1, 2, 5])
def test_stop_strings_cut_where_plain_decoding_cuts(span):
  letters = Letters()
  texts = [
    letters.decode(tiny_model.reference(prompt, 40)) for prompt in PROMPTS
  ]
  stops = [texts[0][7 : 7 + span], texts[-1][21 : 21 + span]]
  engine = tiny_model.engine(
    NOTHING, (), Letters(), confidence_threshold=0.0, max_draft_length=25
  )
  plain, swift, lookup = (
    engine.generate(PROMPTS, tiny_model.decode(method, stop_strings=stops))
    for method in METHODS
  )
  for text, a, b, c in zip(texts, plain, swift, lookup, strict=True):
    found = [text.find(stop) for stop in stops if stop in text]
    wanted = text[: min(found)] if found else text
    assert a.text == b.text == c.text == wanted
    assert a.tokens == b.tokens == c.tokens
    assert a.finish_reason == b.finish_reason == ('stop' if found else 'length')
    assert b.metrics.new_tokens == len(b.tokens)
    assert b.metrics.accepted + b.metrics.leaf_hits <= len(b.tokens)
    assert a.metrics.verify_passes == len(a.tokens)
    for result in (a, b, c):
      check_rounds(result)


def check_rounds(result):
  """The rounds add up to the text and to its counts."""
  passes, m = result.rounds, result.metrics
  assert len(passes) == m.verify_passes
  assert sum(r.returned for r in passes) == len(result.tokens)
  assert sum(r.drafted for r in passes) == m.drafted
  assert sum(r.accepted for r in passes) == m.accepted
  for r in passes:
    # A leaf and the target's own token are returned in addition.
    assert r.accepted <= min(r.drafted, r.returned)
    assert 1 <= r.returned <= r.accepted + 2
    assert r.own in (0, 1) and r.leaf_hits in (0, 1)
  if m.method != 'plain':
    own = m.bonus_tokens + m.corrected_tokens
    assert m.accepted + m.leaf_hits + own == len(result.tokens)


@pytest.mark.parametrize(
  'method', ['swift', pytest.param('prompt_lookup', marks=pytest.mark.nightly)]
)
def test_rounds_in_halves_write_the_same(method):
  """Halves, which are timed apart, write what rounds in one program write."""
  wanted = None
  for interval in (0, 1, 3):
    engine = tiny_model.engine(HALF, confidence_threshold=0.0)
    results = engine.generate(
      PROMPTS, tiny_model.decode(method, phase_interval=interval)
    )
    got = [(result.tokens, result.rounds) for result in results]
    wanted = wanted or got
    assert got == wanted
    for result in results:
      check_rounds(result)
      m = result.metrics
      assert (m.draft_s > 0, m.verify_s > 0) == (interval > 0, interval > 0)
      assert m.draft_s + m.verify_s < m.decode_s


@given(
  bits=st.lists(st.booleans(), min_size=6, max_size=6),
  threshold=st.sampled_from([0.0, 0.3, 1.0]),
  cuts=st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(1, 4)),
    min_size=1,
    max_size=3,
  ),
)
def test_any_stop_strings(bits, threshold, cuts):
  """Stop strings are cut out of the texts; blocks are cut after leaves too."""
  prompts = PROMPTS[:3]
  letters = Letters()
  texts = [letters.decode(tiny_model.reference(p, 40)) for p in prompts]
  stops = [texts[row][at : at + size] or 'no' for row, at, size in cuts]
  engine = tiny_model.engine(
    skip_masks.from_bits(np.array(bits)),
    (),
    letters,
    confidence_threshold=threshold,
    max_draft_length=6,
  )
  plain, swift = (
    engine.generate(prompts, tiny_model.decode(method, stop_strings=stops))
    for method in ('plain', 'swift')
  )
  for prompt, a, b in zip(prompts, plain, swift, strict=True):
    # By a look after every token: the stop that is complete first counts.
    tokens = tiny_model.reference(prompt, 40)
    for count in range(1, len(tokens) + 1):
      text = letters.decode(tokens[:count])
      found = [text.find(stop) for stop in stops if stop in text]
      if found:
        break
    assert a.text == b.text == (text[: min(found)] if found else text)
    assert a.tokens == b.tokens
    made = b.metrics.accepted + b.metrics.leaf_hits
    assert made <= len(b.tokens) <= made + b.metrics.verify_passes


@pytest.mark.parametrize('bayes_interval', [0, 2])
def test_search_while_decoding_changes_nothing(bayes_interval):
  engine = tiny_model.engine(
    search={'bayes_interval': bayes_interval},
    confidence_threshold=0.0,
    max_draft_length=6,
  )
  wanted = [tiny_model.reference(prompt, 60) for prompt in PROMPTS]
  assert tokens(engine, PROMPTS, max_new_tokens=60) == wanted
  assert engine.searcher.iterations > 0
  assert engine.matchness is not None


@given(
  bits=st.lists(st.booleans(), min_size=6, max_size=6),
  prompts=st.lists(
    st.lists(st.integers(0, CFG.vocab_size - 1), min_size=1, max_size=25),
    min_size=1,
    max_size=3,
  ),
  cap=st.integers(1, 25),
  threshold=st.floats(0, 1),
  limit=st.integers(0, 45),
  eos=st.lists(st.integers(0, CFG.vocab_size - 1), max_size=8),
  bounds=st.lists(
    st.floats(0, 1, width=16), min_size=3, max_size=3, unique=True
  ),
  widths=st.permutations([10, 5, 3, 1]),
  rounds=st.integers(1, 9),
  has_tree=st.booleans(),
  temperature=st.sampled_from([0.0, 0.7, 1.5]),
)
def test_any_setting(
  bits,
  prompts,
  cap,
  threshold,
  limit,
  eos,
  bounds,
  widths,
  rounds,
  has_tree,
  temperature,
):
  engine = tiny_model.engine(
    skip_masks.from_bits(np.array(bits)),
    eos,
    max_draft_length=cap,
    confidence_threshold=threshold,
    tree_bounds=tuple(sorted(bounds)),
    tree_widths=tuple(widths),
    tree=has_tree,
  )
  how = {'max_new_tokens': limit, 'temperature': temperature}
  got = tokens(engine, prompts, rounds_per_dispatch=rounds, **how)
  if temperature:  # test_drawn_text tests the distribution
    wanted = tokens(engine, prompts, method='plain', **how)
  else:
    wanted = [tiny_model.reference(prompt, limit, eos) for prompt in prompts]
  assert got == wanted


@pytest.mark.parametrize(
  'widths, has_tree',
  [((8,), False), pytest.param((4, 8, 32), True, marks=pytest.mark.nightly)],
)
def test_bfloat16_differs_at_near_ties_only(widths, has_tree):
  """Blocks and single tokens round differently; a text may turn only where the
  target's two best logits are as close as that rounding."""
  cfg = dataclasses.replace(CFG, dtype='bfloat16')
  graphdef, _ = llama.abstract_model(cfg)
  _, params = tiny_model.weights()
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  draft = DraftConfig(
    verify_widths=widths,
    max_draft_length=min(25, widths[-1] - 1),
    confidence_threshold=0.0,
    tree=has_tree,
    adaptive=False,
  )
  engine = Engine(cfg, graphdef, params, draft=draft)
  engine.set_skip_mask(HALF)
  plain, swift = (
    tokens(engine, PROMPTS, method=method, max_new_tokens=60)
    for method in ('plain', 'swift')
  )

  @jax.jit
  def last_logits(text, mask):
    hidden, _ = nnx.merge(graphdef, params)(text, mask)
    return nnx.merge(graphdef, params).logits(hidden)

  for prompt, a, b in zip(PROMPTS, plain, swift, strict=True):
    differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if not differ:
      continue
    at = differ[0]
    text = np.zeros((1, CFG.max_position_embeddings), np.int32)
    text[0, : len(prompt) + at] = prompt + a[:at]
    logits = np.asarray(last_logits(text, NOTHING))[0, len(prompt) + at - 1]
    gap = abs(logits[a[at]] - logits[b[at]])
    # bfloat16 keeps 8 bits: a few units in the last place of the largest.
    assert gap <= 8 * 2**-8 * np.abs(logits).max(), (at, a[at], b[at], gap)
