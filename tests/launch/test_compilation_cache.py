"""What is compiled once is kept for the next process, wherever that may be."""

import os
import pathlib
import subprocess
import sys
import warnings

from cli import common, compilation_cache
import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from ml_collections import ConfigDict
import pytest

from swift_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_persistent_cache_min_entry_size_bytes',
)


@pytest.fixture
def switch_on(monkeypatch, tmp_path):
  """The function, undone afterwards; the user's folder is below the test's."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user'))
  monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
  before = {name: getattr(jax.config, name) for name in SETTINGS}
  jax.config.update('jax_compilation_cache_dir', None)
  jax_cache.reset_cache()
  with warnings.catch_warnings():
    yield compilation_cache.switch_on
  for name, value in before.items():
    jax.config.update(name, value)
  jax_cache.reset_cache()


class Events:
  """Counts programs that were taken from the cache, and those that were not."""

  def __init__(self):
    self.hits = self.misses = 0
    jax.monitoring.register_event_listener(self._on_event)

  def _on_event(self, name, **_):
    self.hits += name == '/jax/compilation_cache/cache_hits'
    self.misses += name == '/jax/compilation_cache/cache_misses'


def in_another_process():
  """A program as a new process would compile it; what it gives."""
  jax.clear_caches()
  jax_cache.reset_cache()

  @jax.jit
  def program(x):
    return x * 7 + 2

  return int(program(4))


def entries(folder):
  return {
    file.name: file.read_bytes()
    for file in pathlib.Path(folder).glob('jit_program-*-cache')
  }


def test_a_program_is_compiled_once(switch_on, tmp_path):
  assert switch_on(None) is None
  events = Events()
  assert in_another_process() == 30
  kept = entries(tmp_path / 'user' / 'swift_jax' / 'compiled')
  assert len(kept) == 1  # however small it is
  hits, misses = events.hits, events.misses
  assert misses >= 1
  assert in_another_process() == 30
  assert events.misses == misses and events.hits == hits + misses
  assert entries(tmp_path / 'user' / 'swift_jax' / 'compiled') == kept


def test_it_moves_and_is_switched_off(switch_on, monkeypatch, tmp_path):
  folder = tmp_path / 'made' / 'here'
  assert switch_on(str(folder)) is None
  in_another_process()
  assert entries(folder)
  assert switch_on('') is None
  assert jax.config.jax_compilation_cache_dir is None
  in_another_process()
  assert os.listdir(tmp_path) == ['made']
  # JAX's own way to move it, which a flag overrules.
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'jax'))
  assert switch_on(None) is None
  in_another_process()
  assert entries(tmp_path / 'jax')
  assert switch_on('') is None
  assert jax.config.jax_compilation_cache_dir is None
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  for name, place in (('~/x', tmp_path / 'x'), ('y', tmp_path / 'y')):
    assert switch_on(name) is None
    assert jax.config.jax_compilation_cache_dir == str(place)


@pytest.mark.parametrize('content', [b'', b'x', None])
def test_a_damaged_entry_is_written_anew(switch_on, tmp_path, content):
  """None: cut in half. JAX alone would compile it at every start."""
  switch_on(str(tmp_path))
  in_another_process()
  whole = entries(tmp_path)
  ((name, before),) = whole.items()
  damaged = before[: len(before) // 2] if content is None else content
  (tmp_path / name).write_bytes(damaged)
  other = tmp_path / 'jit_other-00-cache'
  other.write_bytes(b'of another program')
  assert in_another_process() == 30
  assert entries(tmp_path).keys() == whole.keys()
  assert entries(tmp_path)[name] != damaged
  events = Events()
  assert in_another_process() == 30
  assert events.hits and not events.misses
  assert other.exists()


def test_other_warnings_stay(switch_on, tmp_path):
  switch_on(str(tmp_path))
  with pytest.warns(UserWarning, match='something else'):
    warnings.warn('something else', stacklevel=1)


def test_a_folder_that_cannot_be_written(switch_on, monkeypatch, tmp_path):
  """Who names one is told; who does not gets no cache, and a line."""
  file = tmp_path / 'file'
  file.write_text('')
  said = f'{compilation_cache.FLAG}={file}/x: cannot be written: Not a direc'
  with pytest.raises(InputError, match=said):
    switch_on(f'{file}/x')
  with pytest.raises(InputError, match=f'={file}: cannot be written: File ex'):
    switch_on(str(file))
  monkeypatch.setenv('XDG_CACHE_HOME', str(file))
  said = switch_on(None)
  assert said.startswith('no compilation cache: ')
  assert str(file) in said and '\n' not in said
  assert jax.config.jax_compilation_cache_dir is None


def test_on_an_object_store(switch_on, monkeypatch, store):
  assert switch_on('gs://bucket/programs') is None
  assert jax.config.jax_compilation_cache_dir == 'gs://bucket/programs'
  assert in_another_process() == 30
  events = Events()
  assert in_another_process() == 30
  assert events.hits and not events.misses


def test_a_config_file_may_say_where():
  said = ConfigDict({'compilation_cache_dir': '/some/where'})
  for overrides, value in ((said, '/some/where'), (ConfigDict(), None)):
    config = common.merge(overrides, common.SECTIONS)
    assert config.compilation_cache_dir == value


def shell(folder, *arguments):
  """The real program, with the user's folder there; (status, stdout, stderr)."""
  done = subprocess.run(
    [
      sys.executable,
      ROOT / 'launch' / 'generate.py',
      f'--config={ROOT}/configs/tiny.py',
      '--prompt=x',
      '--config.decode.method=plain',
      '--config.sampling.max_new_tokens=4',
      '--verbosity=-1',
      *arguments,
    ],
    capture_output=True,
    text=True,
    env={**os.environ, 'XDG_CACHE_HOME': str(folder)},
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.nightly
def test_the_next_process_takes_what_the_last_one_left(tmp_path):
  """Whatever has become of it in between."""

  def kept():
    folder = tmp_path / 'swift_jax' / 'compiled'
    return {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}

  status, text, err = shell(tmp_path)
  assert (status, err) == (0, '')
  written = kept()
  assert any(name.startswith('jit_plain_steps-') for name in written)
  assert shell(tmp_path) == (0, text, '')
  assert kept() == written
  for name in written:
    if 'plain_steps' not in name:  # which takes long to compile
      os.truncate(tmp_path / 'swift_jax' / 'compiled' / name, 40)
  assert shell(tmp_path) == (0, text, '')
  assert kept().keys() == written.keys()
  status, out, err = shell(
    tmp_path, f'{compilation_cache.FLAG}={ROOT}/README.md'
  )
  assert (status, out) == (2, '')
  assert err == (
    f'generate.py: {compilation_cache.FLAG}={ROOT}/README.md: cannot be'
    ' written: File exists\n'
  )
