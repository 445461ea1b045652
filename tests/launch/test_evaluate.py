"""The launcher of evaluations: what it writes, how it goes on, what it refuses."""

import contextlib
import datetime
import json
import signal
import types

import evaluation_runs as er
import pytest

from swift_jax.evaluation.workdir import Workdir
from swift_jax.runtime import chat_template

METHODS = ('plain', 'swift', 'prompt_lookup')
KEYS = {
  'question_id',
  'category',
  'answer_id',
  'model_id',
  'choices',
  'tstamp',
  'swift_jax',
}


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
  folder = tmp_path_factory.mktemp('evaluate')
  model = er.make_model(folder / 'model')
  return model, er.make_prompts(folder / 'prompts.jsonl', 8)


@pytest.fixture
def evaluate(launch, asked):
  """Runs the launcher here; (status, stdout, stderr)."""
  import evaluate

  def run(workdir, *settings):
    arguments = er.command(*asked, workdir, *settings)[2:]
    return launch(*arguments, main=evaluate.main, sections=evaluate.SECTIONS)

  return run


def test_all_methods_write_the_same_and_nothing_is_repeated(
  evaluate, tmp_path, asked, nightly
):
  texts = []
  for method in METHODS if nightly else METHODS[:2]:
    workdir = tmp_path / method
    setting = f'--config.decode.method={method}'
    status, out, err = evaluate(workdir, setting)
    assert status == 0, err
    assert out == f'{workdir}: 8 questions answered, 0 of them before\n'
    texts.append(er.texts(workdir))
    before = (workdir / 'answers.jsonl').read_bytes()
    # Where compiled programs are kept is no part of what the run is.
    elsewhere = f'--config.compilation_cache_dir={tmp_path}'
    _, out, _ = evaluate(workdir, setting, elsewhere)
    assert out == f'{workdir}: 8 questions answered, 8 of them before\n'
    assert (workdir / 'answers.jsonl').read_bytes() == before
  assert all(text == texts[0] for text in texts[1:])
  line = json.loads(before.splitlines()[0])
  assert line.keys() == KEYS
  (choice,) = line['choices']
  assert sum(choice['accept_lengths']) == choice['new_tokens'][0] == 24
  assert len(choice['accept_lengths']) == choice['decoding_steps'][0]
  facts = json.loads((workdir / 'run.json').read_text())
  assert facts['config']['task']['path'] == str(asked[1])
  assert facts['config']['decode']['phase_interval'] == 16
  for name in ('versions', 'device', 'fingerprint', 'sampling'):
    assert facts[name]
  assert facts['commits'] == [facts['commit']]  # None outside a checkout


def test_another_config_is_refused_and_a_damaged_search_named(
  evaluate, tmp_path
):
  swift = '--config.decode.method=swift'
  assert evaluate(tmp_path, swift)[0] == 0
  before = (tmp_path / 'answers.jsonl').read_bytes()
  status, out, err = evaluate(
    tmp_path, swift, '--config.draft.max_draft_length=5'
  )
  assert (status, out) == (2, '')
  assert err.endswith('another run: config.draft.max_draft_length=7, now 5\n')
  # What is left to answer goes on with what the search had learnt.
  head = b''.join(before.splitlines(keepends=True)[:6])
  (tmp_path / 'answers.jsonl').write_bytes(head)
  learnt = json.loads((tmp_path / 'search.json').read_text())['search']
  assert evaluate(tmp_path, swift)[0] == 0
  later = json.loads((tmp_path / 'search.json').read_text())['search']
  passes = [s['learnt']['iterations'] for s in (learnt, later)]
  assert 0 < passes[0] < passes[1]
  (tmp_path / 'answers.jsonl').write_bytes(head)
  (tmp_path / 'search.json').write_text('{')
  status, _, err = evaluate(tmp_path, swift)
  assert status == 2 and f'--workdir={tmp_path}/search.json: is no' in err


DATED = (
  "{{ strftime_now('%d %b %Y') }}\n{% for m in messages %}{{ m.content }}\n"
  '{% endfor %}{% if add_generation_prompt %}# {% endif %}'
)


@pytest.fixture
def chats(asked, tmp_path):
  """A model that writes the day into its prompts."""
  folder = tmp_path / 'chats'
  folder.mkdir()
  for file in asked[0].iterdir():
    (folder / file.name).symlink_to(file)
  (folder / 'chat_template.jinja').write_text(DATED)
  return folder


