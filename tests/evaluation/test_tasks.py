"""Published data sets become the prompts written here; bad ones are named."""

import dataclasses
import gzip
import json
import pathlib
import sys
import tempfile
import types

from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.errors import InputError
from swift_jax.evaluation import task_files, tasks
from swift_jax.evaluation.tasks import Question, TaskConfig

SPEC_BENCH = [
  {
    'question_id': 7,
    'category': 'writing',
    'turns': ['Write a haiku.\n', ' Now in French.'],
  },
  {
    'question_id': 9,
    'category': 'math',
    'turns': ['What is 2+2?'],
    'reference': ['4'],
  },
  {
    'question_id': 'r1',
    'category': 'rag',
    'turns': ['When?'],
    'reference': [['today', 'now']],
  },
]
GSM8K = {
  'question': 'Tom has 3 pens and buys 4.  How many has he?',
  'answer': 'He has 3+4=<<3+4=7>>7 pens.\n#### 7',
}
GSM8K_TRAIN = {
  'question': 'A kite costs $5. What do 2 cost?',
  'answer': 'They cost 5*2=$<<5*2=10>>10.\n#### 10',
}
HUMANEVAL = {
  'task_id': 'HumanEval/0',
  'prompt': 'def add(a, b):\n    """The sum."""\n',
  'entry_point': 'add',
  'canonical_solution': '    return a + b\n',
  'test': 'def check(f):\n  assert f(1, 2) == 3\n',
}
MBPP = {
  'task_id': 11,
  'text': 'Write a function to double a number.',
  'code': 'def double(x):\r\n  return 2 * x',
  'test_list': ['assert double(2) == 4', 'assert double(0) == 0'],
  'test_setup_code': '',
}
MBPP_PROMPT = (
  'You are an expert Python programmer, and here is your task: Write a function'
  ' to double a number. Your code should pass these tests:\n\n'
  'assert double(2) == 4\nassert double(0) == 0\n[BEGIN]\n'
)
CNN_DM = {'article': 'It rained , "hard".\nA lot.', 'highlights': 'It rained .'}
CNN_DM_TRAIN = {'article': 'It shone.', 'highlights': 'It shone .\nA lot .'}
WORDS = ' '.join(f'w{i}' for i in range(31)) + '\n\nend'  # 32 of them
STORY = WORDS + ' of it.\n\nThe rest.'
STORY_TRAIN = STORY.replace('w', 'v')


def write(path, *values):
  """Values as JSON lines; the path, as settings have it."""
  path.write_text(''.join(f'{json.dumps(value)}\n' for value in values))
  return str(path)


def distinct(record, count):
  """As many records, that differ in what they ask."""
  return [record | {'question': f'Question {i}?'} for i in range(count)]


def load(name, path, **fields):
  return tasks.load(TaskConfig(name, str(path), **fields))


def refused(said, call, *args, **kwargs):
  """The message of one line, which holds all of `said`."""
  with pytest.raises(InputError) as caught:
    call(*args, **kwargs)
  message = str(caught.value)
  assert '\n' not in message and len(message) < 700, message
  for part in said:
    assert part in message, (part, message)
  return message


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder to name files in without their folder."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_spec_bench(tmp_path):
  assert load('spec_bench', write(tmp_path / 'x', *SPEC_BENCH)) == [
    Question(0, 7, 'writing', ('Write a haiku.\n', ' Now in French.')),
    Question(1, 9, 'math', ('What is 2+2?',), ('4',)),
    Question(2, 'r1', 'rag', ('When?',), ('today', 'now')),
  ]


