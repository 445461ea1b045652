"""Answer lines and run folders: written, read, merged, refused if damaged."""

import dataclasses
import json
import math
import sys

import answer_files
from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.errors import InputError
from swift_jax.evaluation import answers, runs
from swift_jax.evaluation.answers import Answer, Detail, Turn
from swift_jax.runtime.metrics import LogProbs

SWIFT = answer_files.swift()
OWN = json.loads(answers.to_line(SWIFT[2]))  # two turns
SECONDS = st.floats(0, 1e6)
COUNT = st.integers(0, 40)
# Half a character cannot be written to a file.
TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=8)


def parse(fields) -> Answer:
  return answers.parse(json.dumps(fields).encode(), 'answers.jsonl, line 7')


LOG = st.floats(-1e6, 0)


@st.composite
def log_probs(draw, total):
  """Of so many tokens, k at each place."""
  k = draw(st.integers(0, 2))
  place = st.lists(st.tuples(COUNT, LOG), min_size=k, max_size=k)
  return LogProbs(
    draw(st.lists(LOG, min_size=total, max_size=total)),
    draw(st.lists(place, min_size=total, max_size=total)),
  )


@st.composite
def details(draw, lengths, method):
  passes = 0 if method == 'plain' else len(lengths)
  numbers = st.lists(COUNT, min_size=passes, max_size=passes).map(tuple)
  drafted = draw(numbers)
  total = sum(lengths)
  return Detail(
    tokens=tuple(draw(st.lists(COUNT, min_size=total, max_size=total))),
    prompt_tokens=draw(COUNT),
    truncated=draw(COUNT),
    finish_reason=draw(st.sampled_from(['eos', 'stop', 'length'])),
    drafted=drafted,
    accepted=tuple(draw(st.integers(0, most)) for most in drafted),
    **{
      name: draw(SECONDS)
      for name in ('prefill_s', 'decode_s', 'search_s', 'draft_s', 'verify_s')
    },
    logprobs=draw(st.none() | log_probs(total)),
  )


@st.composite
def own_or_foreign(draw):
  """Any answer, ours or of another method."""
  is_own = draw(st.booleans())
  method = draw(st.sampled_from(answers.METHODS)) if is_own else None
  passes = st.lists(st.integers(1, 4), max_size=4)
  turns, accept_lengths = [], []
  for lengths in draw(st.lists(passes, min_size=1, max_size=3)):
    detail = draw(details(lengths, method)) if is_own else None
    seconds = draw(SECONDS)
    turns.append(Turn(draw(TEXT), sum(lengths), len(lengths), seconds, detail))
    accept_lengths += lengths
  share = st.none() | st.floats(0, 1)
  ours = {
    'index': draw(COUNT),
    'method': method,
    'reference': tuple(draw(st.lists(TEXT, max_size=2))),
    'skip_ratio': draw(share),
    'matchness': draw(share),
  }
  return Answer(
    question_id=draw(COUNT | TEXT),
    category=draw(TEXT),
    answer_id=draw(TEXT),
    model_id=draw(TEXT),
    turns=tuple(turns),
    accept_lengths=tuple(accept_lengths),
    tstamp=draw(SECONDS),
    **(ours if is_own else {}),
  )


@given(own_or_foreign())
def test_what_is_written_is_read(answer):
  line = answers.to_line(answer)
  assert line.endswith('\n') and '\n' not in line[:-1]
  assert answers.parse(line.encode(), 'here') == answer
  assert (answers.KEY in json.loads(line)) == (answer.index is not None)


def test_a_line_has_spec_benchs_keys():
  fields = dict(OWN)
  del fields[answers.KEY]
  assert fields == {
    'question_id': 3,
    'category': 'writing',
    'answer_id': 'swift-3',
    'model_id': 'llama',
    'choices': [
      {
        'index': 0,
        'turns': ['abcd', 'efgh'],
        'decoding_steps': [1, 3],
        'new_tokens': [4, 4],
        'wall_time': [1.0, 1.0],
        'accept_lengths': [4, 2, 1, 1],
      }
    ],
    'tstamp': 205.0,
  }
  assert parse(fields).index is None


