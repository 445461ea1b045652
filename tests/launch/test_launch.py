"""What the launchers do with flags, files and bad input.

Most cases run in this process: `launch` is what a shell would see of one.
"""

import dataclasses
import errno
import gzip
import importlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys

from cli import common, console
import demo
from full_disk import files_up_to
import generate
import generate_prompts
import jax
import pytest
from reference import cases

from swift_jax.checkpoint import load
from swift_jax.config.sampling import SamplingConfig, resolve
from swift_jax.config.settings import DecodeConfig, SearchConfig
from swift_jax.errors import InputError
from swift_jax.runtime.metrics import LogProbs, Metrics
from swift_jax.runtime.results import Result
from swift_jax.search.files import cached_sets

ROOT = pathlib.Path(__file__).parents[2]
METRICS = Metrics(
  **{field.name: 1 for field in dataclasses.fields(Metrics)} | {'method': 'x'}
)


class FakeEngine:
  """Echoes prompts, so that only the launcher is under test."""

  remarks = ()

  def describe(self):
    return 'an echo'

  def encode(self, prompts):
    return [list(prompt) for prompt in prompts]

  def warmup(self, decode, prompt_length, search):
    pass

  def resolve(self, sampling):
    return resolve(sampling, SamplingConfig())

  def generate(self, prompts, decode, on_text, indices):
    assert len(indices) == len(prompts)
    assert len(prompts) <= decode.batch_size
    results = []
    for row, prompt in enumerate(prompts):
      if prompt == 'NaN':
        raise InputError('the logits are not finite')
      on_text(row, prompt.upper())
      results.append(Result(prompt, prompt.upper(), [1, 2], 'eos', METRICS, []))
    return results


KEPT = jax.config.jax_compilation_cache_dir
ANNOUNCED = f'generate.py: an echo; compilation cache: {KEPT}\n'


@pytest.fixture
def engine(monkeypatch):
  monkeypatch.setattr(common, 'load_engine', lambda config: FakeEngine())


def configured(launch, *arguments):
  """The config that a launcher would run with."""
  seen = []
  status, _, err = launch(*arguments, main=seen.append)
  assert (status, err) == (0, '')
  return seen[0]


def test_fields_of_every_kind_can_be_set(launch):
  config = configured(
    launch,
    '--config=configs/tiny.py',
    '--config.model.path=some/where',
    '--config.decode.ignore_eos',
    '--config.sampling.max_new_tokens=7',
    "--config.sampling.stop_strings=('a b', 'c')",
    '--config.draft.verify_widths=(4, 16)',
    '--noconfig.draft.tree',
    '--config.draft.confidence_threshold=1',
    '--config.search.skip_ratio=.25',
  )
  decode = common.decode_config(config)
  assert decode.ignore_eos is True
  assert decode.sampling.max_new_tokens == 7
  assert decode.sampling.stop_strings == ('a b', 'c')
  assert decode.prefill_chunk == 16  # the file's
  draft = common.section(config, 'draft')
  assert draft.verify_widths == (4, 16)
  assert draft.tree is False
  assert draft.confidence_threshold == 1.0
  assert common.section(config, 'search').skip_ratio == 0.25
  assert common.section(config, 'model').path == 'some/where'


@pytest.mark.parametrize(
  'given, text',
  [
    (r'a\nb', 'a\nb'),
    (r'\n', '\n'),
    ('\n', '\n'),  # as a shell's $'...' has it
    (r'\\n', r'\n'),
    (r'\d\.\ ', r'\d\.\ '),
    (r'\x41\u00e9\U0001f642\101\N{BULLET}', 'Aé🙂A•'),
    (r'\"\'', '"\''),
    ('é"漢', 'é"漢'),
    (r'\é', r'\é'),
    ('5', '5'),
    ('None', 'None'),
    ('### User: ', '### User: '),
    ('[INST]', '[INST]'),
    ('(', '('),
    ('()', '()'),
    ('[]', '[]'),
    ("don't, ", "don't, "),
  ],
)
def test_a_text_has_the_same_escapes_wherever_it_stands(launch, given, text):
  assert generate_prompts.read_prompts(given, None)[0].text == text
  flag = '--config.sampling.stop_strings'
  for arguments in ([f'{flag}={given}'], [flag, given]):
    sampling = common.section(configured(launch, *arguments), 'sampling')
    assert sampling.stop_strings == (text,)
  if '"' not in given and "'" not in given and '\n' not in given:
    several = f'{flag}=(\'{given}\', "x")'
    sampling = common.section(configured(launch, several), 'sampling')
    assert sampling.stop_strings == (text, 'x')


