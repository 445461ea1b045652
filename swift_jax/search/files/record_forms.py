"""The lines of a search's record: a header, then one line a scoring pass.

  {"swift_jax_search": 1, "num_layers": 16, "model": "0f...", "settings": {...}}
  {"pass": 1, "evaluations": 8, "seconds": 0.4, "search_seconds": 0.1, ...}

Each function's `where` says which setting, file and line an error is about.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from swift_jax.errors import InputError
from swift_jax.files.fields import (
  Fields,
  Valid,
  bad,
  check,
  is_fingerprint,
  is_int,
)
from swift_jax.model.skip_mask import num_free

FORMAT = 'swift_jax_search'
VERSION = 1
SOURCES = (
  'incumbent',
  'start',
  'random',
  'neighbour',
  'sensitivity',
  'gp',
  'paper',
  'cached',
)
EVENTS = ('start', 'restart', 'stopped')
_LIMIT = 1e12  # no share, log-probability or time is larger


@dataclasses.dataclass(frozen=True)
class Header:
  """The values that all passes of a record have in common.

  Attributes:
    num_layers: L of the model.
    model: its `checkpoint.load.fingerprint`; None where it is not known.
    settings: the `SearchConfig` as a dict.
  """

  num_layers: int
  model: str | None
  settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PassRecord:
  """One scoring pass over C masks.

  A mask is a string of 0 and 1 (skipped) in the order of `SkipMask.bits`.

  Attributes:
    number: the pass's number, which grows from line to line.
    evaluations: masks scored so far, with those of this pass.
    seconds: wall time of prompts, rounds and search so far.
    search_seconds: the search's part of `seconds`.
    positions: compared positions, the same for all masks of the pass.
    sources: the source that proposed each mask; one of `SOURCES`.
    hits: positions that each mask hit.
    log_probs: each mask's mean log-probability of the target's argmax, in nats;
      None where it is not a finite number.
    masks: the masks that were scored.
    incumbent: the mask that drafts after the pass.
    incumbent_source: the source that had proposed the incumbent.
    matchness: the incumbent's estimated share of hits; None before its first
      score.
    stddev: standard deviation of this estimate; None where it is unknown.
    event: one of `EVENTS`, or None.
  """

  number: int
  evaluations: int
  seconds: float
  search_seconds: float
  positions: int
  sources: tuple[str, ...]
  hits: tuple[int, ...]
  log_probs: tuple[float | None, ...]
  masks: tuple[str, ...]
  incumbent: str
  incumbent_source: str
  matchness: float | None = None
  stddev: float | None = None
  event: str | None = None

  def shares(self) -> tuple[float, ...]:
    """Each mask's hits over the positions."""
    return tuple(hits / self.positions for hits in self.hits)


def header_line(header: Header) -> str:
  """The first line, with its newline."""
  return _to_text({FORMAT: VERSION, **dataclasses.asdict(header)})


def pass_line(record: PassRecord) -> str:
  """A pass's line, with its newline; values that are not finite become null."""
  fields = {
    'pass': int(record.number),
    'evaluations': int(record.evaluations),
    'seconds': float(record.seconds),
    'search_seconds': float(record.search_seconds),
    'positions': int(record.positions),
    'sources': list(record.sources),
    'hits': [int(hits) for hits in record.hits],
    # A draft may overflow where the model does not: no reason to stop a run.
    'log_probs': [_finite(value) for value in record.log_probs],
    'masks': list(record.masks),
    'incumbent': record.incumbent,
    'incumbent_source': record.incumbent_source,
    'matchness': _finite(record.matchness),
    'stddev': _finite(record.stddev),
    'event': record.event,
  }
  return _to_text(fields)


def is_header(line: bytes) -> bool:
  """Whether a file that begins with this line is a record, of any version."""
  try:
    fields = _json(line, '')
  except InputError:
    return False
  return isinstance(fields, dict) and FORMAT in fields


def parse_header(line: bytes, where: str) -> Header:
  """The header in a line for which `is_header` is true.

  Raises:
    InputError: the header is of another version, or a field is wrong.
  """
  fields = _json(line, where)
  version = fields[FORMAT]
  if type(version) is not int or version != VERSION:
    raise bad(where, FORMAT, version, f'version {VERSION}')
  check(fields, _HEADER_FIELDS, where)
  return Header(**{name: fields[name] for name in _HEADER_FIELDS})


def parse_pass(line: bytes, num_layers: int, where: str) -> PassRecord:
  """The pass in a line.

  Raises:
    InputError: names the field that is missing or wrong, and its value.
  """
  fields = _json(line, where)
  if not isinstance(fields, dict):
    raise InputError(f'{where}: expected an object, found {fields!r:.60}')
  check(fields, _PASS_FIELDS, where)
  _check_together(fields, where)
  _check_masks(fields, num_free(num_layers), where)
  values = {
    'number' if name == 'pass' else name: tuple(value)
    if isinstance(value, list)
    else value
    for name, value in fields.items()
    if name in _PASS_FIELDS
  }
  return PassRecord(**values)


