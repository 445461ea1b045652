"""Imports go one way: from a higher number to a lower one, never in a circle."""

import ast
import importlib
import pathlib
import subprocess
import sys
import tomllib

import pytest

import swift_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'swift_jax'

# What stands higher may import what stands lower, or beside it without a circle.
# A folder's number holds for all its files, unless a file has its own.
ORDER = {
  'errors': 0,
  'progress': 0,
  'typing': 0,
  'checks': 0,
  'config': 0,
  'sampling_config': 0,
  'detokenizer': 1,
  'distributed': 1,
  'kv_cache': 1,
  'metrics': 1,
  'sampling': 1,
  'sharding': 1,
  'skip_mask': 1,
  'token_bytes': 1,
  'demo': 1,
  'fused': 1,
  'layers': 2,
  'llama': 3,
  'checkpoint': 4,
  'export': 4,
  'quantised': 4,
  'hf_config': 4,
  'hub': 4,
  'weight_files': 4,
  'decoding': 4,
  'costs': 5,
  'clock': 5,
  'specialised': 5,
  'search.matchness': 4,
  'search.acquisition': 4,
  'search': 5,
  'session': 5,
  'chat_template': 5,
  'prompts': 5,
  'engine': 6,
  'evaluation': 7,
  'training': 7,
}
FILES = sorted(f for f in PACKAGE.rglob('*.py') if f != PACKAGE / '__init__.py')


def module_name(file: pathlib.Path) -> str:
  """`swift_jax/search/matchness.py` -> `search.matchness`."""
  parts = file.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


NAMES = {module_name(file) for file in FILES}


def level(name: str) -> int:
  return ORDER[name] if name in ORDER else ORDER[name.split('.')[0]]


def imported(file: pathlib.Path) -> set[str]:
  """Every module that a file imports, inside functions too."""
  names = set()
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{file.name}: a relative import'
      # A name that is imported may be a module of its own.
      names.update(f'{node.module}.{alias.name}' for alias in node.names)
      names.add(node.module)
  return names


def own_imports(file: pathlib.Path) -> set[str]:
  """The modules of this package among them, without its name in front."""
  names = {name.removeprefix('swift_jax.') for name in imported(file)}
  return (names & NAMES) - {module_name(file)}


@pytest.mark.parametrize('file', FILES, ids=module_name)
def test_a_file_imports_from_its_own_number_or_lower(file):
  here = level(module_name(file))
  higher = {name for name in own_imports(file) if level(name) > here}
  assert not higher


def test_no_circles():
  edges = {module_name(file): own_imports(file) for file in FILES}
  while edges:
    free = {name for name, needs in edges.items() if not needs & edges.keys()}
    assert free, f'a circle among {sorted(edges)}'
    edges = {name: edges[name] for name in edges.keys() - free}


def test_decoding_and_search_do_not_know_each_other():
  for file in FILES:
    folder, _, _ = module_name(file).partition('.')
    other = {'decoding': 'search', 'search': 'decoding'}.get(folder)
    for name in own_imports(file):
      assert name.split('.')[0] != other, f'{file.name} imports {name}'


def test_only_the_processes_import_gpjax():
  """And below the evaluation only a search that starts one imports these."""
  processes = {'search.gaussian_process', 'search.paper_process'}
  users = {
    module_name(file)
    for file in FILES
    if any(name.split('.')[0] == 'gpjax' for name in imported(file))
  }
  assert users == processes
  importers = {
    process: {
      module_name(file)
      for file in FILES
      if process in own_imports(file)
      and level(module_name(file)) < ORDER['evaluation']
    }
    for process in (*processes, 'search.surrogate')
  }
  assert importers == {
    'search.gaussian_process': {'search.surrogate'},
    'search.surrogate': {'search.searcher'},
    'search.paper_process': {'search.paper'},
  }


def test_only_the_benchmark_of_its_peers_imports_torch():
  users = {
    module_name(file)
    for file in FILES
    if any(name.split('.')[0] == 'torch' for name in imported(file))
  }
  assert users == {'evaluation.peers_suite'}


def test_only_its_peer_imports_llama_cpp():
  names = {'gguf', 'llama_cpp'}
  users = {module_name(file) for file in FILES if imported(file) & names}
  assert users == {'evaluation.llama_cpp_peer'}


def test_torch_is_imported_only_when_that_suite_runs():
  code = (
    'import sys; from swift_jax.evaluation import peers_suite;'
    "print('torch' in sys.modules)"
  )
  command = [sys.executable, '-c', code]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout == 'False\n'


def test_configs_import_only_ml_collections():
  files = sorted((ROOT / 'configs').glob('*.py'))
  assert files
  for file in files:
    assert imported(file) == {'ml_collections'}, file.name


def test_importing_the_package_stays_cheap():
  code = (
    'import sys, swift_jax; swift_jax.DecodeConfig(); swift_jax.SkipMask;'
    "print(sorted({'gpjax', 'torch', 'transformers'} & sys.modules.keys()));"
    # What decodes and searches starts without it, too.
    "import swift_jax.engine; print('gpjax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split('\n') == ['[]', 'False', '']


def test_what_is_public_is_what_type_checkers_see():
  """The names are looked up by one table and checked by other lines."""
  tree = ast.parse((PACKAGE / '__init__.py').read_text(encoding='utf-8'))
  seen = {
    alias.asname: node.module
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
    if alias.asname
  }
  assert sorted(seen) == swift_jax.__all__
  for name, module in seen.items():
    found = getattr(swift_jax, name)
    assert found is getattr(importlib.import_module(module), name)
  with pytest.raises(AttributeError, match="has no attribute 'Engin'"):
    _ = swift_jax.Engin


def test_the_package_says_that_it_is_typed():
  with (ROOT / 'pyproject.toml').open('rb') as file:
    tools = tomllib.load(file)['tool']
  data = tools['setuptools']['package-data']['swift_jax']
  assert 'py.typed' in data and (PACKAGE / 'py.typed').is_file()
  # Where the public names live is checked, and so is how they are used.
  checked = {ROOT / name for name in tools['mypy']['files']}
  homes = map(importlib.import_module, set(swift_jax._PUBLIC.values()))
  assert {pathlib.Path(home.__file__) for home in homes} < checked
  used = imported(ROOT / 'tests' / 'typed_use.py')
  assert {f'swift_jax.{name}' for name in swift_jax.__all__} <= used
