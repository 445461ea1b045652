"""A run's folder: what a kill, a full disk and a second process leave of it."""

import contextlib
import copy
import dataclasses
import datetime
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile

import answer_files
from etils.epath import backend
from full_disk import files_up_to
from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.errors import InputError
from swift_jax.evaluation import answers, runs
from swift_jax.evaluation.workdir import Workdir

FIRST, SECOND, THIRD = answer_files.plain()
LINES = [answers.to_line(answer).encode() for answer in (FIRST, SECOND, THIRD)]
FACTS = answer_files.run_facts(
  range(4), commits=['abc'], started='2026-11-25T08:00:00+00:00'
)
IDS = [1, 2, 3, 'four']


def fourth():
  """An answer whose line is no ASCII: a cut may split a character."""
  (turn,) = FIRST.turns
  turn = dataclasses.replace(turn, text='é\u2028\x85 \U0001f642 "\\n"\n')
  return dataclasses.replace(
    FIRST, question_id='four', index=3, turns=(turn,), category='größe'
  )


FOURTH = fourth()
LAST = answers.to_line(FOURTH).encode()


@contextlib.contextmanager
def opened(path, facts=FACTS, ids=IDS, process=0, num_processes=1):
  """A workdir that a process has to itself."""
  workdir = Workdir(str(path), process, num_processes)
  with contextlib.closing(workdir):
    workdir.open(facts, ids)
    yield workdir


def refusal(path, **how):
  """What opening a folder says, as the one line that a launcher prints."""
  with pytest.raises(InputError) as caught, opened(path, **how):
    pass
  return one_line(caught, path)


def one_line(caught, path):
  """The message behind the flag's name."""
  said = str(caught.value)
  assert '\n' not in said
  assert said.startswith(f'--workdir={path}')
  return said.removeprefix(f'--workdir={path}')


def content(folder):
  """Every file by its name."""
  return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
  """A run that has answered two of four questions."""
  with opened(tmp_path / 'run') as workdir:
    workdir.write([FIRST, SECOND])
  return tmp_path / 'run'


def test_a_fresh_folder(tmp_path):
  path = tmp_path / 'some' / 'where'
  with opened(path) as workdir:
    assert (workdir.answered, workdir.read_search()) == (set(), b'')
    workdir.write([SECOND])
    assert (path / 'answers.jsonl').read_bytes() == LINES[1]
    workdir.save_search('{"learnt": 1}\n')
    workdir.save_search('{"learnt": 2}\n')
    workdir.write([FIRST, FOURTH])
    assert workdir.answered == {1, 2, 'four'}
  assert json.loads((path / 'run.json').read_text()) == FACTS
  answered = (path / 'answers.jsonl').read_bytes()
  assert answered == LINES[1] + LINES[0] + LAST
  with opened(path) as workdir:
    assert workdir.read_search() == b'{"learnt": 2}\n'
    assert workdir.search_name == f'--workdir={path}/search.json'
  assert {file.name for file in path.iterdir()} == {
    '.answers.jsonl.lock',
    'answers.jsonl',
    'run.json',
    'search.json',
  }


def test_processes_have_files_of_their_own(tmp_path):
  facts = {**FACTS, 'num_processes': 2}
  with (
    opened(tmp_path, facts, [1, 3], 0, 2) as one,
    opened(tmp_path, facts, [2, 'four'], 1, 2) as other,
  ):
    one.write([FIRST])
    one.save_search('one')
    other.write([FOURTH])
    other.save_search('other')
    assert (one.answered, other.answered) == ({1}, {'four'})
  found = content(tmp_path)
  assert (found['answers-0.jsonl'], found['search-0.json']) == (
    LINES[0],
    b'one',
  )
  assert (found['answers-1.jsonl'], found['search-1.json']) == (LAST, b'other')
  said = refusal(tmp_path, facts=facts, ids=[2, 3], process=0, num_processes=2)
  assert said == '/answers-0.jsonl, line 1: question_id=1 is no question of' + (
    ' this process'
  )


def test_going_on(folder):
  before = content(folder)
  with opened(folder) as workdir:
    assert workdir.answered == {1, 2}
    assert content(folder) == before
    workdir.write([FOURTH])
    workdir.write([THIRD])
  with opened(folder) as workdir:
    assert workdir.answered == {1, 2, 3, 'four'}
  file = folder / 'answers.jsonl'
  assert file.read_bytes() == LINES[0] + LINES[1] + LAST + LINES[2]
  assert runs.read_run(str(folder), '--workdir').answers == (
    FIRST,
    SECOND,
    THIRD,
    FOURTH,
  )


