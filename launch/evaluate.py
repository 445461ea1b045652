"""Asks a task's questions and writes an answer line each, in Spec-Bench's format.

  python launch/evaluate.py --config=configs/llama.py:llama3_1_8b --workdir=DIR \\
    --config.task.name=spec_bench --config.task.path=question.jsonl \\
    --config.decode.method=swift

DIR then holds run.json (the run's settings and facts), answers.jsonl and, for SWIFT,
search.json (the state of the search). The same command goes on where the run
stopped, for whatever reason. report.py compares runs. DIR, the task's file and the
model may lie on gs://.

With n hosts each host takes every n-th question and writes answers-PROCESS.jsonl.
Each host has a model of its own, unless config.mesh.across_processes. On TPU,
Kubernetes and Slurm the hosts find each other; elsewhere --coordinator,
--num_processes and --process_id tell them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import datetime
import os
import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from cli import common, console, machine
from ml_collections import ConfigDict
import numpy as np

from swift_jax import progress
from swift_jax.config.checks import require_text
from swift_jax.errors import InputError
from swift_jax.evaluation import tasks
from swift_jax.evaluation.tasks import Question, TaskConfig

if TYPE_CHECKING:
  from swift_jax import DecodeConfig, Engine
  from swift_jax.evaluation.answers import Answer
  from swift_jax.evaluation.runner import Runner
  from swift_jax.evaluation.workdir import Workdir

_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'folder of the run, new or of a run to go on with; may be gs://',
  allow_override=True,  # train_demo.py has one, and tests import both
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', '', 'HOST:PORT of process 0, if no cluster tells it'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'number of processes, with --coordinator'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'number of this process, from 0, with --coordinator'
)

SECTIONS = {**common.SECTIONS, 'task': TaskConfig}
# Dispatches from one round timed in two halves to the next, if the config has none.
_PHASE_INTERVAL = 16


def main(config: ConfigDict) -> None:
  if not _WORKDIR.value:
    raise InputError('--workdir: a folder is needed')
  if config.search.record:  # a record begins anew with each start
    raise InputError(
      f'search.record={config.search.record!r}: expected none; evaluate.py keeps'
      ' what the search has learnt in its workdir'
    )
  require_text('model.path', config.model.path)  # every answer holds it
  task = common.section(config, 'task', TaskConfig)
  decode = common.decode_config(config)
  if not decode.phase_interval:
    decode = dataclasses.replace(decode, phase_interval=_PHASE_INTERVAL)
  questions = tasks.load(task)
  from swift_jax.parallel import distributed

  in_step = common.section(config, 'mesh').across_processes
  distributed.start(
    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, in_step
  )
  console.take_signals()  # JAX may have taken SIGTERM over
  try:
    evaluate(config, decode, task, questions)
  except KeyboardInterrupt as error:
    # Ends at once: to leave it would wait for processes that may never come.
    error.add_note('the same command goes on where this one stopped')
    raise
  except InputError as error:
    if distributed.is_alone():
      raise
    common.say(console.with_notes(error, error))
    if in_step:  # the others wait for this process within a computation
      os._exit(2)
    distributed.leave()  # bad input of this process must not end the others
    sys.exit(2)
  distributed.leave()


def evaluate(
  config: ConfigDict,
  decode: DecodeConfig,
  task: TaskConfig,
  questions: Sequence[Question],
) -> None:
  """Answers this process's questions, in its workdir."""
  import jax

  from swift_jax.evaluation.runner import Runner
  from swift_jax.evaluation.workdir import Workdir

  process, count = jax.process_index(), jax.process_count()
  in_step = config.mesh.across_processes
  mine = questions[process::count]
  asked = questions if in_step else mine
  workdir = Workdir(_WORKDIR.value, process, count)
  with contextlib.closing(workdir):
    workdir.claim()
    started = beginning(workdir, in_step)
    engine = common.load_engine(config)
    # Refuses settings that do not fit, before the folder has them.
    runner = Runner(
      engine,
      decode,
      asked,
      workdir,
      model_id(config),
      task.chat,
      frozenset(mine).__contains__,
      task.now(started),
    )
    facts = facts_of(config, runner, engine, questions, started)
    workdir.open(facts, [question.question_id for question in mine])
    done = answered_before(workdir, asked, in_step)
    if done and decode.method == 'swift':
      resume_search(engine, workdir, in_step)
    for line in engine.remarks:
      common.say(line)
    if len(done) < len(asked):
      common.announce(engine.describe())
      runner.warm_up()
    with show_progress(len(asked), len(done)) as show:
      runner.run(done, show)
  before = sum(question.index in done for question in mine)
  console.write(
    f'{_WORKDIR.value}: {len(mine)} questions answered, {before} of them before\n'
  )