def test_a_chat_goes_on_on_another_day_with_the_same_prompts(
  evaluate, chats, tmp_path, monkeypatch
):
  import evaluate as launcher

  settings = (f'--config.model.path={chats}', '--config.decode.method=plain')

  def run(name, day, *more):
    now = datetime.datetime(2026, 12, day, 12, tzinfo=datetime.UTC)
    fixed = types.SimpleNamespace(
      datetime=types.SimpleNamespace(
        now=lambda zone: now, fromisoformat=datetime.datetime.fromisoformat
      ),
      UTC=datetime.UTC,
    )
    monkeypatch.setattr(launcher, 'datetime', fixed)
    return evaluate(tmp_path / name, *settings, *more)

  def facts(name):
    return json.loads((tmp_path / name / 'run.json').read_text())

  for name, day in (('one', 1), ('broken', 1), ('two', 2)):
    assert run(name, day)[0] == 0
  same = {name: facts(name)['prompts'] for name in ('one', 'broken', 'two')}
  assert same['one'] == same['broken'] != same['two']
  assert run('dated', 2, '--config.task.date=2026-12-01')[0] == 0
  assert facts('dated')['prompts'] == same['one']
  assert facts('one')['chat_template'] == chat_template.fingerprint(DATED)
  file = tmp_path / 'broken' / 'answers.jsonl'
  file.write_bytes(b''.join(file.read_bytes().splitlines(keepends=True)[:3]))
  status, out, _ = run('broken', 2)
  assert status == 0 and '8 questions answered, 3 of them before' in out
  assert er.texts(tmp_path / 'broken') == er.texts(tmp_path / 'one')
  assert er.texts(tmp_path / 'two') != er.texts(tmp_path / 'one')
  assert facts('broken')['started'] == facts('one')['started']
  # Another template is another run, even where it says the same.
  before = (tmp_path / 'one' / 'run.json').read_bytes()
  (chats / 'chat_template.jinja').write_text(DATED + '{# changed #}')
  status, out, err = run('one', 1)
  assert (status, out, err.count('\n')) == (2, '', 1)
  assert ': is of another run: chat_template=' in err and 'prompts' not in err
  (chats / 'chat_template.jinja').write_text(DATED.replace('# ', '#'))
  assert "; prompts='" in run('one', 1)[2]
  # A run of an older version does not say what it asked.
  old = json.loads(before)
  del old['prompts'], old['chat_template']
  (tmp_path / 'one' / 'run.json').write_text(json.dumps(old))
  status, out, err = run('one', 1)
  assert (status, out, err.count('\n')) == (2, '', 1)
  assert 'run.json: does not say which prompts were asked' in err


def test_the_ends_of_a_chat_are_said_and_are_part_of_the_run(
  evaluate, chats, tmp_path
):
  """The demo's tokenizer has an end of text, the small model's files none."""
  settings = (f'--config.model.path={chats}', '--config.decode.method=plain')
  status, _, err = evaluate(tmp_path / 'run', *settings)
  said = "a chat ends at the tokenizer's '<|endoftext|>' (0), since the model's"
  assert status == 0 and err.count(said) == 1
  facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert facts['sampling']['eos_token_id'] == [0]
  text = '--config.task.chat=False'
  status, _, err = evaluate(tmp_path / 'text', *settings, text)
  assert status == 0 and said not in err
  facts = json.loads((tmp_path / 'text' / 'run.json').read_text())
  assert facts['sampling']['eos_token_id'] == []
  assert facts['chat_template'] is None


def test_processes_in_step_begin_when_the_first_does(monkeypatch, tmp_path):
  import evaluate as launcher

  from swift_jax.parallel import distributed

  first = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)
  given = []

  def from_first_process(content):
    given.append(content)
    return first.isoformat().encode()

  monkeypatch.setattr(distributed, 'from_first_process', from_first_process)
  workdir = Workdir(str(tmp_path), 1, 2)
  assert launcher.beginning(workdir, in_step=True) == first and given
  alone = launcher.beginning(workdir, in_step=False)
  assert alone != first and len(given) == 1