@pytest.mark.parametrize('before', [[], LINES[:2]], ids=['first', 'third'])
def test_a_line_that_is_torn_anywhere_is_dropped(folder, before):
  file, whole = folder / 'answers.jsonl', b''.join(before)
  assert max(LAST) > 127  # a cut may split a character
  for cut in range(len(LAST)):
    file.write_bytes(whole + LAST[:cut])
    with opened(folder) as workdir:
      assert workdir.answered == {1, 2} if before else not workdir.answered
      assert file.read_bytes() == whole, cut
      workdir.write([THIRD])
    assert file.read_bytes() == whole + LINES[2]


def test_zeros_that_a_lost_power_left_at_the_end_are_dropped(folder):
  file = folder / 'answers.jsonl'
  with file.open('ab') as out:
    out.write(LAST[:40] + b'\0' * 5000)
  with opened(folder) as workdir:
    assert workdir.answered == {1, 2}
  assert file.read_bytes() == LINES[0] + LINES[1]


@pytest.mark.parametrize(
  'line, said',
  [
    (b'\0' * 512 + b'\n', 'not JSON'),
    (LINES[1][:90] + LINES[2], 'not JSON'),
    (LAST.replace(b'\xc3', b'\xff'), 'not JSON'),
    (b'\n', 'not JSON'),
    (b'[1]\n', 'expected an object, found [1]'),
    (b'{}\n', "'question_id' is missing"),
    (
      b'{"question_id": 2, "category": 7}\n',
      'category=7: expected a valid string',
    ),
  ],
)
def test_damage_before_the_end_is_refused_with_its_line(folder, line, said):
  file = folder / 'answers.jsonl'
  file.write_bytes(LINES[0] + line + LINES[2] + LAST[:20])
  before = content(folder)
  assert refusal(folder).startswith(f'/answers.jsonl, line 2: {said}')
  assert content(folder) == before


@pytest.mark.parametrize(
  'changes, said',
  [
    ({}, 'question_id=1: comes twice'),
    ({'question_id': 7}, 'question_id=7 is no question of this process'),
    ({'question_id': '3'}, "question_id='3' is no question of this process"),
    (
      {'question_id': 3, 'model_id': 'other'},
      "model_id='other': this run is of 'llama'",
    ),
  ],
)
def test_an_answer_that_is_none_of_this_run_is_refused(folder, changes, said):
  odd = answers.to_line(dataclasses.replace(FIRST, **changes)).encode()
  with (folder / 'answers.jsonl').open('ab') as out:
    out.write(odd)
  before = content(folder)
  assert refusal(folder) == f'/answers.jsonl, line 3: {said}'
  assert content(folder) == before


def test_another_run_is_refused_by_what_differs(folder):
  facts = copy.deepcopy(FACTS)
  facts['config']['decode'] |= {'batch_size': 2, 'method': 'swift'}
  facts['config']['sampling']['seed'] = 3  # was not there
  del facts['config']['model']['dtype']
  facts['indices'] = [0, 1, 2]
  facts['versions']['jax'] = '0.11.0'
  facts['device'] = '1 x TPU v5e'
  facts |= {'started': 'later', 'commit': 'def', 'commits': ['def']}
  before = content(folder)
  assert refusal(folder, facts=facts) == (
    ': is of another run:'
    ' config.decode.batch_size=1, now 2;'
    " config.decode.method='plain', now 'swift';"
    " config.model.dtype='float32', now None;"
    ' config.sampling.seed=None, now 3;'
    " device='cpu', now '1 x TPU v5e';"
    ' indices=[0, 1, 2, 3], now [0, 1, 2];'
    " versions.jax='0.10.2', now '0.11.0'"
  )
  assert content(folder) == before


TREES = st.recursive(
  st.none() | st.booleans() | st.integers(2, 4) | st.text('xy', max_size=2),
  lambda inner: st.dictionaries(st.sampled_from('abc'), inner, max_size=3),
  max_leaves=8,
)


