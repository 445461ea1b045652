"""Skip sets in files: sets that were found are saved and loaded again.

Each set belongs to a model. `set_forms` has the forms of these files.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
import pathlib

from swift_jax.errors import InputError
from swift_jax.files import atomic
from swift_jax.model.skip_mask import SkipMask
from swift_jax.search.files import set_forms
from swift_jax.search.files.set_forms import CachedSet, check_name, to_official

__all__ = [
  'CachedSet',
  'check_name',
  'check_writable',
  'export',
  'load',
  'read',
  'save',
  'to_official',
]

PUBLISHED = 'published'
_PUBLISHED_FILE = pathlib.Path(__file__).with_name('published_sets.json')


def read(path: str, setting: str = 'search.cache') -> list[CachedSet]:
  """All sets of a file, in its order.

  Args:
    path: a file in our form or the official one, or `published` for the sets
      of the official repository.
    setting: what errors call the path.

  Raises:
    InputError: the file cannot be read or is of neither form.
  """
  where = f'{setting}={path!r}'
  file = str(_PUBLISHED_FILE) if path == PUBLISHED else path
  return set_forms.parse(atomic.read(file, where), where)


def load(
  path: str, name: str, num_layers: int, model: str | None = None
) -> SkipMask:
  """The set `name` of a file, checked against a model of `num_layers` layers.

  Args:
    path: as for `read`.
    name: the set's name; it may be empty where the file holds one set for the
      model.
    model: fingerprint of the model that will draft with the set; None where it
      is not known yet. Then a set of any model will do, and the first that fits
      is returned; once the model is known, the same call may still be refused.

  Raises:
    InputError: the file cannot be read, has no set of this name, or its set
      does not fit or is for another model.
  """
  sets = read(path)
  mine = [s for s in sets if model is None or s.model in (None, model)]
  if name:
    chosen = [s for s in mine if s.name == name]
  else:
    count = collections.Counter(s.model for s in mine)
    chosen = [s for s in mine if count[s.model] == 1]
  if not chosen:
    raise _no_choice(path, name, model, sets, mine)
  misfits = []
  for entry in chosen:
    try:
      return entry.mask(num_layers)
    except InputError as e:
      misfits.append(f'search.cache={path!r}, set {entry.name!r}: {e}')
  raise InputError(misfits[0])


def _no_choice(
  path: str,
  name: str,
  model: str | None,
  sets: Sequence[CachedSet],
  mine: Sequence[CachedSet],
) -> InputError:
  """Says why none of `sets` can be taken; `mine` are those for the model."""
  held = ', '.join(sorted({repr(s.name) for s in mine or sets}))
  named = [s for s in sets if not name or s.name == name]
  if not sets:
    return InputError(f'search.cache={path!r}: holds no sets')
  if not named:
    return InputError(
      f'search.cache_name={name!r} is not in {path!r} (it holds {held})'
    )
  if mine and not name:
    return InputError(
      f'search.cache={path!r} holds {len(mine)} sets: choose one with'
      f' search.cache_name ({held})'
    )
  foreign = ', '.join(f'set {s.name!r} is for model {s.model}' for s in named)
  return InputError(f'search.cache={path!r}: {foreign}; this model is {model}')


def save(
  path: str,
  entry: CachedSet,
  stays: Callable[[CachedSet], bool] = lambda rival: False,
) -> bool:
  """Adds a set to a file; it replaces the set of the same model and name.

  All other sets stay. The file is replaced as a whole, so that a process that
  dies leaves the old file. If several processes save at the same time, all
  their sets are kept.

  Args:
    stays: whether the set that it would replace is kept instead.

  Returns:
    Whether the set is in the file now.

  Raises:
    InputError: the file cannot be written or is not in our form, or the set
      lacks a field of this form. The file is then unchanged.
  """
  where = f'search.save={path!r}'
  set_forms.check_entry(entry, where)
  target = _target(path, where)
  with atomic.locked(target, where):
    sets = {(s.model, s.name): s for s in _saved(target, where)}
    rival = sets.get((entry.model, entry.name))
    if rival is not None and stays(rival):
      return False
    sets[entry.model, entry.name] = entry
    atomic.replace(target, set_forms.to_ours(sets.values()), where)
  return True


def check_writable(path: str) -> None:
  """Refuses a path that `save` would refuse, before there is a set to save.

  Raises:
    InputError: the file cannot be written or is not in our form.
  """
  where = f'search.save={path!r}'
  _saved(_target(path, where), where)


def export(
  sets: Iterable[CachedSet], path: str, setting: str = 'export'
) -> None:
  """Writes a file in the official form; an old file is replaced.

  Args:
    sets: at least one.
    path: the file.
    setting: what errors call the path.

  Raises:
    InputError: no sets, two of the same name, or a file that cannot be written.
  """
  where = f'{setting}={path!r}'
  try:
    official = to_official(sets)
  except InputError as e:
    raise InputError(f'{where}: {e}') from None
  if not official:
    raise InputError(f'{where}: there are no sets')
  target = _target(path, where)
  with atomic.locked(target, where):
    atomic.replace(target, set_forms.to_text(official), where)


def _target(path: str, where: str) -> pathlib.Path:
  if path == PUBLISHED:
    raise InputError(f'{where}: names the sets in the package, expected a file')
  return atomic.writable(path, where)


def _saved(target: pathlib.Path, where: str) -> list[CachedSet]:
  """The sets that a file holds so far; refuses a file of another kind."""
  if not target.exists():
    return []
  return set_forms.parse_ours(atomic.read(str(target), where), where)
