"""The notebook: its form, what it installs in Colab, a run from top to bottom."""

import glob
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import types

import evaluation_runs
import nbclient
import nbformat
from packaging.requirements import Requirement
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = nbformat.read(
  ROOT / 'notebooks' / 'swift_jax_colab.ipynb', as_version=4
)
CODE = {cell.id: cell for cell in NOTEBOOK.cells if cell.cell_type == 'code'}
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
# Behind the cell with the settings; the model is a folder, of four layers. What
# takes time is to compile: one cache size, one width, one way of scoring.
SMALL = """
MODEL = {model!r}
NEW_TOKENS, QUESTIONS = 24, 2
RATIOS, TEMPERATURES = (0.25, 0.75), (0.0, 0.7)
SEARCH |= {{'skip_ratio': 0.5, 'context_window': 12, 'opt_interval': 1}}
SEARCH |= {{'importance': False, 'scoring': 'map'}}
DRAFT['verify_widths'] = (8,)
"""
COMPUTED = """
import json

same_tokens = summary['comparisons']['swift']['equality']
print(json.dumps({
  'texts': [plain_text, swift_text],
  'same': same,
  'matchness': [record.matchness for record in passes],
  'evaluated': [same_tokens['is_identical'], same_tokens['texts']],
  'shares': shares,
}))
"""


def test_it_is_short_and_holds_no_results():
  nbformat.validate(NOTEBOOK)
  assert len(NOTEBOOK.cells) <= 25
  for cell in NOTEBOOK.cells:
    assert len(cell.source.splitlines()) <= 30, cell.id
  for name, cell in CODE.items():
    assert (cell.outputs, cell.execution_count) == ([], None), name


def test_it_begins_with_the_badge_and_names_files_that_are_there():
  first = NOTEBOOK.cells[0].source
  assert 'https://colab.research.google.com/assets/colab-badge.svg' in first
  text = '\n'.join(cell.source for cell in NOTEBOOK.cells)
  named = re.findall(r'`([\w/]+\.md)`', text)
  assert named
  for path in named:
    assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
  'there, extras',
  [
    (None, {'notebook'}),
    ('nvidia-smi', {'notebook', 'cuda'}),
    ('/dev/accel0', {'notebook', 'tpu'}),
    ('/dev/vfio/0', {'notebook', 'tpu'}),
  ],
)
def test_colab_installs_the_jax_of_its_device(monkeypatch, there, extras):
  commands = []
  monkeypatch.setitem(sys.modules, 'google.colab', types.ModuleType('colab'))
  monkeypatch.setattr(
    subprocess, 'run', lambda command, check: commands.append(command)
  )
  monkeypatch.setattr(
    shutil, 'which', lambda name: name if name == there else None
  )
  monkeypatch.setattr(
    glob, 'glob', lambda pattern: [there] if matches(there, pattern) else []
  )
  exec(CODE['install'].source, {})
  ((*command, package),) = commands
  assert command == [sys.executable, '-m', 'pip', 'install']
  wanted = Requirement(package)
  assert (wanted.name, wanted.extras) == (PROJECT['name'], extras)
  assert extras <= PROJECT['optional-dependencies'].keys()
  assert wanted.url.startswith(('file:///', 'git+https://'))


def matches(path, pattern):
  return path is not None and pathlib.PurePath(path).match(pattern)


def test_elsewhere_nothing_is_installed(monkeypatch):
  monkeypatch.setattr(subprocess, 'run', None)
  exec(CODE['install'].source, {})


@pytest.mark.nightly
def test_a_run_from_top_to_bottom(tmp_path):
  model = evaluation_runs.make_model(tmp_path / 'model')
  notebook = nbformat.from_dict(NOTEBOOK)  # a copy
  (settings,) = (
    number
    for number, cell in enumerate(notebook.cells)
    if 'parameters' in cell.metadata.get('tags', ())
  )
  small = SMALL.format(model=str(model))
  notebook.cells.insert(settings + 1, nbformat.v4.new_code_cell(small))
  notebook.cells.append(nbformat.v4.new_code_cell(COMPUTED))
  nbclient.NotebookClient(notebook, timeout=300).execute(cwd=str(tmp_path))

  outputs = {
    cell.id: cell.outputs for cell in notebook.cells if cell.id in CODE
  }
  computed = json.loads(printed(notebook.cells[-1].outputs))
  plain, swift = computed['texts']
  assert plain == swift == printed(outputs['plain'])
  assert plain in printed(outputs['swift']) and len(plain) >= 24
  # Two ratios, two temperatures.
  assert computed['same'] == [True] * 4
  assert all(0 <= share <= 1 for share in computed['matchness'])
  (passes,) = re.search(
    r'passes: (\d+) +matchness: 0\.\d\d', printed(outputs['swift'])
  ).groups()
  assert 1 <= int(passes) <= len(computed['matchness'])
  assert computed['evaluated'] == [True, 2]
  (report,) = (o.data['text/markdown'] for o in outputs['report'])
  assert '| overall | swift | 2 |' in report
  assert set(computed['shares']) == {'plain', 'swift'}
  for parts in computed['shares'].values():
    known = [share for share in parts.values() if share is not None]
    assert sum(known) == pytest.approx(1)
  assert computed['shares']['swift']['verify'] > 0
  for name, count in (('search', 2), ('pictures', 3), ('time', 2)):
    pictures = [o for o in outputs[name] if 'image/png' in o.get('data', ())]
    assert len(pictures) == count, name


def printed(outputs):
  """What a cell has written to standard output."""
  return ''.join(o.text for o in outputs if o.get('name') == 'stdout')