def test_without_a_config_it_is_the_demo(launch):
  config = configured(launch)
  assert common.section(config, 'model').path == 'demo'


@pytest.mark.parametrize('name', ['generate', 'evaluate', 'benchmark', 'demo'])
def test_help_is_short_and_quick(name):
  """All flags and fields on two screens, and jax is not even imported."""
  file = ROOT / 'launch' / f'{name}.py'
  code = (
    'import runpy, sys\n'
    f"sys.argv = ['{file}', '--config.decode.batch_size=3', '--help']\n"
    f"sys.path.insert(0, '{file.parent}')\n"
    f"try: runpy.run_path('{file}', run_name='__main__')\n"
    "finally: print('jax' in sys.modules, 'transformers' in sys.modules)"
  )
  command = [sys.executable, '-c', code]
  done = subprocess.run(command, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '')
  *lines, imported = done.stdout.splitlines()
  assert imported == 'False False'
  assert len(lines) < 100 and max(map(len, lines)) < 100
  launcher = importlib.import_module(name)
  assert lines[0] == launcher.__doc__.splitlines()[0]
  sections = getattr(launcher, 'SECTIONS', common.SECTIONS)
  names = {line.split('=')[0].split()[0] for line in lines if line.strip()}
  for section, cls in sections.items():
    assert f'--config.{section}.' in names
    # A section in a section is none: it is `--config.sampling.`.
    own = {field.name for field in dataclasses.fields(cls)} - {'sampling'}
    published = {name for name in own if f'{section}.{name}' in names}
    assert own - published <= names and not published & names
  text = done.stdout
  assert '--verbosity' in names and '--config.compilation_cache_dir' in names
  assert re.search(r'^  method=.swift. +`plain` \(a token a pass\)', text, re.M)


def test_help_has_the_flags_and_what_the_config_file_says(launch):
  status, out, err = launch('--config=configs/tiny.py', '--help')
  assert (status, err) == (0, '')
  assert re.search(
    r'^--prompt +one prompt; escapes as in Python: \\n', out, re.M
  )
  assert re.search(r'^--\[no\]chat +each prompt is a user', out, re.M)
  assert re.search(r'^  max_new_tokens=8 +the most tokens written', out, re.M)
  for field in dataclasses.fields(SearchConfig):
    # Each has a meaning, so that none was lost on the way from the docstring.
    assert re.search(rf'^  (search\.)?{field.name}=\S+ +\S', out, re.M)
  # The last section is that of the published method.
  _, published = out.split('comparisons with the published method\n')
  assert re.findall(r'^  ([\w.]+)=', published, re.M) == [
    *('draft.confidence_threshold', 'draft.tree_bounds', 'draft.adaptive'),
    'search.recipe',
  ]


def write(tmp_path, name, content):
  file = tmp_path / name
  file.write_bytes(content if isinstance(content, bytes) else content.encode())
  return file


