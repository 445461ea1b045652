"""Log-probabilities of a text equal those of a full pass, for every method.

They cost nothing where they are not wanted.
"""

import dataclasses
import time

from flax import nnx
import jax
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG, PROMPTS_OF_DIFFERENT_LENGTH

from swift_jax.config.sampling import SamplingConfig
from swift_jax.decoding import logprobs
from swift_jax.errors import InputError
from swift_jax.model import skip_mask
from swift_jax.runtime.metrics import LogProbs
from swift_jax.runtime.rows import log_probs_of

METHODS = ('plain', 'swift', 'prompt_lookup')
CHUNK = tiny_model.CHUNK  # a text of 40 tokens has six chunks
# Both passes are float32, with weights that need every digit.
TOLERANCE = 2e-4
FULL = skip_mask.none_skipped(CFG.num_hidden_layers)


@pytest.fixture(scope='module')
def engine():
  """An engine whose drafts are often wrong."""
  mask = skip_mask.uniform(CFG.num_hidden_layers, 0.5)
  tokenizer = tiny_model.Letters()
  return tiny_model.engine(mask, tokenizer=tokenizer, confidence_threshold=0.3)


def asking(method='plain', k=3, **settings):
  """Settings of a call that wants log-probabilities."""
  decode = tiny_model.decode(method, **settings)
  sampling = dataclasses.replace(decode.sampling, logprobs=k)
  return dataclasses.replace(decode, sampling=sampling)


def full_pass(prompt, tokens):
  """Log-probabilities float64[T, V] at each token's place: no cache, no chunk."""
  text = np.zeros((1, CFG.max_position_embeddings), np.int32)
  end = len(prompt) + len(tokens)
  text[0, :end] = [*prompt, *tokens]
  logits = np.asarray(tiny_model.run(text, FULL)[0][0], np.float64)
  logits = logits[len(prompt) - 1 : end - 1]
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def assert_right(prompts, results, k):
  """Against a full pass in numpy: own tokens, and the top k by sorting."""
  for prompt, result in zip(prompts, results, strict=True):
    found, wanted = result.logprobs, full_pass(prompt, result.tokens)
    assert len(found.chosen) == len(found.top) == len(result.tokens)
    places = np.arange(len(result.tokens))
    near = {'atol': TOLERANCE, 'rtol': 0}
    np.testing.assert_allclose(
      found.chosen, wanted[places, result.tokens], **near
    )
    ids = np.array([[token for token, _ in place] for place in found.top])
    best = np.array([[value for _, value in place] for place in found.top])
    assert ids.shape == best.shape == (len(places), k)
    np.testing.assert_allclose(best, wanted[places[:, None], ids], **near)
    np.testing.assert_allclose(best, -np.sort(-wanted)[:, :k], **near)
    assert all(len(set(row)) == k for row in ids.tolist())
    assert (np.diff(best) <= 0).all()


# By name: settings, and how the texts end.
SETTINGS = {
  'greedy': ({}, {'length'}),
  'drawn': ({'temperature': 0.8, 'seed': 4}, {'length'}),
  'penalty': ({'repetition_penalty': 1.5}, {'length'}),
  'end': ({'eos_token_id': (71, 61)}, {'eos', 'length'}),
  'stop': ({'stop_strings': ('rz', 'uzc')}, {'stop', 'length'}),
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.nightly] * (name == 'drawn'))
    for name in SETTINGS
  ],
)
def test_they_are_a_full_passs_whichever_method_wrote(engine, name):
  settings, ends = SETTINGS[name]
  prompts, found = PROMPTS_OF_DIFFERENT_LENGTH, {}
  for method in METHODS:
    results = engine.generate(prompts, asking(method, **settings))
    assert_right(prompts, results, 3)
    found[method] = [(r.tokens, r.logprobs) for r in results]
    assert {r.finish_reason for r in results} == ends
  # To the last digit: the rounds' keys and values have no influence.
  assert found['plain'] == found['swift'] == found['prompt_lookup']
  lengths = [len(tokens) for tokens, _ in found['plain']]
  assert max(lengths) == 40 > CHUNK
  assert len(set(lengths)) == (3 if name in ('end', 'stop') else 1)
  is_best = [
    token == place[0][0]
    for tokens, logs in found['plain']
    for token, place in zip(tokens, logs.top, strict=True)
  ]
  # They are of the model's raw logits, before draws and penalties.
  assert all(is_best) == (name not in ('drawn', 'penalty'))