def test_gsm8k(tmp_path):
  path = write(tmp_path / 'test.jsonl', GSM8K)
  shots = write(tmp_path / 'shots', GSM8K_TRAIN)
  asked = 'Question: Tom has 3 pens and buys 4.  How many has he?\nAnswer:'
  shot = (
    'Question: A kite costs $5. What do 2 cost?\n'
    'Answer: They cost 5*2=$10.\n#### 10\n\n'
  )
  (found,) = load('gsm8k', path, shots_path=shots, num_shots=1)
  assert found == Question(0, 0, 'gsm8k', (shot + asked,), (GSM8K['answer'],))
  (found,) = load('gsm8k', path, num_shots=0)
  assert found.turns == (asked,)


def test_humaneval_keeps_its_spaces(tmp_path):
  (found,) = load('humaneval', write(tmp_path / 'x', HUMANEVAL))
  assert found == Question(
    0,
    'HumanEval/0',
    'humaneval',
    ('def add(a, b):\n    """The sum."""\n',),
    ('    return a + b\n',),
  )


def test_mbpp(tmp_path):
  expected = Question(0, 11, 'mbpp', (MBPP_PROMPT,), (MBPP['code'],))
  assert load('mbpp', write(tmp_path / 'x', MBPP)) == [expected]
  sanitized = MBPP | {'prompt': MBPP['text'], 'test_imports': []}
  del sanitized['text']
  path = tmp_path / 'sanitized.json'
  path.write_text(json.dumps([sanitized], indent=2))
  assert load('mbpp', path) == [expected]


def test_cnn_dm(tmp_path):
  asked = 'Article: It rained , "hard".\nA lot.\nSummary:'
  shot = 'Article: It shone.\nSummary: It shone . A lot .\n\n'
  shots = write(tmp_path / 'train.jsonl', CNN_DM_TRAIN)
  path = write(tmp_path / 'x.jsonl', CNN_DM | {'id': 'a1'})
  expected = Question(0, 'a1', 'cnn_dm', (shot + asked,), ('It rained .',))
  assert load('cnn_dm', path) == [expected]
  rows = tmp_path / 'x.csv'
  rows.write_bytes(
    b'id,article,highlights\r\n'
    b'a1,"It rained , ""hard"".\nA lot.",It rained .\r\n'
  )
  assert load('cnn_dm', rows, shots_path=shots) == [expected]
  rows.write_bytes(b'article,highlights\n"a\r\nb",c')
  (found,) = load('cnn_dm', rows, num_shots=0)
  assert found.turns == ('Article: a\r\nb\nSummary:',)
  blank = [CNN_DM | {'article': ' '}, CNN_DM | {'highlights': ''}, CNN_DM]
  (found,) = load('cnn_dm', write(tmp_path / 'y', *blank), num_shots=0)
  assert found == Question(2, 2, 'cnn_dm', (asked,), ('It rained .',))


def test_tinystories(tmp_path):
  rest = ' of it.\n\nThe rest.'
  expected = Question(
    2, 2, 'tinystories', (f'{STORY_TRAIN}\n\n{WORDS}',), (rest,)
  )
  (tmp_path / 'train.txt').write_text(f'{STORY_TRAIN}\n<|endoftext|>\n')
  # A short one, one that has no rest, and one that is empty, which is none.
  stories = ['A cat.', WORDS, '', STORY]
  path = tmp_path / 'valid.txt'
  path.write_text('\n<|endoftext|>\n'.join(stories))
  assert load('tinystories', path) == [expected]
  path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n'))
  assert load('tinystories', path) == [expected]
  path = write(tmp_path / 'x.jsonl', *({'text': s} for s in stories if s))
  assert load('tinystories', path) == [expected]
  (found,) = load('tinystories', path, num_shots=0)
  assert found.turns == (WORDS,) and WORDS + rest == STORY


