"""A stand-in for what is behind gs://, in memory."""

import datetime

from fsspec.implementations.memory import MemoryFileSystem


class StoreError(Exception):
  """A store's client has errors of its own, as gcsfs.retry.HttpError."""


class Store(MemoryFileSystem):
  """Objects in memory, which are written whole."""

  protocol = ('gcs', 'gs')
  is_down = False

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + path.removeprefix('gs://').strip('/')

  def _open(self, path, mode='rb', **how):
    assert mode in ('rb', 'wb'), 'there is no append'
    if self.is_down:
      raise StoreError('Service\nUnavailable, 503')
    return super()._open(path, mode, **how)

  def info(self, path, **how):
    found = super().info(path, **how)
    made = found.get('created') or datetime.datetime.now(datetime.UTC)
    return {**found, 'mtime': made}
