"""What the engine reports and refuses."""

import dataclasses
import gc
import json
import re

from checkpoints import POINTER, make_tokenizer
from flax import nnx
import jax
import jax.numpy as jnp
import pytest
from reference import cases
import tiny_model
from tiny_model import CFG, PROMPTS_OF_DIFFERENT_LENGTH
from transformers import TextStreamer

import swift_jax
from swift_jax.checkpoint import hub, load
from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DraftConfig, SearchConfig
from swift_jax.errors import InputError
from swift_jax.model import llama, skip_mask
from swift_jax.parallel import sharding
from swift_jax.parallel.target import Target
from swift_jax.runtime import search_files
from swift_jax.runtime.engine import Engine
from swift_jax.search.files import cached_sets, records

HALF = skip_mask.uniform(CFG.num_hidden_layers, 0.5)


def test_metrics_are_what_their_names_say():
  engine = tiny_model.engine(HALF, confidence_threshold=0.0, max_draft_length=4)
  (result,) = engine.generate([[5, 6]], tiny_model.decode(batch_size=1))
  m = result.metrics
  assert m.method == 'swift'
  assert m.new_tokens == len(result.tokens) == 40
  assert 0 < m.accepted < m.drafted
  # Every pass gives one token of the target, beside what was accepted.
  assert m.new_tokens == m.verify_passes + m.accepted + m.leaf_hits
  assert m.acceptance_rate == m.accepted / m.drafted
  assert m.mean_accepted_length == 40 / m.verify_passes
  assert m.skip_ratio == skip_mask.num_to_skip(CFG.num_hidden_layers, 0.5) / 6
  assert m.matchness is None  # a set that was given is not scored
  seconds = m.prefill_s + m.decode_s + m.search_s
  assert m.tokens_per_second == pytest.approx(40 / seconds)
  (result,) = engine.generate([[5, 6]], tiny_model.decode('plain'))
  m = result.metrics
  assert (m.verify_passes, m.mean_accepted_length) == (40, 1.0)
  assert (m.drafted, m.accepted, m.acceptance_rate) == (0, 0, None)
  assert (m.skip_ratio, m.search_s) == (None, 0.0)


class Words:
  def decode(self, ids, **_):
    return ' '.join(f'w{i}' for i in ids)


def test_streamed_pieces_are_the_text():
  engine = tiny_model.engine(tokenizer=Words(), confidence_threshold=0.0)
  seen = {0: '', 1: ''}

  def on_text(row, piece):
    seen[row] += piece

  results = engine.generate([[5], [6, 7]], tiny_model.decode(), on_text)
  for row, result in enumerate(results):
    words = ''.join(f' w{token}' for token in result.tokens)
    assert seen[row] == result.text == words


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_the_cache_is_chosen_for_the_batch(platform, monkeypatch):
  """One that programs were compiled for is used again, if it is not too large."""
  monkeypatch.setattr(sharding, 'platform', lambda mesh: platform)
  target, seen = Target(CFG, *tiny_model.weights()), []
  for slots in (1, 128, 129, 200, 100, 2049, 385, 700, 800, 1):
    target.reserve(slots, batch=2)
    seen.append(target.capacity)
  is_cpu = platform == 'cpu'  # a GPU reads all slots, so that none may be empty
  last = (512, 3072, 3072) if is_cpu else (512, 768, 1024)
  assert seen == [128, 128, 192, 256, 128, 3072, *last, 128]
  target.reserve(100, batch=3)  # no programs of another batch serve it
  assert target.capacity == 128
  target.reserve(400, batch=3)
  target.keep_warm(3)
  target.reserve(300, batch=3)  # nothing to compile
  assert target.capacity == 512


def test_a_window_longer_than_the_context_is_named():
  search = SearchConfig(context_window=91)
  with pytest.raises(InputError, match='search.context_window=91: .*=90'):
    Engine(CFG, *tiny_model.weights(), search=search)


def test_a_batch_that_the_mesh_cannot_split_is_named():
  mesh = jax.sharding.AbstractMesh((2, 1), sharding.AXES)
  with pytest.raises(InputError, match='decode.batch_size=3: .* mesh.data=2'):
    sharding.check_batch(3, mesh)
  sharding.check_batch(4, mesh)
  engine = tiny_model.engine()
  engine.model.mesh = mesh
  with pytest.raises(InputError, match='decode.batch_size=3'):
    engine.generate([[1]], tiny_model.decode())