def test_jsonl(tmp_path):
  path = write(
    tmp_path / 'x',
    {'prompt': ' a\n'},
    {'prompt': 'b', 'id': 'one', 'category': 'c', 'reference': 'r'},
    {'prompt': 'b', 'id': None, 'category': None, 'reference': None},
    {'prompt': 'c', 'id': 5, 'reference': ['r', '']},
    {'prompt': 'd', 'reference': []},
  )
  assert load('jsonl', path) == [
    Question(0, 0, 'jsonl', (' a\n',)),
    Question(1, 'one', 'c', ('b',), ('r',)),
    Question(2, 2, 'jsonl', ('b',)),
    Question(3, 5, 'jsonl', ('c',), ('r', '')),
    Question(4, 4, 'jsonl', ('d',)),
  ]


def test_what_is_not_published_in_a_form_is_read_as_json(tmp_path):
  """Though it has the form's suffix; and a line ends with b'\\n' alone."""
  for file in ('x.txt', 'x.csv'):
    (tmp_path / file).write_bytes(b'{"prompt":\r"a"}\r\n')
    assert load('jsonl', tmp_path / file) == [Question(0, 0, 'jsonl', ('a',))]


@given(st.lists(st.text().filter(str.strip), min_size=1), st.booleans())
def test_any_text_is_asked_as_it_is(prompts, ascii_only):
  """Separators of lines that are not b'\\n' among it."""
  lines = [json.dumps({'prompt': p}, ensure_ascii=ascii_only) for p in prompts]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'x')
    path.write_bytes('\n'.join(lines).encode())
    assert [q.turns for q in load('jsonl', path)] == [(p,) for p in prompts]


@pytest.mark.parametrize(
  'name, file, record',
  [
    ('spec_bench', 'x.jsonl', SPEC_BENCH[0]),
    ('gsm8k', 'x.jsonl', GSM8K),
    ('humaneval', 'x.jsonl', HUMANEVAL),
    ('mbpp', 'x.jsonl', MBPP),
    ('mbpp', 'x.json', [MBPP]),
    ('cnn_dm', 'x.jsonl', CNN_DM),
    ('cnn_dm', 'x.csv', 'article,highlights\nIt rained.,It did.'),
    ('tinystories', 'x.jsonl', {'text': STORY}),
    ('tinystories', 'x.txt', STORY),
    ('jsonl', 'x.jsonl', {'prompt': 'a'}),
  ],
)
def test_gzip_a_mark_and_blank_lines_change_nothing(
  tmp_path, name, file, record
):
  text = record if isinstance(record, str) else json.dumps(record)
  shots = {'num_shots': 0}
  (tmp_path / file).write_text(text)
  expected = load(name, tmp_path / file, **shots)
  assert len(expected) == 1
  marked = b'\xef\xbb\xbf\n\n' + text.encode() + b'\n\n'
  (tmp_path / file).write_bytes(marked)
  assert load(name, tmp_path / file, **shots) == expected
  packed = tmp_path / f'{file}.GZ'
  packed.write_bytes(gzip.compress(marked, mtime=0))
  assert load(name, packed, **shots) == expected
  packed.rename(tmp_path / file)  # a name that does not say so
  assert load(name, tmp_path / file, **shots) == expected


@pytest.mark.parametrize(
  'name, count', [('gsm8k', 5), ('cnn_dm', 1), ('tinystories', 1)]
)
def test_as_many_shots_as_in_the_paper(tmp_path, name, count):
  marks = [chr(ord('a') + i) * 3 for i in range(9)]
  records = [
    {'question': m, 'answer': m, 'article': m, 'highlights': m}
    | {'text': f'{m} {STORY}'}
    for m in marks
  ]
  path = write(tmp_path / 'x.jsonl', records[0])
  shots = write(tmp_path / 'y.jsonl', *records[1:])
  (found,) = load(name, path, shots_path=shots)
  assert sum(m in found.turns[0] for m in marks[1:]) == count


