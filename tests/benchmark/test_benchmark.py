"""The benchmark: its figures computed a second way, from what the JSON holds."""

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys

import benchmark
from cli import common, console
import evaluation_runs
import jax
import numpy as np
import pytest
import tiny_model

from swift_jax.benchmark import (
  children,
  decode_runs,
  llama_cpp_peer,
  measuring,
  random_model,
)
from swift_jax.benchmark import report as benchmark_report
from swift_jax.benchmark.decode_runs import Bench
from swift_jax.benchmark.measuring import spread
from swift_jax.benchmark.suites import decode as decode_suite
from swift_jax.benchmark.suites import memory as memory_suite
from swift_jax.benchmark.suites import passes as pass_suite
from swift_jax.benchmark.suites import peers as peers_suite
from swift_jax.benchmark.suites import start as start_suite
from swift_jax.config.settings import DraftConfig, SearchConfig
from swift_jax.errors import InputError
from swift_jax.files import atomic
from swift_jax.model import kv_cache, llama
from swift_jax.model.skip_mask import KnownMask
from swift_jax.runtime.engine import Engine

LAYERS = tiny_model.CFG.num_hidden_layers
PROMPTS, NEW = 3, 14
HEADLINES = {
  'swift_over_plain_greedy_warm': (0, 'swift warm'),
  'swift_over_plain_greedy_cold': (0, 'swift cold'),
  'swift_over_plain_t06_warm': (0.6, 'swift warm'),
  'layers_over_plain_greedy': (0, 'layers alone'),
  'published_over_plain_t06': (0.6, 'as published'),
}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A checkpoint of three layers: programs take long to compile."""
  cfg = dataclasses.replace(evaluation_runs.CFG, num_hidden_layers=3)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evaluation_runs, 'CFG', cfg)
    return evaluation_runs.make_model(tmp_path_factory.mktemp('model') / 'tiny')


def settings(model):
  """Flags of a small run."""
  own = '.task.', '.draft.'
  search = [
    flag
    for flag in evaluation_runs.SETTINGS
    if not any(section in flag for section in own)
  ]
  return [
    '--config=configs/tiny.py',
    f'--config.model.path={model}',
    *search,
    # Few programs: they are what takes the time here.
    '--config.search.enabled=True',
    '--config.draft.tree=False',
    '--config.draft.verify_widths=(6,)',
    '--repeats=2',
    f'--prompts={PROMPTS}',
    f'--new_tokens={NEW}',
  ]


def no_progress(_):
  """Nobody reads it."""


# What times are made of.


def test_runs_go_in_turns():
  seen = []
  runs = {name: lambda name=name: seen.append(name) for name in 'abc'}
  taken = measuring.interleaved(runs, 3)
  assert ''.join(seen) == 'abc' + 'abc' + 'cba' + 'abc'
  assert [len(taken[name]) for name in 'abc'] == [3, 3, 3]


def test_ratios_are_those_of_one_repetition():
  taken = {'one': [1.0, 20.0, 3.0], 'two': [2.0, 10.0, 1.0]}
  found = measuring.paired_ratio(taken, 'one', 'two')
  assert found == (2.0, 1.25, 2.5)  # of 0.5, 2, 3


def test_the_bandwidth_is_the_larger_one():
  reading = measuring.reads(5 * 2**20)
  assert reading.nbytes == 5 * 2**20
  for run in reading.runs.values():
    number, carried = run()
    assert number == measuring.READS
    assert np.all(np.asarray(carried) == 1)  # it read ones, every time
  taken = {'sum': [4.0, 2.0, 4.0], 'matrix-vector product': [1.0, 8.0, 8.0]}
  way, speed = reading.bandwidth(taken)
  assert way == 'sum'
  assert speed == measuring.READS * reading.nbytes / 4


def test_compilations_are_counted_with_their_time():
  count = measuring.Compilations()
  jax.block_until_ready(jax.jit(lambda x: x * 5 + 2)(np.float32(2)))
  assert count.total == 1
  assert count.seconds > 0


def test_the_bytes_of_a_step():
  model = tiny_model.engine().model
  cfg = model.cfg
  leaves = jax.tree.leaves(model.params)
  read_whole = sum(leaf.size for leaf in leaves) - 101 * 22  # the embedding
  cache = kv_cache.empty(LAYERS, 2, 3, 9, 8, cfg.jax_dtype)
  slots = sum(leaf.nbytes for leaf in (*cache.k, *cache.v))
  assert measuring.step_bytes(model, 2, 9) == 4 * read_whole + slots


# Passes.


def test_passes_are_those_of_the_model():
  """Twenty passes in one program, and one by one."""
  model = tiny_model.engine().model
  passes = pass_suite.Passes(model, batch=1, filled=5, widest=3)
  mask = pass_suite.spread_mask(LAYERS, 0.5)
  best = np.asarray(passes.runs({'gated': (3, mask)})['gated']())
  cache = kv_cache.empty(LAYERS, 1, 3, 128, 8, model.cfg.jax_dtype)
  cache = cache.rollback(np.full(1, 5, np.int32))
  tokens = np.zeros((1, 3), np.int32)
  for _ in range(pass_suite.PASSES):
    logits, updates = tiny_model.run(tokens, mask, cache)
    tokens, cache = np.argmax(logits, -1), cache.write(updates)
  assert (best == tokens).all()
  passes = pass_suite.Passes(model, batch=1, filled=5, widest=3)
  known = passes.runs({'known': (3, KnownMask.of(mask))})['known']
  assert (best == np.asarray(known())).all()


@pytest.mark.parametrize('share', [0, 0.125, 0.5, 0.875, 1])
def test_a_share_is_spread_over_both_kinds(share):
  mask = pass_suite.spread_mask(16, share)
  for row in (mask.attn, mask.mlp):
    assert (~row).sum() == 16 * share
    gaps = np.diff(np.flatnonzero(~row))
    assert not gaps.size or gaps.max() <= math.ceil(1 / share)
  assert pass_suite.share_that_runs(mask) == share


def test_the_suites_draft_and_verify():
  model = tiny_model.engine().model
  drafted = pass_suite.draft(model, 3, [1.0])
  taken = drafted.figures['seconds']
  half = drafted.figures['half']
  assert half == 0.4  # two of five layers' sublayers of each kind
  none, some, every = (
    np.array(taken[f'gated {share:.3f}']) for share in (0, half, 1)
  )
  ideal = spread(some / (none + half * (every - none)))
  assert drafted.summary['gated50_over_ideal'] == pytest.approx(ideal.median)
  assert drafted.spread['gated50_over_ideal'] == pytest.approx(ideal[1:])
  by_share = {step['share']: step for step in drafted.figures['steps']}
  known = np.median(every / np.array(taken['known 1.000']))
  assert by_share[1]['over_known'] == pytest.approx(known)
  assert by_share[1]['over_all'] == 1

  verified = pass_suite.verify(model, 3, [1, 8, 12])
  taken = verified.figures['seconds']
  ratios = np.array(taken['8']) / np.array(taken['1'])
  assert verified.summary['verify8_over_step'] == pytest.approx(
    np.median(ratios)
  )
  last = verified.figures['widths'][-1]
  assert last['tokens'] == 12
  assert last['ms'] == pytest.approx(
    1e3 * np.median(taken['12']) / pass_suite.PASSES
  )


# Decoding.


@pytest.mark.nightly
def test_the_suite_decode(model, launch, tmp_path, monkeypatch):
  """Every figure from the raw times and the texts."""
  written = []
  write = decode_suite.write

  def spy(*how):
    written.append(write(*how))
    return written[-1]

  monkeypatch.setattr(decode_suite, 'write', spy)
  file = tmp_path / 'new.json'
  status, out, err = launch(
    *settings(model),
    *('--suite=decode', '--batches=1', f'--output={file}'),
    main=benchmark.main,
  )
  assert status == 0, err
  report = json.loads(file.read_text())
  cells = report['suites']['decode']['cells']
  assert [cell['temperature'] for cell in cells] == [0, 0.6]
  for cell, (texts, _) in zip(cells, written, strict=True):
    check_cell(cell, texts)
  greedy = cells[0]['methods']
  for cell in cells:
    found = cell['methods'].values()
    assert all(f['as_plain'] == PROMPTS for f in found)
  for name, (temperature, method) in HEADLINES.items():
    cell = cells[0 if temperature == 0 else 1]['methods'][method]
    assert report['summary'][name] == cell['over_plain']
    assert f'{name} ' in out
  assert report['summary']['recompilations'] == sum(n for _, n in written)
  check_bandwidth(report)
  loops = ' '.join(map(str, greedy['plain']['loops'])) or 'none'
  assert f'batch 1, temperature 0.0  {loops:>7}' in out
  assert report['flags'][-1] == f'--output={file}'
  assert {'versions', 'device', 'commit', 'config'} <= report.keys()


@pytest.mark.nightly
def test_some_methods_with_a_set_that_is_given(
  model, launch, tmp_path, monkeypatch
):
  """What is not asked for is neither written nor searched for."""

  def searches(_):
    raise AssertionError('a set was given')

  monkeypatch.setattr(decode_suite, 'find_set', searches)
  file, sets = tmp_path / 'new.json', tmp_path / 'sets.json'
  lists = {'attention': [1], 'mlp': [1]}
  sets.write_text(json.dumps({'mine': lists}))
  status, _, err = launch(
    *settings(model),
    *('--suite=decode', '--batches=1', f'--output={file}'),
    *('--methods=swift warm', '--temperatures=.6'),
    f'--config.search.cache={sets}',
    main=benchmark.main,
  )
  assert status == 0, err
  report = json.loads(file.read_text())
  assert report['suites']['decode']['skip_set'] == lists
  (cell,) = report['suites']['decode']['cells']
  assert cell['temperature'] == 0.6
  assert list(cell['methods']) == ['plain', 'swift warm']
  ratios = {name for name in report['summary'] if '_over_plain_' in name}
  assert ratios == {'swift_over_plain_t06_warm', 'swift_over_plain_lowest'}


def check_cell(cell, texts):
  """A cell's figures from its raw numbers and its texts."""
  plain = cell['methods']['plain']
  for name, found in cell['methods'].items():
    tokens = [r.tokens for batch in texts[name].results for r in batch]
    assert found['tokens'] == PROMPTS * [NEW]
    speed = sum(map(len, tokens)) / sum(found['seconds'])
    assert found['tokens_per_second'] == pytest.approx(speed)
    wanted = sum(plain['seconds']) / sum(found['seconds'])
    assert found['over_plain'] == pytest.approx(wanted)
    shares = [distinct(text) for text in tokens]
    assert found['distinct_4grams'] == pytest.approx(np.mean(shares))
    assert found['loops'] == [i for i, s in enumerate(shares) if s < 0.5]


