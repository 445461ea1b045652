"""The warp against other ways to compute it; draws against their keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG, PROMPTS_OF_DIFFERENT_LENGTH, Letters

from swift_jax.config.sampling import DEFAULTS, SamplingConfig
from swift_jax.config.settings import METHODS, DraftConfig
from swift_jax.decoding import sampling
from swift_jax.decoding.sampling import Context
from swift_jax.model import skip_mask as skip_masks
from swift_jax.runtime.engine import Engine

V = 211
NEUTRAL = {**DEFAULTS, 'top_k': 0}
PROCESS = jax.jit(sampling.process)
WARP = jax.jit(sampling.probabilities)


def on_device(**settings):
  cfg = SamplingConfig(**{**NEUTRAL, **settings})
  return sampling.from_config(cfg, cfg.eos_token_id)


def random_settings(rng):
  """Random settings of several warpers, as users combine them."""
  settings = {'temperature': float(rng.choice([0.05, 0.3, 0.6, 1.0, 1.5, 3.0]))}
  if rng.random() < 0.5:
    settings['top_k'] = int(rng.choice([1, 2, 5, 50, V, 2 * V]))
  if rng.random() < 0.5:
    settings['top_p'] = float(rng.choice([1e-4, 0.3, 0.85, 0.95, 0.999]))
  if rng.random() < 0.5:
    settings['min_p'] = float(rng.choice([0.01, 0.1, 0.5, 1.0]))
  if rng.random() < 0.5:
    settings['repetition_penalty'] = float(rng.choice([0.8, 1.1, 1.8]))
  if rng.random() < 0.5:
    settings['min_new_tokens'] = int(rng.integers(1, 9))
  return settings


def by_sorting(logits, settings):
  """The warp of one row in float64, and how close a token is to a cut-off."""
  values = logits.astype(np.float64) / settings.get('temperature', 1.0)
  order = np.argsort(-values, kind='stable')
  probs = np.exp(values[order] - values[order[0]])
  k = settings.get('top_k', 0)
  if k:
    probs[k:] = 0
  probs /= probs.sum()
  above = np.cumsum(probs) - probs
  top_p, min_p = settings.get('top_p', 1.0), settings.get('min_p', 0.0)
  near = np.abs(above - top_p).min() if top_p < 1 else 1
  if top_p < 1:
    probs[above >= top_p] = 0
  near = (
    min(near, np.abs(probs / probs[0] - min_p)[1:].min()) if min_p else near
  )
  probs[probs < min_p * probs[0]] = 0
  out = np.zeros_like(probs)
  out[order] = probs / probs.sum()
  return out, near


@pytest.mark.parametrize('scale', [0.1, 3.0, 30.0])
def test_the_cut_offs_are_those_of_sorting(scale):
  rng = np.random.default_rng(0)
  compared = 0
  for _ in range(40):
    settings = random_settings(rng)
    logits = rng.normal(0, scale, (25, V)).astype(np.float32)
    got = WARP(logits, on_device(**settings))
    for row, probs in zip(logits, np.asarray(got), strict=True):
      wanted, near = by_sorting(row, settings)
      if near > 1e-6:  # else rounding decides what is cut
        np.testing.assert_allclose(probs, wanted, atol=1e-6)
        compared += 1
  assert compared > 900


def test_tokens_that_are_tied_at_a_cut_off_all_stay():
  logits = np.log(np.array([[0.4, 0.2, 0.2, 0.1, 0.1]], np.float32))
  tied = np.array([[0.5, 0.25, 0.25, 0, 0]])
  for settings in ({'top_k': 2}, {'top_p': 0.5}, {'min_p': 0.49}):
    got = WARP(logits, on_device(**settings))
    np.testing.assert_allclose(got, tied, atol=1e-6)


@pytest.mark.parametrize(
  'logits', [[0.0, 0.0, 0.0], [1e30, 0, -1e30], [-np.inf, 2, -np.inf]]
)
def test_extreme_logits(logits):
  for settings in (
    {'temperature': 1e-30},
    {'temperature': 1e30},
    {'temperature': 1e-6, 'top_p': 1e-9},
    {'top_k': 1},
    {'top_p': 1e-9, 'top_k': 2},
  ):
    probs = np.asarray(
      WARP(np.array([logits], np.float32), on_device(**settings))
    )
    assert np.isfinite(probs).all()
    assert probs.sum() == pytest.approx(1, abs=1e-6)
    assert probs[0, np.argmax(logits)] == probs.max()
    assert (probs[0, np.isneginf(logits)] == 0).all()


def context(rng, batch=2, width=5, prompt=3):
  """Texts of different length with a tree of nodes behind them."""
  path = rng.integers(0, V, (batch, width))
  chain = np.tril(np.ones((width, width), bool))
  return Context(
    text=jnp.asarray(rng.integers(0, V, (batch, 20)), jnp.int32),
    length=jnp.asarray(rng.integers(prompt, 20, batch), jnp.int32),
    path=jnp.broadcast_to(
      jnp.asarray(path, jnp.int32)[:, None], (batch, width, width)
    ),
    in_path=jnp.broadcast_to(jnp.asarray(chain), (batch, width, width)),
    prompt_length=jnp.full(batch, prompt, jnp.int32),
    keys=sampling.row_keys(jnp.uint32(0), jnp.arange(batch, dtype=jnp.uint32)),
    depth=jnp.asarray(rng.integers(0, 9, (batch, width)), jnp.int32),
  )


def test_penalties_know_the_text_before_each_token_of_a_block():
  rng = np.random.default_rng(1)
  given = context(rng)
  logits = rng.normal(0, 3, (2, 5, V)).astype(np.float32)
  settings = on_device(
    repetition_penalty=1.7, min_new_tokens=5, eos_token_id=(4, 9)
  )
  got = np.asarray(PROCESS(logits, given, settings))
  early = 0
  for b in range(2):
    for w in range(5):
      wanted = logits[b, w].copy()
      before = set(given.text[b, : int(given.length[b])].tolist())
      before |= set(given.path[b, w, : w + 1].tolist())
      for token in before:
        x = wanted[token]
        wanted[token] = x * np.float32(1.7) if x < 0 else x / np.float32(1.7)
      is_early = int(given.length[b] + given.depth[b, w]) - 3 < 5
      early += is_early
      if is_early:
        wanted[[4, 9]] = -np.inf
      np.testing.assert_allclose(got[b, w], wanted, rtol=1e-6)
  assert 0 < early < 10


@pytest.mark.parametrize(
  'count, room', [(0, 8), (8, 8), (9, 16), (16, 16), (17, 32), (200, 256)]
)
def test_there_is_room_for_any_number_of_ends(count, room):
  eos = tuple(np.random.default_rng(count).permutation(V)[:count].tolist())
  cfg = SamplingConfig(**{**NEUTRAL, 'eos_token_id': eos})
  ids = sampling.from_config(cfg, eos).eos_token_ids
  assert ids.tolist() == [*eos, *[-1] * (room - count)]
  # A caller that ignores them, or times passes, runs the same program.
  ignored = sampling.from_config(cfg, ()).eos_token_ids
  assert ignored.tolist() == [-1] * room


def test_more_ends_compile_only_where_there_is_no_room():
  given = context(np.random.default_rng(1))
  logits = np.zeros((2, 5, V), np.float32)
  process, seen = jax.jit(sampling.process), []
  for count in (0, 1, 8, 9, 12, 16, 17, 30):
    eos = tuple(range(count))
    process(logits, given, on_device(min_new_tokens=1, eos_token_id=eos))
    seen.append(process._cache_size())
  assert seen == [1, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('count', [1, 12, 150])
def test_all_ends_and_no_others_wait_for_the_minimum(count, last):
  """Padding and unknown tokens do not count as the vocabulary's last token."""
  rng = np.random.default_rng(count)
  eos = rng.permutation(V - 1)[:count].tolist() + [V - 1] * last + [V, V + 7]
  given = context(rng)._replace(depth=jnp.zeros((2, 5), jnp.int32))
  given = given._replace(length=given.prompt_length)
  logits = rng.normal(0, 3, (2, 5, V)).astype(np.float32)
  settings = on_device(min_new_tokens=1, eos_token_id=tuple(eos))
  wanted = logits.copy()
  wanted[..., [token for token in eos if token < V]] = -np.inf
  got = PROCESS(logits, given, settings)
  np.testing.assert_array_equal(got, wanted)