def test_shots_are_drawn_by_the_seed_and_the_same_for_all(tmp_path):
  path = write(tmp_path / 'test.jsonl', *distinct(GSM8K, 3))
  train = [GSM8K_TRAIN | {'question': f'Kite {i}?'} for i in range(30)]
  write(tmp_path / 'gsm8k_train.jsonl', *train)
  drawn = set()
  for seed in range(5):
    found = load('gsm8k', path, seed=seed)
    assert found == load('gsm8k', path, seed=seed)
    shots = [q.turns[0].rpartition('Question: Question')[0] for q in found]
    assert len(set(shots)) == 1 and shots[0].count('Question: Kite ') == 5
    drawn.add(shots[0])
    # Nor do they follow how many are asked.
    (one,) = load('gsm8k', path, seed=seed, num_samples=1)
    assert one in found
  assert len(drawn) == 5


def test_no_question_is_among_its_own_shots(tmp_path):
  path = write(tmp_path / 'train.jsonl', *distinct(GSM8K, 4))
  for question in load('gsm8k', path, num_shots=3):
    for i in range(4):
      assert question.turns[0].count(f'Question {i}?') == 1
    assert question.turns[0].endswith(f'Question {question.index}?\nAnswer:')
  # Nor in another file, where it may have another answer.
  others = [GSM8K | {'answer': '#### 8'}, GSM8K_TRAIN]
  shots = write(tmp_path / 'y', *others)
  one = write(tmp_path / 'x', GSM8K)
  (found,) = load('gsm8k', one, shots_path=shots, num_shots=1)
  assert '#### 8' not in found.turns[0] and 'A kite' in found.turns[0]
  said = f"task.num_shots=4: expected at most 3, what task.shots_path='{path}'"
  refused([said], load, 'gsm8k', path, num_shots=4)


def test_a_train_file_beside_is_taken_if_there_is_one(here):
  write(here / 'test.jsonl', GSM8K)
  one = {'num_shots': 1}
  write(here / 'train.csv', GSM8K_TRAIN)  # a form that gsm8k does not have
  said = ["task.shots_path=''", '*train*.jsonl', "'test.jsonl', found none"]
  refused(said, load, 'gsm8k', 'test.jsonl', **one)
  packed = here / 'my_train_head.jsonl.gz'
  packed.write_bytes(gzip.compress(json.dumps(GSM8K_TRAIN).encode()))
  (found,) = load('gsm8k', 'test.jsonl', **one)
  assert 'A kite' in found.turns[0]
  write(here / 'train.jsonl', GSM8K_TRAIN)
  said = ["task.shots_path=''", 'found my_train_head.jsonl.gz, train.jsonl']
  refused(said, load, 'gsm8k', 'test.jsonl', **one)
  write(here / 'train.jsonl', {'question': 'a'})
  said = ["task.shots_path='train.jsonl', line 1: 'answer' is missing"]
  fields = {'shots_path': 'train.jsonl'} | one
  refused(said, load, 'gsm8k', 'test.jsonl', **fields)