REFUSED_FLAGS = [
  (['--promt=x'], ["'promt'", 'prompt']),
  (['--config.draft.nope=3'], ['--config.draft.nope=3', 'no such field']),
  (['--config.nope=3'], ['--config.nope=3']),
  (['--config.draft.max_lenght=3'], ['did you mean draft.max_draft_length?']),
  (['--noconfig.draft.nope'], ['--noconfig.draft.nope']),
  (
    ['--config.draft.max_draft_length=many'],
    ['config.draft.max_draft_length', 'many'],
  ),
  (['--config.draft.max_draft_length=0'], ['draft.max_draft_length=0']),
  (['--config.draft.tree=perhaps'], ['config.draft.tree', 'perhaps']),
  (
    ['--config.draft.confidence_threshold=nan'],
    ['draft.confidence_threshold=nan'],
  ),
  (['--config.draft.verify_widths=(4'], ["draft.verify_widths='(4'"]),
  (
    ['--config.draft.verify_widths=(4, 7)'],
    ['draft.verify_widths=(4, 7)', 'max_draft_length=7'],
  ),
  (['--config.search.skip_ratio=-1'], ['search.skip_ratio=-1.0']),
  (['--config.decode.method=fast'], ["decode.method='fast'"]),
  (
    [r'--config.sampling.stop_strings=a\x4'],
    [r"--config.sampling.stop_strings='a\\x4': \x is no whole escape"],
  ),
  (
    ["--config.sampling.stop_strings=('a', b)"],
    ['--config.sampling.stop_strings="(\'a\', b)"', 'expected a text'],
  ),
  (["--config.sampling.stop_strings=('a', 5)"], ["strings=('a', 5): expected"]),
  ([r'--prompt=\u12'], [r"--prompt='\\u12': \u is no whole escape"]),
  (['--config.sampling.max_new_tokens=-1'], ['sampling.max_new_tokens=-1']),
  (['--config.decode.batch_size=0'], ['decode.batch_size=0']),
  (['--config.model.dtype=int8'], ["model.dtype='int8'"]),
  (['--config.model.weights=int4'], ["model.weights='int4'"]),
  (['--config.model.path='], ["model.path=''"]),
  (['--config.compilation_cache_dir.x=3'], ['dir.x=3: the config has no such']),
  (['--config=configs/none.py'], ['--config=configs/none.py', 'no such file']),
  (['--config=configs/none.py:x'], ['--config=configs/none.py:x: no such']),
  (['--config=README.md'], ['--config=README.md']),
  (
    ['--config=configs/demo.py:x'],
    ['--config=configs/demo.py:x: TypeError: get_config() takes 0'],
  ),
  (['--config'], ['--config: a file is missing']),
  (['stray'], ["unexpected argument 'stray'"]),
  (['--prompts_file=none.jsonl'], ['--prompts_file=none.jsonl', 'No such']),
  (['--prompts_file=tests'], ['--prompts_file=tests', 'directory']),
  (['--prompts_file=x', '--prompt=y'], ['--prompts_file=x', "--prompt='y'"]),
  (['--output_json=tests'], ['--output_json=tests', 'not a file']),
  (['--output_json=none/x'], ['--output_json=none/x', 'No such']),
  (['--output_json=-'], ['--output_json=-: expected a file']),
  (['--output_json=/dev/null'], ['--output_json=/dev/null: not a file']),
  (['--output_json=out/'], ['--output_json=out/: not a file']),
  (
    ['--config.search.save=x', '--output_json=./x'],
    ['--output_json=./x: is the file of search.save too'],
  ),
  (
    ['--config.search.save=x', '--config.search.record=./x'],
    ["search.record='./x': is the file of search.save too"],
  ),
  (['--prompt=a\udcff'], ["--prompt: the prompt='a\\udcff': expected whole"]),
  (
    ['--config.sampling.stop_strings=a\udcff'],
    ["sampling.stop_strings[0]='a\\udcff': expected whole characters"],
  ),
]


def assert_refused(ended, said):
  status, out, err = ended
  assert status == 2
  assert out == ''
  assert err.count('\n') == 1 and err.startswith('generate.py: '), err
  for part in said:
    assert part in err


@pytest.mark.parametrize(
  'arguments, said', REFUSED_FLAGS, ids=lambda value: str(value[0])
)
def test_bad_flags(launch, arguments, said):
  has_prompt = any(a.startswith(('--prompt', 'stray')) for a in arguments)
  prompt = [] if has_prompt else ['--prompt=x']
  assert_refused(launch(*prompt, *arguments), said)


def test_no_prompt_and_an_empty_one(launch):
  assert_refused(launch(), ['--prompt or --prompts_file is needed'])
  assert_refused(launch('--prompt='), ['--prompt: the prompt is empty'])


@pytest.mark.parametrize(
  'content, said',
  [
    ('{"prompt": "a"}\n\n{"prompt": \n', ['line 3', 'not JSON']),
    ('{"prompt": "a"}\n["a"]\n', ['line 2', '"prompt"', "['a']"]),
    ('{"prompt": 3}\n', ['line 1', "{'prompt': 3}"]),
    ('{"prompt": ""}\n', ['line 1', 'empty']),
    ('{"prompt": "\\ud800"}\n', ['line 1: the prompt=', 'whole characters']),
    (b'{"prompt": "\xff"}\n', ['line 1', 'not JSON']),
    ('[' * 100_000, ['line 1', 'not JSON']),
    ('\n \n', ['holds no prompts']),
  ],
)
def test_bad_prompts_files(launch, tmp_path, content, said):
  file = write(tmp_path, 'prompts.jsonl', content)
  ended = launch(f'--prompts_file={file}')
  assert_refused(ended, [f'--prompts_file={file}', *said])