@pytest.mark.parametrize('dtype, wanted', [('float32', 1), ('bfloat16', 0)])
def test_float32_products_are_float32_on_every_backend(dtype, wanted):
  """GPUs and TPUs would round their factors to fewer bits by default."""
  cfg = dataclasses.replace(CFG, dtype=dtype)
  graphdef, params = llama.abstract_model(cfg)

  def logits(params, tokens, mask):
    model = nnx.merge(graphdef, params)
    return model.logits(model(tokens, mask)[0])

  tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
  mask = skip_mask.none_skipped(CFG.num_hidden_layers)
  text = str(jax.make_jaxpr(logits)(params, tokens, mask))
  products = text.count('dot_general[')
  assert products == 6 + 1  # layers are traced as one, behind them the head
  assert text.count('Precision.HIGHEST, Precision.HIGHEST') == wanted * products


# ---- how things show


def test_an_engine_shows_as_one_line(tmp_path, monkeypatch):
  mask = skip_mask.from_lists([1], [1, 2], 5)
  engine = tiny_model.engine(mask)
  line = '5 layers of 22, float32, 1 x cpu, swift by default, skips 3 of 6'
  assert repr(engine) == f'Engine({line} sublayers)'
  monkeypatch.setattr(hub, 'load_tokenizer', lambda *_: None)
  folder = str(cases.write('gqa', tmp_path / 'model'))
  assert repr(Engine.from_pretrained(folder)).startswith(f'Engine({folder!r}, ')
  rounded = Engine.from_pretrained(folder, weights='int8')
  assert ', float32, int8 weights, 1 x cpu, ' in repr(rounded)


def test_a_result_shows_in_short():
  engine = tiny_model.engine(HALF, tokenizer=Words())
  (result,) = engine.generate([[5, 6]], tiny_model.decode())
  speed = result.metrics.tokens_per_second
  begin, end = result.text[:12], result.text[-13:]
  assert repr(result) == (
    f"Result('{begin}...{end}', length, 40 tokens, {speed:.1f} tokens/s)"
  )
  (nothing,) = engine.generate([[5]], tiny_model.decode(max_new_tokens=0))
  unknown = dataclasses.replace(nothing.metrics, tokens_per_second=None)
  odd = dataclasses.replace(nothing, text='a\nb', metrics=unknown)
  assert repr(odd) == "Result('a\\nb', length, 0 tokens)"


def test_a_search_shows_as_one_line():
  engine = tiny_model.engine(search={'max_iterations': 3})
  start = "iterations=0, source='start', skip_ratio=0.50"
  assert repr(engine.searcher) == f'Searcher(active, {start})'
  write(engine)
  searcher = engine.searcher
  score = f'iterations=3, matchness={engine.matchness:.3f}'
  assert repr(searcher) == (
    f'Searcher(at rest, {score}, source={searcher.source!r}, skip_ratio=0.50)'
  )


# ---- files that not everybody needs


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  folder = cases.write('gqa', tmp_path_factory.mktemp('model'))
  return load.load_params(folder, load.load_config(folder))


@pytest.fixture
def folder(weights, tmp_path, monkeypatch):
  """A checkpoint without a tokenizer, whose weights need not be read again."""
  monkeypatch.setattr(load, 'load_params', lambda *_: weights)
  made = cases.write('gqa', tmp_path / 'model')
  config = {**cases.config('gqa'), 'eos_token_id': 2}
  (made / 'config.json').write_text(json.dumps(config))
  return made


@pytest.mark.parametrize(
  'content', ['{', '[1]', '{"eos_token_id": -1}', '{"num_beams": 4}', POINTER]
)
def test_a_generation_config_stops_only_who_uses_it(folder, content):
  file = folder / 'generation_config.json'
  file.write_text(content)
  engine = Engine.from_pretrained(str(folder))
  for _ in range(2):
    with pytest.raises(InputError, match=f'^{re.escape(str(file))}: '):
      engine.generate([[5]])
  without = SamplingConfig(use_generation_config=False)
  assert engine.resolve(without).config.eos_token_id == (2,)


