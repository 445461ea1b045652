"""A disk that takes so many bytes of a file and no more."""

from __future__ import annotations

import contextlib
import resource


@contextlib.contextmanager
def files_up_to(size):
  """The system refuses every byte of a file beyond so many."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