@pytest.mark.parametrize(
  'text, said',
  [
    ('def get_config(:\n', ['SyntaxError']),
    ('import nothing_of_that_name\n', ['ModuleNotFoundError']),
    ('x = 1\n', ['AttributeError', 'get_config']),
    ('def get_config():\n  return None\n', ['None', 'ConfigDict']),
  ],
)
def test_bad_config_files(launch, tmp_path, text, said):
  file = write(tmp_path, 'config.py', text)
  assert_refused(launch(f'--config={file}'), [f'--config={file}', *said])


def test_out_of_memory_says_what_to_lower(launch):
  def main(config):
    error = RuntimeError('RESOURCE_EXHAUSTED: Out of memory: 7 bytes\nmore')
    error.add_note('3 answers are kept')
    raise error

  ended = launch('--config.decode.batch_size=64', main=main)
  said = ['lower decode.batch_size=64, sampling.max_new_tokens=', '7 bytes']
  said.append('; 3 answers are kept')
  assert_refused(ended, [*said, '--config.model.weights=int8'])


def test_another_error_of_xla_keeps_its_traceback(launch):
  def main(config):
    raise RuntimeError('INTERNAL: a bug')

  with pytest.raises(RuntimeError, match='a bug'):
    launch(main=main)


def test_prompts_files_are_read_as_they_are(tmp_path, monkeypatch):
  content = (
    '\ufeff{"prompt": "a\u2028b", "id": 1}\r\n\n{"prompt": "c"}'.encode()
  )
  file = write(tmp_path, 'prompts.jsonl', content)
  prompts = generate_prompts.read_prompts(None, str(file))
  assert [prompt.text for prompt in prompts] == ['a\u2028b', 'c']
  assert [prompt.where.split(', ')[1] for prompt in prompts] == [
    'line 1',
    'line 3',
  ]
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(content)))
  prompts = generate_prompts.read_prompts(None, '-')
  assert [prompt.text for prompt in prompts] == ['a\u2028b', 'c']
  monkeypatch.setattr(sys, 'stdin', None)
  with pytest.raises(InputError, match='--prompts_file=-: standard input is'):
    generate_prompts.read_prompts(None, '-')


def test_texts_come_in_order_and_records_a_line_each(launch, engine, tmp_path):
  prompts = ['a', 'é\u2028', 'c', 'd', 'e']
  lines = [json.dumps({'prompt': prompt}) for prompt in prompts]
  file = write(tmp_path, 'prompts.jsonl', '\n'.join(lines))
  output = tmp_path / 'out.jsonl'
  status, out, err = launch(
    f'--prompts_file={file}',
    f'--output_json={output}',
    '--config.decode.batch_size=2',
  )
  assert (status, err) == (0, ANNOUNCED)
  shown = [
    f'--- prompt {i} of 5\n{p.upper()}' for i, p in enumerate(prompts, 1)
  ]
  assert out == '\n'.join(shown) + '\n'
  raw = output.read_text(encoding='utf-8').split('\n')[:-1]
  records = [json.loads(line) for line in raw]
  assert [record['prompt'] for record in records] == prompts
  keys = ['prompt', 'text', 'tokens', 'finish_reason', 'metrics']
  assert list(records[0]) == keys
  assert tuple(records[0]['metrics']) == generate.METRICS
  assert set(os.listdir(tmp_path)) == {'prompts.jsonl', 'out.jsonl'}


def test_a_record_has_log_probabilities_where_they_are():
  result = Result('p', 'P', [1, 2], 'eos', METRICS, [])
  without = generate.record(result)
  assert 'logprobs' not in without
  logs = LogProbs([-0.5, -1.0], [[(1, -0.5)], [(7, -0.25)]])
  found = generate.record(dataclasses.replace(result, logprobs=logs))
  assert json.loads(json.dumps(found)) == {
    **without,
    'logprobs': {
      'chosen': [-0.5, -1.0],
      'top': [[[1, -0.5]], [[7, -0.25]]],
    },
  }