def distinct(tokens):
  grams = list(zip(*(tokens[i:] for i in range(4)), strict=False))
  return len({*grams}) / len(grams)


def check_bandwidth(report):
  found = report['suites']['decode']['read_bandwidth']
  taken = found['seconds']
  per_read = min(np.median(taken[k]) for k in taken if k != 'plain step')
  bandwidth = found['array_bytes'] * measuring.READS / per_read
  steps = np.array(taken['plain step']) / pass_suite.PASSES
  share = np.median(found['step_bytes'] / steps / bandwidth)
  assert report['summary']['read_bandwidth_share'] == pytest.approx(share)


def bench(model, **changes):
  config = common.merge(common.read_config('configs/tiny.py'), common.SECTIONS)
  config.model.path = str(model)
  if 'engine' not in changes:
    changes['engine'] = common.load_engine(config)
  settings = {
    'draft': DraftConfig(verify_widths=(4, 8), max_draft_length=5),
    'search': SearchConfig(context_window=12, bayes_interval=0, skip_ratio=0.5),
    'decode': common.section(config, 'decode'),
    'timed': [[5, 6, 7], [8, 9, 10]],
    'others': [],
    'new_tokens': NEW,
  }
  return Bench(**settings | changes)


class Scribe:
  """An engine that notes what it is asked for."""

  def __init__(self, log, name):
    self.log, self.name = log, name

  def warmup(self, call, longest):
    self.log.append((self.name, call.method, 'warm-up', longest))

  def generate(self, prompts, call, indices):
    assert call.batch_size == 2 and call.ignore_eos
    assert call.sampling.temperature == 0.5
    self.log.append((self.name, call.method, len(prompts), *indices))
    return [f'text {i}' for i in indices]