def test_the_tokens_alone_are_the_same(engine):
  prompts = PROMPTS_OF_DIFFERENT_LENGTH
  alone, more = (engine.generate(prompts, asking(k=k)) for k in (0, 3))
  for one, two in zip(alone, more, strict=True):
    assert one.tokens == two.tokens
    assert one.logprobs.chosen == pytest.approx(two.logprobs.chosen, abs=1e-6)
    assert one.logprobs.top == [[]] * len(one.tokens)


def test_a_text_up_to_the_end_of_the_context(engine):
  """The last chunk would reach past the cache; it begins earlier instead."""
  prompts = PROMPTS_OF_DIFFERENT_LENGTH
  decode = asking('swift', prefill_chunk=64, max_new_tokens=80)
  session = engine.session(prompts, decode)
  list(session.run())
  context = CFG.max_position_embeddings
  before = jax.device_get(session.state.cache)
  found = session.log_probs()
  assert [len(row.text.tokens) for row in session.rows] == [80, 80, 70]
  last = len(prompts[2]) - 1 + session._forced_width
  assert last < context - 1 < before.capacity < last + session._forced_width
  rows = [
    dataclasses.replace(result, tokens=row.text.tokens, logprobs=logs)
    for result, row, logs in zip(
      engine.generate(prompts, asking(max_new_tokens=0)),
      session.rows,
      found,
      strict=True,
    )
  ]
  assert_right(prompts, rows, 3)
  # The cache has changed only by rounding, and gives the same values again.
  after = jax.device_get(session.state.cache)
  np.testing.assert_array_equal(before.length, after.length)
  for row, length in enumerate(before.length[:3]):
    for one, two in zip(before.k + before.v, after.k + after.v, strict=True):
      one, two = one[row, :, :length], two[row, :, :length]
      np.testing.assert_allclose(one, two, atol=1e-3 * np.abs(one).max())
  assert session.log_probs() == found


def test_a_text_of_no_tokens_has_none(engine, monkeypatch):
  monkeypatch.setattr(logprobs, 'force', None)
  decode = asking(max_new_tokens=0)
  (result,) = engine.generate([[5, 6]], decode)
  assert (result.tokens, result.logprobs) == ([], LogProbs([], []))


@pytest.mark.parametrize('places', [1, 2])
def test_the_head_by_parts_is_the_head(engine, monkeypatch, places):
  """As with a large vocabulary; parts of two places do not divide the chunk."""
  prompts = PROMPTS_OF_DIFFERENT_LENGTH
  whole = engine.generate(prompts, asking(k=3))
  monkeypatch.setattr(logprobs, '_LOGITS', 3 * CFG.vocab_size * places)
  text = str(
    jax.make_jaxpr(lambda *hidden: parts_of_head(engine, *hidden))(
      np.zeros((3, CHUNK, CFG.hidden_size), np.float32),
      np.zeros((3, CHUNK), np.int32),
    )
  )
  assert f'f32[{places},3,{CFG.vocab_size}]' in text
  assert f'f32[{CHUNK},3,{CFG.vocab_size}]' not in text
  logprobs.force.clear_cache()
  try:
    parts = engine.generate(prompts, asking(k=3))
  finally:
    logprobs.force.clear_cache()
  for one, two in zip(whole, parts, strict=True):
    assert one.logprobs.chosen == pytest.approx(two.logprobs.chosen, abs=1e-5)
    assert_right(prompts, parts, 3)


def parts_of_head(engine, hidden, tokens):
  model = nnx.merge(engine.model.graphdef, engine.model.params)
  return tuple(logprobs._of_hidden(model, hidden, tokens, 3))


# ---- what they cost


class Compiled:
  """Names of the programs that XLA compiles from now on."""

  def __init__(self):
    self.names = []
    jax.monitoring.register_event_duration_secs_listener(self._on_event)

  def _on_event(self, event, _, fun_name='', **__):
    if event == '/jax/core/compile/backend_compile_duration':
      self.names.append(fun_name)

  def take(self):
    names, self.names = self.names, []
    return names


