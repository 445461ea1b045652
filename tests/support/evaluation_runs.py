"""Real runs of launch/evaluate.py on a small random model with a real tokenizer.

What the processes write is compared with what one process writes undisturbed.
"""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import textwrap
import time

from flax import nnx
import jax

from swift_jax.checkpoint import export, hub
from swift_jax.config.settings import ModelConfig
from swift_jax.evaluation import runs
from swift_jax.model import llama

ROOT = pathlib.Path(__file__).parents[2]
CFG = ModelConfig(
  vocab_size=2048,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=4,
  num_attention_heads=8,
  num_key_value_heads=4,
  head_dim=8,
  max_position_embeddings=256,
)
# Few programs: they are what takes the time.
SETTINGS = (
  '--config.task.name=jsonl',
  '--config.sampling.max_new_tokens=24',
  '--config.search.context_window=12',
  '--config.search.bayes_interval=0',
  '--config.search.time_budget=1',
  '--config.search.skip_ratio=0.5',
  '--config.decode.prefill_chunk=32',
  '--config.search.importance=False',
  '--config.search.scoring=map',
  '--config.draft.verify_widths=(8,)',
)


def make_model(folder):
  """A checkpoint whose texts do not all loop, with the demo's tokenizer."""
  _, params = llama.init_model(CFG, 3)
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * (12 if leaf.ndim > 1 else 1),
    nnx.to_pure_dict(params),
  )
  export.export_hf(folder, CFG, params)
  for file in hub.DEMO_MODEL.glob('tokenizer*'):
    shutil.copy(file, folder)
  return folder


def make_prompts(file, count):
  """Program text of several lengths, a prompt a line."""
  lines = inspect.getsource(textwrap).splitlines(keepends=True)
  with open(file, 'w', encoding='utf-8') as out:
    for i in range(count):
      start = 7 * i % (len(lines) - 8)
      prompt = ''.join(lines[start : start + 1 + i % 5]).strip() or 'import os'
      out.write(json.dumps({'prompt': f'# {i}\n{prompt}'}) + '\n')
  return file


def command(model, prompts, workdir, *settings):
  """The arguments of a run."""
  return [
    sys.executable,
    str(ROOT / 'launch' / 'evaluate.py'),
    *SETTINGS,
    f'--config.model.path={model}',
    f'--config.task.path={prompts}',
    f'--workdir={workdir}',
    *settings,
  ]


def environment(devices=1):
  """Of a process with so many CPU devices."""
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'HF_HUB_OFFLINE': '1',
  }


def start(arguments, log, devices=1):
  """A process that writes all it says to a file."""
  with open(log, 'ab') as out:
    return subprocess.Popen(
      arguments, stdout=out, stderr=out, env=environment(devices)
    )


def finish(arguments, devices=1, timeout=300):
  """(status, standard output, standard error) of a run that is left alone."""
  done = subprocess.run(
    arguments,
    capture_output=True,
    text=True,
    env=environment(devices),
    timeout=timeout,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


def texts(workdir):
  """The tokens of every answer by its index; each must be there, once."""
  run = runs.read_run(str(workdir), '--workdir')
  found = {
    answer.index: [turn.detail.tokens for turn in answer.turns]
    for answer in run.answers
  }
  assert sorted(found) == run.facts['indices'] and len(found) == len(
    run.answers
  )
  return found


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def lines(file):
  """Complete lines of a file that may not be there yet."""
  return file.read_bytes().count(b'\n') if file.exists() else 0


def wait_for_lines(file, count, process, timeout=600):
  """Waits until a file has so many lines; whether the process still runs."""
  end = time.monotonic() + timeout
  while lines(file) < count and process.poll() is None:
    assert time.monotonic() < end, f'{file}: {lines(file)} of {count} lines'
    time.sleep(0.02)
  return process.poll() is None
