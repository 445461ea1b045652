"""Reads records of evaluation data, from a file as it was published or the hub.

A file is read into memory as a whole. Every error names the setting, the file with
the line, and the value.
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
  """A data set's place on the hub, with the splits for questions and for shots."""

  path: str
  config: str | None
  split: str
  shots_split: str = ''


@dataclasses.dataclass(frozen=True)
class Record:
  """One record of a data set; a field is checked when it is read.

  Attributes:
    index: its place among the records, from 0.
    where: the beginning of messages: setting, file and line, or data set and row.
    fields: the record's fields, unchecked.
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
      InputError: the field is missing, no string, blank, or cannot be encoded.
    """
    return self._checked(name, self._value(name), can_be_blank)

  def texts(self, name: str, can_be_blank: bool = False) -> tuple[str, ...]:
    """A field that holds a list of texts.

    Raises:
      InputError: the field is missing, no list or empty, or an item is no text.
    """
    values = self._value(name)
    if not isinstance(values, list) or not values:
      raise self._error(name, values, 'a filled list of texts')
    return tuple(self._checked(name, v, can_be_blank) for v in values)

  def identifier(self, name: str) -> int | str:
    """A field that holds an integer or text.

    Raises:
      InputError: the field is missing, or neither an integer nor text.
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
  """Reads the records of a file.

  The file's suffix gives its form: `.csv` has a header and a record in each row;
  `.txt` has stories with a line `<|endoftext|>` between them, each a record with the
  field `text`. Other files are JSON: an object on each line, or a list of objects.

  Args:
    path: a file, local or gs://, plain or gzip.
    setting: the setting that messages name.
    suffixes: the forms in which the data set is published. A `.csv` or `.txt` that
      is not among them is read as JSON.

  Raises:
    InputError: the file cannot be read, or does not have its form.
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
    InputError: the file cannot be read, or is damaged; begins with `where`.
  """
  with _named_errors(where):
    raw = epath.Path(path).expanduser().read_bytes()
  return unpacked(raw, where, path.lower().endswith('.gz'))


def unpacked(raw: bytes, where: str, is_gzip: bool = False) -> bytes:
  """Decompresses bytes if they are gzip, else returns them as they are.

  Args:
    raw: the bytes. Their beginning shows whether they are gzip, since not every
      file's name does.
    is_gzip: the file's name says that they are gzip.

  Raises:
    InputError: the bytes are damaged.
  """
  if not is_gzip and not raw.startswith(_GZIP):
    return raw
  try:
    return gzip.decompress(raw)
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(f'{where}: damaged gzip: {_one_line(error)}') from None


def train_file(path: str, setting: str, suffixes: Sequence[str]) -> str:
  """The one file with `train` in its name in the folder of `path`.

  Args:
    path: a file of the data set. It may be the train file itself.
    setting: the setting by which the user could name the train file.
    suffixes: the forms in which the data set is published.

  Raises:
    InputError: there is no such file, or more than one.
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
  """The records of a split on the hub; a record is read when it is needed.

  Args:
    source: the data set's place on the hub.
    split: the name of one of its splits.
    setting: the setting by which the user could name a file instead.

  Raises:
    InputError: `datasets` is not installed, or cannot load the split.
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
  # The errors of the hub, of datasets and of the system share no narrower base.
  except Exception as error:
    raise InputError(
      f'{where} is not to be had from the hub: {_one_line(error)}; {help_}'
    ) from error
  return _Rows(rows, f'{source.path}, {split}')


class _Rows(Sequence[Record]):
  """Rows of a hub data set, read one by one: shots need only a few of them."""

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
  # An object store's client has errors of its own, and a path may hold a NUL.
  except Exception as error:
    reason = getattr(error, 'strerror', None) or _one_line(error)
    raise InputError(f'{where}: cannot be read: {reason}') from None


def _suffix(name: str) -> str:
  """`x.CSV.gz` -> `.csv`."""
  return pathlib.PurePath(name.lower().removesuffix('.gz')).suffix


def _json_values(raw: bytes, where: str) -> Iterator[tuple[str, Any]]:
  """The values of a JSON file: one on each line, or all in one list."""
  if re.match(rb'\s*\[', raw):
    values = _parse(raw, where, 1)
    if values and isinstance(values[0], dict):
      for number, value in enumerate(values, 1):
        yield f'{where}, item {number}', value
      return
    # Otherwise the first line holds a list, and is no list of all values.
  # Bytes are split, not text: JSON strings may hold other line separators.
  for number, line in enumerate(raw.split(b'\n'), 1):
    if line.strip():
      yield f'{where}, line {number}', _parse(line, where, number)


def _parse(raw: bytes, where: str, number: int) -> Any:
  """Parses JSON that begins on line `number` of a file."""
  text = _decode(raw, where, number)
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    place = f'{where}, line {number + error.lineno - 1}'
    found = text.split('\n')[error.lineno - 1]
    raise InputError(
      f'{place}: not JSON: {error.msg}, found {found!r:.80}'
    ) from None
  # The JSON is nested too deep, or has an integer with too many digits.
  except (ValueError, RecursionError) as error:
    raise InputError(
      f'{where}, line {number}: not JSON: {_one_line(error)}'
    ) from None


def _decode(raw: bytes, where: str, number: int) -> str:
  """Decodes text that begins on line `number` of a file."""
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
  """The message of another package's error, as one line."""
  return f'{" ".join(str(error).split()):.200}' or type(error).__name__
