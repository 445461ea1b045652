"""Files of skip sets: reading, refusals, and the file after a crash."""

import dataclasses
import errno
import functools
import json
import os
import pathlib
import signal
import stat
import string
import subprocess
import sys
import tempfile

from hypothesis import given
from hypothesis import strategies as st
import pytest
import skip_sets
import tiny_model

from swift_jax.errors import InputError
from swift_jax.files import atomic, locks
from swift_jax.search.files import cached_sets
from swift_jax.search.files.cached_sets import CachedSet

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = tiny_model.CFG.num_hidden_layers
MODEL, OTHER = '0123456789abcdef', 'fedcba9876543210'
CODE = CachedSet(
  name='code',
  attention=(1, 3),
  mlp=(2,),
  model=MODEL,
  matchness=0.91,
  positions=50,
  skip_ratio=0.45,
  context_window=40,
  date='2026-11-25T02:03:04+00:00',
  version='0.1.0',
)
# The form as the documentation promises it.
CODE_FIELDS = {
  'model': MODEL,
  'name': 'code',
  'attention': [1, 3],
  'mlp': [2],
  'matchness': 0.91,
  'positions': 50,
  'skip_ratio': 0.45,
  'context_window': 40,
  'date': '2026-11-25T02:03:04+00:00',
  'swift_jax': '0.1.0',
}
OFFICIAL = {'mine': {'attention': [1], 'mlp': [2, 3]}}


def like_code(**changes) -> CachedSet:
  return dataclasses.replace(CODE, **changes)


def ours(*sets, **changes):
  """The content of a file in our form."""
  head = {'format': 'swift_jax skip sets', 'version': 1, 'sets': list(sets)}
  return head | changes


@pytest.fixture
def file(tmp_path):
  return tmp_path / 'sets.json'


def put(file, content):
  """Writes a file: bytes and text as they are, other content as JSON."""
  if isinstance(content, bytes):
    file.write_bytes(content)
  else:
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_text(text, encoding='utf-8')


def refusal(call, *arguments) -> str:
  """The one line with which a call is refused."""
  with pytest.raises(InputError) as error:
    call(*arguments)
  assert '\n' not in str(error.value)
  return str(error.value)


# ---- the official form


def test_published_sets_fit_their_models():
  sizes = {
    'llama-2-13b/cnndm': (40, 34),
    'llama-2-13b-chat/cnndm': (40, 34),
    'llama-2-70b/cnndm': (80, 78),
    'codellama-13b/humaneval': (40, 34),
    'codellama-34b/humaneval': (48, 46),
  }
  sets = {entry.name: entry for entry in cached_sets.read('published')}
  assert set(sets) == set(sizes)
  official = cached_sets.to_official(sets.values())
  for name, (layers, skipped) in sizes.items():
    # The set names no model: any model of the right depth may use it.
    mask = cached_sets.load('published', name, layers, MODEL)
    assert mask.num_skipped() == skipped
    assert mask.to_lists() == official[name]
    assert sets[name].mask(layers).to_lists() == official[name]
    assert sets[name] == CachedSet(name, sets[name].attention, sets[name].mlp)


def test_engine_starts_from_a_file(file):
  put(file, OFFICIAL)
  engine = tiny_model.engine(search={'cache': str(file)})
  assert engine.skip_mask.to_lists() == OFFICIAL['mine']
  assert not engine.searcher.active


@pytest.mark.parametrize(
  'content, named',
  [
    ('{', 'not JSON'),
    ('', 'not JSON'),
    ('[' * 100_000, 'not JSON'),
    (b'{"\xff": 1}', 'not JSON'),
    ('{"a": {"attention": [NaN], "mlp": []}}', 'NaN'),
    ('{"a": {"attention": [Infinity], "mlp": []}}', 'Infinity'),
    ('{"a": {}, "a": {"attention": [], "mlp": []}}', "'a' comes twice"),
    ('[]', 'expected an object'),
    ('{}', 'object of named sets'),
    ('{"a": 3}', 'a=3'),
    ('{"a": {"attention": [1]}}', "'a.mlp'"),
    ('{"a": {"attention": [1], "mlp": "2"}}', "a.mlp='2'"),
    ('{"a": {"attention": [0], "mlp": []}}', 'layer 0'),
    ('{"a": {"attention": [], "mlp": [4]}}', 'layer 4'),
    ('{"a": {"attention": [7], "mlp": []}}', 'layer 7'),
    ('{"a": {"attention": [1, 1], "mlp": []}}', '[1, 1]'),
    ('{"a": {"attention": [1.5], "mlp": []}}', '1.5'),
    ('{"a": {"attention": [true], "mlp": []}}', 'True'),
    ('{"a\\n": {"attention": [], "mlp": [-1]}}', '-1'),
  ],
)
def test_bad_files_are_refused(file, content, named):
  put(file, content)
  said = refusal(cached_sets.load, str(file), '', LAYERS)
  assert said.startswith(f'search.cache={str(file)!r}')
  assert named in said


