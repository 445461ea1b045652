"""Records of a search: written lines are read back, errors name the field."""

import dataclasses
import json
import math
import os
import pathlib
import sys
import tempfile

from full_disk import files_up_to
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from swift_jax.config.settings import SearchConfig
from swift_jax.errors import InputError
from swift_jax.files import locks
from swift_jax.model import skip_mask
from swift_jax.search.files import record_forms, records
from swift_jax.search.files.records import EVENTS, SOURCES, Header, PassRecord

HEADER = Header(4, '0123456789abcdef', {'skip_ratio': 0.45})
FIRST = PassRecord(
  number=3,
  evaluations=16,
  seconds=2.5,
  search_seconds=0.5,
  positions=50,
  sources=('incumbent', 'gp'),
  hits=(40, 41),
  log_probs=(-0.5, -0.25),
  masks=('1100', '0110'),
  incumbent='0110',
  incumbent_source='gp',
  matchness=0.8,
  stddev=0.05,
  event='start',
)
SECOND = dataclasses.replace(FIRST, number=5, evaluations=18, event=None)


def save(path, *passes, header=HEADER):
  with records.Writer(str(path), header) as writer:
    for record in passes:
      writer.write(record)
  return str(path)


def numbers(low=-1e9, high=1e9):
  return st.floats(low, high)


def steps(kind):
  """Increments from pass to pass."""
  return st.lists(kind, min_size=4, max_size=4)


@st.composite
def searches(draw):
  """A header and up to four passes that a search could have made."""
  num_layers = draw(st.integers(3, 6))
  free = skip_mask.num_free(num_layers)
  bits = '1' * draw(st.integers(0, free))
  masks = st.permutations(bits.ljust(free, '0')).map(''.join)
  settings = {'seed': draw(st.integers()), 'cache': draw(st.text())}
  model = draw(st.none() | st.from_regex('[0-9a-f]{16}', fullmatch=True))
  number, evaluations = (
    np.cumsum(draw(steps(st.integers(low, 99)))) for low in (1, 0)
  )
  search, others = (np.cumsum(draw(steps(numbers(low=0)))) for _ in range(2))
  passes = []
  for i in range(draw(st.integers(0, 4))):
    count, positions = draw(st.integers(1, 3)), draw(st.integers(1, 99))

    def each(kind, count=count):
      return tuple(draw(st.lists(kind, min_size=count, max_size=count)))

    passes.append(
      PassRecord(
        number=int(number[i]),
        evaluations=int(evaluations[i]),
        seconds=float(search[i] + others[i]),
        search_seconds=float(search[i]),
        positions=positions,
        sources=each(st.sampled_from(SOURCES)),
        hits=each(st.integers(0, positions)),
        log_probs=each(st.none() | numbers(high=0)),
        masks=each(masks),
        incumbent=draw(masks),
        incumbent_source=draw(st.sampled_from(SOURCES)),
        matchness=draw(st.none() | numbers()),
        stddev=draw(st.none() | numbers(low=0)),
        event=draw(st.none() | st.sampled_from(EVENTS)),
      )
    )
  return Header(num_layers, model, settings), passes


@given(searches())
def test_what_is_written_is_read(search):
  header, passes = search
  with tempfile.TemporaryDirectory() as folder:
    path = save(pathlib.Path(folder, 'é.jsonl'), *passes, header=header)
    assert records.read(path) == (header, passes)


def test_the_form_is_as_promised(tmp_path):
  mask = skip_mask.from_lists([1], [2], 4)
  path = save(tmp_path / 'x', FIRST)
  header, line = (
    json.loads(line) for line in pathlib.Path(path).read_text().splitlines()
  )
  assert header == {
    'swift_jax_search': 1,
    'num_layers': 4,
    'model': '0123456789abcdef',
    'settings': {'skip_ratio': 0.45},
  }
  assert ' '.join(line) == (
    'pass evaluations seconds search_seconds positions sources hits log_probs'
    ' masks incumbent incumbent_source matchness stddev event'
  )
  assert line['pass'] == 3 and line['hits'] == [40, 41]
  assert FIRST.shares() == (0.8, 0.82)
  assert ''.join(map(str, mask.bits().astype(int))) == '1001'


def test_what_a_search_has_at_hand_is_written(tmp_path):
  """NumPy's numbers, the settings' dataclass, a draft that overflowed."""
  header = Header(4, None, dataclasses.asdict(SearchConfig()))
  record = dataclasses.replace(
    FIRST,
    number=np.int64(1),
    hits=np.array([3, 4], np.int32),
    log_probs=np.array([math.nan, -0.5], np.float32),
    matchness=np.float32(0.5),
    stddev=math.inf,
  )
  found, (read,) = records.read(save(tmp_path / 'x', record, header=header))
  assert found.num_layers == 4 and found.model is None
  assert found.settings == json.loads(json.dumps(header.settings))
  assert read == dataclasses.replace(
    FIRST,
    number=1,
    hits=(3, 4),
    log_probs=(None, -0.5),
    matchness=0.5,
    stddev=None,
  )