def test_totals_are_over_all_turns():
  assert (SWIFT[2].new_tokens, SWIFT[2].wall_s) == (8, 2.0)


def test_a_number_that_json_lacks_is_not_written():
  with pytest.raises(ValueError):
    answers.to_line(dataclasses.replace(SWIFT[0], tstamp=math.nan))


NO_TEXT = (3, None, ['a'])
NO_COUNT = (-1, 1.5, True, '1', None, 10**400)
NO_COUNTS = (3, None, '12', [-1], [1.0, 2.0], [True])
NO_NUMBER = (10**400, -0.5, math.nan, math.inf, '1', True, None)
TOP = {
  'question_id': (1.5, None, True, [1]),
  'category': NO_TEXT,
  'answer_id': NO_TEXT,
  'model_id': NO_TEXT,
  'choices': ([], {}, None),
  'tstamp': NO_NUMBER,
}
CHOICE = {
  'turns': ([], 'abcd', ['abcd', 4], None),
  'decoding_steps': (*NO_COUNTS, [4], [1, 2]),
  'new_tokens': (*NO_COUNTS, [4], [4, 5], [4, 4, 0]),
  'wall_time': (1.0, None, [1.0], [1.0, -1.0], [1.0, math.nan], ['1', 1]),
  'accept_lengths': (*NO_COUNTS, [8], [4, 2, 1], [5, 1, 1, 1]),
}
OURS = {
  'index': NO_COUNT,
  'method': ('fast', 3, None, []),
  'reference': ('42', None, [42]),
  'skip_ratio': NO_NUMBER[:-1],
  'matchness': NO_NUMBER[:-1],
}
DETAIL = {
  'tokens': (*NO_COUNTS, [1, 2, 3]),
  'prompt_tokens': NO_COUNT,
  'truncated': NO_COUNT,
  'finish_reason': ('stopped', 3, None),
  'drafted': (*NO_COUNTS, [], [1, 2]),
  'accepted': (*NO_COUNTS, [], [1, 2], [1000]),
  **dict.fromkeys(
    ('prefill_s', 'decode_s', 'search_s', 'draft_s', 'verify_s'), NO_NUMBER
  ),
}
PLACES = {
  'top': (TOP, lambda line: line),
  'choice': (CHOICE, lambda line: line['choices'][0]),
  'ours': (OURS, lambda line: line[answers.KEY]),
  'detail': (DETAIL, lambda line: line[answers.KEY]['turns'][0]),
}
FIELDS = [(place, name) for place in PLACES for name in PLACES[place][0]]


@pytest.mark.parametrize('place, name', FIELDS)
def test_a_field_that_is_missing_or_wrong_is_refused(place, name):
  known, at = PLACES[place]
  line = json.loads(json.dumps(OWN))
  del at(line)[name]
  with pytest.raises(InputError, match=f'^answers.jsonl, line 7: .*{name}'):
    parse(line)
  for value in known[name]:
    line = json.loads(json.dumps(OWN))
    at(line)[name] = value
    # What contradicts another field may be told of that one.
    with pytest.raises(
      InputError, match=r'^answers.jsonl, line 7: [\w.\[\]]+='
    ):
      parse(line)


PLACE = [[[3, -0.5]]]
LOGPROBS = {
  'chosen': [-0.5, -1, 0, -2.5],
  'top': [[[3, -0.5], [1, -2]]] * 4,
}


def test_log_probabilities_are_a_turns_own():
  """One may have them and the next not; where there are none, there is no key."""
  line = json.loads(json.dumps(OWN))
  line[answers.KEY]['turns'][0]['logprobs'] = LOGPROBS
  read = parse(line)
  assert read.turns[0].detail.logprobs == LogProbs(
    [-0.5, -1, 0, -2.5], [[(3, -0.5), (1, -2)]] * 4
  )
  assert read.turns[1].detail.logprobs is None
  assert json.loads(answers.to_line(read)) == line
  plain = dataclasses.replace(read.turns[0].detail, logprobs=None)
  assert plain == SWIFT[2].turns[0].detail