def test_unknown_names_and_missing_files():
  said = refusal(cached_sets.load, 'nowhere.json', '', LAYERS)
  assert said.startswith("search.cache='nowhere.json': ") and 'No such' in said
  said = refusal(cached_sets.load, 'published', 'llama', 40)
  assert "cache_name='llama'" in said and "'llama-2-70b/cnndm'" in said
  assert 'holds 5 sets' in refusal(cached_sets.load, 'published', '', 40)


def test_paths_that_are_no_files_are_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe')  # nobody writes: opening it would never end
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  for path in (
    tmp_path,
    tmp_path / 'pipe',
    tmp_path / 'loop',
    'a\0b',
    '\ud800',
  ):
    for call in (cached_sets.read, cached_sets.check_writable):
      assert repr(str(path)) in refusal(call, str(path))


# ---- our form


def test_our_form_is_as_promised(file):
  cached_sets.save(str(file), CODE)
  text = file.read_text(encoding='utf-8')
  assert json.loads(text) == ours(CODE_FIELDS)
  assert text.endswith('}\n')
  mask = cached_sets.load(str(file), 'code', LAYERS, MODEL)
  assert mask.to_lists() == {'attention': [1, 3], 'mlp': [2]}


def test_a_set_takes_the_place_of_the_one_of_its_model_and_name(file):
  others = [like_code(name='text'), like_code(model=OTHER)]
  for entry in (others[0], CODE, others[1]):
    cached_sets.save(str(file), entry)
  better = like_code(matchness=None, positions=None, mlp=())
  cached_sets.save(str(file), better)
  assert cached_sets.read(str(file)) == [others[0], better, others[1]]


LAYER_LISTS = st.lists(st.integers(0, 200), unique=True).map(tuple)
SHARES = st.floats(0, 1) | st.integers(0, 1)
ENTRIES = st.builds(
  CachedSet,
  name=st.text(min_size=1).filter(str.isprintable),
  attention=LAYER_LISTS,
  mlp=LAYER_LISTS,
  model=st.text('0123456789abcdef', min_size=16, max_size=16),
  matchness=st.none() | SHARES,
  positions=st.none() | st.integers(0, 2**28),
  skip_ratio=SHARES,
  context_window=st.integers(1, 2**28),
  date=st.datetimes().map(lambda d: d.isoformat(timespec='seconds') + '+00:00'),
  version=st.text(string.digits + '.', min_size=1),
)


@given(st.lists(ENTRIES, min_size=1, max_size=4))
def test_what_is_saved_is_read(entries):
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'sets.json')
    for entry in entries:
      cached_sets.save(path, entry)
    kept = {(entry.model, entry.name): entry for entry in entries}
    assert cached_sets.read(path) == list(kept.values())
    assert os.listdir(folder) == ['sets.json']


JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text()
  | st.sampled_from(['code', MODEL, CODE.date]),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=5,
)


@given(
  st.sampled_from([*CODE_FIELDS, 'format', 'version', 'sets', 'all']), JSON
)
def test_any_value_anywhere_is_taken_whole_or_refused_by_its_name(key, value):
  content = ours(CODE_FIELDS)
  if key in CODE_FIELDS:
    content['sets'] = [CODE_FIELDS | {key: value}]
  else:
    content = value if key == 'all' else content | {key: value}
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder, 'sets.json')
    put(file, json.dumps(content))
    try:
      sets = cached_sets.read(str(file))
    except InputError as error:
      assert str(file) in str(error) and '\n' not in str(error)
      return
    file.unlink()
    for entry in sets:
      cached_sets.save(str(file), entry)
    assert not sets or json.loads(file.read_text()) == content


