"""Records of evaluation data, from a file as it was published or from the hub.

A file is held in memory whole. Every error names the setting, the file with the
line, and the value.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import csv
import dataclasses
import gzip
import io
import json
import pathlib
import re
from typing import Any, NamedTuple
import zlib

from etils import epath

from swift_jax.config.checks import require_text
from swift_jax.errors import InputError

_GZIP = b'\x1f\x8b'
_END_OF_STORY = b'<|endoftext|>'


class HubSource(NamedTuple):
  """Where the hub has a data set, with the splits to ask and to show."""

  path: str
  config: str | None
  split: str
  shots_split: str = ''


@dataclasses.dataclass(frozen=True)
class Record:
  """One record of a data set, whose fields are checked as they are asked for.

  Attributes:
    index: its place among the records, from 0.
    where: setting, file and line, or data set and row, as messages begin.
    fields: what it holds.
  """

  index: int
  where: str
  fields: Mapping[str, Any]

  def has(self, name: str) -> bool:
    """Whether a field is there and not null."""
    return self.fields.get(name) is not None

  def text(self, name: str, can_be_blank: bool = False) -> str:
    """A field that holds text.

    Raises:
      InputError: missing, no string, blank, or not to be encoded.
    """
    return self._checked(name, self._value(name), can_be_blank)

  def texts(self, name: str, can_be_blank: bool = False) -> tuple[str, ...]:
    """A field that holds a list with texts in it.

    Raises:
      InputError: missing, no list, empty, or not of texts.
    """
    values = self._value(name)
    if not isinstance(values, list) or not values:
      raise self._error(name, values, 'a filled list of texts')
    return tuple(self._checked(name, v, can_be_blank) for v in values)

  def identifier(self, name: str) -> int | str:
    """A field that holds an integer or text.

    Raises:
      InputError: missing, or neither.
    """
    value = self._value(name)
    return value if type(value) is int else self._checked(name, value)

  def _value(self, name: str) -> Any:
    if name not in self.fields:
      raise InputError(f'{self.where}: {name!r} is missing')
    return self.fields[name]

  def _checked(self, name: str, text: Any, can_be_blank: bool = False) -> str:
    if not isinstance(text, str) or not (can_be_blank or text.strip()):
      raise self._error(name, text, 'text')
    require_text(f'{self.where}: {name}', text)
    return text

  def _error(self, name: str, value: Any, wanted: str) -> InputError:
    return InputError(f'{self.where}: {name}={value!r:.80}: expected {wanted}')


def read(path: str, setting: str, suffixes: Sequence[str]) -> list[Record]:
  """The records of a file.

  Args:
    path: a file, local or gs://, plain or gzip.
    setting: what names it in messages.
    suffixes: forms that the data set is published in. Of `.csv` (a header, a
      record a row) and `.txt` (stories with a line `<|endoftext|>` between
      them, as the field `text`) those not among them are read as JSON: an
      object a line, or a list of objects.

  Raises:
    InputError: it cannot be read, or not in that form.
  """
  where = f'{setting}={path!r}'
  raw = read_bytes(path, where).removeprefix(codecs.BOM_UTF8)
  suffix = _suffix(path)
  readers = {'.csv': _csv_rows, '.txt': _stories}
  reader = readers.get(suffix if suffix in suffixes else '', _json_values)
  records = []
  for place, fields in reader(raw, where):
    if not isinstance(fields, dict):
      raise InputError(f'{place}: expected an object, found {fields!r:.80}')
    records.append(Record(len(records), place, fields))
  return records


def read_bytes(path: str, where: str) -> bytes:
  """The content of a file, local or gs://, plain or gzip.

  Raises:
    InputError: it cannot be read, or is damaged; begins with `where`.
  """
  with _named_errors(where):
    raw = epath.Path(path).expanduser().read_bytes()
  return unpacked(raw, where, path.lower().endswith('.gz'))


def unpacked(raw: bytes, where: str, is_gzip: bool = False) -> bytes:
  """What may be gzip as it was before.

  Args:
    raw: whose first bytes tell; not every name does.
    is_gzip: its name says so.

  Raises:
    InputError: it is damaged.
  """
  if not is_gzip and not raw.startswith(_GZIP):
    return raw
  try:
    return gzip.decompress(raw)
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(f'{where}: damaged gzip: {_one_line(error)}') from None


def train_file(path: str, setting: str, suffixes: Sequence[str]) -> str:
  """The one file beside another whose name has `train` in it.

  Args:
    path: the other file, which may be that one itself.
    setting: what would name the file that is looked for.
    suffixes: forms that the data set is published in.

  Raises:
    InputError: there is none, or more than one.
  """
  with _named_errors(f'{setting} is not given, and the folder of {path!r}'):
    beside = epath.Path(path).expanduser().parent.glob('*train*')
    found = sorted(str(f) for f in beside if _suffix(f.name) in suffixes)
  if len(found) != 1:
    wanted = ' or '.join(f'*train*{suffix}' for suffix in suffixes)
    names = ', '.join(pathlib.PurePath(f).name for f in found) or 'none'
    raise InputError(
      f"{setting}='': expected a file, or one {wanted} beside {path!r}, found"
      f' {names:.200}'
    )
  return found[0]


def from_hub(source: HubSource, split: str, setting: str) -> Sequence[Record]:
  """The records of a split on the hub, read as they are asked for.

  Args:
    source: where the hub has it.
    split: of its splits.
    setting: the file that would stand in for it.

  Raises:
    InputError: `datasets` is not installed, or did not give it.
  """
  where = f"{setting}='': {source.path}"
  help_ = f'give a file in its published form as {setting}'
  try:
    import datasets
  except ImportError as error:
    raise InputError(
      f'{where} is read from the hub by the package datasets, which cannot be'
      f' imported ({_one_line(error)}): pip install datasets, or {help_}'
    ) from None
  try:
    rows = datasets.load_dataset(source.path, source.config, split=split)
  # The hub's errors, those of datasets and the system's share no narrower base.
  except Exception as error:
    raise InputError(
      f'{where} is not to be had from the hub: {_one_line(error)}; {help_}'
    ) from error
  return _Rows(rows, f'{source.path}, {split}')


class _Rows(Sequence[Record]):
  """Rows of a hub data set: shots need a few of a great many."""

  def __init__(self, rows: Sequence[Mapping[str, Any]], where: str):
    self._rows = rows
    self._where = where

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    fields = self._rows[index]
    return Record(index, f'{self._where}, row {index}', fields)


@contextlib.contextmanager
def _named_errors(where: str) -> Iterator[None]:
  try:
    yield
  # A bucket's client has errors of its own, a path may hold a NUL.
  except Exception as error:
    reason = getattr(error, 'strerror', None) or _one_line(error)
    raise InputError(f'{where}: cannot be read: {reason}') from None


def _suffix(name: str) -> str:
  """`x.CSV.gz` -> `.csv`."""
  return pathlib.PurePath(name.lower().removesuffix('.gz')).suffix


def _json_values(raw: bytes, where: str) -> Iterator[tuple[str, Any]]:
  """An object a line, or all in one list."""
  if re.match(rb'\s*\[', raw):
    values = _parse(raw, where, 1)
    if values and isinstance(values[0], dict):
      for number, value in enumerate(values, 1):
        yield f'{where}, item {number}', value
      return
    # Else it is a line that holds a list.
  # Bytes are split, not text: JSON strings may hold other line separators.
  for number, line in enumerate(raw.split(b'\n'), 1):
    if line.strip():
      yield f'{where}, line {number}', _parse(line, where, number)


def _parse(raw: bytes, where: str, number: int) -> Any:
  """JSON that begins on a line of a file."""
  text = _decode(raw, where, number)
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    place = f'{where}, line {number + error.lineno - 1}'
    found = text.split('\n')[error.lineno - 1]
    raise InputError(
      f'{place}: not JSON: {error.msg}, found {found!r:.80}'
    ) from None
  # Too deep, or an integer with too many digits.
  except (ValueError, RecursionError) as error:
    raise InputError(
      f'{where}, line {number}: not JSON: {_one_line(error)}'
    ) from None


def _decode(raw: bytes, where: str, number: int) -> str:
  """Text that begins on a line of a file."""
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    number += raw.count(b'\n', 0, error.start)
    around = raw[max(error.start - 20, 0) : error.end + 20]
    raise InputError(
      f'{where}, line {number}: not UTF-8: {error.reason}, found {around!r}'
    ) from None


def _csv_rows(raw: bytes, where: str) -> Iterator[tuple[str, dict[str, str]]]:
  text = _decode(raw, where, 1)
  reader = csv.reader(io.StringIO(text, newline=''), strict=True)
  header: list[str] = []
  number = 1
  try:
    for row in reader:
      place, number = f'{where}, line {number}', reader.line_num + 1
      if not row:
        continue
      if header and len(row) != len(header):
        raise InputError(
          f'{place}: expected {len(header)} columns, found {row!r:.80}'
        )
      if header:
        yield place, dict(zip(header, row, strict=True))
      header = header or row
  except csv.Error as error:
    raise InputError(f'{where}, line {number}: not CSV: {error}') from None


def _stories(raw: bytes, where: str) -> Iterator[tuple[str, dict[str, str]]]:
  story: list[bytes] = []
  first = 1
  lines = raw.replace(b'\r\n', b'\n').split(b'\n')
  for number, line in enumerate([*lines, _END_OF_STORY], 1):
    if line.strip() != _END_OF_STORY:
      story.append(line)
      continue
    text = _decode(b'\n'.join(story), where, first).strip()
    if text:
      yield f'{where}, story from line {first}', {'text': text}
    story, first = [], number + 1


def _one_line(error: Exception) -> str:
  """An error of another package as one line."""
  return f'{" ".join(str(error).split()):.200}' or type(error).__name__