@pytest.mark.parametrize(
  'value, said',
  [
    ([-0.5] * 4, r'logprobs=\[.*: expected an object'),
    ({}, "'swift_jax.turns.0..logprobs.chosen' is missing"),
    ({'chosen': LOGPROBS['chosen']}, "'.*logprobs.top' is missing"),
    *(
      ({**LOGPROBS, 'chosen': value}, said)
      for value, said in [
        (None, r'.*\.chosen=None: expected'),
        ([-1, -1, -1, '1'], r".*\.chosen\[3\]='1': expected"),
        ([-1, -1, -1, True], r'.*\.chosen\[3\]=True: expected'),
        ([-1, -1, -1, 0.5], 'logprobs=.*: expected numbers <= 0'),
        ([-1, -1, -1, math.nan], 'logprobs=.*: expected numbers <= 0'),
        ([-1, -1, -1, -math.inf], 'logprobs=.*: expected numbers <= 0'),
        ([-1, -1, -1], 'logprobs.chosen=.*: expected one for each of 4 tokens'),
      ]
    ),
    *(
      ({**LOGPROBS, 'top': value}, said)
      for value, said in [
        ({}, r'.*\.top={}: expected'),
        (PLACE * 3 + [[3, -0.5]], r'.*\.top\[3\]\[0\]=3: expected'),
        (PLACE * 3 + [[[3]]], r".*\.top\[3\]\[0\]\[1\]' is missing"),
        (
          PLACE * 3 + [[[3, -1, 1]]],
          r'.*\.top\[3\]\[0\]=\[3, -1, 1\]: expected',
        ),
        (PLACE * 3, 'logprobs.top=.*: expected one for each of 4 tokens'),
        (PLACE * 3 + [[]], 'logprobs.top=.*: expected as many for each token'),
        (PLACE * 3 + [[[-3, -1]]], 'logprobs.top=.*: expected token ids >= 0'),
        (PLACE * 3 + [[[3, 1]]], 'logprobs=.*: expected numbers <= 0'),
      ]
    ),
  ],
)
def test_log_probabilities_that_are_wrong_are_refused(value, said):
  line = json.loads(json.dumps(OWN))
  line[answers.KEY]['turns'][0]['logprobs'] = value
  with pytest.raises(InputError, match=f'^answers.jsonl, line 7: .*{said}'):
    parse(line)


def test_every_field_that_is_written_is_checked():
  assert OWN.keys() == {*TOP, answers.KEY}
  assert OWN['choices'][0].keys() == {*CHOICE, 'index'}
  assert OWN[answers.KEY].keys() == {*OURS, 'turns'}
  assert OWN[answers.KEY]['turns'][0].keys() == DETAIL.keys()


@pytest.mark.parametrize('value', [None, [], {}, [{}], 'x', 3])
def test_turns_of_ours_that_are_no_list_of_details(value):
  line = json.loads(json.dumps(OWN))
  line[answers.KEY]['turns'] = value
  with pytest.raises(InputError, match='line 7: .?swift_jax.turns'):
    parse(line)
  line[answers.KEY] = value
  if value is not None:  # then it is another method's
    with pytest.raises(
      InputError, match="line 7: (swift_jax=|'swift_jax.index' is)"
    ):
      parse(line)


@pytest.mark.parametrize(
  'line, said',
  [
    (b'', 'not JSON'),
    (b'{"question_id": 1', 'not JSON'),
    (b'\xff{}', 'not JSON'),
    (b'[' * 100_000, 'not JSON'),
    (b'[1]', 'expected an object'),
    (b'null', 'expected an object'),
    (json.dumps({**OWN, 'choices': [3]}).encode(), 'choices'),
  ],
)
def test_what_is_no_object_is_refused(line, said):
  with pytest.raises(InputError, match=f'^here: .*{said}'):
    answers.parse(line, 'here')