def test_methods_write_every_batch_in_turns(model, monkeypatch):
  log = []
  made = bench(
    model, engine=Scribe(log, 'base'), timed=[[1], [2, 3], [4]], decode=None
  )
  call = tiny_model.decode(batch_size=2, ignore_eos=True, temperature=0.5)
  monkeypatch.setattr(
    Bench, 'call', lambda self, name, *_: dataclasses.replace(call, method=name)
  )
  monkeypatch.setattr(Bench, 'fresh', lambda self: Scribe(log, 'cold'))
  monkeypatch.setattr(
    Bench,
    'with_set',
    lambda self, mask, **draft: Scribe(log, ' '.join(['warm', *draft])),
  )
  written, compiled = decode_runs.write(made, None, 2, 0.5)
  methods = [
    ('base', 'plain'),
    ('cold', 'swift'),
    ('warm', 'swift'),
    ('warm copy', 'swift'),
    ('warm adaptive', 'swift'),
    ('base', 'prompt_lookup'),
  ]
  assert log == [
    *((*method, 'warm-up', 2) for method in methods),
    *((*method, 2, 0, 1) for method in methods),
    *((*method, 1, 2) for method in reversed(methods)),
  ]
  assert compiled == 0
  for own in written.values():
    assert own.results == [['text 0', 'text 1'], ['text 2']]
    assert len(own.seconds) == 2