@pytest.mark.parametrize(
  'field, value',
  [
    ('model', None),
    ('model', MODEL[:-1]),
    ('model', MODEL.upper()),
    ('model', MODEL + '0'),
    ('model', 'x' * 16),
    ('name', ''),
    ('name', 'a\nb'),
    ('name', 3),
    ('attention', [True]),
    ('attention', [1, 2.0]),
    ('attention', [-1]),
    ('attention', [2, 2]),
    ('attention', '12'),
    ('mlp', None),
    ('mlp', [[1]]),
    ('matchness', 1.1),
    ('matchness', float('nan')),
    ('matchness', True),
    ('matchness', '0.9'),
    ('positions', -1),
    ('positions', 1.0),
    ('positions', 10**30),
    ('skip_ratio', None),
    ('skip_ratio', -0.1),
    ('context_window', 0),
    ('context_window', None),
    ('date', '2026-11-25T02:03:04'),
    ('date', '2026-11-25T02:03:04Z'),
    ('date', '2026-11-25T02:03:04.500000+00:00'),
    ('date', '2026-13-25T02:03:04+00:00'),
    ('date', 20261125),
    ('swift_jax', None),
    ('swift_jax', ''),
  ],
)
def test_each_field_is_checked_when_read_and_when_saved(file, field, value):
  put(file, ours(CODE_FIELDS, CODE_FIELDS | {'name': 'b'} | {field: value}))
  said = refusal(cached_sets.read, str(file))
  is_nan = value != value
  assert said.startswith(f'search.cache={str(file)!r}')
  wrong = value[-1] if isinstance(value, list) and value != [2, 2] else value
  place = f'{field}={value!r:.10}' if wrong is value else f'={wrong!r:.10}'
  assert 'NaN' in said if is_nan else 'sets[1].' in said and place in said
  file.unlink()
  attribute = 'version' if field == 'swift_jax' else field
  said = refusal(cached_sets.save, str(file), like_code(**{attribute: value}))
  assert said.startswith(f'search.save={str(file)!r}')
  assert place in said
  assert not file.exists()


def without(key):
  return {k: v for k, v in CODE_FIELDS.items() if k != key}


BAD_CONTENT = [
  (ours(CODE_FIELDS, version=2), 'version=2: expected version 1'),
  (ours(CODE_FIELDS, version=True), 'version=True'),
  (ours(CODE_FIELDS, version='1'), "version='1'"),
  (ours(CODE_FIELDS, format='sets'), "format='sets': expected 'swift_jax skip"),
  ({'format': 'swift_jax skip sets', 'version': 1}, "'sets' is missing"),
  (ours(sets={'code': CODE_FIELDS}), 'sets={.*: expected '),
  (ours(3), r'sets\[0\]=3: expected an object'),
  (ours(note='x'), "'note' is no field"),
  (ours(CODE_FIELDS | {'note': 'x'}), r"'sets\[0\].note' is no field"),
  (
    ours(CODE_FIELDS, CODE_FIELDS | {'mlp': []}),
    r"sets\[1\]: 'code' .* comes twice",
  ),
  *(
    (ours(without(key)), rf"'sets\[0\].{key}' is missing")
    for key in CODE_FIELDS
  ),
]


@pytest.mark.parametrize('content, said', BAD_CONTENT)
def test_bad_content_is_refused_and_never_written_over(file, content, said):
  put(file, content)
  before = file.read_bytes()
  with pytest.raises(InputError, match=f'search.cache=.*sets.json.*{said}'):
    cached_sets.read(str(file))
  with pytest.raises(InputError, match=f'search.save=.*sets.json.*{said}'):
    cached_sets.save(str(file), CODE)
  assert file.read_bytes() == before