def test_a_tokenizer_stops_only_who_uses_text(folder):
  engine = Engine.from_pretrained(str(folder))
  assert engine.tokenizer is None
  messages = [{'role': 'user', 'content': 'w5'}]
  plain = tiny_model.decode('plain', max_new_tokens=3, batch_size=1)
  stops = tiny_model.decode('plain', stop_strings='w7')
  for ask in (
    lambda: engine.encode(['w5']),
    lambda: engine.generate('w5', plain),
    lambda: engine.generate([[5], 'w5'], plain),
    lambda: engine.generate(messages, plain),
    lambda: engine.encode_chat(messages),
    lambda: next(engine.stream([5], plain)),
    lambda: engine.generate([5], plain, on_text=print),
    lambda: engine.generate([5], stops),
  ):
    said = f'^{re.escape(str(folder))}: no tokenizer.json found$'
    with pytest.raises(InputError, match=said):
      ask()
  (result,) = engine.generate([5, 7], plain)
  assert result.text == '' and len(result.tokens) == 3
  engine.tokenizer = make_tokenizer(101)
  assert engine.encode('w5') == [[5]]


def test_a_tokenizer_that_is_needed_is_read_before_weights(folder, monkeypatch):
  monkeypatch.setattr(load, 'load_params', None)
  (folder / 'tokenizer.json').write_text('{')
  with pytest.raises(InputError, match='the tokenizer cannot be read'):
    Engine.from_pretrained(str(folder), require_tokenizer=True)


# ---- what a search leaves behind


def write(engine, **decode):
  return engine.generate(
    PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode(**decode)
  )


def other_model(search: SearchConfig) -> Engine:
  """Of the same shape, with other weights."""
  draft = DraftConfig(verify_widths=(4, 8, 32), adaptive=False)
  return Engine(CFG, *tiny_model.weights(seed=1), draft=draft, search=search)


def test_the_set_that_was_found_is_saved_and_drafts_in_the_next_engine(
  tmp_path,
):
  path = str(tmp_path / 'sets.json')
  engine = tiny_model.engine(search={'save': path})
  write(engine)
  (saved,) = cached_sets.read(path)
  searcher = engine.searcher
  assert saved.mask(CFG.num_hidden_layers).to_lists() == (
    engine.skip_mask.to_lists()
  )
  assert saved.model == engine.fingerprint
  assert (saved.name, saved.matchness) == ('default', engine.matchness)
  assert saved.positions == round(searcher.estimate.positions) > 0
  assert (saved.skip_ratio, saved.context_window) == (0.5, 11)
  assert saved.version == swift_jax.__version__
  # The next text's takes its place, under its name another's stays.
  engine.searcher.incumbent = skip_mask.from_lists([1], [1, 2], 5).bits()
  engine.searcher.active = False
  write(engine)
  assert cached_sets.read(path) == [saved]  # nothing was scored, nothing found
  other = tiny_model.engine(search={'save': path, 'cache_name': 'mine'})
  write(other)
  assert [s.name for s in cached_sets.read(path)] == ['default', 'mine']
  cached = tiny_model.engine(search={'cache': path, 'cache_name': 'default'})
  assert cached.skip_mask.to_lists() == {
    'attention': list(saved.attention),
    'mlp': list(saved.mlp),
  }
  assert not cached.searcher.active and cached.searcher.may_search
  (result, *_) = write(cached)
  assert result.metrics.search_s == 0 and cached.searcher.source == 'cached'


def test_a_set_is_saved_whatever_ends_the_text(tmp_path):
  path = str(tmp_path / 'sets.json')
  engine = tiny_model.engine(search={'save': path}, tokenizer=Words())

  def on_text(*_):
    if engine.searcher.iterations == 2:
      raise RuntimeError('enough')

  with pytest.raises(RuntimeError, match='enough'):
    engine.generate([[1, 2]], tiny_model.decode(), on_text)
  (saved,) = cached_sets.read(path)
  assert saved.matchness == engine.matchness