def test_plain_lines_have_no_drafts():
  line = json.loads(answers.to_line(answer_files.plain()[0]))
  line[answers.KEY]['turns'][0]['drafted'] = [1, 1, 1, 1]
  with pytest.raises(InputError, match='drafted=.*for each of 0 passes'):
    parse(line)


def test_foreign_lines_may_count_lengths_as_they_like():
  line = {name: value for name, value in OWN.items() if name != answers.KEY}
  line['choices'][0] = {**OWN['choices'][0], 'accept_lengths': [3]}
  line['more'] = 'of theirs'
  read = parse(line)
  assert read.accept_lengths == (3,)
  assert (read.index, read.method, read.reference) == (None, None, ())
  assert [turn.detail for turn in read.turns] == [None, None]


def write(folder, answered, file='answers.jsonl', **changes):
  """A run's folder with the answers of one process."""
  folder.mkdir(exist_ok=True)
  facts = answer_files.run_facts(**changes)
  (folder / 'run.json').write_text(json.dumps(facts))
  (folder / file).write_text(''.join(map(answers.to_line, answered)))
  return folder


def refused(path, *said, **options):
  with pytest.raises(InputError) as error:
    runs.read_run(str(path), '--candidate', **options)
  for part in ('--candidate=', *said):
    assert part in str(error.value)
  assert '\n' not in str(error.value)


def test_a_run_is_read_in_the_order_of_the_data(tmp_path):
  folder = write(tmp_path / 'run', SWIFT[::-1])
  read = runs.read_run(str(folder), '--candidate')
  assert read.answers == SWIFT
  assert (read.missing, read.path) == ((), str(folder))
  assert read.facts == answer_files.run_facts()


def test_an_answers_file_alone_is_read_without_facts(tmp_path):
  folder = write(tmp_path / 'run', SWIFT[1:])
  read = runs.read_run(str(folder / 'answers.jsonl'), '--candidate')
  assert (read.answers, read.facts, read.missing) == (SWIFT[1:], None, ())


def test_files_of_several_processes_are_merged(tmp_path):
  folder = tmp_path / 'run'
  for process, mine in enumerate([SWIFT[1:], SWIFT[:1]]):
    name = runs.answers_name(process, 2)
    assert name == f'answers-{process}.jsonl'
    write(folder, mine, name, num_processes=2)
  assert runs.read_run(str(folder), '--candidate').answers == SWIFT
  (folder / 'answers-1.jsonl').unlink()
  refused(folder, 'answers-1.jsonl', 'process 1 wrote nothing')
  read = runs.read_run(str(folder), '--candidate', allow_missing=True)
  assert (read.answers, read.missing) == (SWIFT[1:], (0,))


def test_a_question_in_two_files_is_refused(tmp_path):
  folder = tmp_path / 'run'
  write(folder, SWIFT, 'answers-0.jsonl', num_processes=2)
  write(folder, SWIFT[1:2], 'answers-1.jsonl', num_processes=2)
  refused(
    folder,
    'answers-1.jsonl, line 1: question_id=2',
    'also in',
    'answers-0.jsonl, line 2',
  )


@pytest.mark.parametrize('gap', [0, 1, 2])
def test_a_gap_is_a_run_that_is_not_finished(tmp_path, gap):
  kept = [answer for answer in SWIFT if answer.index != gap]
  folder = write(tmp_path / 'run', kept)
  refused(folder, '1 of 3 questions', f'index {gap}', 'not finished')
  read = runs.read_run(str(folder), '--candidate', allow_missing=True)
  assert (list(read.answers), read.missing) == (kept, (gap,))


