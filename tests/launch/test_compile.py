"""launch/compile.py: what it prints and writes, and how it refuses."""

import dataclasses
import importlib
import json
import pathlib

import pytest
from small_run import CFG

from swift_jax.checkpoint import hf_config

launcher = importlib.import_module('compile')
SMALL = (
  '--target=cpu',
  '--context=90',
  '--config.draft.tree=False',
  '--config.draft.max_draft_length=5',
  '--config.draft.verify_widths=(6,)',
)


@pytest.fixture
def model(tmp_path):
  folder = tmp_path / 'model'
  folder.mkdir()
  content = hf_config.to_dict(CFG, {'eos_token_id': 2})
  (folder / 'config.json').write_text(json.dumps(content))
  return folder


@pytest.fixture
def compile_(launch):
  def run(*arguments):
    return launch(*arguments, main=launcher.main, name='compile.py')

  return run


def test_it_compiles_from_a_config_alone(compile_, model, tmp_path):
  output, plot = tmp_path / 'out.json', tmp_path / 'out.png'
  status, out, err = compile_(
    *SMALL,
    f'--config.model.path={model}',
    '--programs=prefill,start',
    f'--output={output}',
    f'--plot={plot}',
  )
  assert status == 0, err
  figures = json.loads(output.read_text())
  assert [one['name'] for one in figures['programs']] == ['start', 'prefill']
  assert figures['model'] == json.loads(json.dumps(dataclasses.asdict(CFG)))
  assert set(figures['summary']) >= {
    'compile_s',
    'temp_over_arguments',
    'copied_bytes',
    'fits',
  }
  assert figures['summary']['fits'] is True and figures['estimates'] == {}
  assert plot.read_bytes().startswith(b'\x89PNG')
  for text in ('prefill', 'verify of 32', 'It fits', 'summary: compile_s'):
    assert text in out


def test_the_list(compile_):
  status, out, _ = compile_('--target=list')
  assert status == 0 and 'v5e:AxB' in out and 'h100[:N]' in out


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ((), '--target: expected a target'),
    (('--target=v5q:2x2',), '--target=v5q:2x2: no such target'),
    (('--target=cpu', '--shape=llama9'), '--shape=llama9: expected one of'),
    (('--target=cpu', '--context=5000'), '--context=5000: expected 2 to'),
    (('--target=cpu', '--programs=x'), '--programs=x: expected some of'),
    (
      ('--target=cpu', '--config.mesh.data=64'),
      'mesh.data=64, mesh.tensor=1: 64 devices wanted',
    ),
    (
      ('--target=cpu', '--config.search.context_window=4000'),
      'search.context_window=4000',
    ),
    (('--target=cpu', '--output=/nowhere/x'), "--output='/nowhere/x'"),
  ],
)
def test_one_line_for_bad_input(compile_, model, flags, said):
  status, out, err = compile_(*flags, f'--config.model.path={model}')
  assert (status, out) == (2, '')
  assert said in err and err.count('\n') == 1


def test_a_config_that_gives_no_shape(compile_, model):
  file = pathlib.Path(model) / 'config.json'
  content = json.loads(file.read_text())
  del content['hidden_size']
  file.write_text(json.dumps(content))
  status, _, err = compile_('--target=cpu', f'--config.model.path={model}')
  assert status == 2 and f'{file}: no hidden_size' in err


def test_a_run_that_does_not_fit_ends_with_one(compile_, model, monkeypatch):
  from swift_jax.compilation import targets

  real = targets._this_machine
  monkeypatch.setattr(
    targets,
    '_this_machine',
    lambda: dataclasses.replace(real(), memory=2**20),
  )
  status, out, _ = compile_(
    *SMALL, f'--config.model.path={model}', '--programs=start'
  )
  assert status == 1 and 'It does not fit' in out