@given(theirs=TREES, mine=TREES)
def test_equal_facts_are_gone_on_with_and_others_are_not(theirs, mine):
  with tempfile.TemporaryDirectory() as path:
    with opened(path, {**FACTS, 'config': theirs}):
      pass
    with opened(path, {**FACTS, 'config': theirs}):
      pass
    # A field that is None and one that is not there are the same setting.
    if json.dumps(without_none(theirs)) != json.dumps(without_none(mine)):
      said = refusal(path, facts={**FACTS, 'config': mine})
      assert said.startswith(': is of another run: config')


def without_none(tree):
  """In order and without fields that are None."""
  if not isinstance(tree, dict):
    return tree
  pairs = ((key, without_none(tree[key])) for key in sorted(tree))
  return {key: value for key, value in pairs if value is not None}


def test_values_compare_as_json_has_them(tmp_path):
  """A tuple of a config is the list that was read."""
  facts = {**FACTS, 'config': {'widths': (4, 8)}}
  for _ in range(2):
    with opened(tmp_path, facts):
      pass


def test_commits_are_remembered_and_not_compared(folder):
  later = {**FACTS, 'started': 'later'}
  for commits in (['abc'], ['def'], ['abc'], [None], ['def']):
    with opened(folder, {**later, 'commit': commits[0], 'commits': commits}):
      pass
  found = json.loads((folder / 'run.json').read_text())
  assert found == {**FACTS, 'commits': ['abc', 'def', None]}


def test_other_prompts_are_another_run(folder):
  asked = {**FACTS, 'prompts': '0a' * 8, 'chat_template': 'bc' * 8}
  before = content(folder)
  assert refusal(folder, facts=asked) == (
    '/run.json: does not say which prompts were asked, being of an older'
    ' version: expected another folder'
  )
  assert content(folder) == before
  (folder / 'run.json').write_text(json.dumps(asked))
  before = content(folder)
  with opened(folder, asked):
    pass
  now = {'prompts': '11' * 8, 'chat_template': None}
  assert refusal(folder, facts={**asked, **now}) == (
    ': is of another run:'
    f" chat_template='{'bc' * 8}', now None;"
    f" prompts='{'0a' * 8}', now '{'11' * 8}'"
  )
  assert content(folder) == before


def test_when_a_run_began(folder):
  def started(path):
    return Workdir(str(path), 0, 1).started()

  wanted = datetime.datetime(2026, 11, 25, 8, tzinfo=datetime.UTC)
  assert started(folder) == wanted
  assert started(folder / 'new') is None and not (folder / 'new').exists()
  for said in ('later', 3, None, '0001-01-01T00:00:00+14:00'):
    (folder / 'run.json').write_text(json.dumps({**FACTS, 'started': said}))
    with pytest.raises(InputError) as caught:
      started(folder)
    assert one_line(caught, folder) == (
      f'/run.json: started={said!r}: expected a date and time'
    )
  (folder / 'run.json').write_text('{')
  with pytest.raises(InputError, match=r'/run\.json: not JSON'):
    started(folder)


def test_answers_that_are_nobodys(folder):
  (folder / 'run.json').unlink()
  before = content(folder)
  assert refusal(folder) == (
    ': there are answers in answers.jsonl but no run.json: whose are they?'
  )
  assert content(folder) == before


@pytest.mark.parametrize(
  'damaged, said',
  [
    (b'', 'not JSON'),
    (json.dumps(FACTS).encode()[:-9], 'not JSON'),
    (b'\xff\xfe', 'not JSON'),
    (b'[' * 10**5, 'not JSON'),
    (b'[]', 'num_processes=None: expected'),
    (b'null', 'num_processes=None: expected'),
    (json.dumps({**FACTS, 'model_id': 3}).encode(), 'model_id=3: expected'),
  ],
)
def test_a_damaged_run_file_is_refused(folder, damaged, said):
  (folder / 'run.json').write_bytes(damaged)
  before = content(folder)
  assert refusal(folder).startswith(f'/run.json: {said}')
  assert content(folder) == before


def test_two_do_not_write_in_one_folder(folder):
  held = ': another process is writing answers.jsonl there'
  with opened(folder):
    assert refusal(folder) == held
    assert refusal(folder) == held
  with opened(folder):
    pass