def test_nothing_to_search_for_is_said(model):
  search = SearchConfig(enabled=False)
  with pytest.raises(InputError, match='search.enabled=False'):
    decode_suite.decode(bench(model, search=search), [1], 1, no_progress)


def test_warm_engines_never_search(model):
  made = bench(model)
  assert made.fresh().searcher.active
  mask = made.fresh().skip_mask
  warm = made.with_set(mask)
  assert not warm.searcher.active and not warm.searcher.may_search
  assert warm.skip_mask.to_lists() == mask.to_lists()
  assert warm.model.params is made.engine.model.params


# Processes.


def script(tmp_path, text):
  file = tmp_path / 'child.py'
  file.write_text(text)
  return [sys.executable, str(file)]


def test_a_start_is_timed_to_the_first_line(tmp_path):
  """Each pair shares a cache of its own."""
  code = """
import json, pathlib, sys
cache = pathlib.Path(sys.argv[1])
print('first token', flush=True)
hits = len(list(cache.iterdir()))
(cache / 'entry').touch()
print(json.dumps({'compilations': 1, 'cache_hits': hits, 'compile_s': 0.5}))
"""
  child = script(tmp_path, code)
  outcome = start_suite.compile_(
    lambda cache, model: [*child, str(cache)], [], 2, no_progress
  )
  runs = outcome.figures['starts']['configured']
  assert [run['cache_hits'] for run in runs['cold']] == [0, 0]
  assert [run['cache_hits'] for run in runs['warm']] == [1, 1]
  for name in ('cold', 'warm'):
    times = [run['start_s'] for run in runs[name]]
    assert min(times) > 0
    assert outcome.summary[f'{name}_start_s'] == pytest.approx(np.mean(times))


def test_a_child_that_refuses_or_breaks(tmp_path):
  refuses = 'import sys; print("no: x=1", file=sys.stderr); sys.exit(2)'
  with pytest.raises(InputError, match='^no: x=1$'):
    children.run(script(tmp_path, refuses))
  with pytest.raises(RuntimeError, match='ZeroDivisionError'):
    children.run(script(tmp_path, '1 / 0'))


