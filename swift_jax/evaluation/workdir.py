"""The folder that a run writes, and from which it goes on when it is started again.

  run.json              the run's settings and facts
  answers.jsonl         a line for each question
  search.json           the state of the search

Several processes write answers-PROCESS.jsonl and search-PROCESS.json. On a disk each
line is synced when it is written, and a torn last line is dropped when the run goes
on. An object store (gs://, through etils) has no append: the file is written anew
with each batch, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import datetime
import errno
import hashlib
import io
import json
import os
import pathlib
import stat
import tempfile
from typing import Any

from etils import epath

from swift_jax.errors import InputError
from swift_jax.evaluation import answers, runs
from swift_jax.evaluation.answers import Answer
from swift_jax.files import atomic, locks

# Facts of `run.json` that may differ when the same run goes on.
_HISTORY = ('started', 'commit', 'commits', 'cpus')


class Workdir:
  """The files of one process in the run's folder; `open` makes the folder.

  Attributes:
    answered: the ids of the questions that have an answer.
  """

  def __init__(self, path: str, process: int, num_processes: int):
    self.where = f'--workdir={path}'
    self.answered: set[int | str] = set()
    self._is_remote = '://' in path
    with self._named_errors():
      self._folder = epath.Path(path).expanduser()
    suffix = '' if num_processes == 1 else f'-{process}'
    self._answers = self._folder / runs.answers_name(process, num_processes)
    self._search = self._folder / f'search{suffix}.json'
    self._content = b''  # content of an answers file on an object store
    self._file: io.FileIO | None = None
    self._lock: int | None = None

  def started(self) -> datetime.datetime | None:
    """The time at which the run began, in UTC; None for a run that begins now.

    Raises:
      InputError: `run.json` cannot be read or does not hold the time.
    """
    file, where = self._folder / runs.RUN, f'{self.where}/{runs.RUN}'
    with self._named_errors():
      if not file.exists():
        return None
      started = runs.read_facts(file, where).get('started')
    try:
      return datetime.datetime.fromisoformat(started).astimezone(datetime.UTC)
    except (TypeError, ValueError, OverflowError, OSError):
      raise InputError(
        f'{where}: started={started!r:.60}: expected a date and time'
      ) from None

  def claim(self) -> None:
    """Refuses a folder that cannot be written or that another process writes.

    `open` refuses it too, but `open` needs the run's facts, which need the model.

    This call makes no file: a run that is refused afterwards leaves no folder.

    Raises:
      InputError: the folder cannot be written, or another process writes there.
    """
    if self._is_remote:
      return
    with self._named_errors():
      _check_writable(pathlib.Path(self._folder))
      if os.path.exists(self._lock_file()):
        self._take_lock()

  def open(self, facts: Mapping[str, Any], question_ids: Sequence[Any]) -> None:
    """Makes the folder, or goes on in it.

    Args:
      facts: the facts of this run, for `run.json`.
      question_ids: ids of the questions that this process answers.

    Raises:
      InputError: the folder cannot be written, another process writes there, the
        folder belongs to another run (the error names the differences), or its
        answers are damaged.
    """
    with self._named_errors():
      self._folder.mkdir(parents=True, exist_ok=True)
      self._take_lock()
      if not self._is_remote:  # a killed process may have left a partial file
        for partial in self._folder.glob(f'.{self._search.name}.*.partial'):
          partial.unlink()
      self._check_facts(facts)
      self._read_answers(facts['model_id'], set(question_ids))
      if not self._is_remote:
        # No buffer: its close would write again the data that a full disk refused.
        self._file = io.FileIO(os.fspath(self._answers), 'ab')

  def _take_lock(self) -> None:
    """Locks the answers file: two processes would answer each question twice."""
    if self._lock is not None:
      return
    try:
      self._lock = locks.take(self._lock_file(), writes=False)
    except BlockingIOError:
      raise InputError(
        f'{self.where}: another process is writing {self._answers.name} there'
      ) from None

  def _lock_file(self) -> str:
    lock = os.path.join(self._folder, f'.{self._answers.name}.lock')
    if not self._is_remote:
      return lock
    # An object store has no locks: this one keeps off processes of this machine.
    name = hashlib.sha256(lock.encode()).hexdigest()[:16]
    return os.path.join(tempfile.gettempdir(), f'swift_jax_{name}.lock')

  def _check_facts(self, facts: Mapping[str, Any]) -> None:
    """Writes `run.json`, or compares the facts with an existing one."""
    file = self._folder / runs.RUN
    if not file.exists():
      if self._answers.exists():
        raise InputError(
          f'{self.where}: there are answers in {self._answers.name} but no'
          f' {runs.RUN}: whose are they?'
        )
      self._replace(file, _to_json(facts))
      return
    there = runs.read_facts(file, f'{self.where}/{runs.RUN}')
    if 'prompts' in facts and 'prompts' not in there:
      raise InputError(
        f'{self.where}/{runs.RUN}: does not say which prompts were asked, being of'
        ' an older version: expected another folder'
      )
    odd = [
      f'{name}={theirs!r:.60}, now {mine!r:.60}'
      for name, theirs, mine in _differences(there, json.loads(_to_json(facts)))
    ]
    if odd:
      raise InputError(f'{self.where}: is of another run: {"; ".join(odd)}')
    known = there.get('commits') or []
    commits = [*known, *(c for c in facts['commits'] if c not in known)]
    if commits != known:
      self._replace(file, _to_json({**there, 'commits': commits}))

  def _read_answers(self, model_id: str, wanted: set[Any]) -> None:
    """Reads which questions have answers, and drops a torn last line."""
    content = self._answers.read_bytes() if self._answers.exists() else b''
    whole = content[: content.rfind(b'\n') + 1]
    for number, line in enumerate(whole.split(b'\n')[:-1], 1):
      here = f'{self.where}/{self._answers.name}, line {number}'
      answer = answers.parse(line, here)
      name = answer.question_id
      if answer.model_id != model_id:
        raise InputError(
          f'{here}: model_id={answer.model_id!r:.60}: this run is of'
          f' {model_id!r:.60}'
        )
      if name not in wanted:
        raise InputError(
          f'{here}: question_id={name!r:.60} is no question of this process'
        )
      if name in self.answered:
        raise InputError(f'{here}: question_id={name!r:.60}: comes twice')
      self.answered.add(name)
    self._content = whole
    if len(whole) < len(content) and not self._is_remote:
      os.truncate(os.fspath(self._answers), len(whole))

  def write(self, found: Sequence[Answer]) -> None:
    """Adds answers, which are on the disk when this method returns.

    Raises:
      InputError: the answers cannot be written, for instance because the disk is
        full; earlier answers are safe.
    """
    data = ''.join(map(answers.to_line, found)).encode()
    with self._named_errors():
      if self._is_remote:
        self._content += data
        self._answers.write_bytes(self._content)
      else:
        atomic.append(self._file, data, is_synced=True)
    self.answered.update(answer.question_id for answer in found)

  @property
  def search_name(self) -> str:
    """The name of the search's file in errors."""
    return f'{self.where}/{self._search.name}'

  def save_search(self, state: str) -> None:
    """Writes the present state of the search."""
    with self._named_errors():
      self._replace(self._search, state)

  def read_search(self) -> bytes:
    """The state that `save_search` wrote last; empty if there is none."""
    with self._named_errors():
      return self._search.read_bytes() if self._search.exists() else b''

  def close(self) -> None:
    """Closes the file and releases the lock: another process may go on here."""
    if self._file is not None:
      self._file.close()
    if self._lock is not None:
      os.close(self._lock)
    self._file = self._lock = None

  def _replace(self, file: epath.Path, content: str) -> None:
    if self._is_remote:
      file.write_bytes(content.encode())
      return
    where = f'{self.where}/{file.name}'
    target = atomic.writable(os.fspath(file), where)
    atomic.replace(target, content, where)

  @contextlib.contextmanager
  def _named_errors(self) -> Iterator[None]:
    # A path may hold a NUL; a store's client has errors of its own.
    kinds = Exception if self._is_remote else (OSError, ValueError)
    try:
      yield
    except InputError:
      raise
    except kinds as error:
      reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())
      raise InputError(f'{self.where}: cannot be used: {reason}') from error


def _check_writable(folder: pathlib.Path) -> None:
  """Raises the OSError that making the folder, or a file in it, would raise.

  It leaves nothing behind.
  """
  with contextlib.suppress(FileNotFoundError):
    if not stat.S_ISDIR(folder.stat().st_mode):
      raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
  place = next(p for p in (folder, *folder.parents) if p.exists())
  with tempfile.TemporaryFile(dir=place):
    pass


def _to_json(facts: Mapping[str, Any]) -> str:
  return json.dumps(facts, indent=1, allow_nan=False) + '\n'


def _differences(
  theirs: Any, mine: Any, name: str = ''
) -> Iterator[tuple[str, Any, Any]]:
  """The differences of two runs' facts: the fact's path, its old and new value."""
  if isinstance(theirs, dict) and isinstance(mine, dict):
    for key in sorted(theirs.keys() | mine.keys()):
      if key not in _HISTORY:
        inner = f'{name}.{key}' if name else key
        yield from _differences(theirs.get(key), mine.get(key), inner)
  elif theirs != mine:
    yield name, theirs, mine