def test_who_writes_is_said_before_there_are_facts(folder):
  """As a launcher asks, before it loads a model."""
  with opened(folder):
    with pytest.raises(InputError) as caught:
      Workdir(str(folder), 0, 1).claim()
    assert one_line(caught, folder).endswith('is writing answers.jsonl there')
  with contextlib.closing(Workdir(str(folder), 0, 1)) as workdir:
    workdir.claim()
    assert refusal(folder).endswith('is writing answers.jsonl there')
    workdir.open(FACTS, IDS)
  with opened(folder):
    pass


def test_what_is_claimed_leaves_no_trace(tmp_path):
  Workdir(str(tmp_path / 'none' / 'run'), 0, 1).claim()
  (tmp_path / 'there').mkdir()
  Workdir(str(tmp_path / 'there'), 0, 1).claim()
  assert [str(p) for p in tmp_path.rglob('*')] == [str(tmp_path / 'there')]


def test_a_folder_is_free_once_its_process_is_killed(folder):
  code = (
    'import sys, time; from swift_jax.evaluation.workdir import Workdir\n'
    f'Workdir({str(folder)!r}, 0, 1).open({FACTS!r}, {IDS!r})\n'
    'print("open", flush=True); time.sleep(600)'
  )
  command = [sys.executable, '-c', code]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
    try:
      assert other.stdout.readline() == 'open\n'
      held = ': another process is writing answers.jsonl there'
      assert refusal(folder) == held
    finally:
      other.send_signal(signal.SIGKILL)
    other.wait()
    with opened(folder) as workdir:
      assert workdir.answered == {1, 2}


