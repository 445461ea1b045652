"""The two forms of a file of skip sets: ours and the official one.

  {"format": "swift_jax skip sets", "version": 1, "sets": [{"model": ...}, ...]}
  {"name": {"attention": [layer, ...], "mlp": [layer, ...]}, ...}

Each function's `where` says which setting and file an error is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
import datetime
import json
import reprlib
from typing import Any, NoReturn

from swift_jax.errors import InputError
from swift_jax.files.fields import is_fingerprint, is_int
from swift_jax.model import skip_mask
from swift_jax.model.skip_mask import SkipMask

FORMAT = 'swift_jax skip sets'
VERSION = 1
_LAYERS = ('attention', 'mlp')


@dataclasses.dataclass(frozen=True)
class CachedSet:
  """A skip set and its origin; fields that a file does not have are None.

  Attributes:
    name: the task on which the set was found.
    attention, mlp: the layers whose attention or MLP is skipped.
    model: `checkpoint.load.fingerprint` of the model for which it was found.
    matchness: the set's score, in [0, 1].
    positions: the number of positions of this score.
    skip_ratio, context_window: the search's settings.
    date: when the set was written, in UTC: 2026-11-25T02:03:04+00:00.
    version: the version of the package that found the set.
  """

  name: str
  attention: tuple[int, ...]
  mlp: tuple[int, ...]
  model: str | None = None
  matchness: float | None = None
  positions: int | None = None
  skip_ratio: float | None = None
  context_window: int | None = None
  date: str | None = None
  version: str | None = None

  def mask(self, num_layers: int) -> SkipMask:
    """The set as a mask.

    Raises:
      InputError: the set does not fit a model of `num_layers` layers.
    """
    return skip_mask.from_lists(self.attention, self.mlp, num_layers)


def parse(raw: bytes, where: str) -> list[CachedSet]:
  """The sets of a file in either form, in its order.

  Raises:
    InputError: the file is of neither form.
  """
  content = _json(raw, where)
  return (
    _ours(content, where) if _is_ours(content) else _official(content, where)
  )


def parse_ours(raw: bytes, where: str) -> list[CachedSet]:
  """The sets of a file in our form.

  Raises:
    InputError: the file is not in our form.
  """
  content = _json(raw, where)
  if not _is_ours(content):
    raise InputError(f'{where}: the file there is not of the form {FORMAT!r}')
  return _ours(content, where)


def to_ours(sets: Iterable[CachedSet]) -> str:
  """The text of a file in our form."""
  content = {
    'format': FORMAT,
    'version': VERSION,
    'sets': [_fields(entry) for entry in sets],
  }
  return to_text(content)


def to_official(sets: Iterable[CachedSet]) -> dict[str, dict[str, list[int]]]:
  """The sets in the official form, which has no field for the model.

  Raises:
    InputError: two models have a set of the same name.
  """
  official, models = {}, {}
  for s in sets:
    if s.name in official:
      raise InputError(
        f'set {s.name!r} is there for the models {models[s.name]} and'
        f' {s.model}: choose a model'
      )
    models[s.name] = s.model
    official[s.name] = {'attention': list(s.attention), 'mlp': list(s.mlp)}
  return official


def to_text(content: dict[str, Any]) -> str:
  """The JSON text of a file."""
  return json.dumps(content, indent=1, allow_nan=False) + '\n'


def check_entry(entry: CachedSet, where: str) -> None:
  """Refuses a set that a file in our form cannot hold.

  Raises:
    InputError: the error names the field and its value.
  """
  _check(_fields(entry), _FIELDS, f'{where}, set {entry.name!r:.60}')


def check_name(name: str, setting: str) -> None:
  """Refuses a name that no set can have in our form.

  Raises:
    InputError: the name is empty or holds characters that do not print.
  """
  is_valid, wanted = _FIELDS['name']
  if not is_valid(name):
    raise InputError(f'{setting}={name!r:.60}: expected {wanted}')


def _json(raw: bytes, where: str) -> Any:
  try:
    return json.loads(
      raw.decode('utf-8'),
      parse_constant=_refuse_constant,
      object_pairs_hook=_once_each,
    )
  except (ValueError, RecursionError) as e:
    raise InputError(f'{where} is not JSON: {e}') from None


def _refuse_constant(name: str) -> NoReturn:
  raise ValueError(f'{name} is no number')


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object; refuses equal names, of which json would take the last."""
  fields = {}
  for name, value in pairs:
    if name in fields:
      raise ValueError(f'{name!r:.60} comes twice')
    fields[name] = value
  return fields