def test_they_cost_one_program_and_nothing_where_nobody_asks(monkeypatch):
  jax.clear_caches()
  compiled = Compiled()
  engine = tiny_model.engine(skip_mask.uniform(CFG.num_hidden_layers, 0.5))
  prompts, passes = PROMPTS_OF_DIFFERENT_LENGTH, []
  real = logprobs.force

  def force(*arguments):
    passes.append(arguments)
    return real(*arguments)

  monkeypatch.setattr(logprobs, 'force', force)
  silent = {m: asking(m, k=None) for m in ('plain', 'swift')}
  for decode in silent.values():
    engine.warmup(decode, 20)
    assert [r.logprobs for r in engine.generate(prompts, decode)] == [None] * 3
  names = compiled.take()
  assert 'jit(plain_steps)' in names and 'jit(speculative_rounds)' in names
  assert not passes and 'jit(force)' not in names
  engine.warmup(asking(), 20)
  # The programs that write the text are not compiled again.
  assert compiled.take() == ['jit(force)']
  passes.clear()
  with jax.transfer_guard('disallow'):
    for method in ('plain', 'swift'):
      engine.generate(prompts, asking(method))
      assert len(passes) == -(-40 // CHUNK)
      passes.clear()
      for others in ([[3, 4]], [list(range(18)), [7]]):
        engine.generate(others, asking(method, max_new_tokens=9))
      assert len(passes) == 2 * 2
      passes.clear()
      engine.generate(prompts, silent[method])
      assert not passes
  assert compiled.take() == []


def test_their_time_is_part_of_decoding(engine, monkeypatch):
  real, account = logprobs.force, engine.searcher.governor
  decode = asking('swift')
  engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, decode)
  before = account.elapsed

  def slow(*arguments):
    time.sleep(0.5)
    return real(*arguments)

  monkeypatch.setattr(logprobs, 'force', slow)
  first, *_ = engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, decode)
  assert first.metrics.decode_s > 0.5 * 6
  assert first.metrics.tokens_per_second < 40 / (0.5 * 6)
  # As for plain decoding, the search may have its share of this time.
  assert account.elapsed - before > 0.5 * 6


def test_a_stream_takes_none(engine, monkeypatch):
  (whole,) = engine.generate([5], asking())
  monkeypatch.setattr(logprobs, 'force', None)
  assert ''.join(engine.stream([5], asking())) == whole.text != ''


# ---- what is refused


def test_more_than_there_are_tokens(engine):
  with pytest.raises(InputError) as error:
    engine.generate([5], asking(k=102))
  assert str(error.value) == (
    'sampling.logprobs=102: expected an integer <= 101, the tokens of the'
    ' vocabulary'
  )
  (result,) = engine.generate([5], asking(k=101, max_new_tokens=2))
  for place in result.logprobs.top:
    assert sorted(token for token, _ in place) == list(range(101))
    assert sum(np.exp(value) for _, value in place) == pytest.approx(1)
  with pytest.raises(InputError, match=r'logprobs=1001: .* integer <= 1000$'):
    SamplingConfig(logprobs=1001)


@pytest.mark.parametrize('bad', [np.nan, -np.inf])
@pytest.mark.parametrize('name', ['own', 'best'])
def test_what_is_not_finite_is_no_log_probability(name, bad):
  places = logprobs.Places(
    own=np.full((2, 3), -1.0, np.float32),
    ids=np.zeros((2, 3, 1), np.int32),
    best=np.full((2, 3, 1), -0.5, np.float32),
  )
  getattr(places, name)[1, 1] = bad
  wanted = LogProbs([-1.0], [[(0, -0.5)]])
  assert log_probs_of([places], 1, 1, CFG) == wanted  # it is dead
  with pytest.raises(InputError, match="not finite .*dtype='float32' overfl"):
    log_probs_of([places], 1, 2, CFG)
  found = log_probs_of([places, places], 0, 4, CFG)
  assert found == LogProbs([-1.0] * 4, [[(0, -0.5)]] * 4)