def test_samples(tmp_path):
  path = write(tmp_path / 'x', *({'prompt': f'p{i}'} for i in range(40)))
  everything = load('jsonl', path)
  assert [q.index for q in everything] == list(range(40))
  assert load('jsonl', path, num_samples=40, seed=3) == everything
  draws = set()
  for seed in range(5):
    few, more = (
      load('jsonl', path, num_samples=n, seed=seed) for n in (10, 20)
    )
    assert len(few) == 10 and len(more) == 20
    assert [q for q in everything if q in few] == few
    assert [q for q in more if q in few] == few
    draws.add(tuple(few))
  assert len(draws) == 5
  said = f"task.num_samples=41: expected at most 40, which task.path='{path}'"
  refused([said], load, 'jsonl', path, num_samples=41)


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'name': ''}, "task.name='': expected one of spec_bench, gsm8k, "),
    ({'name': 'gsm'}, "task.name='gsm': expected one of "),
    ({'name': 3}, 'task.name=3: expected one of '),
    ({'path': None}, 'task.path=None: expected a string'),
    ({'path': ''}, "task.path='': expected a file, since the hub has no jsonl"),
    (
      {'name': 'spec_bench', 'path': ''},
      "task.path='': expected a file, since the hub has no spec_bench",
    ),
    ({'shots_path': 3}, 'task.shots_path=3: expected a string'),
    ({'shots_path': 'y'}, "task.shots_path='y': expected none for jsonl"),
    ({'num_shots': 1}, 'task.num_shots=1: expected none for jsonl'),
    ({'num_shots': -1}, 'task.num_shots=-1: expected an integer >= 0'),
    ({'num_shots': True}, 'task.num_shots=True: expected an integer'),
    ({'num_samples': -1}, 'task.num_samples=-1: expected an integer >= 0'),
    ({'num_samples': 1.0}, 'task.num_samples=1.0: expected an integer'),
    ({'seed': -1}, 'task.seed=-1: expected an integer >= 0'),
    ({'seed': None}, 'task.seed=None: expected an integer'),
    ({'chat': 1}, 'task.chat=1: expected a boolean'),
    ({'date': '24.12.2026'}, "task.date='24.12.2026': expected a day as in"),
    ({'date': 20261224}, 'task.date=20261224: expected a day as in'),
  ],
  ids=str,
)
def test_settings(fields, said):
  good = {'name': 'jsonl', 'path': 'x', 'num_shots': 0, 'chat': True}
  TaskConfig(**good)
  refused([said], TaskConfig, **good | fields)


def bad(record, **changes):
  """A record with fields replaced, or left out where that is `...`."""
  fields = record | changes
  return {k: v for k, v in fields.items() if v is not ...}


SPEC = SPEC_BENCH[0]
BAD_RECORDS = [
  ('spec_bench', bad(SPEC, question_id=...), "'question_id' is missing"),
  ('spec_bench', bad(SPEC, question_id=1.0), 'question_id=1.0: expected'),
  ('spec_bench', bad(SPEC, question_id=True), 'question_id=True: expected'),
  ('spec_bench', bad(SPEC, question_id=''), "question_id='': expected"),
  ('spec_bench', bad(SPEC, category=...), "'category' is missing"),
  ('spec_bench', bad(SPEC, category=3), 'category=3: expected text'),
  ('spec_bench', bad(SPEC, turns=...), "'turns' is missing"),
  ('spec_bench', bad(SPEC, turns=[]), 'turns=[]: expected a filled list'),
  ('spec_bench', bad(SPEC, turns='Hi'), "turns='Hi': expected a filled list"),
  ('spec_bench', bad(SPEC, turns=['a', ' ']), "turns=' ': expected text"),
  ('spec_bench', bad(SPEC, turns=['a', 3]), 'turns=3: expected text'),
  ('spec_bench', bad(SPEC, reference=3), 'reference=3: expected text'),
  ('spec_bench', bad(SPEC, reference=['a', None]), 'reference=None: expected'),
  ('gsm8k', bad(GSM8K, question=...), "'question' is missing"),
  ('gsm8k', bad(GSM8K, question=''), "question='': expected text"),
  ('gsm8k', bad(GSM8K, answer=['7']), "answer=['7']: expected text"),
  ('humaneval', bad(HUMANEVAL, task_id=...), "'task_id' is missing"),
  ('humaneval', bad(HUMANEVAL, task_id=None), 'task_id=None: expected'),
  ('humaneval', bad(HUMANEVAL, prompt=...), "'prompt' is missing"),
  ('humaneval', bad(HUMANEVAL, canonical_solution=...), 'is missing'),
  ('mbpp', bad(MBPP, text=...), "'prompt' is missing"),
  ('mbpp', bad(MBPP, test_list=[]), 'test_list=[]: expected a filled list'),
  ('mbpp', bad(MBPP, code=3), 'code=3: expected text'),
  ('cnn_dm', bad(CNN_DM, highlights=...), "'highlights' is missing"),
  ('cnn_dm', bad(CNN_DM, article=3), 'article=3: expected text'),
  ('tinystories', {'story': STORY}, "'text' is missing"),
  ('tinystories', {'text': [STORY]}, "text=['w0"),
  ('jsonl', {'text': 'a'}, "'prompt' is missing"),
  ('jsonl', {'prompt': '\n'}, "prompt='\\n': expected text"),
  ('jsonl', {'prompt': 'a', 'id': [3]}, 'id=[3]: expected text'),
  ('jsonl', {'prompt': 'a', 'category': ''}, "category='': expected text"),
  ('jsonl', {'prompt': 'a' * 9999 + '\ud83d'}, "a\\ud83d': expected whole"),
  ('jsonl', {'prompt': ['long'] * 999}, "prompt=['long', 'long', "),
  ('jsonl', [1], 'expected an object, found [1]'),
  ('jsonl', 'a' * 999, "expected an object, found 'aaa"),
]