@pytest.mark.nightly
def test_the_suite_compile_of_a_real_start(model, launch, tmp_path):
  file = tmp_path / 'new.json'
  status, _, err = launch(
    *settings(model),
    *('--suite=compile', '--layers=', '--repeats=1', f'--output={file}'),
    main=benchmark.main,
  )
  assert status == 0, err
  report = json.loads(file.read_text())
  ((cold,), (warm,)) = report['suites']['compile']['starts'][
    'configured'
  ].values()
  # The first start measures what passes cost, too.
  assert cold['compilations'] >= warm['compilations'] > 5
  assert (cold['cache_hits'], warm['cache_hits']) == (0, warm['compilations'])
  assert report['summary'] == {
    'cold_start_s': cold['start_s'],
    'warm_start_s': warm['start_s'],
  }


@pytest.fixture(scope='module')
def measured():
  """An engine, and what was measured of it."""
  made = []

  def load():
    made.append(tiny_model.engine())
    return made[0]

  def write(engine):
    engine.generate([[1, 2]], tiny_model.decode('plain', batch_size=1))

  found = memory_suite.measure(load, write, [2])
  return made[0], found


def test_memory_is_that_of_weights_and_cache(measured):
  engine, found = measured
  params = jax.tree.leaves(engine.model.params)
  cache = kv_cache.empty(LAYERS, 1, 3, 128, 8, tiny_model.CFG.jax_dtype)
  slots = sum(leaf.nbytes for leaf in (*cache.k, *cache.v))
  assert found['weight_bytes'] == sum(leaf.nbytes for leaf in params)
  assert found['cache_bytes'] == slots
  assert found['temporary_bytes']['jit_plain_steps'] > 0
  outcome = memory_suite.outcome(
    {
      **found,
      'device_peak_bytes': None,
      'resident_before_bytes': 1000,
      'resident_peak_bytes': 1000 + 3 * (found['weight_bytes'] + slots),
    }
  )
  assert outcome.summary == {'peak_over_weights_and_cache': 3}
  on_device = memory_suite.outcome({**found, 'device_peak_bytes': slots})
  share = slots / (found['weight_bytes'] + slots)
  assert on_device.summary == {'peak_over_weights_and_cache': share}


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_which_model_memory_is_measured_on(monkeypatch, backend, measured):
  commands, models = [], []

  def run(command):
    commands.append(command)
    return children.Finished(0.0, measured[1])

  monkeypatch.setattr(children, 'backend', lambda: backend)
  monkeypatch.setattr(children, 'run', run)
  monkeypatch.setattr(children, 'write_model', lambda *how: models.append(how))
  memory_suite.memory(lambda model: model, 7, no_progress)
  if backend == 'cpu':
    ((path, cfg),) = models
    assert commands == [str(path)]
    assert cfg == random_model.heavy(7 * 2**20)
  else:
    assert (commands, models) == ([None], [])


def test_a_heavy_model_weighs_what_was_asked():
  cfg = random_model.heavy(2**30)
  _, params = llama.abstract_model(cfg)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert 4 * count == pytest.approx(2**30, rel=0.1)


def test_a_random_model_is_one_that_loads(tmp_path):
  random_model.write(tmp_path / 'narrow', random_model.narrow(3))
  engine = Engine.from_pretrained(str(tmp_path / 'narrow'))
  assert engine.cfg.num_hidden_layers == 3
  assert engine.encode(['def main():'])


# Peers.


def test_peers_write_what_we_write(model):
  pytest.importorskip('torch')
  made, said = bench(model), []
  outcome = peers_suite.peers(made, model, said.append, threads=1)
  methods, taken = outcome.figures['methods'], outcome.figures['seconds']
  lacking = llama_cpp_peer.lacking(made.engine.cfg)
  assert len(methods) == len(taken) == (4 if lacking else 5)
  assert (f'llama.cpp is left out: {lacking}' in said) == bool(lacking)
  assert all(found['as_ours'] == 2 for found in methods.values())
  ours, theirs = (sum(taken[f'plain ({who})']) for who in ('ours', 'HF'))
  assert outcome.summary['plain_over_hf'] == pytest.approx(theirs / ours)
  speed = 2 * NEW / theirs
  assert methods['plain (HF)']['tokens_per_second'] == pytest.approx(speed)
  if not lacking:
    ratio = sum(taken['plain (llama.cpp)']) / ours
    assert outcome.summary['plain_over_llama_cpp'] == pytest.approx(ratio)