def no_space(*_):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('room', [0, 1, len(LAST) // 2, len(LAST) - 1, 9999])
def test_a_full_disk_leaves_no_half_line(folder, monkeypatch, room):
  """It refuses some bytes of a write, or all of them when they are synced."""
  file = folder / 'answers.jsonl'
  before = file.read_bytes()
  with opened(folder) as workdir:
    with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
      reason = 'File too large'
      if room > len(LAST):
        reason = 'No space left on device'
        patch.setattr(os, 'fsync', no_space)
      with files_up_to(len(before) + room):
        workdir.write([FOURTH])
    assert one_line(caught, folder) == f': cannot be used: {reason}'
    assert file.read_bytes() == before
    assert workdir.answered == {1, 2}
  with opened(folder) as workdir:
    assert workdir.answered == {1, 2}
    workdir.write([FOURTH])
  assert file.read_bytes() == before + LAST


def test_a_full_disk_keeps_what_the_search_had_learnt(folder):
  with opened(folder) as workdir:
    workdir.save_search('before')
    with files_up_to(100), pytest.raises(InputError) as caught:
      workdir.save_search('after' * 100)
    said = '/search.json: cannot be written: File too large'
    assert one_line(caught, folder) == said
    assert workdir.read_search() == b'before'
  assert not list(folder.glob('*partial*'))


def test_a_full_disk_at_the_start_leaves_a_fresh_folder(tmp_path):
  with files_up_to(100):
    said = refusal(tmp_path / 'run')
  assert said == '/run.json: cannot be written: File too large'
  with opened(tmp_path / 'run') as workdir:
    workdir.write([FIRST])


@contextlib.contextmanager
def as_nobody():
  """Root may write everywhere."""
  is_root = os.geteuid() == 0
  if is_root:
    os.seteuid(65534)
  try:
    yield
  finally:
    if is_root:
      os.seteuid(0)


def test_a_folder_that_cannot_be_written():
  with tempfile.TemporaryDirectory() as path:
    os.chmod(path, 0o555)
    with as_nobody():
      denied = ': cannot be used: Permission denied'
      for place in (path, f'{path}/in/it'):
        assert refusal(place) == denied
        with pytest.raises(InputError, match='Permission denied'):
          Workdir(place, 0, 1).claim()
    assert not os.listdir(path)
    os.chmod(path, 0o755)


@pytest.mark.parametrize(
  'name, said',
  [
    ('file', 'File exists'),
    ('file/below', 'Not a directory'),
    ('x' * 300, 'File name too long'),
    ('nul\0byte', 'embedded null byte'),
  ],
)
def test_a_path_that_can_be_no_folder(tmp_path, name, said):
  (tmp_path / 'file').write_text('')
  assert refusal(tmp_path / name) == f': cannot be used: {said}'
  with pytest.raises(InputError, match=f'cannot be used: {said}'):
    Workdir(str(tmp_path / name), 0, 1).claim()
  assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('name', ['answers.jsonl', 'run.json', 'search.json'])
def test_a_folder_where_a_file_should_be(tmp_path, name):
  (tmp_path / name).mkdir()
  if name == 'answers.jsonl':
    (tmp_path / 'run.json').write_text(json.dumps(FACTS))
  if name != 'search.json':
    assert refusal(tmp_path) == ': cannot be used: Is a directory'
    return
  with opened(tmp_path) as workdir, pytest.raises(InputError) as caught:
    workdir.read_search()
  assert one_line(caught, tmp_path) == ': cannot be used: Is a directory'


def test_an_object_store(store):
  path = 'gs://bucket/some/run'
  with opened(path) as workdir:
    assert (workdir.answered, workdir.read_search()) == (set(), b'')
    workdir.write([FIRST])
    assert store.cat('bucket/some/run/answers.jsonl') == LINES[0]
    workdir.write([SECOND, FOURTH])
    workdir.save_search('before')
    workdir.save_search('after')
    held = ': another process is writing answers.jsonl there'
    assert refusal(path) == held
  assert json.loads(store.cat('bucket/some/run/run.json')) == FACTS
  with opened(path) as workdir:
    assert workdir.answered == {1, 2, 'four'}
    assert workdir.read_search() == b'after'
    workdir.write([THIRD])
  lines = LINES[0] + LINES[1] + LAST + LINES[2]
  assert store.cat('bucket/some/run/answers.jsonl') == lines
  found = runs.read_run(path, '--runs')
  assert found.answers == (FIRST, SECOND, THIRD, FOURTH)


def test_an_object_store_has_the_same_refusals(store):
  path = 'gs://bucket/run'
  with opened(path) as workdir:
    workdir.write([FIRST])
  said = refusal(path, facts={**FACTS, 'device': 'gpu'})
  assert said == ": is of another run: device='cpu', now 'gpu'"
  said = refusal(path, ids=[2])
  wanted = '/answers.jsonl, line 1: question_id=1 is no question of this'
  assert said == f'{wanted} process'
  store.pipe('bucket/run/answers.jsonl', LINES[0] + b'\0\n' + LINES[1])
  assert refusal(path).startswith('/answers.jsonl, line 2: not JSON')
  # No process of ours leaves half a line there; some other copy may.
  store.pipe('bucket/run/answers.jsonl', LINES[0] + LAST[:50])
  with opened(path) as workdir:
    workdir.write([SECOND])
  assert store.cat('bucket/run/answers.jsonl') == LINES[0] + LINES[1]
  store.rm('bucket/run/run.json')
  assert refusal(path).endswith('but no run.json: whose are they?')


def test_an_object_store_that_fails(store):
  path = 'gs://bucket/run'
  with opened(path) as workdir:
    workdir.write([FIRST])
    store.is_down = True
    for call, argument in (
      (workdir.write, [SECOND]),
      (workdir.save_search, 'state'),
    ):
      with pytest.raises(InputError) as caught:
        call(argument)
      said = one_line(caught, path)
      assert said == ': cannot be used: Service Unavailable, 503'
  assert refusal(path) == ': cannot be used: Service Unavailable, 503'
  store.is_down = False
  with opened(path) as workdir:
    assert workdir.answered == {1}


def test_an_object_store_without_its_client(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  type(backend.fsspec_backend)._get_filesystem.cache_clear()
  said = refusal('gs://bucket/run')
  assert said.startswith(': cannot be used: ') and 'gcsfs' in said


@pytest.mark.parametrize('path', ['http://a/b', 'ftp:///run'])
def test_a_store_that_nobody_knows(path):
  said = refusal(path)
  assert said.startswith(': cannot be used: ')


def test_a_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  with opened('~/run'):
    pass
  assert 'run.json' in content(tmp_path / 'run')
  assert runs.read_run('~/run', '--runs', allow_missing=True).answers == ()


def test_half_a_search_state_is_swept_up(tmp_path):
  """What a kill leaves beside the file that it was to replace."""
  (tmp_path / '.search.json.0a1b2c.partial').write_text('{')
  (tmp_path / 'mine.partial').write_text('')
  with opened(tmp_path):
    assert '.search.json.0a1b2c.partial' not in content(tmp_path)
    assert 'mine.partial' in content(tmp_path)
