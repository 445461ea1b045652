"""Locks on files and folders: who has one, and when it is free again."""

import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from swift_jax.errors import InputError
from swift_jax.files import atomic, locks


def is_held(path):
  try:
    os.close(locks.take(path, writes=False))
  except BlockingIOError as error:
    assert error.strerror == locks.HELD
    return True
  return False


def test_it_is_free_once_its_process_is_killed(tmp_path):
  file = tmp_path / 'x'
  code = (
    'import sys, time; from swift_jax.files import locks\n'
    'held = locks.take(sys.argv[1]); print("has it", flush=True)\n'
    'time.sleep(600)'
  )
  command = [sys.executable, '-c', code, file]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
    try:
      assert other.stdout.readline() == 'has it\n'
      assert is_held(file)
    finally:
      other.send_signal(signal.SIGKILL)
    other.wait()
  assert not is_held(file)


def test_a_file_is_as_it_was(tmp_path):
  file = tmp_path / 'x'
  file.write_text('lines')
  os.close(locks.take(file))
  assert file.read_text() == 'lines'


def test_what_takes_the_name_meanwhile_is_another_file(tmp_path, monkeypatch):
  """Whoever had the file has renamed it between our opening and our lock."""
  file, other = tmp_path / 'x', tmp_path / 'y'
  real = locks._lock

  def rename_first(descriptor, waits):
    if not other.exists():
      file.rename(other)
    real(descriptor, waits)

  monkeypatch.setattr(locks, '_lock', rename_first)
  descriptor = locks.take(file)
  assert os.path.samestat(os.fstat(descriptor), file.stat())
  assert not is_held(other)
  os.close(descriptor)


def test_who_waits_gets_it_next(tmp_path):
  file, order = tmp_path / 'x', []

  def wait():
    with atomic.locked(file, 'x'):
      order.append('second')

  with atomic.locked(file, 'x'):
    with pytest.raises(InputError, match=f'^x: cannot be .*{locks.HELD}$'):
      with atomic.locked(file, 'x', waits=False):
        pass
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.2)
    order.append('first')
  thread.join()
  assert order == ['first', 'second'] and os.listdir(tmp_path) == []


def test_no_link_is_followed(tmp_path):
  """Or whoever may write beside a file would choose what is written."""
  (tmp_path / 'x').symlink_to(tmp_path / 'secret')
  with pytest.raises(OSError, match='symbolic links'):
    locks.take(tmp_path / 'x')
  assert not (tmp_path / 'secret').exists()


@pytest.mark.parametrize('fails', ['flock', 'all'])
def test_where_nothing_can_be_locked_all_goes_on(tmp_path, monkeypatch, fails):
  def no_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  if fails == 'flock':
    monkeypatch.setattr(locks.fcntl, 'flock', no_locks)
  else:
    monkeypatch.setattr(locks, 'fcntl', None)
  with contextlib.ExitStack() as stack:
    for _ in range(2):
      stack.callback(os.close, locks.take(tmp_path / 'x'))
      stack.enter_context(locks.folder(tmp_path / 'folder'))
      stack.enter_context(locks.beside(tmp_path / 'y'))


def test_a_lock_that_another_user_left_can_be_taken():
  if os.geteuid():
    pytest.skip('needs two users')
  with tempfile.TemporaryDirectory() as name:
    os.chmod(name, 0o777)
    lock = pathlib.Path(name, 'x')
    lock.touch(0o644)
    os.seteuid(65534)
    try:
      with pytest.raises(PermissionError):
        locks.take(lock)
      descriptor = locks.take(lock, writes=False)
      assert is_held(lock)
      os.close(descriptor)
    finally:
      os.seteuid(0)


def test_a_folder_is_made_and_goes_if_nothing_comes(tmp_path):
  folder = str(tmp_path / 'a' / 'b')
  with atomic.folder(folder, 'x') as place:
    assert place.is_dir()
    with pytest.raises(InputError, match=f'^x: cannot be .*{locks.HELD}$'):
      with atomic.folder(folder, 'x'):
        pass
    assert place.is_dir()
  assert os.listdir(tmp_path) == []
  with atomic.folder(folder, 'x') as place:
    (place / 'file').touch()
  with atomic.folder(folder, 'x'):
    pass
  assert (tmp_path / 'a' / 'b' / 'file').exists()


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').touch()
  for name, said in (('file', 'File exists'), ('file/x', 'Not a directory')):
    with pytest.raises(InputError, match=f'^x: cannot be written: {said}'):
      with atomic.folder(str(tmp_path / name), 'x'):
        pass