@pytest.mark.parametrize(
  'name, record, said', BAD_RECORDS, ids=lambda x: str(x)[:30]
)
def test_a_bad_record_is_named_with_its_line(here, name, record, said):
  good = {
    'spec_bench': SPEC_BENCH[1],
    'gsm8k': GSM8K,
    'humaneval': HUMANEVAL | {'task_id': 'HumanEval/1'},
    'mbpp': MBPP | {'task_id': 12},
    'cnn_dm': CNN_DM,
    'tinystories': {'text': STORY},
    'jsonl': {'prompt': 'a'},
  }[name]
  (here / 'x').write_text(f'\n{json.dumps(good)}\n{json.dumps(record)}\n')
  message = refused([said], load, name, 'x', num_shots=0)
  assert message.startswith("task.path='x', line 3: ")
  assert message.count('a') < 99  # what is long is cut


@pytest.mark.parametrize(
  'name, records, said',
  [
    ('spec_bench', [SPEC, SPEC], 'line 2: question_id=7: the id of record 0'),
    ('mbpp', [MBPP, MBPP], 'line 2: task_id=11: the id of record 0'),
    (
      'cnn_dm',
      [CNN_DM, CNN_DM | {'id': 'a'}, CNN_DM | {'id': 'a'}],
      "line 3: id='a': the id of record 1",
    ),
  ],
)
def test_an_id_that_comes_twice(here, name, records, said):
  write(here / 'x', *records)
  refused([f"task.path='x', {said}"], load, name, 'x', num_shots=0)


@pytest.mark.parametrize(
  'file, content, said',
  [
    ('x', b'', ': holds no questions of cnn_dm'),
    ('x', b'\xef\xbb\xbf\n \n', ': holds no questions of cnn_dm'),
    ('x.csv', b'article,highlights\n', ': holds no questions of cnn_dm'),
    ('x', b'{"article"\n', ", line 1: not JSON: Expecting ':' delimiter"),
    ('x', b'\n\n{"a": 1} x\n', ", line 3: not JSON: Extra data, found '{"),
    ('x', b'\n[{},\n{]', ', line 3: not JSON: Expecting property name'),
    ('x', b'[]', ', line 1: expected an object, found []'),
    ('x', b'[{"article": "a"}, 3]', ', item 2: expected an object, found 3'),
    ('x', b'[{"article": "a"}]', ", item 1: 'highlights' is missing"),
    ('x', b'[' * 100_000, ', line 1: not JSON: '),
    ('x', b'{"a": %s}' % (b'9' * 5000), ', line 1: not JSON: '),
    ('x', b'{}\n{"a": "\xff"}', ', line 2: not UTF-8: invalid start byte'),
    ('x', '{}'.encode('utf-16'), ', line 1: not UTF-8: '),
    ('x.csv', b'article,highlights\nb,"c\xff', ', line 2: not UTF-8: '),
    (
      'x.csv',
      b'article,highlights\n\n"a\nb",c\nd',
      ', line 5: expected 2 columns',
    ),
    ('x.csv', b'article,highlights\na,b\nc,"d\n', ', line 3: not CSV: '),
    ('x.csv', b'article\na', ", line 2: 'highlights' is missing"),
    ('x.gz', b'{}', ': damaged gzip: Not a gzipped file'),
    ('x', gzip.compress(b'{}' * 99, mtime=0)[:-9], ': damaged gzip: '),
    (
      'x',
      gzip.compress(b'{}', mtime=0)[:-8] + b'12345678',
      ': damaged gzip: CRC',
    ),
    (
      'x',
      gzip.compress(b'{}', mtime=0)[:10] + b'\xff' * 20,
      ': damaged gzip: ',
    ),
  ],
  ids=lambda x: str(x)[:30],
)
def test_bad_files(here, file, content, said):
  (here / file).write_bytes(content)
  refused([f"task.path='{file}'{said}"], load, 'cnn_dm', file, num_shots=0)


