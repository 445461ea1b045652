"""The lines of a search's record: a header, then one line a scoring pass.

  {"swift_jax_search": 1, "num_layers": 16, "model": "0f...", "settings": {...}}
  {"pass": 1, "evaluations": 8, "seconds": 0.4, "search_seconds": 0.1, ...}

Each function's `where` says which setting, file and line an error is about.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter

from swift_jax.errors import InputError
from swift_jax.files.fields import (
  Count,
  Fingerprint,
  Natural,
  bad,
  matches,
  parse_json,
)
from swift_jax.model.skip_mask import num_free

FORMAT = 'swift_jax_search'
VERSION = 1
Source = Literal[
  'incumbent',
  'start',
  'random',
  'neighbour',
  'sensitivity',
  'gp',
  'paper',
  'cached',
]
Event = Literal['start', 'restart', 'stopped']
SOURCES, EVENTS = get_args(Source), get_args(Event)
_LIMIT = 1e12  # no share, log-probability or time is larger
Finite = Annotated[float, Field(ge=-_LIMIT, le=_LIMIT, allow_inf_nan=False)]
Positive = Annotated[Finite, Field(ge=0)]
Mask = Annotated[str, matches('[01]*', 'a string of 0 and 1')]
Filled = Field(min_length=1)


@dataclasses.dataclass(frozen=True)
class Header:
  """The values that all passes of a record have in common.

  Attributes:
    num_layers: L of the model.
    model: its `checkpoint.load.fingerprint`; None where it is not known.
    settings: the `SearchConfig` as a dict.
  """

  num_layers: Natural
  model: Fingerprint | None
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

  number: Annotated[Count, Field(alias='pass')]
  evaluations: Count
  seconds: Positive
  search_seconds: Positive
  positions: Natural
  sources: Annotated[tuple[Source, ...], Filled]
  hits: Annotated[tuple[Count, ...], Filled]
  log_probs: Annotated[tuple[Finite | None, ...], Filled]
  masks: Annotated[tuple[Mask, ...], Filled]
  incumbent: Mask
  incumbent_source: Source
  matchness: Finite | None
  stddev: Positive | None
  event: Event | None

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
  return parse_json(_HEADER, line, where)


def parse_pass(line: bytes, num_layers: int, where: str) -> PassRecord:
  """The pass in a line.

  Raises:
    InputError: names the field that is missing or wrong, and its value.
  """
  record = parse_json(_PASS, line, where)
  _check_together(record, where)
  _check_masks(record, num_free(num_layers), where)
  return record


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


def _check_together(record: PassRecord, where: str) -> None:
  """Refuses values that contradict each other."""
  count, positions = len(record.masks), record.positions
  for name in ('sources', 'hits', 'log_probs'):
    value = getattr(record, name)
    if len(value) != count:
      raise bad(where, name, value, f'one for each of {count} masks')
  if max(record.hits) > positions:
    wanted = f'at most positions={positions} for each mask'
    raise bad(where, 'hits', record.hits, wanted)
  if record.search_seconds > record.seconds:
    wanted = f'at most seconds={record.seconds}'
    raise bad(where, 'search_seconds', record.search_seconds, wanted)


def _check_masks(record: PassRecord, free: int, where: str) -> None:
  """Refuses masks of a wrong length, or with a wrong number of skips."""
  if len(record.incumbent) != free:
    raise bad(where, 'incumbent', record.incumbent, f'{free} times 0 or 1')
  skipped = record.incumbent.count('1')
  for mask in record.masks:
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


_HEADER = TypeAdapter(Header)
_PASS = TypeAdapter(PassRecord)