@pytest.mark.parametrize(
  'one, two, wanted', [([1, 2], [1, 3], 1), ([1], [1, 3], 1), ([4], [5], 0)]
)
def test_where_texts_part(one, two, wanted):
  assert peers_suite.difference(one, two) == wanted


# The report.


def report(summary, spread=None, **facts):
  return {'summary': summary, 'spread': spread or {}, **facts}


def test_compare_shows_what_moved_and_nothing_else():
  old = report(
    {'far': 1.0, 'near': 1.0, 'same': 3.0, 'gone': 1.0, 'bare': 2, 'none': 1.0},
    {'far': [0.9, 1.1], 'near': [0.9, 1.1]},
    commit='a',
    flags=['--output=a', '--suite=x'],
  )
  new = report(
    {'far': 2.0, 'near': 1.1, 'same': 3.0, 'new': 1.0, 'bare': 3, 'none': None},
    {'far': [1.9, 2.1], 'near': [1.0, 1.2]},
    commit='b',
    flags=['--suite=x', '--output=b', '--compare=a'],
  )
  assert benchmark_report.moves(old, new) == [
    ('far', 1.0, 2.0, True),
    ('near', 1.0, 1.1, False),
    ('bare', 2, 3, True),
    ('none', 1.0, None, True),
  ]
  moved, facts = benchmark_report.comparison(old, new)
  assert moved.rows[0] == ['far', 1.0, 2.0, '+100.0%', 'moved']
  assert moved.rows[1] == ['near', 1.0, 1.1, '+10.0%', 'within the spread']
  assert facts.rows == [['commit', '"a"', '"b"']]
  (nothing,) = benchmark_report.comparison(old, old)
  assert 'nothing moved' in nothing.text()


def test_a_table_is_aligned():
  table = benchmark_report.Table(
    't', ['', 'ms'], [['a', 1.23456], ['bc', None]]
  )
  assert table.text() == 't\n         ms\n  a   1.235\n  bc'


def test_compare_through_the_launcher(launch, tmp_path, monkeypatch):
  old, new = tmp_path / 'old.json', tmp_path / 'new.json'
  old.write_text(json.dumps(report({'x': 4.0, 'same': 1.5, 'other': 1})))
  table = benchmark_report.Table('a title', ['', 'ms'], [['a row', 7.25]])
  outcome = benchmark_report.Outcome({'same': 1.5}, {'raw': [3]}, [table])
  outcome.add('x', measuring.Spread(5.0, 4.5, 5.5))
  monkeypatch.setitem(benchmark.SUITES, 'draft', lambda *_: outcome)
  flags = '--suite=draft', f'--compare={old}', f'--output={new}'
  status, out, err = launch(*flags, main=benchmark.main)
  assert (status, err) == (0, '')
  written = json.loads(new.read_text())
  assert written['summary'] == {'same': 1.5, 'x': 5.0}
  assert written['spread'] == {'x': [4.5, 5.5]}
  assert written['suites'] == {'draft': {'raw': [3]}}
  assert 'a row  7.25' in out
  compared = out[out.index('compared') :].splitlines()
  assert compared[2].split() == ['x', '4', '5', '+25.0%', 'moved']
  assert not any('same' in line or 'other' in line for line in compared)


# All of them, and bad input.


def all_of_them(launch, monkeypatch, found):
  monkeypatch.setattr(benchmark, 'run_child', found)
  return launch('--suite=all', main=benchmark.main)


def test_all_suites_make_one_report(launch, monkeypatch):
  def found(name):
    parts = {'summary': {f'{name}_x': 1.5}, 'spread': {}}
    return {**parts, 'suites': {name: {}}}, 1 if name == 'draft' else 0

  monkeypatch.setattr(peers_suite, 'is_there', lambda: False)
  status, out, err = all_of_them(launch, monkeypatch, found)
  assert status == 1  # one broke, the others went on
  assert 'memory_x' in out and 'peers_x' not in out
  assert 'peers is left out: torch is not there' in err


