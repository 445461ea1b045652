"""Skip sets in files, in the official JSON form.

{"name": {"attention": [layer, ...], "mlp": [layer, ...]}, ...}
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from swift_jax import skip_mask
from swift_jax.errors import InputError
from swift_jax.skip_mask import SkipMask

PUBLISHED = 'published'
_PUBLISHED_FILE = pathlib.Path(__file__).with_name('published_sets.json')


def load(path: str, name: str, num_layers: int) -> SkipMask:
  """The set `name` of a file, checked against a model of `num_layers` layers.

  Args:
    path: a JSON file, or `published` for the sets of the official repository.
    name: may be empty where the file holds one set.

  Raises:
    InputError: unreadable file, unknown name, or a set that does not fit.
  """
  sets = read(path)
  if not name:
    if len(sets) != 1:
      raise InputError(
        f'search.cache={path!r} holds {len(sets)} sets: choose one with'
        f' search.cache_name ({", ".join(sorted(sets))})'
      )
    name = next(iter(sets))
  if name not in sets:
    raise InputError(
      f'search.cache_name={name!r} is not in {path!r} (it holds'
      f' {", ".join(sorted(sets))})'
    )
  try:
    entry = sets[name]
    return skip_mask.from_lists(entry['attention'], entry['mlp'], num_layers)
  except InputError as e:
    raise InputError(f'search.cache={path!r}, set {name!r}: {e}') from None


def read(path: str) -> dict[str, dict[str, list[int]]]:
  """All sets of a file.

  Raises:
    InputError: the file cannot be read or is not of the official form.
  """
  file = _PUBLISHED_FILE if path == PUBLISHED else pathlib.Path(path)
  try:
    sets = json.loads(file.read_text(encoding='utf-8'))
  except OSError as e:
    raise InputError(f'search.cache={path!r}: {e.strerror}') from None
  except (ValueError, RecursionError) as e:
    raise InputError(f'search.cache={path!r} is not JSON: {e}') from None
  if not isinstance(sets, dict) or not sets:
    raise InputError(f'search.cache={path!r}: expected an object of named sets')
  for name, entry in sets.items():
    _check_entry(path, name, entry)
  return sets


def _check_entry(path: str, name: str, entry: Any) -> None:
  lists = isinstance(entry, dict) and all(
    isinstance(entry.get(kind), list) for kind in ('attention', 'mlp')
  )
  if not lists:
    raise InputError(
      f'search.cache={path!r}, set {name!r}: expected lists of layers under'
      ' "attention" and "mlp"'
    )
