"""Every command of the documents runs, or says in the document why it does not.

Bash itself takes a block apart: it writes down what it would start, so that loops,
quotes and comments mean what they mean to a reader. Then the launchers run in this
process, with a small model, in one folder and in the order of the documents.
"""

import dataclasses
import importlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import benchmark
import evaluate
import evaluation_runs
import generate
import pytest
import report
import skip_sets
import test_docs

from swift_jax.benchmark.report import Outcome

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [
  '.ci/run',
  *(file.relative_to(ROOT).as_posix() for file in ROOT.glob('launch/**/*.sh')),
]
# The command below such a line is not run.
MARKED = re.compile(
  r'^# needs (?:a cloud account|the network|hours)\b.*\n(?:.*\\\n)*.*\n', re.M
)
# What other files run: where, and what it is called there.
ELSEWHERE = {
  '.ci/run': ('.ci/run', 'What has to pass'),
  'launch/demo.sh': ('tests/demo/test_demo.py', 'demo.main('),
  'launch/test.sh': ('.ci/run', 'launch/test.sh'),
  'mkdocs build --strict': ('.ci/run', 'mkdocs build --strict'),
  'python3 -m venv .venv': ('launch/environment.sh', 'python3 -m venv .venv'),
  'python launch/evaluate.py ... --coordinator=HOST0:1234 --num_processes=2'
  ' --process_id=0': (
    'tests/parallel/test_several_processes.py',
    '--coordinator=',
  ),
  'python launch/evaluate.py ... --coordinator=HOST0:1234 --num_processes=2'
  ' --process_id=1': (
    'tests/parallel/test_several_processes.py',
    '--process_id=',
  ),
}
# Behind a command's own flags: few programs to compile, few tokens.
SMALL = (
  '--config.model.path=model',
  '--config.model.dtype=float32',
  '--config.sampling.max_new_tokens=16',
  '--config.search.context_window=8',
  '--config.search.bayes_interval=0',
  '--config.search.importance=False',
  '--config.search.scoring=map',
  '--config.search.skip_ratio=0.5',
  '--config.search.time_budget=1',
  '--config.draft.max_draft_length=5',
  '--config.draft.tree=False',
  '--config.draft.verify_widths=(6,)',
  '--config.decode.prefill_chunk=32',
)
NO_CONFIG = {'sections': None}
# How a launcher is called, and what makes it small.
LAUNCHERS = {
  f'python launch/{module.__name__}.py': ({'main': module.main, **how}, small)
  for module, how, small in [
    (benchmark, {}, SMALL),
    (importlib.import_module('compile'), {}, SMALL),
    (evaluate, {'sections': evaluate.SECTIONS}, SMALL),
    (generate, {}, SMALL),
    (report, NO_CONFIG, ()),
    (skip_sets, NO_CONFIG, ()),
  ]
}
QUESTION = {'question_id': 1, 'category': 'writing', 'turns': ['a b', 'c']}


def commands(doc: pathlib.Path) -> list[list[str]]:
  """What bash would start, word by word, of blocks that are not marked."""
  blocks = [
    MARKED.sub('', block)
    for language, block in test_docs.BLOCK.findall(doc.read_text())
    if language == 'bash'
  ]
  # No command is found, and what bash does then is to write it down.
  note = """command_not_found_handle() { printf '%s\\0' "$#" "$@"; }\n"""
  for script in SCRIPTS:
    note += f'{script}() {{ command_not_found_handle {script} "$@"; }}\n'
  note += '.() { :; }\n'
  done = subprocess.run(
    [shutil.which('bash'), '-euo', 'pipefail', '-c', note + ''.join(blocks)],
    cwd='/',
    env={'PATH': '/nowhere', 'HOME': '/nowhere'},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, ''), doc.name
  words = iter(done.stdout.split('\0')[:-1])
  return [[next(words) for _ in range(int(count))] for count in words]


COMMANDS = [
  (doc, command) for doc in test_docs.DOCS for command in commands(doc)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A checkout with the files that the documents take for granted."""
  monkeypatch.chdir(tmp_path)
  for name in ('configs', 'swift_jax'):
    (tmp_path / name).symlink_to(ROOT / name)
  cfg = dataclasses.replace(evaluation_runs.CFG, num_hidden_layers=3)
  monkeypatch.setattr(evaluation_runs, 'CFG', cfg)
  evaluation_runs.make_model(tmp_path / 'model')
  template = '{{ messages[-1].content }}'
  (tmp_path / 'model' / 'chat_template.jinja').write_text(template)
  prompts = [
    json.dumps({'prompt': prompt}) for prompt in ('import os', 'a = 1')
  ]
  (tmp_path / 'prompts.jsonl').write_text('\n'.join(prompts))
  (tmp_path / 'question.jsonl').write_text(json.dumps(QUESTION))
  (tmp_path / 'old.json').write_text('{"summary": {}, "spread": {}}')
  # The suites have tests of their own, and take long.
  outcome = Outcome(summary={'figure': 1.0}, figures={})
  suites = {name: lambda *_: outcome for name in benchmark.SUITES}
  monkeypatch.setattr(benchmark, 'SUITES', suites)
  found = {'summary': {'figure': 1.0}}
  monkeypatch.setattr(benchmark, 'run_child', lambda name: (found, 0))
  return tmp_path


@pytest.mark.parametrize(
  'docs',
  [
    pytest.param(test_docs.DOCS[:1], id='of the README'),
    pytest.param(test_docs.DOCS, id='all', marks=pytest.mark.nightly),
  ],
)
def test_they_run(folder, launch, docs):
  for doc, command in COMMANDS:
    if doc not in docs:
      continue
    said = ' '.join(command)
    if said in ELSEWHERE:
      continue
    if command[0] == 'launch/test.sh':  # there are such tests
      status, out, err = started(
        *(sys.executable, '-m', 'pytest', '--collect-only', '-q'), *command[1:]
      )
    elif command[0] in SCRIPTS and '--dry_run' in command:
      status, out, err = started(*command)
    else:
      program, flags = ' '.join(command[:2]), command[2:]
      assert program in LAUNCHERS, f'{doc.name}: nothing runs {said!r}'
      how, small = LAUNCHERS[program]
      status, out, err = launch(*map(filled_in, flags), *small, **how)
    assert status == 0 and out, f'{doc.name}: {said}: {out}{err}'


def started(*command: str) -> tuple[int, str, str]:
  """A process in the checkout: status, standard output, standard error."""
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  return done.returncode, done.stdout, done.stderr


def filled_in(flag: str) -> str:
  """With the model that sets.json is of, where the document leaves it open."""
  if 'FINGERPRINT' not in flag:
    return flag
  (model,) = re.findall(
    r'"model": "(\w+)"', pathlib.Path('sets.json').read_text()
  )
  return flag.replace('FINGERPRINT', model)


def test_the_table_is_no_longer_than_it_must_be():
  there = {' '.join(command) for _, command in COMMANDS}
  assert set(ELSEWHERE) <= there
  for path, text in ELSEWHERE.values():
    assert text in (ROOT / path).read_text(), path
