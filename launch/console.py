"""What is said on standard error, and Ctrl-C.

The first Ctrl-C ends a run with one line, which says what is kept and how to go on
where somebody on the way has noted that (`KeyboardInterrupt.add_note`), and with
status 130. The second ends it at once.
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
from typing import Any

INTERRUPTED = 128 + signal.SIGINT


def say(message: object) -> None:
  """One line on standard error, at once."""
  if sys.stderr is None:  # closed: print would take standard output
    return
  name, line = pathlib.Path(sys.argv[0]).name, ' '.join(str(message).split())
  print(f'{name}: {line}', file=sys.stderr, flush=True)


def heed_interrupts() -> None:
  """From now on Ctrl-C ends with a line, and with no traceback."""
  ordinary, unraisable = sys.excepthook, sys.unraisablehook

  def on_exception(kind: type[BaseException], error: Any, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
      return ordinary(kind, error, trace)
    say('; '.join(['interrupted', *getattr(error, '__notes__', [])]))
    with contextlib.suppress(OSError, AttributeError):  # gone, or closed
      sys.stdout.flush()
    # Threads that still compile are not waited for.
    os._exit(INTERRUPTED)

  def on_unraisable(lost: Any) -> None:
    """Python drops what comes while garbage is collected, say: once more."""
    if lost.exc_type is not KeyboardInterrupt:
      return unraisable(lost)
    _count.heard -= 1
    threading.Timer(0.01, _thread.interrupt_main).start()

  sys.excepthook, sys.unraisablehook = on_exception, on_unraisable


@contextlib.contextmanager
def interrupts_wait() -> Iterator[Callable[[], bool]]:
  """Within, the first Ctrl-C only makes the function that this gives say so."""
  asked = threading.Event()
  before = signal.signal(signal.SIGINT, lambda *_: asked.set())
  try:
    yield asked.is_set
  finally:
    signal.signal(signal.SIGINT, before)


class _Count:
  """How often Ctrl-C was pressed."""

  heard = 0


_count = _Count()


def end_at_second_interrupt() -> None:
  """While XLA compiles, Python's own handler would have to wait for minutes."""
  reads, writes = os.pipe()
  os.set_blocking(writes, False)
  signal.set_wakeup_fd(writes, warn_on_full_buffer=False)

  def wait() -> None:
    while _count.heard < 2:
      is_interrupt = os.read(reads, 1) == bytes([signal.SIGINT])
      _count.heard += is_interrupt
    os._exit(INTERRUPTED)

  threading.Thread(target=wait, daemon=True).start()
