"""Shapes in annotations are checked while tests run; tests need no accelerator."""

import atexit
import gc
import os
import pathlib
import signal
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

from cli import xla_flags
from hypothesis import HealthCheck, settings
import jax
from jaxtyping import install_import_hook
import pytest

# As launchers have it: what a test compiles they need not.
xla_flags.set_for_cpu(os.environ)

# A shell's background process is deaf to Ctrl-C, one of nohup to SIGHUP, and so is
# all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Nothing goes into the real one; and what a test or a launcher compiles, the next
# need not, whichever process it runs in: launchers keep their programs there too.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix='swift_jax_tests_')
  atexit.register(_CACHE.cleanup)
  os.environ['XDG_CACHE_HOME'] = _CACHE.name
_COMPILED = os.path.join(os.environ['XDG_CACHE_HOME'], 'swift_jax', 'compiled')
jax.config.update('jax_compilation_cache_dir', _COMPILED)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)

# The files whose annotations are shapes; before any of them is imported.
install_import_hook(
  [
    'swift_jax.decoding',
    'swift_jax.model.layers',
    'swift_jax.model.llama',
    'swift_jax.model.rope',
    'swift_jax.search.drift',
    'swift_jax.search.gaussian_process',
    'swift_jax.search.matchness',
    'swift_jax.search.paper',
    'swift_jax.search.proposals',
    'swift_jax.search.search_state',
    'swift_jax.search.searcher',
    'swift_jax.search.surrogate',
  ],
  'annotations.check',
)

# The first example compiles, and a machine may be busy: time decides nothing.
settings.register_profile(
  'quick',
  deadline=None,
  max_examples=20,
  suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
  'nightly', settings.get_profile('quick'), max_examples=200
)
settings.load_profile('quick')


_LEFT = pytest.StashKey[int]()


def pytest_addoption(parser):
  parser.addoption(
    '--nightly',
    action='store_true',
    help='run all tests, and property tests with ten times the examples',
  )


def pytest_configure(config):
  if config.getoption('nightly'):
    settings.load_profile('nightly')
  else:
    # A quarter less to compile, and as fast; the nightly run has what users have.
    given = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{given} --xla_backend_optimization_level=1'


def pytest_collection_modifyitems(config, items):
  """Leaves what is marked nightly to the nightly run; the longest file is first."""
  items.sort(key=lambda item: 'test_sharding' not in item.nodeid)
  if config.getoption('nightly'):
    return
  left = [item for item in items if item.get_closest_marker('nightly')]
  items[:] = [item for item in items if not item.get_closest_marker('nightly')]
  config.hook.pytest_deselected(items=left)
  config.stash[_LEFT] = len(left)


def pytest_sessionfinish(session):
  if hasattr(session.config, 'workeroutput'):  # one of several processes
    session.config.workeroutput['left'] = session.config.stash.get(_LEFT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  node.config.stash[_LEFT] = getattr(node, 'workeroutput', {}).get('left', 0)


def pytest_terminal_summary(terminalreporter, config):
  left = config.stash.get(_LEFT, 0)
  if left:
    terminalreporter.write_line(
      f'{left} tests are left to the nightly run: launch/test.sh --nightly'
    )


@pytest.fixture(scope='module', autouse=True)
def _few_programs_at_a_time():
  """Linux gives a process 65,530 pieces of memory, and each program takes some.

  Beyond them XLA crashes. What is needed again comes from the disk.
  """
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > 15_000:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def nightly(request):
  """Whether all tests run, in as many cases as there are."""
  return request.config.getoption('nightly')


@pytest.fixture
def launch(monkeypatch, capsys):
  """Runs a launcher's main with arguments; (status, stdout, stderr).

  Without sections for one that has no config.
  """
  from absl import app
  from absl.testing import flagsaver
  from cli import common, compilation_cache, console
  import generate

  def run(
    *arguments,
    main=generate.main,
    sections=common.SECTIONS,
    name='generate.py',
  ):
    monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
    # What would outlast the test in this process.
    monkeypatch.setattr(common, '_quiet', lambda: None)
    monkeypatch.setattr(common, '_hide_torch', lambda: None)
    monkeypatch.setattr(console, 'begin', lambda: None)
    monkeypatch.setattr(console, 'take_signals', lambda: None)
    monkeypatch.setattr(compilation_cache, 'switch_on', lambda folder: None)
    monkeypatch.setattr(app, 'run', call)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
      if sections is None:
        common.run_plain(main)
      common.run(main, sections=sections)
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err

  def call(main, argv, flags_parser):
    sys.exit(main(flags_parser(argv)))

  return run


@pytest.fixture
def store(monkeypatch, tmp_path):
  """What is behind gs://, for as long as a test runs."""
  import tempfile

  from etils.epath import backend
  import fsspec
  from object_store import Store

  made = Store(global_store=False, skip_instance_cache=True)
  real, cached = fsspec.filesystem, type(backend.fsspec_backend)._get_filesystem

  def filesystem(name, **how):
    return made if name in Store.protocol else real(name, **how)

  monkeypatch.setattr(fsspec, 'filesystem', filesystem)
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # of lock files
  cached.cache_clear()
  yield made
  cached.cache_clear()