def test_the_warp_is_hugging_faces():
  """Their processors and warpers, on 1,000 rows for 50 random settings."""
  torch = pytest.importorskip('torch')
  from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

  tiny = LlamaConfig(
    vocab_size=V,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
  )
  theirs = LlamaForCausalLM(tiny)
  rng, excused = np.random.default_rng(2), 0
  for _ in range(50):
    settings = random_settings(rng)
    # Colder, a penalised logit's own rounding to float32 is above 1e-6.
    settings['temperature'] = max(settings['temperature'], 0.3)
    prompt, new = 4, int(rng.integers(0, 9))
    text = rng.integers(0, V, (1000, prompt + new))
    logits = rng.normal(0, 3, (1000, V)).astype(np.float32)
    config = GenerationConfig(
      **{'do_sample': True, 'top_k': 0, 'eos_token_id': [4, 9], **settings}
    )
    theirs._prepare_special_tokens(config, device='cpu')
    processors = theirs._get_logits_processor(
      config, input_ids_seq_length=prompt, device='cpu'
    )
    # In float64, so that their rounding cuts no token that ours keeps.
    scores = processors(
      torch.tensor(text), torch.tensor(logits, dtype=torch.float64)
    )
    wanted = scores.softmax(-1).numpy()
    nothing = jnp.zeros((1000, 1, 0), jnp.int32)
    given = Context(
      text=jnp.asarray(text, jnp.int32),
      length=jnp.full(1000, prompt + new, jnp.int32),
      path=nothing,
      in_path=nothing.astype(bool),
      prompt_length=jnp.full(1000, prompt, jnp.int32),
      keys=jnp.zeros((1000, 2), jnp.uint32),
      depth=jnp.zeros((1000, 1), jnp.int32),
    )
    ours = on_device(**settings, eos_token_id=(4, 9))
    got = np.asarray(WARP(PROCESS(logits[:, None], given, ours), ours))[:, 0]
    apart = np.abs(got - wanted).max(-1)
    for row in np.flatnonzero(apart > 1e-6):
      processed = np.asarray(
        PROCESS(logits[row][None, None], _row(given, row), ours)
      )
      _, near = by_sorting(processed[0, 0], settings)
      assert near < 1e-6, (settings, apart[row])  # rounding decided a cut
      excused += 1
  assert excused < 50  # of 50,000