def beginning(workdir: Workdir, in_step: bool) -> datetime.datetime:
  """When the run began, or now: chat templates write this day.

  Processes in step take the first process's time, so that their prompts are equal.
  """
  from swift_jax.parallel import distributed

  started = workdir.started() or datetime.datetime.now(datetime.UTC)
  if in_step:
    first = distributed.from_first_process(started.isoformat().encode())
    started = datetime.datetime.fromisoformat(first.decode())
  return started


def model_id(config: ConfigDict) -> str:
  """The name that answers give the model."""
  return os.path.basename(os.path.abspath(config.model.path))


def facts_of(
  config: ConfigDict,
  runner: Runner,
  engine: Engine,
  questions: Sequence[Question],
  started: datetime.datetime,
) -> dict[str, Any]:
  """The content of run.json: the run's settings, and facts of its machine."""
  import jax

  # Fields in no section change no answer: another start may set them anew.
  sections = {name: config[name].to_dict() for name in SECTIONS}
  sections['decode']['phase_interval'] = runner.decode.phase_interval
  environment = machine.environment()
  return {
    'model_id': model_id(config),
    'fingerprint': engine.fingerprint,
    'dtype': engine.cfg.dtype,
    'questions': tasks.fingerprint(questions),
    **runner.facts(questions),
    'indices': [question.index for question in questions],
    'num_processes': jax.process_count(),
    'config': sections,
    'sampling': dataclasses.asdict(
      engine.resolve(runner.decode.sampling).config
    ),
    **environment,
    'commits': [environment['commit']],
    'started': started.isoformat(),
  }


def answered_before(
  workdir: Workdir, asked: Sequence[Question], in_step: bool
) -> frozenset[int]:
  """Indices of the questions that have an answer already."""
  from swift_jax.parallel import distributed

  have = np.array([q.question_id in workdir.answered for q in asked], bool)
  if in_step:
    have = distributed.any_of(have)
  pairs = zip(asked, have, strict=True)
  return frozenset(question.index for question, is_done in pairs if is_done)


def resume_search(engine: Engine, workdir: Workdir, in_step: bool) -> None:
  """Restores the state of the search; processes in step restore the same state."""
  from swift_jax.parallel import distributed

  state = workdir.read_search()
  if in_step:
    state = distributed.from_first_process(state)
  # A run that was killed between its first answer and this file has none.
  if state:
    engine.restore_search(state, workdir.search_name)


@contextlib.contextmanager
def show_progress(
  total: int, done: int
) -> Iterator[Callable[[Sequence[Answer]], None]]:
  """Shows questions, time left, tokens/s and acceptance in a progress bar."""
  tokens, wall_s, drafted, accepted = 0, 0.0, 0, 0

  with progress.bar(total=total, done=done, unit='question') as bar:

    def show(batch: Sequence[Answer]) -> None:
      nonlocal tokens, wall_s, drafted, accepted
      for answer in batch:
        tokens += answer.new_tokens
        wall_s += answer.wall_s
        for turn in answer.turns:
          drafted += sum(turn.detail.drafted)
          accepted += sum(turn.detail.accepted)
      figures = {'tokens/s': f'{tokens / wall_s:.1f}'}
      if drafted:
        figures['acceptance'] = f'{accepted / drafted:.2f}'
      bar.set_postfix(figures, refresh=False)
      bar.update(len(batch))

    yield show


if __name__ == '__main__':
  common.run(main, sections=SECTIONS)