@pytest.mark.nightly
def test_drawn_text_does_not_depend_on_the_batch_or_a_restart(
  evaluate, tmp_path
):
  texts = []
  for size in (1, 3):
    workdir = tmp_path / str(size)
    settings = (
      '--config.decode.method=plain',
      '--config.sampling.temperature=0.8',
      f'--config.decode.batch_size={size}',
    )
    assert evaluate(workdir, *settings)[0] == 0
    lines = (workdir / 'answers.jsonl').read_bytes().splitlines(keepends=True)
    torn = b''.join(lines[:3]) + lines[3][:40]
    (workdir / 'answers.jsonl').write_bytes(torn)
    _, out, _ = evaluate(workdir, *settings)
    assert '8 questions answered, 3 of them before' in out
    texts.append(er.texts(workdir))
  assert texts[0] == texts[1]


def test_two_turns_of_spec_bench(evaluate, tmp_path):
  file = tmp_path / 'question.jsonl'
  questions = [
    {'question_id': 7, 'category': 'writing', 'turns': ['import os', 'def f']},
    {'question_id': 9, 'category': 'qa', 'turns': ['class Queue:']},
  ]
  file.write_text(''.join(json.dumps(q) + '\n' for q in questions))
  settings = ('--config.task.name=spec_bench', f'--config.task.path={file}')
  assert evaluate(tmp_path / 'run', *settings)[0] == 0
  found = er.texts(tmp_path / 'run')
  assert [len(turns) for turns in found.values()] == [2, 1]


@pytest.mark.parametrize(
  'number, said',
  [(signal.SIGTERM, 'terminated'), (signal.SIGINT, 'interrupted')],
)
def test_a_signal_ends_with_a_line_and_goes_on(tmp_path, asked, number, said):
  prompts = er.make_prompts(tmp_path / 'prompts.jsonl', 400)
  plain = '--config.decode.method=plain'
  command = er.command(asked[0], prompts, tmp_path / 'run', plain)
  process = er.start(command, tmp_path / 'log')
  try:
    assert er.wait_for_lines(tmp_path / 'run' / 'answers.jsonl', 3, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
  finally:
    process.kill()
    process.wait()
  last = (tmp_path / 'log').read_text().splitlines()[-1]
  assert f'{said}; the same command goes on' in last
  if number == signal.SIGINT:
    return
  status, out, err = er.finish(command)
  assert status == 0, err
  assert '400 questions answered' in out and ' 0 of them' not in out
  assert len(er.texts(tmp_path / 'run')) == 400


def test_a_workdir_is_refused_before_the_model_loads(
  evaluate, tmp_path, monkeypatch
):
  from cli import common

  monkeypatch.setattr(common, 'load_engine', None)
  (tmp_path / 'file').touch()
  status, out, err = evaluate(tmp_path / 'file')
  assert (status, out) == (2, '')
  assert err == f'generate.py: --workdir={tmp_path}/file: cannot be used:' + (
    ' File exists\n'
  )
  with contextlib.closing(Workdir(str(tmp_path), 0, 1)) as other:
    (tmp_path / '.answers.jsonl.lock').touch()  # as a run before has left it
    other.claim()
    status, out, err = evaluate(tmp_path)
  assert (status, out) == (2, '')
  assert err.endswith('another process is writing answers.jsonl there\n')


@pytest.mark.parametrize(
  'settings, said',
  [
    (['--workdir='], '--workdir: a folder is needed'),
    (['--config.search.record=r.jsonl'], "search.record='r.jsonl': expected"),
    (['--config.sampling.max_new_tokens=256'], 'max_new_tokens=256: leaves no'),
    (['--config.task.chat=True'], 'question_id=0: the tokenizer has no chat'),
    (['--config.task.name=x'], "task.name='x': expected one of"),
    (['--config.task.path=/none'], '/none'),
    (['--config.model.path=a\udcff'], "model.path='a\\udcff': expected whole"),
    (['--config.task.num_samples=99'], 'task.num_samples=99'),
    (['--config.mesh.data=64'], 'mesh.data=64, mesh.tensor=1: 64 devices'),
    (['--config.decode.method=fast'], "decode.method='fast': expected one of"),
  ],
)
def test_bad_input_is_one_line_and_makes_no_folder(
  evaluate, tmp_path, settings, said
):
  status, out, err = evaluate(tmp_path / 'run', *settings)
  assert (status, out) == (2, '')
  assert said in err and len(err.splitlines()) == 1
  assert not (tmp_path / 'run').exists()
