"""Signals and pipes of real processes, and progress on terminals and in logs."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import evaluation_runs as er
import generate
import pytest

from swift_jax import progress

ROOT = pathlib.Path(__file__).parents[2]
TOLD = 'import os, signal; os.kill(os.getpid(), signal.SIGINT)'


def run(code):
  """(status, standard output, standard error) of a program that heeds Ctrl-C."""
  head = f"""
  import sys
  sys.path.insert(0, '{ROOT}/launch')
  sys.argv = ['some.py']
  from cli import console
  console.heed_interrupts()
  console.begin()
  """
  code = textwrap.dedent(head) + textwrap.dedent(code)
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=60
  )
  return done.returncode, done.stdout, done.stderr


def test_what_is_kept_is_said_in_one_line():
  ended = run(f"""
  print('text')
  try:
    {TOLD}
  except KeyboardInterrupt as error:
    error.add_note('all is\\nwell')
    raise
  """)
  assert ended == (130, 'text\n', 'some.py: interrupted; all is well\n')


@pytest.mark.parametrize(
  'name, said', [('SIGTERM', 'terminated'), ('SIGHUP', 'hung up')]
)
def test_other_signals_end_as_ctrl_c_does(name, said):
  """Twice, as `timeout` sends them: the run, and then the run's whole group."""
  status, _, err = run(f"""
  import os, signal, time
  try:
    os.kill(os.getpid(), signal.{name})
    time.sleep(30)
  except KeyboardInterrupt as error:
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.3)
    error.add_note('all is well')
    raise
  """)
  assert status == 128 + getattr(signal, name)
  assert err == f'some.py: {said}; all is well\n'


def test_what_is_to_be_ignored_is_ignored():
  """As under nohup."""
  status, out, err = run("""
  import os, signal
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  console.take_signals()
  os.kill(os.getpid(), signal.SIGHUP)
  print('went on')
  """)
  assert (status, out, err) == (0, 'went on\n', '')


@pytest.mark.parametrize('sees_it', [True, False])
def test_signals_that_wait_come_at_last(sees_it):
  status, out, err = run(f"""
  import os, signal
  with console.signals_wait() as must_stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print('saved', must_stop())
    if {sees_it}:
      raise KeyboardInterrupt
  print('went on')
  """)
  assert (status, out, err) == (143, 'saved True\n', 'some.py: terminated\n')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux only')