def test_what_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
  """Before weights load, which may take minutes."""
  monkeypatch.setattr(load, 'load_params', None)
  folder = cases.write('gqa', tmp_path / 'model')
  (tmp_path / 'text').write_text('not ours')
  for name in ('no/where', 'text', 'model'):
    path = str(tmp_path / name)
    search = SearchConfig(save=path)
    said = re.escape(f'search.save={path!r}')
    with pytest.raises(InputError, match=said):
      Engine(CFG, *tiny_model.weights(), search=search)
    with pytest.raises(InputError, match=said):
      Engine.from_pretrained(str(folder), search=search)
    search = SearchConfig(record=path)
    said = re.escape(f'search.record={path!r}')
    with pytest.raises(InputError, match=said):
      Engine(CFG, *tiny_model.weights(), search=search)
    with pytest.raises(InputError, match=said):
      Engine.from_pretrained(str(folder), search=search)
  assert (tmp_path / 'text').read_text() == 'not ours'
  search = SearchConfig(save=str(tmp_path / 'sets'), cache_name='a\nb')
  with pytest.raises(InputError, match=r"search.cache_name='a\\nb': expected"):
    Engine(CFG, *tiny_model.weights(), search=search)


def test_a_set_of_another_model_is_refused_by_name(tmp_path):
  path = str(tmp_path / 'sets.json')
  engine = tiny_model.engine(search={'save': path})
  write(engine)
  said = f"set 'default' is for model {engine.fingerprint}; this model is "
  with pytest.raises(InputError, match=said):
    other_model(SearchConfig(cache=path))
  # Each model has its own of a name.
  other = other_model(engine.searcher.cfg)
  write(other)
  models = [s.model for s in cached_sets.read(path)]
  assert models == [engine.fingerprint, other.fingerprint]


def test_the_record_is_what_the_search_did(tmp_path):
  path = str(tmp_path / 'record.jsonl')
  engine = tiny_model.engine(search={'record': path, 'max_iterations': 4})
  searcher, seen = engine.searcher, []
  observe = searcher.observe
  searcher.observe = lambda bits, scores, fresh: (
    seen.append((bits, scores)),
    observe(bits, scores, fresh),
  )
  write(engine)
  header, passes = records.read(path)
  assert header.num_layers == CFG.num_hidden_layers
  assert header.model == engine.fingerprint
  assert SearchConfig(**header.settings) == searcher.cfg
  assert len(passes) == len(seen) == searcher.iterations == 4
  assert passes[-1].evaluations == searcher.evaluations == 12
  for record, (bits, scores) in zip(passes, seen, strict=True):
    masks = [''.join(map(str, row.astype(int))) for row in bits]
    assert list(record.masks) == masks
    assert list(record.hits) == scores.num_hits().tolist()
    assert record.positions == scores.positions
    best = scores.closeness().mean(1).tolist()
    assert record.log_probs == pytest.approx(best)
  last = passes[-1]
  bits = searcher.incumbent.astype(int)
  assert last.incumbent == ''.join(map(str, bits))
  assert last.incumbent_source == searcher.source
  assert (last.matchness, last.stddev) == (
    searcher.matchness,
    searcher.estimate.stddev,
  )
  assert [record.event for record in passes] == ['start', None, None, 'stopped']
  assert last.search_seconds <= searcher.governor.spent


def test_a_search_is_saved_and_goes_on_in_the_next_engine(tmp_path):
  """As if the first one had gone on: only times differ."""
  path, seen = str(tmp_path / 'state'), {}
  engines = [tiny_model.engine() for _ in range(2)]
  for engine in engines:
    write(engine)
  engines[0].save_search(path)
  third = tiny_model.engine()
  third.load_search(path)
  assert third.searcher.state() == engines[0].searcher.state()
  assert third.matchness == engines[0].matchness is not None
  for name, engine in (('went on', engines[1]), ('loaded', third)):
    masks = seen[name] = []
    engine.searcher.on_pass = lambda record, masks=masks: masks.append(
      (record.number, record.masks, record.hits, record.incumbent)
    )
    write(engine)
  assert seen['loaded'] == seen['went on'] and len(seen['loaded']) > 3
  state, wanted = (e.searcher.state() for e in (third, engines[1]))
  assert {**state, 'budget': 0} == {**wanted, 'budget': 0}