def test_one_prompt_is_written_bare(launch, engine):
  assert launch('--prompt=a') == (0, 'A\n', ANNOUNCED)


@pytest.mark.parametrize('level, said', [(-1, ''), (0, ANNOUNCED)])
def test_the_first_line_goes_with_the_verbosity(launch, engine, level, said):
  assert launch('--prompt=a', f'--verbosity={level}') == (0, 'A\n', said)


def test_a_run_that_fails_leaves_the_old_file(launch, engine, tmp_path):
  output = write(tmp_path, 'out.jsonl', 'old\n')
  status, _, err = launch('--prompt=NaN', f'--output_json={output}')
  assert status == 2 and 'not finite' in err
  assert output.read_text() == 'old\n'
  assert os.listdir(tmp_path) == ['out.jsonl']


def test_a_prompt_the_model_cannot_take_is_named_by_its_line(
  launch, monkeypatch, tmp_path
):
  class Short(FakeEngine):
    def encode(self, prompts):
      if len(prompts[0]) > 3:
        raise InputError('prompt 0 has 4 tokens')
      return super().encode(prompts)

  monkeypatch.setattr(common, 'load_engine', lambda config: Short())
  file = write(tmp_path, 'p.jsonl', '{"prompt": "abc"}\n\n{"prompt": "abcd"}')
  ended = launch(f'--prompts_file={file}')
  assert_refused(ended, [f'--prompts_file={file}, line 3: prompt 0 has 4'])


@pytest.mark.parametrize(
  'content, said',
  [
    ('{"messages": [{"role": "user", "content": "a"}]}\n', None),
    (
      '{"prompt": "a"}\n{"messages": [{"role": "user", "content": "\\ud83d"}]}',
      "line 2: messages[0]['content']='\\ud83d': expected whole characters",
    ),
    (
      '{"messages": [{"role": "tool", "calls": [{"x": {"\\ud83d": 1}}]}]}',
      "messages[0]['calls'][0]['x'], a key='\\ud83d': expected whole",
    ),
  ],
)
def test_messages_are_text_at_any_depth(tmp_path, content, said):
  file = write(tmp_path, 'prompts.jsonl', content)
  if said is None:
    assert (
      len(generate_prompts.read_prompts(None, str(file), is_chat=True)) == 1
    )
    return
  with pytest.raises(InputError, match=re.escape(said)):
    generate_prompts.read_prompts(None, str(file), is_chat=True)


def test_prompts_files_may_be_gzip(tmp_path, monkeypatch, store):
  content = b'{"prompt": "a"}\n{"prompt": "b"}\n'
  packed = gzip.compress(content)
  paths = [
    write(tmp_path, 'x.jsonl.gz', packed),
    write(tmp_path, 'x.jsonl', packed),  # not every name says so
    '-',
    'gs://bucket/x.jsonl',
  ]
  store.pipe('/bucket/x.jsonl', packed)
  stdin = io.TextIOWrapper(io.BytesIO(packed))
  monkeypatch.setattr(sys, 'stdin', stdin)
  for path in paths:
    prompts = generate_prompts.read_prompts(None, str(path))
    assert [prompt.text for prompt in prompts] == ['a', 'b']
    assert prompts[1].where == f'--prompts_file={path}, line 2'


@pytest.mark.parametrize(
  'name, cut', [('x.jsonl', -9), ('x.jsonl', 12), ('x.gz', 0)]
)
def test_damaged_gzip_is_one_line(launch, tmp_path, monkeypatch, name, cut):
  packed = gzip.compress(b'{"prompt": "a"}\n')
  content = packed[:cut] if cut else b'{"prompt": "a"}\n'
  file = write(tmp_path, name, content)
  ended = launch(f'--prompts_file={file}')
  assert_refused(ended, [f'--prompts_file={file}: damaged gzip: '])
  if cut:
    stdin = io.TextIOWrapper(io.BytesIO(content))
    monkeypatch.setattr(sys, 'stdin', stdin)
    ended = launch('--prompts_file=-')
    assert_refused(ended, ['--prompts_file=-: damaged gzip: '])


