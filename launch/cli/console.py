"""What is said and written, and how a run is ended from outside.

Ctrl-C, SIGTERM (a scheduler has had enough) and SIGHUP (the terminal is gone) end a
run with one line, which says what is kept and how to go on where somebody on the
way has noted that (`add_note`), and with status 128 + the signal's number. All of
them raise a `KeyboardInterrupt`. The second one ends the run at once.
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
READER_GONE = 128 + 13  # SIGPIPE's number, as if that had ended us
_WORDS = {
  signal.SIGINT: 'interrupted',
  signal.SIGTERM: 'terminated',
}
if hasattr(signal, 'SIGHUP'):  # a Unix
  _WORDS[signal.SIGHUP] = 'hung up'
# `timeout` tells us, and then our whole group: that is one and the same.
_ONE_AND_THE_SAME = 0.1  # seconds


class Signalled(KeyboardInterrupt):
  """Ended by another signal than Ctrl-C's, and to be treated alike.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number: int):
    super().__init__()
    self.number = number


def signal_of(error: KeyboardInterrupt) -> int:
  """The number of the signal that raised it."""
  return error.number if isinstance(error, Signalled) else signal.SIGINT


def say(message: object) -> None:
  """One line on standard error, at once."""
  if sys.stderr is None:  # closed: print would take standard output
    return
  name, line = pathlib.Path(sys.argv[0]).name, ' '.join(str(message).split())
  print(f'{name}: {line}', file=sys.stderr, flush=True)


def write(text: str) -> None:
  """Writes to standard output at once.

  Raises:
    InputError: it cannot be written, the disk behind it is full for instance.
  """
  if sys.stdout is None:  # closed by whoever started us
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
  """Writes a piece of text as it comes."""
  write(piece)


def _drop_output() -> None:
  """Python would complain when it flushes what could not be written."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def drop_output_that_fails() -> None:
  """Gives up what standard output would not take, before Python complains."""
  if sys.stdout is None:
    return
  try:
    sys.stdout.flush()
  except OSError:
    _drop_output()


def with_notes(message: object, error: BaseException) -> str:
  """A message, and what is kept though the error came."""
  notes = getattr(error, '__notes__', [])
  return '; '.join(map(str, [message, *notes]))


class _Forgiving:
  """Standard error, and nothing where that takes nothing: a full disk or a reader
  that has gone is no reason to end what is said there about."""

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
  """From now on Ctrl-C ends with a line, and with no traceback."""
  ordinary, unraisable = sys.excepthook, sys.unraisablehook

  def on_exception(kind: type[BaseException], error: Any, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
      return ordinary(kind, error, trace)
    number = signal_of(error)
    say(with_notes(_WORDS[number], error))
    with contextlib.suppress(OSError, AttributeError):  # gone, or closed
      sys.stdout.flush()
    # Threads that still compile are not waited for.
    os._exit(128 + number)

  def on_unraisable(lost: Any) -> None:
    """Python drops what comes while garbage is collected, say: once more."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
      return unraisable(lost)
    number = signal_of(lost.exc_value)
    _state.heard -= 1
    _state.is_raised = False
    threading.Timer(0.01, _thread.interrupt_main, [number]).start()

  sys.excepthook, sys.unraisablehook = on_exception, on_unraisable


class _State:
  """What has come so far.

  Attributes:
    heard: signals.
    is_raised: the first is on its way up: another must not cut off what it
      does there.
    is_ready: `begin` has been called.
  """

  heard = 0
  is_raised = False
  is_ready = False


_state = _State()


def begin() -> None:
  """What a launcher begins with; another time does nothing."""
  if _state.is_ready:
    return
  _state.is_ready = True
  if sys.stderr is not None:
    sys.stderr = _Forgiving(sys.stderr)
  take_signals()
  _end_at_the_second()


def take_signals() -> None:
  """Makes the signals raise; again where a library has taken one for itself."""

  def come(number: int, _: object) -> None:
    if _state.is_raised:
      return
    _state.is_raised = True
    raise KeyboardInterrupt if number == signal.SIGINT else Signalled(number)

  for number in _WORDS:
    # Who started us may want it ignored: nohup, or a shell's `&`.
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, come)


@contextlib.contextmanager
def signals_wait() -> Iterator[Callable[[], bool]]:
  """Within, the first signal only makes the function that this gives say so.

  Who has seen it leaves with a `KeyboardInterrupt`; else that comes at the end.
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
  """While XLA compiles, Python's own handler would have to wait for minutes."""
  reads, writes = os.pipe()
  os.set_blocking(writes, False)
  signal.set_wakeup_fd(writes, warn_on_full_buffer=False)

  def wait() -> None:
    last = 0.0
    while True:
      number = os.read(reads, 1)[0]
      now = time.monotonic()
      is_new = not _state.heard or now - last > _ONE_AND_THE_SAME
      if number not in _WORDS or not is_new:
        continue
      _state.heard += 1
      last = now
      if _state.heard > 1:
        os._exit(128 + number)

  threading.Thread(target=wait, daemon=True).start()
