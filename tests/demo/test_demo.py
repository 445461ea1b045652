"""The model that ships, through the launchers as a user runs them."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

from cli import common
import demo
from ml_collections import ConfigDict
import numpy as np
import pytest

from swift_jax import (
  DecodeConfig,
  DraftConfig,
  Engine,
  SamplingConfig,
  SearchConfig,
)
from swift_jax.checkpoint import load
from swift_jax.checkpoint.hub import DEMO_MODEL
from swift_jax.demo import measuring, training
from swift_jax.model import skip_mask as skip_masks

ROOT = pathlib.Path(__file__).parents[2]
TEXT = """import os


def read_lines(path):
    \"\"\"Return the lines of a file.\"\"\"
    with open(path) as f:
        return f.read().splitlines()


class Reader:

    def __init__(self, path):
        self.path = path

    def __repr__(self):
        return '<%s %r>' % (self.__class__.__name__, self.path)
"""


@pytest.fixture(scope='module')
def engine():
  return Engine.from_pretrained('demo', dtype='float32')


def test_it_has_learnt_python(engine):
  """Text of our own, which it has not seen: a uniform guess costs 7.6 nats."""
  (tokens,) = engine.encode([TEXT])
  rows = measuring.spread_rows(np.asarray(tokens), len(tokens) - 1, 1)
  loss = training.make_loss(engine.model.graphdef)
  none_skipped = skip_masks.none_skipped(engine.cfg.num_hidden_layers)
  assert float(loss(engine.model.params, rows, none_skipped)) < 3.0


def test_it_fits_into_the_package():
  size = sum(file.stat().st_size for file in DEMO_MODEL.iterdir())
  assert size < 60e6
  assert load.load_config(DEMO_MODEL).dtype == 'bfloat16'


def test_its_card_is_of_this_model(engine):
  card = (DEMO_MODEL / 'README.md').read_text()
  sets = json.loads((DEMO_MODEL / 'skip_sets.json').read_text())
  layers = engine.cfg.num_hidden_layers
  mask = skip_masks.from_lists(**sets['demo'], num_layers=layers)
  assert mask.blocks() in card
  assert f'{layers} layers and width {engine.cfg.hidden_size}' in card
  assert 'stochastic depth | yes' in card
  found, uniform = map(
    float, re.search(r'matchness .* \| (\S+) with .* (\S+) with', card).groups()
  )
  assert uniform <= found


@pytest.mark.nightly
def test_the_set_found_for_it_drafts_without_a_search():
  file = str(DEMO_MODEL / 'skip_sets.json')
  engine = Engine.from_pretrained(
    'demo',
    dtype='float32',
    draft=DraftConfig(adaptive=False),  # by layers, whatever passes cost
    search=SearchConfig(cache=file),
  )
  plain, swift = (
    engine.generate(
      TEXT, DecodeConfig(method, sampling=SamplingConfig(max_new_tokens=40))
    )[0]
    for method in ('plain', 'swift')
  )
  assert swift.tokens == plain.tokens
  assert swift.metrics.acceptance_rate > 0.5
  assert swift.metrics.search_s == 0


@pytest.mark.parametrize(
  'method', ['plain', pytest.param('swift', marks=pytest.mark.nightly)]
)
def test_generate_writes_text_and_a_record(tmp_path, method):
  output = tmp_path / 'out.jsonl'
  done = subprocess.run(
    [
      sys.executable,
      ROOT / 'launch' / 'generate.py',
      f'--config={ROOT}/configs/tiny.py',
      f'--prompt={TEXT}',
      f'--config.decode.method={method}',
      f'--output_json={output}',
      '--verbosity=-1',
    ],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, '')
  record = json.loads(output.read_text())
  assert done.stdout == record['text'] + '\n'
  assert record['prompt'] == TEXT
  assert len(record['tokens']) == record['metrics']['new_tokens'] == 8
  assert record['finish_reason'] == 'length'


@pytest.mark.nightly
def test_the_readmes_example_runs(capsys):
  readme = (ROOT / 'README.md').read_text()
  (example,) = re.findall(r'```python\n(.*?)```', readme, re.DOTALL)
  assert len(example.splitlines()) <= 14
  exec(compile(example, 'README.md', 'exec'), {})
  out = capsys.readouterr().out
  assert 'import os\n\ndef find(' in out and 'class Queue:' in out
  assert re.search(
    r'attention [█░]{16}\nmlp       [█░]{16}\n([01]\.\d+|None)\n$', out
  )


SMALL = {
  'model': {'dtype': 'float32'},
  'sampling': {'max_new_tokens': 12},
  'search': {'context_window': 8, 'opt_interval': 2, 'time_budget': 1.0},
}


def run_demo(monkeypatch, engine):
  monkeypatch.setattr(common, 'load_engine', lambda config: engine)
  monkeypatch.setattr(demo, 'read_prompts', lambda: [TEXT, 'class A:\n'])
  return demo.main(common.merge(ConfigDict(SMALL), common.SECTIONS))


@pytest.mark.nightly
def test_the_demo_ends_with_identical_yes(monkeypatch, capsys):
  search = SearchConfig(**SMALL['search'])
  engine = Engine.from_pretrained('demo', dtype='float32', search=search)
  assert run_demo(monkeypatch, engine) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[-1] == 'identical: yes'
  assert [line for line in lines if line.startswith(('attention', 'mlp'))]
  table = {line[:12].strip(): line[12:].split() for line in lines}
  assert [table[name][0] for name in ('plain', 'swift')] == ['24', '24']
  assert TEXT.splitlines()[-1] in lines


def test_the_demo_says_where_text_differs(monkeypatch, capsys):
  resting = SearchConfig(enabled=False)
  # Sixteen layers take long to compile; how they are drafted is not asked here.
  draft = DraftConfig(
    tree=False, adaptive=False, max_draft_length=7, verify_widths=(8,)
  )
  engine = Engine.from_pretrained(
    'demo', dtype='float32', draft=draft, search=resting
  )

  class Wrong(Engine):
    """SWIFT's fourth token is another."""

    def generate(self, prompts, decode=None, on_text=None):
      results = super().generate(prompts, decode, on_text)
      if decode.method == 'plain':
        return results
      return [
        dataclasses.replace(r, tokens=[*r.tokens[:3], 7, *r.tokens[4:]])
        for r in results
      ]

  engine.__class__ = Wrong
  assert run_demo(monkeypatch, engine) == 1
  last = capsys.readouterr().out.splitlines()[-1]
  assert last.startswith('identical: no (swift: prompt 1, token 3: plain [')