def test_bad_stories(here):
  text = f'{STORY}\n<|endoftext|>\nA\n'.encode()
  (here / 'x.txt').write_bytes(text + b'\xff')
  line = text.count(b'\n') + 1
  said = f"task.path='x.txt', line {line}: not UTF-8: invalid start byte"
  refused([said], load, 'tinystories', 'x.txt', num_shots=0)
  (here / 'x.txt').write_text('A cat.')
  said = "task.path='x.txt': holds no questions of tinystories"
  refused([said], load, 'tinystories', 'x.txt', num_shots=0)


@pytest.mark.parametrize(
  'path, said',
  [
    ('none', 'No such file or directory'),
    ('.', 'Is a directory'),
    ('a\0b', 'null byte'),
    ('x' * 300, 'File name too long'),
  ],
)
def test_files_that_cannot_be_read(here, path, said):
  refused([f'task.path={path!r}: cannot be read: ', said], load, 'jsonl', path)
  write(here / 'x', GSM8K)
  where = f'task.shots_path={path!r}: cannot be read: '
  refused([where, said], load, 'gsm8k', 'x', shots_path=path)


def test_a_file_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  write(tmp_path / 'test.jsonl', GSM8K)
  write(tmp_path / 'train.jsonl', GSM8K_TRAIN)
  (found,) = load('gsm8k', '~/test.jsonl', num_shots=1)
  assert 'A kite' in found.turns[0] and 'Tom' in found.turns[0]


def test_files_of_a_bucket(tmp_path, monkeypatch):
  """Through epath, whatever its client raises."""
  write(tmp_path / 'test.jsonl', GSM8K)
  write(tmp_path / 'train.jsonl', GSM8K_TRAIN)
  real = task_files.epath.Path

  def bucket(path):
    if 'closed' in path:
      raise ImportError('Please install gcsfs\nto access it')
    return real(path.replace('gs://bucket', str(tmp_path)))

  monkeypatch.setattr(task_files.epath, 'Path', bucket)
  (found,) = load('gsm8k', 'gs://bucket/test.jsonl', num_shots=1)
  assert 'A kite' in found.turns[0] and 'Tom' in found.turns[0]
  said = "'gs://closed/x': cannot be read: Please install gcsfs to access it"
  refused([said], load, 'jsonl', 'gs://closed/x')


class Hub(types.ModuleType):
  """Stands in for `datasets`: a split is a list of rows."""

  def __init__(self, **splits):
    super().__init__('datasets')
    self.splits, self.asked = splits, []

  def load_dataset(self, path, name=None, *, split):
    self.asked.append((path, name, split))
    if split not in self.splits:
      raise ConnectionError('no network\nat all' + '!' * 999)
    return self.splits[split]


