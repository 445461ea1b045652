"""Lines for the user, text on standard output, and signals that end a run.

Ctrl-C, SIGTERM (from a scheduler, say) and SIGHUP (the terminal is gone) end a run
with one line and with status 128 + the signal's number. Each raises a
`KeyboardInterrupt`. Code on the exception's way may add notes (`add_note`) that say
what is kept and how to go on: they stand in the line. A second signal ends the run
at once.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

from swift_jax.errors import InputError

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
READER_GONE = 128 + 13  # SIGPIPE's number, as if that signal had ended us
_WORDS = {
  signal.SIGINT: 'interrupted',
  signal.SIGTERM: 'terminated',
}
if hasattr(signal, 'SIGHUP'):  # a Unix
  _WORDS[signal.SIGHUP] = 'hung up'
# `timeout` signals this process and then its whole group: both count as one signal.
_SAME_SIGNAL = 0.1  # seconds


class Signalled(KeyboardInterrupt):
  """A signal other than Ctrl-C's ended the run; it is treated like Ctrl-C.

  Attributes:
    number: the signal's number.
  """

  def __init__(self, number: int):
    super().__init__()
    self.number = number


def signal_of(error: KeyboardInterrupt) -> int:
  """The number of the signal that raised the error."""
  return error.number if isinstance(error, Signalled) else signal.SIGINT


def say(message: object) -> None:
  """Writes one line to standard error, at once."""
  if sys.stderr is None:  # closed: print would write to standard output
    return
  name, line = pathlib.Path(sys.argv[0]).name, ' '.join(str(message).split())
  print(f'{name}: {line}', file=sys.stderr, flush=True)


def write(text: str) -> None:
  """Writes to standard output at once.

  Raises:
    InputError: the text cannot be written, for instance because the disk is full.
  """
  if sys.stdout is None:  # closed by the process that started this one
    return
  try:
    sys.stdout.write(text)
    sys.stdout.flush()
  except BrokenPipeError:
    _drop_output()
    raise
  except OSError as error:
    _drop_output()
    raise InputError(
      f'standard output: cannot be written: {error.strerror}'
    ) from None


def show_text(_: int, piece: str) -> None:
  """Writes a piece of text as soon as it is there."""
  write(piece)


def _drop_output() -> None:
  """Leads standard output to nowhere: text that it refused is lost in any case.

  Otherwise Python would complain when it flushes that text at exit.
  """
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def drop_output_that_fails() -> None:
  """Drops text that standard output refuses, before Python complains at exit."""
  if sys.stdout is None:
    return
  try:
    sys.stdout.flush()
  except OSError:
    _drop_output()


def with_notes(message: object, error: BaseException) -> str:
  """A message, followed by the error's notes, which say what is kept."""
  notes = getattr(error, '__notes__', [])
  return '; '.join(map(str, [message, *notes]))


class _Forgiving:
  """Standard error, without errors of its own.

  A full disk or a reader that has gone loses the line, but does not end the run.
  """

  def __init__(self, stream: Any):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with contextlib.suppress(OSError):
      self._stream.flush()


def heed_interrupts() -> None:
  """From now on Ctrl-C ends the process with a line and without a traceback."""
  ordinary, unraisable = sys.excepthook, sys.unraisablehook

  def on_exception(kind: type[BaseException], error: Any, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
      return ordinary(kind, error, trace)
    number = signal_of(error)
    say(with_notes(_WORDS[number], error))
    # The reader may be gone, or standard output closed.
    with contextlib.suppress(OSError, AttributeError):
      sys.stdout.flush()
    # Threads that still compile are not waited for.
    os._exit(128 + number)

  def on_unraisable(lost: Any) -> None:
    """Raises an interrupt again that Python dropped, say in garbage collection."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
      return unraisable(lost)
    number = signal_of(lost.exc_value)
    _state.heard -= 1
    _state.is_raised = False
    threading.Timer(0.01, _thread.interrupt_main, [number]).start()

  sys.excepthook, sys.unraisablehook = on_exception, on_unraisable


class _State:
  """The signals that have come so far.

  Attributes:
    heard: number of signals.
    is_raised: the first signal's exception is on its way up. Another signal must
      not interrupt the code that handles it.
    is_ready: `begin` has been called.
  """

  heard = 0
  is_raised = False
  is_ready = False


_state = _State()


def begin() -> None:
  """Sets up standard error and the signals; a second call does nothing."""
  if _state.is_ready:
    return
  _state.is_ready = True
  if sys.stderr is not None:
    sys.stderr = _Forgiving(sys.stderr)
  take_signals()
  _end_at_the_second()


def take_signals() -> None:
  """Makes the signals raise; call it again after a library took a signal over."""

  def raise_once(number: int, _: object) -> None:
    if _state.is_raised:
      return
    _state.is_raised = True
    raise KeyboardInterrupt if number == signal.SIGINT else Signalled(number)

  for number in _WORDS:
    # nohup or a shell's `&` may have set the signal to be ignored: it stays so.
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, raise_once)


@contextlib.contextmanager
def signals_wait() -> Iterator[Callable[[], bool]]:
  """Within this context signals raise nothing; a function says whether one came.

  The context gives that function. Code that has seen a signal there leaves with a
  `KeyboardInterrupt`. If the code does not, the context raises one at its end.
  """
  heard: list[int] = []
  before = {number: signal.getsignal(number) for number in _WORDS}
  for number, handler in before.items():
    if handler is not signal.SIG_IGN:
      signal.signal(number, lambda number, _: heard.append(number))
  try:
    yield lambda: bool(heard)
  except KeyboardInterrupt as error:
    if not heard or heard[0] == signal.SIGINT:
      raise
    raise Signalled(heard[0]) from error
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if heard:
    number = heard[0]
    raise KeyboardInterrupt if number == signal.SIGINT else Signalled(number)


def _end_at_the_second() -> None:
  """Starts a thread that ends the process at the second signal.

  Python's own handler cannot run while XLA compiles, which may take minutes.
  """
  reads, writes = os.pipe()
  os.set_blocking(writes, False)
  signal.set_wakeup_fd(writes, warn_on_full_buffer=False)

  def wait() -> None:
    last = 0.0
    while True:
      number = os.read(reads, 1)[0]
      now = time.monotonic()
      is_new = not _state.heard or now - last > _SAME_SIGNAL
      if number not in _WORDS or not is_new:
        continue
      _state.heard += 1
      last = now
      if _state.heard > 1:
        os._exit(128 + number)

  threading.Thread(target=wait, daemon=True).start()