def test_prompts_are_not_written_over(launch, engine, tmp_path):
  file = write(tmp_path, 'x', '{"prompt": "a"}\n')
  os.link(file, tmp_path / 'other')
  (tmp_path / 'link').symlink_to(file)
  for name in ('x', 'other', 'link'):
    output = f'--output_json={tmp_path / name}'
    ended = launch(f'--prompts_file={file}', output)
    assert_refused(ended, [f'{output}: is the file of --prompts_file too'])
  assert file.read_text() == '{"prompt": "a"}\n'


def test_standard_output_that_cannot_be_written(monkeypatch):
  class Full(io.StringIO):
    def flush(self):
      raise OSError(errno.ENOSPC, 'No space left on device')

  dropped = []
  monkeypatch.setattr(console, '_drop_output', lambda: dropped.append(True))
  monkeypatch.setattr(sys, 'stdout', Full())
  with pytest.raises(InputError, match='standard output: .*No space left'):
    console.write('text')
  assert dropped == [True]
  monkeypatch.setattr(sys, 'stdout', None)  # closed by whoever started us
  console.write('text')


class Pipe(io.StringIO):
  """Standard output that takes so many pieces, and then raises."""

  def __init__(self, pieces, error):
    super().__init__()
    self.pieces, self.error = pieces, error

  def write(self, text):
    self.pieces -= 1
    if self.pieces < 0:
      raise self.error
    return super().write(text)


@pytest.mark.parametrize(
  'pieces, kept', [(1, 0), (2, 2), (3, 2), (7, 2), (8, 4)]
)
@pytest.mark.parametrize(
  'number, status, said',
  [
    (errno.EPIPE, 141, 'nobody reads standard output any more'),
    (errno.ENOSPC, 2, 'standard output: cannot be written: No space left on'),
  ],
)
def test_what_is_complete_is_kept_whoever_reads(
  launch, engine, tmp_path, monkeypatch, number, status, said, pieces, kept
):
  """A batch's answers are there before its texts are shown."""
  prompts = [{'prompt': name} for name in 'abcde']
  file = write(tmp_path, 'p', '\n'.join(map(json.dumps, prompts)))
  monkeypatch.setattr(console, '_drop_output', lambda: None)
  error = OSError(number, os.strerror(number))
  monkeypatch.setattr(sys, 'stdout', Pipe(pieces, error))
  output = tmp_path / 'out'
  ended, _, err = launch(
    f'--prompts_file={file}',
    f'--output_json={output}',
    '--config.decode.batch_size=2',
  )
  partial = tmp_path / 'out.partial'
  lines = partial.read_text().splitlines() if partial.exists() else []
  assert [json.loads(line)['prompt'] for line in lines] == list('abcde'[:kept])
  assert ended == status and not output.exists()
  note = f'; {kept} answers are in {partial}: keep them by moving that'
  if kept:
    assert f'generate.py: {said}' in err and note in err
  else:
    assert 'answers are in' not in err and (said in err) == (status == 2)


def test_what_print_holds_back_is_no_less_read(launch, monkeypatch):
  class Gone(io.StringIO):
    def flush(self):
      raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

  monkeypatch.setattr(console, '_drop_output', lambda: None)
  monkeypatch.setattr(sys, 'stdout', Gone())
  assert launch(main=lambda config: print('text'))[::2] == (141, '')
  assert launch('--help')[::2] == (141, '')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_any_full_disk_is_one_line(launch, number):
  def main(config):
    error = OSError(number, os.strerror(number), 'some/file')
    error.add_note('all is well')
    raise error

  said = f'some/file: cannot be written: {os.strerror(number)}; all is well\n'
  assert launch(main=main) == (2, '', f'generate.py: {said}')


@pytest.mark.parametrize('room', [0, 1, 9])
def test_a_full_disk_keeps_whole_lines(tmp_path, room):
  path, partial = tmp_path / 'out', tmp_path / 'out.partial'
  path.write_text('old\n')
  line = '{"text": "é"}\n'
  with pytest.raises(InputError) as caught:
    with generate.JsonLines(str(path)) as lines:
      lines.write({'text': 'é'})
      with files_up_to(len(line.encode()) + room):
        lines.write({'text': 'é'})
  said = f'--output_json={path}: cannot be written: File too large'
  assert str(caught.value) == said
  assert caught.value.__notes__[0].startswith(f'1 answers are in {partial}')
  assert partial.read_text() == line and path.read_text() == 'old\n'


