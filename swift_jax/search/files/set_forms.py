"""The two forms of a file of skip sets: ours and the official one.

  {"format": "swift_jax skip sets", "version": 1, "sets": [{"model": ...}, ...]}
  {"name": {"attention": [layer, ...], "mlp": [layer, ...]}, ...}

Each function's `where` says which setting and file an error is about.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import datetime
import json
from typing import Annotated, Any, NoReturn

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from swift_jax.errors import InputError
from swift_jax.files.fields import (
  Count,
  Fingerprint,
  Natural,
  meets,
  parse_json,
)
from swift_jax.model import skip_mask
from swift_jax.model.skip_mask import SkipMask

FORMAT = 'swift_jax skip sets'
VERSION = 1
Text = Annotated[
  str, meets(lambda text: text.isprintable() and text, 'text that prints')
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Layers = Annotated[
  tuple[Count, ...],
  meets(lambda layers: len({*layers}) == len(layers), 'each layer once'),
]


def _is_date(text: str) -> bool:
  try:
    date = datetime.datetime.fromisoformat(text)
  except ValueError:
    return False
  return text == date.isoformat() and text[19:] == '+00:00'


Date = Annotated[
  str, meets(_is_date, 'a UTC time such as 2026-11-25T02:03:04+00:00')
]
_ALL = ConfigDict(extra='forbid')  # `save` would drop other fields


@dataclass(config=_ALL)
class _Entry:
  model: Fingerprint
  name: Text
  attention: Layers
  mlp: Layers
  matchness: Share | None
  positions: Count | None
  skip_ratio: Share
  context_window: Natural
  date: Date
  swift_jax: Text


@dataclass(config=_ALL)
class _Ours:
  format: Annotated[str, meets(lambda name: name == FORMAT, repr(FORMAT))]
  version: Annotated[
    int, meets(lambda version: version == VERSION, f'version {VERSION}')
  ]
  sets: tuple[_Entry, ...]


@dataclass
class _Official:
  attention: Layers
  mlp: Layers


_OURS = TypeAdapter(_Ours)
_ENTRY = TypeAdapter(_Entry)
_SETS = TypeAdapter(dict[str, _Official])


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
  if _is_ours(raw, where):
    return _ours(raw, where)
  sets = parse_json(_SETS, raw, where)
  if not sets:
    raise InputError(f'{where}: expected an object of named sets')
  return [CachedSet(name, s.attention, s.mlp) for name, s in sets.items()]


def parse_ours(raw: bytes, where: str) -> list[CachedSet]:
  """The sets of a file in our form.

  Raises:
    InputError: the file is not in our form.
  """
  if not _is_ours(raw, where):
    raise InputError(f'{where}: the file there is not of the form {FORMAT!r}')
  return _ours(raw, where)


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
  where = f'{where}, set {entry.name!r:.60}'
  parse_json(_ENTRY, json.dumps(_fields(entry)), where)


def check_name(name: str, setting: str) -> None:
  """Refuses a name that no set can have in our form.

  Raises:
    InputError: the name is empty or holds characters that do not print.
  """
  if not name or not name.isprintable():
    raise InputError(f'{setting}={name!r:.60}: expected text that prints')


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


def _is_ours(raw: bytes, where: str) -> bool:
  content = _json(raw, where)
  # In the official form `format` could be a set's name: an object.
  return isinstance(content, dict) and isinstance(content.get('format'), str)


def _ours(raw: bytes, where: str) -> list[CachedSet]:
  found = {}
  for i, fields in enumerate(parse_json(_OURS, raw, where).sets):
    values = {**vars(fields), 'version': fields.swift_jax}
    del values['swift_jax']
    entry = CachedSet(**values)
    if (entry.model, entry.name) in found:
      raise InputError(
        f'{where}: sets[{i}]: {entry.name!r} for model {entry.model} comes twice'
      )
    found[entry.model, entry.name] = entry
  return list(found.values())


def _fields(entry: CachedSet) -> dict[str, Any]:
  """A set as an object of our form."""
  values = {**vars(entry), 'swift_jax': entry.version}
  return {f.name: values[f.name] for f in dataclasses.fields(_Entry)}