def test_a_torn_file_is_refused_wherever_it_is_torn(file):
  cached_sets.save(str(file), like_code(name='naïve'))
  whole = file.read_bytes()
  for at in [*range(0, len(whole) - 2, 13), len(whole) - 2]:
    put(file, whole[:at])
    assert 'not JSON' in refusal(cached_sets.read, str(file))
    refusal(cached_sets.check_writable, str(file))
    refusal(cached_sets.save, str(file), CODE)
    assert file.read_bytes() == whole[:at]
  put(file, whole)
  cached_sets.save(str(file), CODE)
  assert len(cached_sets.read(str(file))) == 2


# ---- which set a model gets


def test_a_set_of_another_model_is_refused_by_name(file):
  cached_sets.save(str(file), CODE)
  for name in ('code', ''):
    said = refusal(cached_sets.load, str(file), name, LAYERS, OTHER)
    assert said.startswith(f'search.cache={str(file)!r}: ')
    assert f"set 'code' is for model {MODEL}" in said
    assert f'this model is {OTHER}' in said
  # A second set of this model does not make the first one's name valid.
  cached_sets.save(str(file), like_code(name='text', model=OTHER, mlp=(3,)))
  said = refusal(cached_sets.load, str(file), 'code', LAYERS, OTHER)
  assert f"set 'code' is for model {MODEL};" in said and 'text' not in said
  said = refusal(cached_sets.load, str(file), 'none', LAYERS, OTHER)
  assert said.startswith("search.cache_name='none' is not in")


def test_each_model_gets_its_own_set(file):
  theirs = like_code(model=OTHER, attention=(2,))
  for entry in (CODE, theirs, like_code(name='text', mlp=(1,))):
    cached_sets.save(str(file), entry)

  def loaded(name, model):
    return cached_sets.load(str(file), name, LAYERS, model).to_lists()

  assert loaded('code', MODEL) == {'attention': [1, 3], 'mlp': [2]}
  assert loaded('code', OTHER) == {'attention': [2], 'mlp': [2]}
  assert loaded('text', MODEL) == {'attention': [1, 3], 'mlp': [1]}
  assert loaded('', OTHER) == loaded('code', OTHER)  # the only one it has
  said = refusal(loaded, '', MODEL)
  assert 'holds 2 sets' in said and "('code', 'text')" in said


def test_before_the_model_is_known_one_set_must_fit(file):
  deep = like_code(attention=(9,))
  cached_sets.save(str(file), deep)
  for name in ('code', ''):
    said = refusal(cached_sets.load, str(file), name, LAYERS)
    assert f"search.cache={str(file)!r}, set 'code': " in said
    assert 'layer 9' in said
  cached_sets.save(str(file), like_code(model=OTHER))
  for name in ('code', ''):
    mask = cached_sets.load(str(file), name, LAYERS)
    assert mask.to_lists() == {'attention': [1, 3], 'mlp': [2]}
  refusal(cached_sets.load, str(file), 'none', LAYERS)
  # Two names for each model: without a name no model could take one.
  for model in (MODEL, OTHER):
    cached_sets.save(str(file), like_code(name='text', model=model))
  assert 'holds 4 sets' in refusal(cached_sets.load, str(file), '', LAYERS)


def test_a_file_without_sets_can_be_saved_to_but_not_loaded(file):
  put(file, ours())
  assert 'holds no sets' in refusal(cached_sets.load, str(file), '', LAYERS)
  cached_sets.save(str(file), CODE)
  assert cached_sets.read(str(file)) == [CODE]


# ---- saving


def save_code(path):
  cached_sets.save(path, CODE)


@pytest.mark.parametrize('call', [save_code, cached_sets.check_writable])
def test_where_nothing_can_be_saved(tmp_path, monkeypatch, call):
  def refused(path, *said):
    before = sorted(tmp_path.rglob('*'))
    line = refusal(call, str(path))
    assert line.startswith(f'search.save={str(path)!r}: ')
    assert all(part in line for part in said), line
    assert sorted(tmp_path.rglob('*')) == before

  refused(tmp_path, 'not a file')
  refused(f'{tmp_path}/new/', 'not a file')
  refused('', 'not a file')
  refused('/dev/null', 'not a file')
  refused(tmp_path / 'none' / 'sets.json', 'cannot be written', 'No such')
  refused(tmp_path / ('x' * 254), 'cannot be written', 'too long')
  refused('published', 'in the package')
  file = tmp_path / 'official.json'
  put(file, OFFICIAL)
  refused(file, 'not of the form')
  assert json.loads(file.read_text()) == OFFICIAL
  refused(file / 'sets.json', 'Not a directory')
  put(file, ours())
  monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK)
  refused(file, 'not writable')  # root may write anything: as any other user