def test_a_log_that_takes_nothing_ends_nothing():
  """The bar, lines and Python's own last flush."""
  code = f"""
import sys, time
sys.path.insert(0, '{ROOT}/launch')
from cli import console
from swift_jax import progress
console.begin()
progress._LOG_SECONDS = 1e-3
for _ in progress.bar(range(5), unit='text'):
  time.sleep(2e-3)
console.say('a line')
print('done')
"""
  with open('/dev/full', 'w') as full:
    done = subprocess.run(
      [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=full
    )
  assert (done.returncode, done.stdout) == (0, b'done\n')


WRITES = f"""
import sys, time
sys.path.insert(0, '{ROOT}/launch')
sys.argv = ['some.py', *sys.argv[1:]]
from cli import common, console
import generate
def main():
  with generate.JsonLines(sys.argv[1]) as lines:
    for i in range(10**7):
      lines.write({{'a': i}})
      console.write(f'{{i}}\\n')
console.begin()
sys.exit(common._ended(main))
"""


@pytest.mark.parametrize(
  'end, status, said',
  [
    ('close', 141, 'nobody reads standard output any more'),
    ('terminate', 143, 'terminated'),
  ],
)
def test_a_run_in_the_middle_says_what_is_kept(tmp_path, end, status, said):
  """A reader that has had enough, as `head`; and a scheduler that has."""
  path = tmp_path / 'out.jsonl'
  process = subprocess.Popen(
    [sys.executable, '-c', WRITES, path],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with process:
    assert process.stdout.readline() == '0\n'
    if end == 'close':
      process.stdout.close()
    else:
      process.terminate()
      process.stdout.read()
    err = process.stderr.read()
  assert process.returncode == status
  content = (tmp_path / 'out.jsonl.partial').read_text()
  assert content.endswith('}\n') and not path.exists()
  count = len(content.splitlines())
  assert json.loads(content.splitlines()[-1]) == {'a': count - 1}
  kept = f'{count} answers are in {path}.partial: keep them by moving that'
  assert err.startswith(f'some.py: {said}; {kept}') and err.count('\n') == 1


def test_another_exception_keeps_its_traceback():
  status, _, err = run('raise KeyError(3)')
  assert status == 1 and err.endswith('KeyError: 3\n') and 'Traceback' in err


@pytest.mark.nightly
def test_what_python_would_forget_comes_again():
  """As when it arrives while JAX collects garbage."""
  ended = run(f"""
  import time
  class Thing:
    def __del__(self):
      {TOLD}
      time.sleep(0.1)
  Thing()
  time.sleep(30)
  print('went on')
  """)
  assert ended == (130, '', 'some.py: interrupted\n')


def test_the_second_ends_a_call_that_python_cannot_interrupt():
  """As a compilation of XLA: minutes without the lock, for this machine too."""
  ended = run("""
  import hashlib, os, signal, threading, time
  def press():
    for _ in range(2):
      time.sleep(0.2)
      os.kill(os.getpid(), signal.SIGINT)
  threading.Thread(target=press, daemon=True).start()
  hashlib.pbkdf2_hmac('sha256', b'x', b'x', 2**31 - 1)
  """)
  assert ended == (130, '', '')


def test_lines_that_are_complete_outlast_an_interrupt(tmp_path):
  path = tmp_path / 'out.jsonl'
  path.write_text('old\n')
  with pytest.raises(KeyboardInterrupt) as caught:
    with generate.JsonLines(str(path)) as lines:
      lines.write({'a': 1})
      raise KeyboardInterrupt
  (note,) = caught.value.__notes__
  assert note == (
    f'1 answers are in {path}.partial: keep them by moving that, for the next'
    ' run begins anew'
  )
  assert (tmp_path / 'out.jsonl.partial').read_text() == '{"a": 1}\n'
  assert path.read_text() == 'old\n'


def test_generate_in_the_middle(tmp_path):
  """The real program: its lines are there, and one line says so."""
  prompts = er.make_prompts(tmp_path / 'prompts.jsonl', 400)
  partial = tmp_path / 'out.jsonl.partial'
  command = [
    *(sys.executable, ROOT / 'launch' / 'generate.py'),
    *(f'--config={ROOT}/configs/tiny.py', '--config.decode.method=plain'),
    *(f'--prompts_file={prompts}', f'--output_json={tmp_path}/out.jsonl'),
    '--verbosity=-1',
  ]
  with open(tmp_path / 'log', 'wb') as log:
    process = subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=log, env=er.environment()
    )
  try:
    assert er.wait_for_lines(partial, 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
  finally:
    process.kill()
    process.wait()
  said = f'generate.py: interrupted; {er.lines(partial)} answers are in'
  assert (tmp_path / 'log').read_text().startswith(f'{said} {partial}')
  assert (tmp_path / 'log').read_text().count('\n') == 1
  assert partial.read_bytes().endswith(b'\n')


class Terminal(io.StringIO):
  def isatty(self):
    return True


def shown(monkeypatch, stream, term, seconds=0.0):
  monkeypatch.setattr(sys, 'stderr', stream)
  monkeypatch.setenv('TERM', term)
  monkeypatch.setenv('NO_COLOR', '1')
  monkeypatch.setattr(progress, '_LOG_SECONDS', seconds)
  for _ in progress.bar(range(3), unit='text', ncols=60):
    time.sleep(0.01)
  return stream.getvalue()


def test_a_terminal_gets_a_bar_without_colours(monkeypatch):
  text = shown(monkeypatch, Terminal(), 'xterm')
  assert text.count('\r') >= 2 and text.count('\n') == 1
  assert '3/3' in text and 'text/s' in text and '\x1b' not in text


@pytest.mark.parametrize('stream', [io.StringIO, Terminal])
def test_a_log_and_a_dumb_terminal_get_lines(monkeypatch, stream):
  text = shown(monkeypatch, stream(), 'dumb', 1e-3)
  assert '\r' not in text and '\x1b' not in text
  assert [line.split('/')[0][-1] for line in text.splitlines()][-1] in '23'
  # What is shorter than the pause between lines gets none.
  assert shown(monkeypatch, stream(), 'dumb', 30.0) == ''


def test_no_standard_error_is_no_error(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', None)
  assert list(progress.bar([1, 2], unit='text')) == [1, 2]
