"""Checkpoints on an object store, through etils and a store in memory."""

import datetime
import sys

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
import fsspec.registry  # noqa: F401
import pytest
from reference import cases
from test_checkpoint import assert_same_bits

from swift_jax import checkpoint, hub
from swift_jax.errors import InputError

STORE = 'gs://bucket/model'
# The package has the mapping under the module's name.
REGISTRY = sys.modules['fsspec.registry']._registry


class Store(MemoryFileSystem):
  """What gcsfs is for gs://, in memory."""

  protocol = ('gcs', 'gs')
  store, pseudo_dirs = {}, ['']

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.replace('gs://', 'memory://'))

  def info(self, path, **how):
    found = super().info(path, **how)
    made = found.get('created')
    return {**found, 'mtime': made or datetime.datetime.now(datetime.UTC)}


@pytest.fixture
def store(monkeypatch, tmp_path):
  """A bucket with a checkpoint, and a cache of our own."""
  monkeypatch.setitem(REGISTRY, 'gcs', Store)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  backend.fsspec_backend._get_filesystem.cache_clear()
  folder = cases.write('gqa', tmp_path / 'model')
  (folder / 'pytorch_model.bin').write_bytes(b'never fetched')
  fs = Store()
  for file in folder.iterdir():
    fs.pipe(f'{STORE}/{file.name}', file.read_bytes())
  yield fs, folder
  Store.store.clear()
  backend.fsspec_backend._get_filesystem.cache_clear()


def test_a_model_is_fetched_once(store):
  fs, folder = store
  copy = hub.resolve(STORE)
  names = {file.name for file in folder.iterdir()} - {'pytorch_model.bin'}
  assert {file.name for file in copy.iterdir()} == names
  cfg = checkpoint.load_config(copy)
  loaded = [checkpoint.load_params(f, cfg)[1] for f in (copy, folder)]
  assert_same_bits(*loaded)
  times = {file: file.stat().st_mtime_ns for file in copy.iterdir()}
  assert hub.resolve(f'{STORE}/') == copy
  assert times == {file: file.stat().st_mtime_ns for file in copy.iterdir()}


def test_what_has_changed_is_fetched_again(store):
  fs, _ = store
  copy = hub.resolve(STORE)
  fs.pipe(f'{STORE}/config.json', b'{"model_type": "other"}')
  fs.rm(f'{STORE}/model.safetensors')
  assert hub.resolve(STORE) == copy
  assert (copy / 'config.json').read_bytes() == b'{"model_type": "other"}'
  assert not (copy / 'model.safetensors').exists()


def test_a_copy_that_breaks_off_leaves_nothing(store, monkeypatch):
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


def test_what_is_not_there_is_named(store, monkeypatch):
  with pytest.raises(InputError, match='gs://bucket/none: cannot be fetched'):
    hub.resolve('gs://bucket/none')
  Store().pipe('gs://bucket/empty/notes.md', b'-')
  with pytest.raises(InputError, match='gs://bucket/empty: holds no checkpo'):
    hub.resolve('gs://bucket/empty')
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  monkeypatch.delitem(REGISTRY, 'gcs')
  backend.fsspec_backend._get_filesystem.cache_clear()
  with pytest.raises(InputError, match=f'{STORE}: cannot be fetched: .*gcsfs'):
    hub.resolve(STORE)