def test_a_path_that_can_be_written_is_left_as_it_is(tmp_path):
  cached_sets.check_writable(str(tmp_path / 'new.json'))
  assert os.listdir(tmp_path) == []
  save_code(str(tmp_path / 'old.json'))
  before = (tmp_path / 'old.json').read_bytes()
  cached_sets.check_writable(str(tmp_path / 'old.json'))
  assert (tmp_path / 'old.json').read_bytes() == before
  assert os.listdir(tmp_path) == ['old.json']


def test_names_that_cannot_be_saved():
  cached_sets.check_name('naïve code', 'search.name')
  for name in ('', 'a\nb', '\ud800'):
    said = refusal(cached_sets.check_name, name, 'search.name')
    assert said.startswith(f'search.name={name!r}: ')


def test_links_are_written_through_and_permissions_kept(tmp_path):
  folder = tmp_path / 'there'
  folder.mkdir()
  file, link = folder / 'sets.json', tmp_path / 'link.json'
  link.symlink_to('there/sets.json')  # dangles at first
  save_code(str(link))
  assert link.is_symlink() and file.is_file()
  umask = os.umask(0)
  os.umask(umask)
  assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
  file.chmod(0o640)
  cached_sets.save(str(link), like_code(name='text'))
  assert link.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o640
  assert len(cached_sets.read(str(file))) == 2
  assert os.listdir(folder) == ['sets.json']


@pytest.mark.parametrize('failing', ['fsync', 'replace', 'chmod'])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
  file, monkeypatch, failing
):
  save_code(str(file))
  before = file.read_bytes()

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(atomic.os, failing, full)
    said = refusal(cached_sets.save, str(file), like_code(name='text'))
    assert said.startswith(f'search.save={str(file)!r}: cannot be written: No')
  assert file.read_bytes() == before
  assert os.listdir(file.parent) == ['sets.json']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux only')
def test_a_write_that_fails_leaves_the_old_file(file, monkeypatch):
  save_code(str(file))
  before = file.read_bytes()
  real = open

  def on_full_disk(path, mode, **how):
    real(path, mode).close()
    return real('/dev/full', mode.replace('x', 'w'), **how)

  with monkeypatch.context() as patch:
    patch.setattr(atomic, 'open', on_full_disk, raising=False)
    said = refusal(cached_sets.save, str(file), like_code(name='text'))
  assert 'No space left' in said
  assert file.read_bytes() == before
  assert os.listdir(file.parent) == ['sets.json']


