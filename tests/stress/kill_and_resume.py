"""Kills a running evaluation at random moments and resumes it until it is done.

python tests/stress/kill_and_resume.py [KILLS] [SEED]     25 kills; some minutes

Ends with 1 if an answer is lost, comes twice, changes, or is another text than an
undisturbed run's.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'support'))
import evaluation_runs as er

SETTINGS = ('--config.decode.method=swift', '--config.decode.batch_size=2')
_AT_WORK = 2 / 3  # of the kills: while answers are written, not in the start-up


def kill(process, file, rng):
  """Waits for a random moment and kills; says which, None if it came too late."""
  if rng.random() < _AT_WORK:
    wanted = er.lines(file) + int(rng.integers(1, 4))
    er.wait_for_lines(file, wanted, process)
    seconds = float(rng.uniform(0, 0.3))
    moment = f'{seconds:.2f} s after line {wanted}'
  else:
    seconds = float(rng.uniform(0, 6))
    moment = f'{seconds:.2f} s after the start'
  time.sleep(seconds)
  is_hit = process.poll() is None
  process.kill()
  process.wait()
  return moment if is_hit else None


def run(folder, kills, seed, say=lambda line: None):
  """Kills so many times; the texts of the disturbed and of an undisturbed run.

  Raises:
    AssertionError: a line that was there is there no more, or the process ended
      before all kills were done.
  """
  rng = np.random.default_rng(seed)
  model = er.make_model(folder / 'model')
  prompts = er.make_prompts(folder / 'prompts.jsonl', 16 * kills + 16)
  command = er.command(model, prompts, folder / 'killed', *SETTINGS)
  file = folder / 'killed' / 'answers.jsonl'
  done, before = 0, b''
  while done < kills:
    process = er.start(command, folder / 'log')
    moment = kill(process, file, rng)
    assert moment is not None, (folder / 'log').read_text()[-2000:]
    done += 1
    now = file.read_bytes() if file.exists() else b''
    whole = now[: now.rfind(b'\n') + 1]
    assert whole.startswith(before), f'kill {done}: answers have changed'
    torn = len(now) - len(whole)
    old, new = before.count(b'\n'), whole.count(b'\n')
    say(f'kill {done}: {moment}, lines {old} to {new}, {torn} bytes torn')
    before = whole
  status, _, err = er.finish(command)
  assert status == 0, err
  assert file.read_bytes().startswith(before)
  undisturbed = er.command(model, prompts, folder / 'whole', *SETTINGS)
  status, _, err = er.finish(undisturbed)
  assert status == 0, err
  return er.texts(folder / 'killed'), er.texts(folder / 'whole')


def main(kills=25, seed=0):
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    killed, whole = run(
      folder, kills, seed, lambda line: print(line, flush=True)
    )
  # `texts` refuses what is lost or comes twice.
  same = 'same text' if killed == whole else 'ANOTHER TEXT'
  print(f'{kills} kills, {len(killed)} answers, 0 lost, 0 twice, {same}')
  return int(killed != whole)


if __name__ == '__main__':
  sys.exit(main(*map(int, sys.argv[1:])))
