"""Imports go one way: from a higher floor to a lower one, never in a circle."""

import ast
import importlib
import pathlib
import subprocess
import sys
import tomllib

import pytest

import swift_jax

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'swift_jax'

# The house, from its ground up. A folder may import those of lower floors and
# nothing beside it; '' is the package's root.
FLOORS = (
  ('',),
  ('config',),
  ('files', 'model'),
  ('parallel', 'search.files'),
  ('checkpoint',),
  ('decoding', 'demo'),
  ('pacing',),
  ('search',),
  ('search.paper',),
  ('runtime',),
  ('evaluation',),
  ('evaluation.report',),
  ('benchmark',),
  ('benchmark.suites', 'compilation'),
)
FLOOR = {folder: i for i, floor in enumerate(FLOORS) for folder in floor}
MOST_MODULES, MOST_LINES = 14, 400
FILES = sorted(f for f in PACKAGE.rglob('*.py') if f != PACKAGE / '__init__.py')
FOLDERS = sorted({file.parent for file in FILES} | {ROOT / 'launch' / 'cli'})
SOURCES = [*FILES, *sorted((ROOT / 'launch').rglob('*.py'))]


def module_name(file: pathlib.Path) -> str:
  """`swift_jax/search/matchness.py` -> `search.matchness`."""
  parts = file.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def path_name(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


FOLDER = {
  module_name(file): '.'.join(file.parent.relative_to(PACKAGE).parts)
  for file in FILES
}


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
  # A folder's `__init__` is imported with each module of it.
  return (names & FOLDER.keys()) - {module_name(file), *FLOOR}


def test_every_folder_has_its_floor():
  assert set(FOLDER.values()) == FLOOR.keys()


@pytest.mark.parametrize('file', FILES, ids=module_name)
def test_a_file_imports_from_its_own_folder_or_a_lower_floor(file):
  here = FOLDER[module_name(file)]
  odd = {
    name
    for name in own_imports(file)
    if FOLDER[name] != here and FLOOR[FOLDER[name]] >= FLOOR[here]
  }
  assert not odd
  # The public names are for users: they lead to every floor.
  public = {f'swift_jax.{name}' for name in swift_jax.__all__}
  assert not imported(file) & (public | {'swift_jax.__version__'})
  assert 'import swift_jax\n' not in file.read_text(encoding='utf-8')


def test_no_circles():
  edges = {module_name(file): own_imports(file) for file in FILES}
  while edges:
    free = {name for name, needs in edges.items() if not needs & edges.keys()}
    assert free, f'a circle among {sorted(edges)}'
    edges = {name: edges[name] for name in edges.keys() - free}


def test_decoding_and_search_do_not_know_each_other():
  """They may stand on floors of their own one day."""
  for file in FILES:
    folder, _, _ = module_name(file).partition('.')
    other = {'decoding': 'search', 'search': 'decoding'}.get(folder)
    for name in own_imports(file):
      assert name.split('.')[0] != other, f'{file.name} imports {name}'


@pytest.mark.parametrize('folder', FOLDERS, ids=path_name)
def test_a_folder_is_small_and_says_what_it_does(folder):
  modules = [file for file in folder.glob('*.py') if file.stem != '__init__']
  assert len(modules) <= MOST_MODULES
  tree = ast.parse((folder / '__init__.py').read_text(encoding='utf-8'))
  assert len(ast.get_docstring(tree)) > 40
  # Nothing is handed on: a name has one place that it is imported from.
  assert folder == PACKAGE or len(tree.body) == 1


def test_no_module_is_long():
  assert not {
    path_name(file)
    for file in SOURCES
    if len(file.read_text(encoding='utf-8').splitlines()) > MOST_LINES
  }


def test_only_the_processes_import_gpjax():
  """And below the evaluation only a search that starts one imports these."""
  processes = {'search.gaussian_process', 'search.paper.process'}
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
      and FLOOR[FOLDER[module_name(file)]] < FLOOR['evaluation']
    }
    for process in (*processes, 'search.surrogate')
  }
  assert importers == {
    'search.gaussian_process': {'search.surrogate'},
    'search.surrogate': {'search.searcher'},
    'search.paper.process': {'search.paper.recipe'},
  }


def test_only_the_benchmark_of_its_peers_imports_torch():
  users = {
    module_name(file)
    for file in FILES
    if any(name.split('.')[0] == 'torch' for name in imported(file))
  }
  assert users == {'benchmark.suites.peers'}


def test_only_its_peer_imports_llama_cpp():
  names = {'gguf', 'llama_cpp'}
  users = {module_name(file) for file in FILES if imported(file) & names}
  assert users == {'benchmark.llama_cpp_peer'}


def test_torch_is_imported_only_when_that_suite_runs():
  code = (
    'import sys; from swift_jax.benchmark.suites import peers;'
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
    "import swift_jax.runtime.engine; print('gpjax' in sys.modules)"
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
    if alias.asname and node.module != 'swift_jax.version'
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