def test_a_foreign_line_among_ours_is_refused(tmp_path):
  foreign = dataclasses.replace(SWIFT[0], index=None, question_id='x')
  folder = write(tmp_path / 'run', [*SWIFT, foreign])
  refused(folder, "question_id='x': index=None")


def test_two_answers_in_one_place_are_refused(tmp_path):
  twin = dataclasses.replace(SWIFT[0], question_id='x')
  folder = write(tmp_path / 'run', [*SWIFT, twin])
  refused(folder, f'index={SWIFT[0].index}: expected one')


@pytest.mark.parametrize(
  'field, value',
  [
    ('indices', [[0]]),
    ('num_processes', 0),
    ('model_id', 3),
    ('commits', 'abc'),
  ],
)
def test_facts_that_are_wrong_are_named(tmp_path, field, value):
  folder = write(tmp_path / 'run', SWIFT)
  file = folder / runs.RUN
  file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
  refused(folder, f'run.json: {field}={value!r}: expected')


def test_a_store_without_its_client_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  refused('gs://bucket/run', 'cannot be read: ', 'gcsfs')
  refused('http://host/run', 'cannot be read: ')


def test_answers_to_what_was_not_asked_are_refused(tmp_path):
  folder = write(tmp_path / 'run', SWIFT, indices=(0, 2))
  refused(folder, 'index 1 is no question of this run')


def damage(content, kind):
  lines = content.splitlines()
  if kind == 'torn':
    return content[:-9]
  if kind == 'no end':
    return content[:-1]
  if kind == 'doubled':
    return content + lines[0] + '\n'
  if kind == 'model':
    return content + lines[0].replace('"llama"', '"other"') + '\n'
  if kind == 'blank':
    return content.replace('\n', '\n\n', 1)
  raise AssertionError(kind)


@pytest.mark.parametrize(
  'kind, said',
  [
    ('torn', ['line 3: torn']),
    ('no end', ['line 3: torn']),
    ('doubled', ['line 4: question_id=1', 'line 1']),
    ('model', ["line 4: model_id='other'", "'llama'"]),
    ('blank', ['line 2: not JSON']),
  ],
)
@pytest.mark.parametrize('is_folder', [True, False])
def test_damaged_files_are_refused(tmp_path, kind, said, is_folder):
  folder = write(tmp_path / 'run', SWIFT)
  file = folder / 'answers.jsonl'
  file.write_text(damage(file.read_text(), kind))
  refused(folder if is_folder else file, 'answers.jsonl', *said)
  refused(
    folder if is_folder else file, 'answers.jsonl', *said, allow_missing=True
  )


def test_a_process_that_has_not_answered_yet(tmp_path):
  """Its empty file is a part of a run; alone it is no answers file."""
  folder = write(tmp_path / 'run', SWIFT)
  file = folder / 'answers.jsonl'
  file.write_text('')
  refused(file, 'answers.jsonl: holds no answers')
  refused(folder, '3 of 3 questions have no answer')
  read = runs.read_run(str(folder), '--candidate', allow_missing=True)
  assert (read.answers, read.missing) == ((), (0, 1, 2))


def test_what_cannot_be_read_is_named(tmp_path):
  refused(tmp_path / 'none', 'none: no such file or folder')
  refused(tmp_path, 'run.json: no such file: no folder of a run')
  (tmp_path / 'run.json').mkdir()
  refused(tmp_path, 'cannot be read')


@pytest.mark.parametrize(
  'content, said',
  [
    ('', 'not JSON'),
    ('[]', 'num_processes=None'),
    ('{"num_processes": true}', 'num_processes=True'),
    ('{"num_processes": 1, "model_id": 3}', 'model_id=3'),
    ('{"num_processes": 1, "model_id": "a"}', 'indices=None'),
  ],
)
def test_facts_that_are_not_ours_are_refused(tmp_path, content, said):
  folder = write(tmp_path / 'run', SWIFT)
  (folder / 'run.json').write_text(content)
  refused(folder, 'run.json: ', said)