def test_an_interrupted_save_leaves_the_old_file(file, monkeypatch):
  save_code(str(file))
  before = file.read_bytes()

  def interrupt(_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(atomic.os, 'fsync', interrupt)
    cached_sets.save(str(file), like_code(name='text'))
  assert file.read_bytes() == before
  assert os.listdir(file.parent) == ['sets.json']


def test_where_folders_cannot_be_synced_the_set_is_saved(file, monkeypatch):
  real = os.fsync

  def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
      raise OSError(errno.EINVAL, 'no such thing here')
    real(descriptor)

  monkeypatch.setattr(atomic.os, 'fsync', fsync)
  save_code(str(file))
  assert cached_sets.read(str(file)) == [CODE]


def test_without_locks_sets_are_saved(file, monkeypatch):
  monkeypatch.setattr(locks, 'fcntl', None)
  save_code(str(file))
  cached_sets.save(str(file), like_code(name='text'))
  assert len(cached_sets.read(str(file))) == 2


def child(code, *arguments):
  """A Python process that runs `code` on the arguments."""
  prelude = (
    'import json, os, sys, time\n'
    'from swift_jax.files import atomic\n'
    'from swift_jax.search.files.cached_sets import CachedSet, save\n'
  )
  return subprocess.Popen(
    [sys.executable, '-c', prelude + code, *map(str, arguments)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )


def stopped_child(function, file, name):
  """A process that is stopped in `os.FUNCTION` while it saves a set."""
  stops = f"""
def stop(*_):
  print('here', flush=True)
  time.sleep(60)
os.{function} = stop
save(sys.argv[1], CachedSet(**json.loads(sys.argv[2])))
"""
  entry = dataclasses.asdict(like_code(name=name))
  process = child(stops, file, json.dumps(entry))
  assert process.stdout.readline() == 'here\n'
  return process


@pytest.mark.parametrize('function', ['fsync', 'replace'])
def test_a_process_killed_while_it_saves_leaves_the_old_file(file, function):
  save_code(str(file))
  before = file.read_bytes()
  process = stopped_child(function, file, 'text')
  with process:
    partial = list(file.parent.glob('.*.partial'))
    process.send_signal(signal.SIGKILL)
  assert process.returncode == -signal.SIGKILL
  # The new file was complete; only renaming it was left to do.
  assert len(partial) == 1 and len(cached_sets.read(str(partial[0]))) == 2
  assert file.read_bytes() == before
  cached_sets.check_writable(str(file))
  new = like_code(name='new')
  cached_sets.save(str(file), new)
  assert cached_sets.read(str(file)) == [CODE, new]


def test_a_set_that_is_to_stay_is_judged_under_the_lock(file, monkeypatch):
  """Another process may have saved it after this one last looked."""
  save_code(str(file))
  better = like_code(matchness=1.0)

  def comes_first(target, where, waits=True):
    with monkeypatch.context() as patch:
      patch.setattr(atomic, 'locked', real)
      cached_sets.save(str(file), better)
    return real(target, where, waits)

  real = atomic.locked
  monkeypatch.setattr(atomic, 'locked', comes_first)
  worse = like_code(matchness=0.5)
  assert not cached_sets.save(str(file), worse, lambda s: s.matchness > 0.5)
  assert cached_sets.read(str(file)) == [better]
  assert cached_sets.save(str(file), worse, lambda s: s.matchness < 0.5)
  assert cached_sets.read(str(file)) == [worse]


def test_processes_that_save_at_once_keep_each_others_sets(file):
  code = """
print('ready', flush=True)
sys.stdin.readline()
fields = json.loads(sys.argv[2])
for i in range(20):
  save(sys.argv[1], CachedSet(**fields | {'name': f'{sys.argv[3]}{i}'}))
"""
  fields = json.dumps(dataclasses.asdict(CODE))
  processes = [child(code, file, fields, name) for name in 'ab']
  for process in processes:
    assert process.stdout.readline() == 'ready\n'
  for process in processes:
    process.stdin.write('go\n')
    process.stdin.flush()
  for process in processes:
    process.communicate()
    assert process.returncode == 0
  names = {entry.name for entry in cached_sets.read(str(file))}
  assert names == {f'{name}{i}' for name in 'ab' for i in range(20)}
  assert os.listdir(file.parent) == ['sets.json']


# ---- the official form, written


def test_what_is_exported_is_read(file):
  sets = [CODE, like_code(name='text', model=OTHER, mlp=())]
  cached_sets.export(sets, str(file))
  assert json.loads(file.read_text()) == {
    'code': {'attention': [1, 3], 'mlp': [2]},
    'text': {'attention': [1, 3], 'mlp': []},
  }
  assert [entry.name for entry in cached_sets.read(str(file))] == [
    'code',
    'text',
  ]


def test_a_name_of_two_models_is_not_exported(file):
  put(file, 'old')
  sets = [CODE, like_code(model=OTHER)]
  for call in (cached_sets.to_official, lambda s: cached_sets.export(s, 'x')):
    said = refusal(call, sets)
    assert "'code'" in said and MODEL in said and OTHER in said
    assert 'choose a model' in said
  refusal(cached_sets.export, [], str(file))
  refusal(cached_sets.export, sets, str(file))
  refusal(cached_sets.export, [CODE], str(file / 'x'))
  assert file.read_text() == 'old'


# ---- the launcher


def shell(*arguments):
  """(status, stdout, stderr) of the launcher as a shell sees it."""
  done = subprocess.run(
    [sys.executable, ROOT / 'launch' / 'skip_sets.py', *map(str, arguments)],
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def launch(launch):
  """The same without the seconds that a process takes to start."""
  how = {'sections': None, 'name': 'skip_sets.py'}
  return functools.partial(launch, main=skip_sets.main, **how)


TABLE = """\
name  model             attention  mlp  matchness  skip ratio  window  date
code  0123456789abcdef  2          1    0.910      0.45        40      2026-11-25T02:03:04+00:00
text  fedcba9876543210  2          0    -          0.45        40      2026-11-25T02:03:04+00:00
"""


@pytest.fixture
def two_sets(file):
  cached_sets.save(str(file), CODE)
  text = like_code(name='text', model=OTHER, mlp=(), matchness=None)
  cached_sets.save(str(file), text)
  return file


def test_the_launcher_shows_a_table(two_sets, launch):
  assert shell(f'--sets={two_sets}') == (0, TABLE, '')
  lines = TABLE.splitlines(keepends=True)
  for choice in ('--name=text', f'--model={OTHER}'):
    shown = launch(f'--sets={two_sets}', choice)
    assert shown == (0, lines[0] + lines[2], '')


def test_the_launcher_shows_published_sets(launch):
  status, out, err = launch('--sets=published')
  assert (status, err) == (0, '')
  header, *lines = out.splitlines()
  assert len(lines) == 5 and header.startswith('name  ')
  assert lines[2].split() == 'llama-2-70b/cnndm - 41 37 - - - -'.split()


def test_the_launcher_exports(two_sets, launch):
  output = two_sets.with_name('official.json')
  status, out, err = shell(f'--sets={two_sets}', f'--export={output}')
  assert (status, out, err) == (0, f'2 sets written to {output}\n', '')
  assert set(json.loads(output.read_text())) == {'code', 'text'}
  # Two models' sets of one name: a model must be chosen.
  cached_sets.save(str(two_sets), like_code(model=OTHER, mlp=()))
  arguments = [f'--sets={two_sets}', f'--export={output}', '--name=code']
  status, out, err = launch(*arguments)
  assert (status, out) == (2, '') and 'choose a model' in err
  assert set(json.loads(output.read_text())) == {'code', 'text'}
  status, _, err = launch(*arguments, f'--model={OTHER}')
  assert (status, err) == (0, '')
  assert json.loads(output.read_text()) == {
    'code': {'attention': [1, 3], 'mlp': []}
  }


def assert_refused(ended, *said):
  status, out, err = ended
  assert status == 2
  assert out == ''
  assert err.count('\n') == 1 and err.startswith('skip_sets.py: '), err
  assert all(part in err for part in said), err


def test_bad_input_in_a_shell(file):
  put(file, '{"format": "swift_jax skip')
  assert_refused(shell(f'--sets={file}'), f'--sets={str(file)!r}', 'not JSON')
  assert_refused(shell('--sest=x'), "'sest'")


@pytest.mark.parametrize(
  'arguments, said',
  [
    ([], '--sets: a file is needed'),
    (['--sets'], 'Missing value for flag --sets'),
    (['--sets=none.json'], "--sets='none.json': cannot be read: No such"),
    (['--sets=tests'], "--sets='tests': not a file"),
    (['--sets=published', 'stray'], "unexpected argument 'stray'"),
    (['--sets=published', '--name=x'], "holds no set with --name='x'"),
    (
      ['--sets=published', '--name=x', f'--model={MODEL}'],
      f"holds no set with --model='{MODEL}' and with --name='x'",
    ),
    (['--sets=published', '--export=none/x'], "--export='none/x': cannot be"),
    (['--sets=published', '--export=tests'], "--export='tests': not a file"),
    (['--sets=published', '--config=x'], "'config'"),
  ],
)
def test_bad_input(launch, arguments, said):
  assert_refused(launch(*arguments), said)


def test_a_file_is_not_exported_onto_itself(two_sets, launch):
  before = two_sets.read_bytes()
  link = two_sets.with_name('link.json')
  link.symlink_to(two_sets)
  ended = launch(f'--sets={two_sets}', f'--export={link}')
  assert_refused(ended, f'--export={str(link)!r}')
  assert two_sets.read_bytes() == before