def check_order(before: PassRecord, record: PassRecord, where: str) -> None:
  """Refuses a pass that cannot come after `before`.

  Raises:
    InputError: names the field and its value.
  """
  if record.number <= before.number:
    wanted = f'more than the {before.number} of the line before'
    raise bad(where, 'pass', record.number, wanted)
  for name in ('evaluations', 'seconds', 'search_seconds'):
    value, low = getattr(record, name), getattr(before, name)
    if value < low:
      raise bad(where, name, value, f'at least the {low} of the line before')
  skipped = before.incumbent.count('1')
  if record.incumbent.count('1') != skipped:
    wanted = f'{skipped} times 1 as in the line before'
    raise bad(where, 'incumbent', record.incumbent, wanted)


def _check_together(fields: Mapping[str, Any], where: str) -> None:
  """Refuses values that contradict each other."""
  count, positions = len(fields['masks']), fields['positions']
  for name in ('sources', 'hits', 'log_probs'):
    if len(fields[name]) != count:
      raise bad(where, name, fields[name], f'one for each of {count} masks')
  if max(fields['hits']) > positions:
    wanted = f'at most positions={positions} for each mask'
    raise bad(where, 'hits', fields['hits'], wanted)
  if fields['search_seconds'] > fields['seconds']:
    wanted = f'at most seconds={fields["seconds"]}'
    raise bad(where, 'search_seconds', fields['search_seconds'], wanted)


def _check_masks(fields: Mapping[str, Any], free: int, where: str) -> None:
  """Refuses masks of a wrong length, or with a wrong number of skips."""
  incumbent = fields['incumbent']
  if len(incumbent) != free:
    raise bad(where, 'incumbent', incumbent, f'{free} times 0 or 1')
  skipped = incumbent.count('1')
  for mask in fields['masks']:
    if len(mask) != free or mask.count('1') != skipped:
      wanted = f'{free} times 0 or 1, {skipped} times 1 as in the incumbent'
      raise bad(where, 'masks', mask, wanted)


def _to_text(fields: Mapping[str, Any]) -> str:
  return json.dumps(fields, allow_nan=False) + '\n'


def _finite(value: float | None) -> float | None:
  is_finite = value is not None and abs(value) <= _LIMIT
  return float(value) if is_finite else None


def _json(line: bytes, where: str) -> Any:
  try:
    return json.loads(line.decode('utf-8'))
  except (ValueError, RecursionError) as error:
    raise InputError(f'{where}: not JSON: {error}') from None


def _is_finite(value: Any) -> bool:
  return type(value) in (int, float) and abs(value) <= _LIMIT


def _is_positive(value: Any) -> bool:
  return _is_finite(value) and value >= 0


def _is_mask(value: Any) -> bool:
  return isinstance(value, str) and not value.strip('01')


def _or_none(is_valid: Valid) -> Valid:
  return lambda value: value is None or is_valid(value)


def _some(is_valid: Valid) -> Valid:
  """Accepts a list that is not empty and holds only valid values."""
  return lambda value: (
    isinstance(value, list) and bool(value) and all(map(is_valid, value))
  )


# For each field, in the file's order: a test of its value, and the words for a
# valid value in errors.
_HEADER_FIELDS: Fields = {
  'num_layers': (lambda value: is_int(value, 1), 'an integer >= 1'),
  'model': (_or_none(is_fingerprint), '16 hexadecimal digits or null'),
  'settings': (lambda value: isinstance(value, dict), 'an object'),
}
_COUNT = (lambda value: is_int(value, 0), 'an integer >= 0')
_SECONDS = (_is_positive, 'a number >= 0')
_SOURCE = (SOURCES.__contains__, f'one of {", ".join(SOURCES)}')
_PASS_FIELDS: Fields = {
  'pass': _COUNT,
  'evaluations': _COUNT,
  'seconds': _SECONDS,
  'search_seconds': _SECONDS,
  'positions': (lambda value: is_int(value, 1), 'an integer >= 1'),
  'sources': (_some(_SOURCE[0]), f'a filled list of {", ".join(SOURCES)}'),
  'hits': (_some(_COUNT[0]), 'a filled list of integers >= 0'),
  'log_probs': (_some(_or_none(_is_finite)), 'a filled list of finite numbers'),
  'masks': (_some(_is_mask), 'a filled list of strings of 0 and 1'),
  'incumbent': (_is_mask, 'a string of 0 and 1'),
  'incumbent_source': _SOURCE,
  'matchness': (_or_none(_is_finite), 'a finite number or null'),
  'stddev': (_or_none(_is_positive), 'a number >= 0 or null'),
  'event': (_or_none(EVENTS.__contains__), f'null, {", ".join(EVENTS)}'),
}