def _row(given, row):
  return Context(*(x[row : row + 1] for x in given))


def test_every_row_and_place_has_noise_of_its_own():
  """It depends only on the place, however that splits into text and depth."""
  rng = np.random.default_rng(3)
  given = context(rng)
  noise = np.asarray(sampling.gumbel(given, V))
  places = given.length[:, None] + given.depth
  seen = {}
  for b in range(2):
    for w in range(5):
      name = b, int(places[b, w])
      np.testing.assert_array_equal(
        seen.setdefault(name, noise[b, w]), noise[b, w]
      )
  rows = np.stack(list(seen.values()))
  assert len(np.unique(rows)) == rows.size > 4 * V
  moved = given._replace(length=given.length - 2, depth=given.depth + 2)
  np.testing.assert_array_equal(sampling.gumbel(moved, V), noise)
  other = sampling.row_keys(jnp.uint32(1), jnp.arange(2, dtype=jnp.uint32))
  fresh = np.asarray(sampling.gumbel(given._replace(keys=other), V))
  assert not np.isin(fresh, noise).any()


DRAWN = {'temperature': 1.0, 'top_k': 20, 'seed': 5}


def texts(engine, prompts, **settings):
  results = engine.generate(prompts, tiny_model.decode(**DRAWN | settings))
  return [r.tokens for r in results]