@pytest.mark.parametrize(
  'name, row, shot, source',
  [
    ('gsm8k', GSM8K, GSM8K_TRAIN, ('openai/gsm8k', 'main')),
    ('humaneval', HUMANEVAL, None, ('openai/openai_humaneval', None)),
    ('mbpp', MBPP, None, ('google-research-datasets/mbpp', None)),
    ('cnn_dm', CNN_DM, CNN_DM_TRAIN, ('abisee/cnn_dailymail', '3.0.0')),
    (
      'tinystories',
      {'text': STORY},
      {'text': STORY_TRAIN},
      ('roneneldan/TinyStories', None),
    ),
  ],
)
def test_the_hub_gives_what_a_file_does(
  tmp_path, monkeypatch, name, row, shot, source
):
  split = 'validation' if name == 'tinystories' else 'test'
  hub = Hub(**{split: [row], 'train': [shot]})
  monkeypatch.setitem(sys.modules, 'datasets', hub)
  path = write(tmp_path / 'x.jsonl', row)
  if shot is None:
    assert load(name, '') == load(name, path)
    assert hub.asked == [(*source, split)]
    return
  expected = load(
    name, path, shots_path=write(tmp_path / 'y', shot), num_shots=1
  )
  assert not hub.asked
  assert load(name, '', num_shots=1) == expected
  assert hub.asked == [(*source, split), (*source, 'train')]


def test_a_hub_that_gives_nothing(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  said = ["task.path='': openai/gsm8k ", 'pip install datasets, or give a file']
  refused(said, load, 'gsm8k', '')
  monkeypatch.setitem(sys.modules, 'datasets', Hub())
  said = ["task.path='': openai/gsm8k ", 'no network at all!', '!; give a file']
  refused(said, load, 'gsm8k', '')
  hub = Hub(test=[GSM8K, bad(GSM8K, answer=3)])
  monkeypatch.setitem(sys.modules, 'datasets', hub)
  said = ['openai/gsm8k, test, row 1: answer=3: expected text']
  refused(said, load, 'gsm8k', '')
  hub.splits['test'].pop()
  said = ["task.shots_path='': openai/gsm8k ", 'as task.shots_path']
  refused(said, load, 'gsm8k', '')
  hub.splits['train'] = [GSM8K_TRAIN]
  said = ['task.num_shots=5: expected at most 1, what openai/gsm8k, train']
  refused(said, load, 'gsm8k', '')
  hub.splits['test'] = []
  refused(['openai/gsm8k, test: holds no questions'], load, 'gsm8k', '')


class Counted(list):
  """Rows that say which of them were read."""

  def __init__(self, rows):
    super().__init__(rows)
    self.read = []

  def __getitem__(self, index):
    self.read.append(index)
    return super().__getitem__(index)


def test_few_rows_of_a_large_train_split_are_read(monkeypatch):
  train = Counted(distinct(GSM8K_TRAIN, 1000))
  hub = Hub(test=[GSM8K], train=train)
  monkeypatch.setitem(sys.modules, 'datasets', hub)
  load('gsm8k', '')
  assert len(set(train.read)) == len(train.read) == 6


def test_fingerprint():
  first = Question(0, 1, 'c', ('a', 'b'), ('r',))
  others = [
    [],
    [first],
    [first, first],
    *(
      [dataclasses.replace(first, **change)]
      for change in (
        {'index': 1},
        {'question_id': '1'},
        {'category': 'd'},
        {'turns': ('a', 'c')},
        {'turns': ('ab',)},
        {'turns': ('a', 'b', 'r'), 'reference': ()},
        {'reference': ()},
        {'reference': ('s',)},
      )
    ),
  ]
  found = [tasks.fingerprint(questions) for questions in others]
  assert len(set(found)) == len(found)
  assert all(len(f) == 16 and int(f, 16) >= 0 for f in found)
  same = dataclasses.replace(first)
  assert tasks.fingerprint((same,)) == tasks.fingerprint([first])
  # Of another run on another machine, too.
  assert tasks.fingerprint([]) == 'e3b0c44298fc1c14'
  assert tasks.fingerprint([first]) == '66c72e36f6c433d4'