def test_a_pass_is_in_the_file_before_the_next(tmp_path):
  path = str(tmp_path / 'x')
  with records.Writer(path, HEADER) as writer:
    assert records.read(path) == (HEADER, [])
    writer.write(FIRST)
    assert records.read(path) == (HEADER, [FIRST])
    writer.write(SECOND)
    assert records.read(path) == (HEADER, [FIRST, SECOND])


def test_a_torn_last_line_is_dropped(tmp_path):
  path = pathlib.Path(save(tmp_path / 'x', FIRST, SECOND))
  whole = path.read_bytes()
  last = whole.rindex(b'\n', 0, -1) + 1
  for end in range(last, len(whole)):
    path.write_bytes(whole[:end])
    assert records.read(str(path)) == (HEADER, [FIRST]), end


def refused(path, *said):
  with pytest.raises(InputError) as caught:
    records.read(str(path))
  message = str(caught.value)
  assert message.startswith(f'--search={str(path)!r}'), message
  for part in said:
    assert part in message, (part, message)


# Fields of the third line and wrong values of each.
BAD_VALUES = {
  'pass': (True, -1, None),
  'evaluations': (18.0, 10**400),
  'seconds': ('3', -1.0, math.inf, 10**400),
  'search_seconds': (None,),
  'positions': (0,),
  'sources': ([], ['gp', 'luck'], 'gp'),
  'hits': ([40, -1], [40, 41.0]),
  'log_probs': ([-1.0, '-1'], [-1.0, -math.inf]),
  'masks': (['1100', '0120'], ['1100', 3]),
  'incumbent': ('011x', None),
  'incumbent_source': ('luck', None),
  'matchness': (math.nan, '0.8', 1e13),
  'stddev': (-0.1, False),
  'event': ('stop', 0),
}
# A field, a value that contradicts others, and what else the message says.
CONTRADICTIONS = [
  ('pass', 3, 'more than the 3 of the line before'),
  ('evaluations', 15, 'at least the 16 of the line before'),
  ('seconds', 2.25, 'at least the 2.5 of the line before'),
  ('search_seconds', 0.25, 'at least the 0.5 of the line before'),
  ('search_seconds', 2.75, 'at most seconds=2.5'),
  ('sources', ['gp'], 'one for each of 2 masks'),
  ('hits', [40], 'one for each of 2 masks'),
  ('hits', [40, 51], 'at most positions=50'),
  ('log_probs', [-1.0], 'one for each of 2 masks'),
  ('masks', ['1100', '01100'], '4 times 0 or 1'),
  ('masks', ['1100', '0111'], '2 times 1 as in the incumbent'),
  ('incumbent', '11000', '4 times 0 or 1'),
]


def save_lines(tmp_path, *lines):
  path = tmp_path / 'x'
  path.write_text(''.join(f'{line}\n' for line in lines))
  return path


@pytest.fixture
def lines(tmp_path):
  """Header and two passes, as text."""
  path = save(tmp_path / 'good', FIRST, SECOND)
  return pathlib.Path(path).read_text().splitlines()


def with_value(tmp_path, lines, name, value):
  fields = json.loads(lines[2])
  assert name in fields
  fields[name] = value
  return save_lines(tmp_path, *lines[:2], json.dumps(fields))


@pytest.mark.parametrize('name', json.loads(record_forms.pass_line(FIRST)))
def test_a_wrong_field_is_named_with_its_line(tmp_path, lines, name):
  for value in BAD_VALUES[name]:
    wrong = value[-1] if isinstance(value, list) and value else value
    place = f'[{value.index(wrong)}]' if wrong is not value else ''
    said = f', line 3: {name}{place}={wrong!r:.60}: expected '
    refused(with_value(tmp_path, lines, name, value), said)


@pytest.mark.parametrize('name, value, said', CONTRADICTIONS, ids=str)
def test_a_contradiction_is_named_with_its_line(
  tmp_path, lines, name, value, said
):
  path = with_value(tmp_path, lines, name, value)
  refused(path, f', line 3: {name}=', said)


def test_masks_skip_as_many_in_every_pass(tmp_path, lines):
  fields = json.loads(lines[2])
  fields |= {'masks': ['1000', '0100'], 'incumbent': '0001'}
  path = save_lines(tmp_path, *lines[:2], json.dumps(fields))
  refused(path, ', line 3: incumbent=', '2 times 1 as in the line before')


def test_every_field_is_needed_and_no_other(tmp_path, lines):
  for name in json.loads(lines[1]):
    fields = json.loads(lines[1])
    del fields[name]
    path = save_lines(tmp_path, lines[0], json.dumps(fields), lines[2])
    refused(path, f', line 2: {name!r} is missing')
  fields = json.loads(lines[1]) | {'later': 1}
  path = save_lines(tmp_path, lines[0], json.dumps(fields), lines[2])
  assert records.read(str(path)) == (HEADER, [FIRST, SECOND])