def test_lines_are_one_runs(tmp_path):
  """Whatever the file is called; the second begins nothing."""
  path, link = tmp_path / 'out', tmp_path / 'link'
  link.symlink_to(path)
  with generate.JsonLines(str(path)) as lines:
    lines.write({'a': 1})
    for name in (path, link):
      with pytest.raises(InputError) as caught:
        with generate.JsonLines(str(name)):
          pass
      said = 'cannot be written: another run is writing there'
      assert str(caught.value) == f'--output_json={name}: {said}'
    assert (tmp_path / 'out.partial').read_text() == '{"a": 1}\n'
    lines.write({'a': 2})
  assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
  with generate.JsonLines(str(link)) as lines:
    lines.write({'a': 3})
  assert path.read_text() == '{"a": 3}\n' and link.is_symlink()
  assert sorted(os.listdir(tmp_path)) == ['link', 'out']


def test_lines_of_a_killed_run_stay_until_there_is_another(tmp_path):
  path, partial = tmp_path / 'out', tmp_path / 'out.partial'
  partial.write_text('{"a": 1}\n{"a"')
  with pytest.raises(InputError, match='no such model') as caught:
    with generate.JsonLines(str(path)):
      raise InputError('no such model')
  assert not hasattr(caught.value, '__notes__')
  assert partial.read_text() == '{"a": 1}\n{"a"'
  with generate.JsonLines(str(path)) as lines:
    lines.write({'a': 2})
    assert partial.read_text() == '{"a": 2}\n'
  assert path.read_text() == '{"a": 2}\n' and not partial.exists()


def test_lines_keep_the_permissions_of_the_file(tmp_path):
  path = write(tmp_path, 'out', 'old')
  path.chmod(0o640)
  with generate.JsonLines(str(path)) as lines:
    lines.write({})
  assert path.read_text() == '{}\n' and path.stat().st_mode & 0o777 == 0o640


def test_a_set_of_another_model_is_refused(launch, tmp_path):
  path = str(tmp_path / 'sets.json')
  entry = cached_sets.CachedSet(
    name='mine',
    attention=(3,),
    mlp=(4,),
    model='0123456789abcdef',
    skip_ratio=0.45,
    context_window=50,
    date='2026-11-25T02:03:04+00:00',
    version='0.1.0',
  )
  cached_sets.save(path, entry)
  ended = launch('--prompt=x', f'--config.search.cache={path}')
  said = "set 'mine' is for model 0123456789abcdef; this model is "
  assert_refused(ended, [f'search.cache={path!r}', said])


@pytest.mark.parametrize('name', ['generate', 'evaluate', 'demo'])
def test_a_tokenizer_that_cannot_be_read_is_refused_at_once(
  launch, monkeypatch, tmp_path, name
):
  """Before weights load, which may take minutes."""
  monkeypatch.setattr(load, 'load_params', None)
  folder = cases.write('gqa', tmp_path / 'model')
  launcher = importlib.import_module(name)
  flags = {
    'generate': ['--prompt=x'],
    'evaluate': [
      f'--workdir={tmp_path / "run"}',
      '--config.task.name=jsonl',
      '--config.task.path=swift_jax/demo/prompts.jsonl',
    ],
    'demo': [],
  }
  sections = getattr(launcher, 'SECTIONS', common.SECTIONS)
  for content, said in (
    (None, f'{folder}: no tokenizer.json found'),
    ('{', f'{folder}: the tokenizer cannot be read: '),
  ):
    if content is not None:
      (folder / 'tokenizer.json').write_text(content)
    ended = launch(
      f'--config.model.path={folder}',
      *flags[name],
      main=launcher.main,
      sections=sections,
    )
    assert_refused(ended, [said])
  assert not (tmp_path / 'run').exists()