def _is_ours(content: Any) -> bool:
  # In the official form `format` could be a set's name: an object.
  return isinstance(content, dict) and isinstance(content.get('format'), str)


def _ours(content: dict[str, Any], where: str) -> list[CachedSet]:
  if content['format'] != FORMAT:
    raise InputError(
      f'{where}: format={reprlib.repr(content["format"])}: expected {FORMAT!r}'
    )
  version, sets = content.get('version'), content.get('sets')
  if type(version) is not int or version != VERSION:
    raise InputError(
      f'{where}: is of version {reprlib.repr(version)} of the form: this'
      f' swift_jax reads version {VERSION}'
    )
  if not isinstance(sets, list):
    raise InputError(f'{where}: sets={reprlib.repr(sets)}: expected a list')
  _only(content, ('format', 'version', 'sets'), where)
  found = {}
  for number, fields in enumerate(sets, 1):
    here = f'{where}, set {number}'
    _check(fields, _FIELDS, here)
    _only(fields, _FIELDS, here)
    entry = _entry(fields)
    if (entry.model, entry.name) in found:
      raise InputError(
        f'{here}: {entry.name!r} for model {entry.model} comes twice'
      )
    found[entry.model, entry.name] = entry
  return list(found.values())


def _official(content: Any, where: str) -> list[CachedSet]:
  if not isinstance(content, dict) or not content:
    raise InputError(f'{where}: expected an object of named sets')
  for name, fields in content.items():
    _check(fields, _LAYERS, f'{where}, set {name!r:.60}')
  return [
    CachedSet(name, *(tuple(fields[kind]) for kind in _LAYERS))
    for name, fields in content.items()
  ]


def _fields(entry: CachedSet) -> dict[str, Any]:
  """A set as an object of our form."""
  return {key: getattr(entry, _ATTRIBUTES.get(key, key)) for key in _FIELDS}


def _entry(fields: dict[str, Any]) -> CachedSet:
  """The inverse of `_fields`."""
  values = {_ATTRIBUTES.get(key, key): fields[key] for key in _FIELDS}
  return CachedSet(**values | {kind: tuple(fields[kind]) for kind in _LAYERS})


def _check(fields: Any, keys: Iterable[str], where: str) -> None:
  """Refuses an object where one of `keys` is missing or has a wrong value."""
  if not isinstance(fields, dict):
    raise InputError(
      f'{where}: expected an object, found {reprlib.repr(fields)}'
    )
  for key in keys:
    if key not in fields:
      raise InputError(f'{where}: {key!r} is missing')
    is_valid, wanted = _FIELDS[key]
    if not is_valid(fields[key]):
      raise InputError(
        f'{where}: {key}={reprlib.repr(fields[key])}: expected {wanted}'
      )


def _only(fields: dict[str, Any], keys: Iterable[str], where: str) -> None:
  """Refuses unknown fields, which `save` would drop."""
  unknown = sorted(fields.keys() - set(keys))
  if unknown:
    raise InputError(f'{where}: {unknown[0]!r:.60} is no field of the form')


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and value.isprintable() and bool(value)


def _is_share(value: Any) -> bool:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_number and 0 <= value <= 1


def _is_layers(value: Any) -> bool:
  return (
    isinstance(value, (list, tuple))
    and all(is_int(layer, 0) for layer in value)
    and len(set(value)) == len(value)
  )


def _is_date(value: Any) -> bool:
  try:
    date = datetime.datetime.fromisoformat(value)
  except (TypeError, ValueError):
    return False
  return value == date.isoformat() and value[19:] == '+00:00'


# The fields of our form: a test of the value, and the words for a valid value
# in errors.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
  'model': (is_fingerprint, '16 hexadecimal digits'),
  'name': (_is_text, 'text that prints'),
  'attention': (_is_layers, 'a list of layers, each once'),
  'mlp': (_is_layers, 'a list of layers, each once'),
  'matchness': (
    lambda value: value is None or _is_share(value),
    'a number in [0, 1] or null',
  ),
  'positions': (
    lambda value: value is None or is_int(value, 0),
    'an integer >= 0 or null',
  ),
  'skip_ratio': (_is_share, 'a number in [0, 1]'),
  'context_window': (lambda value: is_int(value, 1), 'an integer >= 1'),
  'date': (_is_date, 'a UTC time such as 2026-11-25T02:03:04+00:00'),
  'swift_jax': (_is_text, 'a version'),
}
_ATTRIBUTES = {'swift_jax': 'version'}  # fields with another attribute's name