def test_all_suites_end_at_bad_input(launch, monkeypatch):
  asked = []

  def found(name):
    asked.append(name)
    return {}, 2

  status, _, _ = all_of_them(launch, monkeypatch, found)
  assert (status, asked) == (2, ['decode'])


def test_what_is_done_when_all_are_interrupted_is_written(
  launch, monkeypatch, tmp_path
):
  def found(name):
    if name == interrupted:
      return {}, 130
    return {'summary': {'x': 1}, 'spread': {}, 'suites': {name: {}}}, 0

  def output():
    flags = '--suite=all', f'--output={file}'
    monkeypatch.setattr(benchmark, 'run_child', found)
    status, _, err = launch(*flags, main=benchmark.main)
    assert status == 130
    return err

  file = tmp_path / 'all.json'
  interrupted = 'decode'
  output()
  assert not file.exists()
  interrupted = 'verify'
  assert output().endswith(f'{file} has decode, draft\n')
  assert json.loads(file.read_text())['suites'] == {'decode': {}, 'draft': {}}


@pytest.mark.parametrize('code, ends', [(141, True), (143, True), (1, False)])
def test_what_a_suite_has_written_counts_however_it_ended(
  monkeypatch, code, ends
):
  """One whose reader has gone has written its file before its tables."""
  report = {'summary': {'x': 1}, 'spread': {}, 'suites': {'decode': {}}}
  asked = []

  class Ended:
    def __init__(self, command):
      where = [f for f in command if f.startswith('--output=')][-1]
      asked.append(where)
      with open(where.removeprefix('--output='), 'w') as file:
        json.dump(report, file)

    def wait(self):
      return code

  monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--output=mine'])
  monkeypatch.setattr(peers_suite, 'is_there', lambda: False)
  monkeypatch.setattr(subprocess, 'Popen', Ended)
  assert benchmark.run_all() == (report, code)
  assert len(asked) == (1 if ends else len(benchmark.SUITES) - 1)


def measured_to(launch, monkeypatch, output, **print_to):
  figures = {'x': 1.0}
  outcome = benchmark_report.Outcome(figures, figures, [])
  monkeypatch.setitem(benchmark.SUITES, 'verify', lambda *_: outcome)
  for name, found in print_to.items():
    monkeypatch.setattr(benchmark, name, found)
  return launch('--suite=verify', f'--output={output}', main=benchmark.main)


def test_figures_are_written_before_they_are_shown(
  launch, monkeypatch, tmp_path
):
  def gone(*_):
    raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

  output = tmp_path / 'new.json'
  ended = measured_to(launch, monkeypatch, output, print_tables=gone)
  assert ended == (141, '', '')
  assert json.loads(output.read_text())['summary'] == {'x': 1.0}


def test_a_report_is_one_runs(launch, monkeypatch, tmp_path):
  output = tmp_path / 'new.json'
  output.write_text('old')
  (tmp_path / 'link').symlink_to(output)
  with atomic.locked(output, 'x', waits=False):
    ended = measured_to(launch, monkeypatch, tmp_path / 'link')
  said = 'cannot be written: another run is writing there'
  assert ended == (2, '', f"generate.py: --output='{tmp_path}/link': {said}\n")
  assert output.read_text() == 'old'
  assert measured_to(launch, monkeypatch, tmp_path / 'link')[0] == 0
  assert json.loads(output.read_text())['summary'] == {'x': 1.0}
  assert sorted(os.listdir(tmp_path)) == ['link', 'new.json']


def test_a_signal_that_a_suite_was_not_told_is_passed_on(monkeypatch):
  class Suite:
    told = []

    def wait(self, timeout=None):
      if self.told:
        return -signal.SIGTERM
      if timeout is None:
        raise console.Signalled(signal.SIGTERM)
      raise subprocess.TimeoutExpired('suite', timeout)

    def send_signal(self, number):
      self.told.append(number)

  assert benchmark.finish(Suite()) == 143
  assert Suite.told == [signal.SIGTERM]