def test_bad_search_states_are_named_and_change_nothing(tmp_path):
  path = tmp_path / 'state'
  engine, foreign = tiny_model.engine(), other_model(SearchConfig())
  write(engine)
  engine.save_search(str(path))
  before = engine.searcher.state()
  whole = path.read_bytes()
  said = f'is of model {engine.fingerprint!r}, this one is '
  with pytest.raises(InputError, match=said + repr(foreign.fingerprint)):
    foreign.load_search(str(path))
  deeper = tiny_model.engine(search={'num_candidates': 4})
  with pytest.raises(InputError, match='num_candidates=3, here 4'):
    deeper.load_search(str(path))
  torn = [whole[: len(whole) * part // 20] for part in range(20)]
  others = [b'[]', b'3', b'"x"', b'{"swift_jax search state": 2}', b'\xff\xfe']
  others += [b'[' * 100_000, whole.replace(b'"search"', b'"other"')]
  for content in (*torn, *others):
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
      engine.load_search(str(path))
    assert str(error.value).startswith(f'search state {str(path)!r}: ')
    assert '\n' not in str(error.value)
  path.write_bytes(whole.replace(b'"sizes"', b'"sises"'))
  with pytest.raises(InputError, match='search state: damaged: .*sizes'):
    engine.load_search(str(path))
  with pytest.raises(InputError, match='cannot be read: No such file'):
    engine.load_search(str(tmp_path / 'none'))
  with pytest.raises(InputError, match='cannot be written: No such file'):
    engine.save_search(str(tmp_path / 'no' / 'where'))
  assert engine.searcher.state() == before


@pytest.mark.parametrize(
  'share, positions, stays',
  [
    (1.0, 10**6, True),
    (0.0, 10**6, False),
    (0.5, 1, False),  # a single position is no evidence
    (None, None, False),
  ],
)
def test_a_better_set_of_another_run_stays(tmp_path, share, positions, stays):
  path = str(tmp_path / 'sets.json')
  write(tiny_model.engine(search={'save': path}))
  (saved,) = cached_sets.read(path)
  lists = {'attention': (1,), 'mlp': (1, 2)}
  rival = dataclasses.replace(
    saved, matchness=share, positions=positions, **lists
  )
  cached_sets.save(path, rival)
  engine = tiny_model.engine(search={'save': path, 'seed': 1})
  for _ in range(2):
    write(engine)
  (kept,) = cached_sets.read(path)
  assert (kept == rival) == stays


def test_settings_of_another_kind_are_refused():
  engine = tiny_model.engine()
  with pytest.raises(
    InputError, match=r'^decode=SamplingConfig\(.*DecodeConfig'
  ):
    engine.generate([5], SamplingConfig(max_new_tokens=3))


@pytest.mark.parametrize('call', ['for_chats', 'generate', 'stream', 'warmup'])
def test_settings_of_another_kind_are_refused_by_every_call(call):
  made, settings = tiny_model.engine(HALF), SamplingConfig()
  calls = {
    'for_chats': lambda: made.for_chats(settings),
    'generate': lambda: made.generate([[5]], settings, streamer=TextStreamer),
    'warmup': lambda: made.warmup(settings),
    'stream': lambda: next(made.stream([5], settings)),
  }
  with pytest.raises(InputError, match='^decode=Sampling.*: expected a Decode'):
    calls[call]()


def test_arguments_of_another_kind_are_refused():
  made = tiny_model.engine(HALF)
  with pytest.raises(InputError, match='^streamer=3: expected a BaseStreamer'):
    made.generate([[5]], streamer=3)
  with pytest.raises(InputError, match='^path=None: expected the folder'):
    Engine.from_pretrained(None)


def test_a_record_is_asked_for_only_by_who_writes_it(monkeypatch, tmp_path):
  """Of processes in step one does; the others would lock it, for a moment."""
  path = str(tmp_path / 'x')
  search = SearchConfig(record=path)
  with records.Writer(path, records.Header(3, '0' * 16, {})):
    monkeypatch.setattr(sharding, 'is_first', lambda mesh: False)
    search_files.check(search, None)
    monkeypatch.setattr(sharding, 'is_first', lambda mesh: True)
    with pytest.raises(InputError, match='another run is writing there'):
      search_files.check(search, None)


def test_a_record_is_given_back_with_its_engine(tmp_path):
  """At once, not when the garbage collector comes."""
  search = {'record': str(tmp_path / 'x')}
  engine = tiny_model.engine(search=search)
  with pytest.raises(InputError, match='or another engine here'):
    tiny_model.engine(search=search)
  gc.disable()
  try:
    del engine
    tiny_model.engine(search=search)
  finally:
    gc.enable()