NIGHTLY = pytest.mark.nightly
GREEDY = {'temperature': 0.0}
OPEN = {'temperature': 1.0, 'top_k': 0}


@pytest.mark.parametrize(
  'method, batches',
  [
    ('swift', (1,)),
    *(pytest.param(method, (1, 2, 5), marks=NIGHTLY) for method in METHODS),
  ],
)
def test_a_seed_fixes_the_text_whoever_writes_it(method, batches):
  """Whatever the method, mask, draft, batch, order or start."""
  engine = tiny_model.engine(
    skip_masks.uniform(CFG.num_hidden_layers, 0.5), confidence_threshold=0.2
  )
  prompts = [*PROMPTS_OF_DIFFERENT_LENGTH, [5], [5]]
  wanted = texts(engine, prompts, method='plain')
  assert len({tuple(t) for t in wanted}) == 5  # three prompts are equal
  for batch in batches:
    assert texts(engine, prompts, method=method, batch_size=batch) == wanted
  decode = tiny_model.decode(method=method, **DRAWN)
  order = [4, 1, 0, 3, 2]
  shuffled = engine.generate([prompts[i] for i in order], decode, indices=order)
  assert [r.tokens for r in shuffled] == [wanted[i] for i in order]
  rest = engine.generate(prompts[3:], decode, indices=[3, 4])
  assert [r.tokens for r in rest] == wanted[3:]
  for rounds in (1, 7):
    again = texts(engine, prompts, method=method, rounds_per_dispatch=rounds)
    assert again == wanted
  assert texts(engine, prompts, method=method, seed=6) != wanted


@pytest.mark.parametrize(
  'widths',
  [(1, 8), *(pytest.param(w, marks=NIGHTLY) for w in ((2, 5), (26,)))],
)
def test_any_verify_widths(widths):
  """Also one node; a draft by the target itself is always accepted."""
  draft = DraftConfig(
    max_draft_length=widths[-1] - 1,
    confidence_threshold=0.0,
    verify_widths=widths,
    adaptive=False,
  )
  engine = Engine(CFG, *tiny_model.weights(), draft=draft)
  engine.set_skip_mask(skip_masks.none_skipped(CFG.num_hidden_layers))
  results = engine.generate(
    PROMPTS_OF_DIFFERENT_LENGTH,
    tiny_model.decode(temperature=1.0, top_k=0),
  )
  for result in results:
    metrics = result.metrics
    assert metrics.new_tokens == 40
    # One pass over many tokens rounds otherwise: a refusal in a thousand.
    assert metrics.accepted >= 0.9 * metrics.drafted > 20


@pytest.mark.parametrize(
  'method, settings',
  [
    ('plain', GREEDY),
    ('swift', OPEN),
    pytest.param('plain', OPEN, marks=NIGHTLY),
    pytest.param('swift', GREEDY, marks=NIGHTLY),
  ],
)
def test_no_end_of_text_before_the_minimum(method, settings):
  eos = tuple(range(0, CFG.vocab_size, 10))  # eleven of them
  engine = tiny_model.engine(
    skip_masks.none_skipped(CFG.num_hidden_layers),
    eos,
    confidence_threshold=0.0,
  )
  prompts = [[i] for i in range(30)]

  def written(**more):
    decode = tiny_model.decode(method, **settings, **more)
    return engine.generate(prompts, decode)

  free, held = written(), written(min_new_tokens=9)
  assert min(len(r.tokens) for r in free) < 9
  for result in held:
    assert len(result.tokens) >= 9
    assert not set(result.tokens[:-1]) & set(eos)
    ended = result.tokens[-1] in eos
    assert ended or len(result.tokens) == 40
  assert any(len(r.tokens) < 40 for r in held)