def test_a_suite_of_all_is_this_command_again(monkeypatch):
  def run(command):
    flags = command[command.index('--seeds=3') :]
    assert flags[1] == '--suite=verify' and flags[3] == '--compare='
    with open(flags[2].removeprefix('--output='), 'w') as file:
      json.dump({'summary': {'x': 1}}, file)
    return Ended()

  class Ended:
    def wait(self):
      return 0

  monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--suite=all', '--seeds=3'])
  monkeypatch.setattr(subprocess, 'Popen', run)
  assert benchmark.run_child('verify') == ({'summary': {'x': 1}}, 0)


@pytest.mark.parametrize(
  'flag',
  [
    '--suite=speed',
    '--repeats=0',
    '--prompts=0',
    '--new_tokens=-1',
    '--weights_mib=0',
    '--seeds=0',
    '--widen=0',
    '--widen=3',
    '--methods=plain,slow',
    '--temperatures=',
    '--temperatures=0,warm',
    '--temperatures=-1',
    '--batches=0',
    '--batches=1,two',
    '--batches=',
    '--layers=2',
    '--output=nowhere/x.json',
    '--compare=nowhere.json',
    '--config.search.recipe=other',
  ],
)
def test_bad_input_is_named(launch, flag):
  name, _, value = flag.partition('=')
  status, out, err = launch(flag, main=benchmark.main)
  assert (status, out, err.count('\n')) == (2, '', 1)
  assert name.removeprefix('--config.') in err and value in err


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '[]',
    '{}',
    '{"summary": {"a": "b"}, "spread": {}}',
    '{"summary": {"a": true}, "spread": {}}',
    '{"summary": {"a": NaN}, "spread": {}}',
    '{"summary": {"a": 1}}',
    '{"summary": {"a": 1}, "spread": {"a": 1}}',
    '{"summary": {"a": 1}, "spread": {"a": [1, "2"]}}',
    '\0\xff',
  ],
)
def test_a_report_that_is_none(launch, tmp_path, text):
  file = tmp_path / 'old.json'
  file.write_text(text, encoding='latin-1')
  status, out, err = launch(f'--compare={file}', main=benchmark.main)
  assert (status, out, err.count('\n')) == (2, '', 1)
  assert f'--compare={str(file)!r}' in err


def test_too_short_texts_and_too_many_prompts(model, launch):
  short = '--config.search.context_window=15'
  status, _, err = launch(*settings(model), short, main=benchmark.main)
  assert (status, f'--new_tokens={NEW}' in err) == (2, True)
  status, _, err = launch(
    *settings(model), '--prompts=99999', main=benchmark.main
  )
  assert (status, '--prompts=99999' in err) == (2, True)


@pytest.mark.nightly
def test_random_weights_of_a_published_shape(launch, monkeypatch):
  """Passes are measured without a checkpoint; 7B is only looked at."""
  seven = random_model.SHAPES['llama2_7b']
  params = jax.tree.leaves(llama.abstract_model(seven)[1])
  assert sum(math.prod(p.shape) for p in params) == 6_738_415_616
  monkeypatch.setitem(random_model.SHAPES, 'llama2_7b', tiny_model.CFG)
  seen = []
  monkeypatch.setattr(
    pass_suite,
    'verify',
    lambda model, repeats: (
      seen.append(model.cfg) or benchmark_report.Outcome({}, {})
    ),
  )
  flags = '--suite=verify', '--shape=llama2_7b'
  status, _, err = launch(*flags, main=benchmark.main)
  assert (status, seen) == (0, [tiny_model.CFG]), err
  flags = '--suite=draft', '--shape=llama2_70b'
  status, out, err = launch(*flags, main=benchmark.main)
  assert (status, out, err.count('\n')) == (2, '', 1)
  assert "--shape='llama2_70b': expected one of llama2_7b" in err


def test_peers_asked_for_without_torch(launch, monkeypatch):
  monkeypatch.setattr(peers_suite, 'is_there', lambda: False)
  status, _, err = launch('--suite=peers', main=benchmark.main)
  assert (status, err.count('\n')) == (2, 1)
  assert "--suite='peers'" in err