def test_without_gpjax_the_setting_is_named(launch, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gpjax', None)
  ended = launch('--prompt=x', '--config.search.bayes_interval=1')
  assert_refused(ended, ['search.bayes_interval=1: needs gpjax', '0 searches'])


def test_bad_model_folders_in_a_shell(tmp_path):
  """The real program: nothing but one line, whatever the libraries would say."""
  done = subprocess.run(
    [
      sys.executable,
      ROOT / 'launch' / 'generate.py',
      f'--config.model.path={tmp_path / "none"}',
      '--prompt=x',
      f'--output_json={tmp_path / "out.jsonl"}',
    ],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr.count('\n') == 1, done.stderr
  assert str(tmp_path / 'none') in done.stderr
  assert not os.listdir(tmp_path)


def test_decode_settings_reach_the_engine(launch, monkeypatch):
  seen = []

  class Spy(FakeEngine):
    def generate(self, prompts, decode, on_text, indices):
      seen.append(decode)
      return super().generate(prompts, decode, on_text, indices)

  monkeypatch.setattr(common, 'load_engine', lambda config: Spy())
  flags = ['--config=configs/tiny.py', '--config.decode.method=plain']
  launch('--prompt=a', *flags)
  assert seen == [
    DecodeConfig(
      method='plain',
      prefill_chunk=16,
      sampling=SamplingConfig(max_new_tokens=8),
    )
  ]


def made(*texts):
  return [Result('p', '', list(text), 'length', METRICS, []) for text in texts]


@pytest.mark.parametrize(
  'swift, said',
  [
    ([[1, 2], [3, 4]], None),
    ([[1, 2], [3, 5]], 'prompt 2, token 1: plain [4], swift [5]'),
    ([[1, 2, 9], [3, 4]], 'prompt 1, token 2: plain [], swift [9]'),
    ([[], [3, 4]], 'prompt 1, token 0: plain [1], swift []'),
  ],
)
def test_the_demo_finds_the_first_difference(swift, said):
  assert demo.first_difference(made([1, 2], [3, 4]), made(*swift)) == said


def test_the_demo_prints_a_table_of_totals():
  results = made([1] * 8, [2] * 8)
  header = demo._line([name for name, _ in demo._COLUMNS])
  line = demo.row('swift', results, made([1], [2]))
  assert len(line) == len(header) <= 100
  name, *cells = line.split()
  # Two of each metric; three times of a second for each prompt; 4-grams 1 in 5.
  assert name == 'swift'
  assert cells == '2 6.00 2.00 0.3 1.00 1.00 1.00 1.00 0.20'.split()
  assert '-' in demo.row('plain', results, results).split()


def test_the_demo_takes_no_log_probabilities(launch, monkeypatch):
  """It would show none, and its times would hold them."""
  warmed = []

  class Spy(FakeEngine):
    def encode(self, prompts):
      return [[1]]

    def warmup(self, decode, prompt_length):
      warmed.append(decode)
      if len(warmed) == 2:
        raise InputError('that is enough')

  monkeypatch.setattr(common, 'load_engine', lambda config: Spy())
  flags = ['--config.sampling.logprobs=2', '--verbosity=-1']
  _, _, err = launch(*flags, main=demo.main)
  said = 'sampling.logprobs=2: none are taken; generate.py writes them'
  assert err.count(said) == 1 and err.endswith('that is enough\n')
  assert [decode.method for decode in warmed] == ['plain', 'swift']
  assert [decode.sampling.logprobs for decode in warmed] == [None, None]


def test_the_demo_has_prompts():
  prompts = demo.read_prompts()
  assert len(prompts) >= 5
  assert len(set(prompts)) == len(prompts)


def test_without_a_compilation_cache_it_is_said_to_be_off(capsys):
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    common.announce('an echo')
  finally:
    jax.config.update('jax_compilation_cache_dir', KEPT)
  assert capsys.readouterr().err.endswith('compilation cache: off\n')


@pytest.mark.parametrize(
  'line, chat, said',
  [
    ({'prompt': 'a', 'tools': []}, [], '"tools": is for --chat'),
    (
      {'prompt': 'a', 'chat_template_kwargs': {}},
      [],
      '"chat_template_kwargs": is for --chat',
    ),
    ({'prompt': 'a', 'messages': []}, ['--chat'], 'expected one of them'),
  ],
)
def test_what_would_have_no_effect_in_a_line_is_refused(
  launch, tmp_path, line, chat, said
):
  file = write(tmp_path, 'prompts.jsonl', json.dumps(line) + '\n')
  where = f'--prompts_file={file}, line 1: '
  assert_refused(launch(f'--prompts_file={file}', *chat), [where, said])