def test_greedy_text_with_penalties_is_plain_text():
  engine = tiny_model.engine(
    skip_masks.none_skipped(CFG.num_hidden_layers), confidence_threshold=0.0
  )
  settings = {'temperature': 0.0, 'repetition_penalty': 1.3}
  plain, swift = (
    texts(engine, PROMPTS_OF_DIFFERENT_LENGTH, method=method, **settings)
    for method in ('plain', 'swift')
  )
  assert plain == swift
  without = texts(engine, PROMPTS_OF_DIFFERENT_LENGTH, temperature=0.0)
  assert without != plain
  repeats = [len(t) - len(set(t)) for t in plain]
  assert sum(repeats) < sum(len(t) - len(set(t)) for t in without)


@pytest.mark.parametrize('method', ['plain', 'swift'])
def test_stop_strings_and_ends_cut_drawn_text_where_it_would_have_gone_on(
  method,
):
  mask = skip_masks.uniform(CFG.num_hidden_layers, 0.5)
  engine = tiny_model.engine(
    mask, tokenizer=Letters(), confidence_threshold=0.1
  )
  prompts = PROMPTS_OF_DIFFERENT_LENGTH
  decode = tiny_model.decode(method, **DRAWN)
  whole = engine.generate(prompts, decode)
  stops = (whole[0].text[9:12], whole[2].text[20:23])
  cut = engine.generate(
    prompts, tiny_model.decode(method, **DRAWN, stop_strings=stops)
  )
  for one, two in zip(whole, cut, strict=True):
    found = [one.text.find(stop) for stop in stops if stop in one.text]
    assert two.text == (one.text[: min(found)] if found else one.text)
    assert two.tokens == one.tokens[: len(two.tokens)]
    assert two.metrics.new_tokens == len(two.tokens)
    m = two.metrics
    if method == 'swift':
      own = m.bonus_tokens + m.corrected_tokens
      assert m.accepted + m.leaf_hits + own == m.new_tokens
  assert sum(r.finish_reason == 'stop' for r in cut) >= 2
  eos = (whole[1].tokens[6],)
  ended = engine.generate(
    prompts, tiny_model.decode(method, **DRAWN, eos_token_id=eos)
  )
  for one, two in zip(whole, ended, strict=True):
    end = one.tokens.index(eos[0]) + 1 if eos[0] in one.tokens else 40
    assert two.tokens == one.tokens[:end]


def test_cold_draws_are_surer_of_themselves():
  """Confidence is after temperature: cold drafts go on where hot ones stop."""
  mask = skip_masks.uniform(CFG.num_hidden_layers, 0.5)
  engine = tiny_model.engine(mask, confidence_threshold=0.9)
  drafted = []
  for t in (0.02, 1.0):
    decode = tiny_model.decode(temperature=t, top_k=0)
    results = engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, decode)
    passes = sum(r.metrics.verify_passes for r in results)
    drafted.append(sum(r.metrics.drafted for r in results) / passes)
  assert drafted[0] > 2 * drafted[1]


@pytest.mark.parametrize('count', [1, 64, 65, 200])
def test_tokens_are_found_by_comparing_as_by_scatter(count):
  """A TPU compares, since its compiler is slow with scatters."""
  rng = np.random.default_rng(count)
  ids = jnp.asarray(rng.integers(-1, 90, (3, count)))  # 80 and more: no token
  wanted = np.zeros((3, 80), bool)
  for row, tokens in enumerate(np.asarray(ids)):
    wanted[row, [token for token in tokens if 0 <= token < 80]] = True
  found = [sampling._among(ids, 80)]
  past = jnp.where(ids < 0, 80, ids)
  found.append(sampling._among_by_comparing(past, 80))
  for one in found:
    np.testing.assert_array_equal(one, wanted)