@pytest.mark.parametrize(
  'line, said',
  [
    ('{"pass": 3', 'not JSON'),
    ('', 'not JSON'),
    ('[' * 100_000, 'not JSON'),
    ('[3]', 'expected an object, found [3]'),
  ],
  ids=['torn', 'empty', 'deep', 'list'],
)
def test_a_bad_line_before_the_end_is_no_torn_one(tmp_path, lines, line, said):
  path = save_lines(tmp_path, lines[0], line, *lines[2:])
  refused(path, ', line 2: ', said)
  path = save_lines(tmp_path, *lines[:2], line)
  refused(path, ', line 3: ', said)


@pytest.mark.parametrize(
  'change, said',
  [
    ({'swift_jax_search': 2}, 'swift_jax_search=2: expected version 1'),
    ({'swift_jax_search': True}, 'swift_jax_search=True: expected version 1'),
    ({'num_layers': 0}, 'num_layers=0: expected '),
    ({'num_layers': 5}, "line 2: incumbent='0110': expected 6 times 0 or 1"),
    ({'model': '0123'}, "model='0123': expected 16 hexadecimal digits"),
    ({'model': 3}, 'model=3: expected '),
    ({'settings': []}, 'settings=[]: expected '),
  ],
  ids=str,
)
def test_bad_headers(tmp_path, lines, change, said):
  header = json.dumps(json.loads(lines[0]) | change)
  refused(save_lines(tmp_path, header, *lines[1:]), said)


@pytest.mark.parametrize(
  'content',
  [b'', b'{"a": 1}\n', b'"swift_jax_search"\n', b'\xff\n', b'[]\n']
  + [b'{"swift_jax_search": 1, "num'],
)
def test_other_files_are_no_records(tmp_path, content):
  path = tmp_path / 'x'
  path.write_bytes(content)
  refused(path, 'is no search record')


def test_files_that_cannot_be_read(tmp_path):
  refused(tmp_path / 'none', 'cannot be read', 'No such file')
  refused(tmp_path, 'not a file')
  with pytest.raises(InputError, match='^here='):
    records.read(str(tmp_path), setting='here')


def test_only_records_are_written_over(tmp_path):
  path = tmp_path / 'x'
  path.write_text('notes\n')
  with pytest.raises(InputError, match='search.record=.* no search record'):
    records.Writer(str(path), HEADER)
  assert path.read_text() == 'notes\n'
  path.write_text('')
  save(path, FIRST, SECOND)
  save(path, SECOND)
  assert records.read(str(path)) == (HEADER, [SECOND])
  # A record of a later version is a record too.
  path.write_text('{"swift_jax_search": 9}\n')
  save(path, FIRST)
  assert records.read(str(path)) == (HEADER, [FIRST])


def test_files_that_cannot_be_written(tmp_path):
  for path, said in (
    (tmp_path / 'none' / 'x', 'cannot be written: No such file'),
    (tmp_path, 'not a file'),
  ):
    with pytest.raises(InputError, match='^search.record=.*') as caught:
      records.Writer(str(path), HEADER)
    assert said in str(caught.value)


@pytest.mark.parametrize('room', [0, 1, 40])
def test_a_full_disk_leaves_no_half_line(tmp_path, room):
  path = pathlib.Path(save(tmp_path / 'x', FIRST))
  before = path.read_bytes()
  with records.Writer(str(path), HEADER) as writer:
    writer.write(FIRST)
    with files_up_to(len(before) + room):
      with pytest.raises(InputError, match="x': cannot be written: File too"):
        writer.write(SECOND)
    assert path.read_bytes() == before
    writer.write(SECOND)
  assert records.read(str(path)) == (HEADER, [FIRST, SECOND])


def test_a_record_is_one_engines(tmp_path):
  """By any path to the file; until that engine is deleted or closes it."""
  path, link = tmp_path / 'x', tmp_path / 'link'
  link.symlink_to(path)
  with records.Writer(str(path), HEADER) as writer:
    writer.write(FIRST)
    before = path.read_bytes()
    for name in (path, link):
      with pytest.raises(InputError) as caught:
        records.Writer(str(name), HEADER)
      with pytest.raises(InputError, match=locks.HELD):
        records.check_writable(str(name))
      said = f'{locks.HELD}, or another engine here: delete that first'
      assert str(caught.value) == f"search.record='{name}': {said}"
    assert path.read_bytes() == before
    writer.write(SECOND)
  assert records.read(str(path)) == (HEADER, [FIRST, SECOND])
  save(link, SECOND)
  assert records.read(str(path)) == (HEADER, [SECOND])
  for name in (link, tmp_path / 'new'):
    records.check_writable(str(name))
  assert records.read(str(path)) == (HEADER, [SECOND])
  assert sorted(os.listdir(tmp_path)) == ['link', 'x']


def test_what_is_a_stream_of_the_run_is_no_record(tmp_path, monkeypatch):
  with open(tmp_path / 'x', 'w') as stream:
    monkeypatch.setattr(sys, '__stdout__', stream)
    with pytest.raises(InputError, match="x': is standard output of this run"):
      records.Writer(str(tmp_path / 'x'), HEADER)
  save(tmp_path / 'x', FIRST)
