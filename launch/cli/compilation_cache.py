"""JAX's persistent cache of compiled programs, by default on.

The cache lies in the user's cache folder. `--config.compilation_cache_dir=FOLDER`
moves it, also to an object store (gs://), and so does the environment variable
JAX_COMPILATION_CACHE_DIR. `--config.compilation_cache_dir=` switches it off.
"""

from __future__ import annotations

import pathlib
import re
import tempfile
from typing import Any
import warnings

from etils import epath
import jax

from swift_jax.checkpoint import hub
from swift_jax.checkpoint.hf_config import one_line
from swift_jax.errors import InputError

FLAG = '--config.compilation_cache_dir'
_UNREADABLE = re.compile(
  r"Error reading persistent compilation cache entry for '([\w.<>-]+)'"
)


def switch_on(folder: str | None) -> str | None:
  """Keeps programs that are compiled from now on, and uses programs kept before.

  Args:
    folder: the cache's folder; '': no cache; None: in the user's cache folder.

  Returns:
    If no cache could be made though nobody switched it off: a line that says why.
    Else None.

  Raises:
    InputError: `folder` is given and cannot be written.
  """
  if folder is None and jax.config.jax_compilation_cache_dir:
    place = jax.config.jax_compilation_cache_dir
  elif folder == '':
    jax.config.update('jax_compilation_cache_dir', None)
    return None
  else:
    try:
      place = _make(folder)
    # The system's errors, a missing home folder, errors of an object store's client.
    except Exception as error:
      if folder is not None:
        raise InputError(
          f'{FLAG}={folder}: cannot be written: {_reason(error)}'
        ) from None
      return f'no compilation cache: {one_line(error)}'
  jax.config.update('jax_compilation_cache_dir', place)
  # Small programs are kept too: a read takes 1 ms, the shortest compilation 20.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  _replace_damaged(epath.Path(place))
  return None


def _make(folder: str | None) -> str:
  """Makes the cache's folder if it is missing, and checks that it takes files."""
  if folder is not None and '://' in folder:
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    return folder
  if folder is None:
    place = hub.cache_folder() / 'compiled'
  else:
    place = pathlib.Path(folder).expanduser()
  place.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=place):
    pass
  return str(place.absolute())


def _reason(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return one_line(error)


def _replace_damaged(place: epath.Path) -> None:
  """Removes entries that cannot be read, so that JAX writes them anew.

  JAX warns of such an entry, compiles, and never writes over it: an entry that a
  kill or a full disk has cut short would cost its compilation at every start. The
  warning comes before JAX writes the new entry. It names the program, not the
  entry, so all entries of the program are removed.
  """
  show = warnings.showwarning

  def remove(message: Any, *where: Any, **how: Any) -> None:
    found = _UNREADABLE.match(str(message))
    if not found:
      show(message, *where, **how)
      return
    for entry in place.glob(f'{found[1]}-*-cache'):
      entry.unlink(missing_ok=True)

  warnings.showwarning = remove
  warnings.filterwarnings('always', _UNREADABLE.pattern)
