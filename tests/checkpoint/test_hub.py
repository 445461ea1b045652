"""Checkpoints on an object store, through etils and a store in memory."""

import sys

from checkpoints import assert_same_bits
from etils.epath import backend
import pytest
from reference import cases

from swift_jax.checkpoint import hub, load
from swift_jax.errors import InputError

STORE = 'gs://bucket/model'


@pytest.fixture
def folder(store, monkeypatch, tmp_path):
  """A checkpoint that is also in the store; a cache of our own."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  made = cases.write('gqa', tmp_path / 'model')
  (made / 'pytorch_model.bin').write_bytes(b'never fetched')
  for file in made.iterdir():
    store.pipe(f'{STORE}/{file.name}', file.read_bytes())
  return made


def test_a_model_is_fetched_once(folder):
  copy = hub.resolve(STORE)
  names = {file.name for file in folder.iterdir()} - {'pytorch_model.bin'}
  assert {file.name for file in copy.iterdir()} == names
  cfg = load.load_config(copy)
  loaded = [load.load_params(f, cfg)[1] for f in (copy, folder)]
  assert_same_bits(*loaded)
  times = {file: file.stat().st_mtime_ns for file in copy.iterdir()}
  assert hub.resolve(f'{STORE}/') == copy
  assert times == {file: file.stat().st_mtime_ns for file in copy.iterdir()}


def test_what_has_changed_is_fetched_again(store, folder):
  copy = hub.resolve(STORE)
  store.pipe(f'{STORE}/config.json', b'{"model_type": "other"}')
  store.rm(f'{STORE}/model.safetensors')
  assert hub.resolve(STORE) == copy
  assert (copy / 'config.json').read_bytes() == b'{"model_type": "other"}'
  assert not (copy / 'model.safetensors').exists()


def test_a_copy_that_breaks_off_leaves_nothing(folder, monkeypatch):
  copy = hub.resolve(STORE)
  for file in copy.iterdir():
    file.unlink()

  def fails(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(hub.shutil, 'copyfileobj', fails)
    said = f'{STORE}: cannot be fetched: .*No space left'
    with pytest.raises(InputError, match=said):
      hub.resolve(STORE)
  assert not list(copy.iterdir())
  assert (hub.resolve(STORE) / 'config.json').exists()


def test_what_is_not_there_is_named(store):
  with pytest.raises(InputError, match='gs://bucket/none: cannot be fetched'):
    hub.resolve('gs://bucket/none')
  store.pipe('gs://bucket/empty/notes.md', b'-')
  with pytest.raises(InputError, match='gs://bucket/empty: holds no checkpo'):
    hub.resolve('gs://bucket/empty')


def test_a_user_without_a_home_is_told_what_to_set(store, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', '~no-such-user/cache')
  store.pipe(f'{STORE}/config.json', b'{}')
  with pytest.raises(InputError, match='~no-such-user/cache: .*XDG_CACHE_HOME'):
    hub.resolve(STORE)


def test_a_store_without_its_client(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  type(backend.fsspec_backend)._get_filesystem.cache_clear()
  with pytest.raises(InputError, match=f'{STORE}: cannot be fetched: .*gcsfs'):
    hub.resolve(STORE)
