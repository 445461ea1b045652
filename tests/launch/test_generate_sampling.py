"""The launcher's sampling settings and chats: what is refused, said and written."""

import copy
import json
import os
import pathlib
import subprocess
import sys

from cli import common
import pytest
from tokenizers.processors import TemplateProcessing

from swift_jax import Engine, SearchConfig
from swift_jax.checkpoint.hub import DEMO_MODEL

ROOT = pathlib.Path(__file__).parents[2]
TEMPLATE = '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}'
QUIET = '--verbosity=-1'  # not the line that each start begins with
TINY = ['--config=configs/tiny.py', '--config.model.dtype=float32', QUIET]


@pytest.fixture(scope='module')
def demo():
  search = SearchConfig(enabled=False)
  return Engine.from_pretrained('demo', dtype='float32', search=search)


@pytest.fixture
def loaded(demo, monkeypatch):
  """The demo is loaded already, and in each test as it came."""
  monkeypatch.setattr(common, 'load_engine', lambda config: demo)
  monkeypatch.setattr(demo.tokenizer, 'chat_template', None)
  return demo


def assert_refused(ended, *said):
  status, out, err = ended
  assert (status, out) == (2, '')
  assert err.count('\n') == 1 and err.startswith('generate.py: '), err
  for part in said:
    assert part in err


def lines(tmp_path, *values):
  file = tmp_path / 'prompts.jsonl'
  file.write_text('\n'.join(json.dumps(value) for value in values))
  return file


# ---- settings


@pytest.mark.parametrize(
  'setting, said',
  [
    ('temperature=-1', 'sampling.temperature=-1.0: expected'),
    ('temperature=nan', 'sampling.temperature=nan: expected'),
    ('temperature=hot', 'sampling.temperature'),
    ('top_k=-1', 'sampling.top_k=-1: expected'),
    ('top_k=1.5', 'sampling.top_k'),
    ('top_p=0', 'sampling.top_p=0.0: expected'),
    ('top_p=2', 'sampling.top_p=2.0: expected'),
    ('min_p=-0.5', 'sampling.min_p=-0.5: expected'),
    ('repetition_penalty=0', 'sampling.repetition_penalty=0.0: expected'),
    ('do_sample=perhaps', 'sampling.do_sample'),
    ('seed=1.5', 'sampling.seed'),
    ('seed=x', 'sampling.seed'),
    ('seed=-1', 'sampling.seed=-1: expected'),
    ("stop_strings=('5', 5)", "sampling.stop_strings=('5', 5): expected"),
    ("stop_strings=('a', '')", "sampling.stop_strings=('a', ''): expected"),
    ('eos_token_id=-3', 'sampling.eos_token_id=(-3,): expected'),
    ('eos_token_id=(0, -3)', 'sampling.eos_token_id=(0, -3): expected'),
    ('max_new_tokens=-1', 'sampling.max_new_tokens=-1: expected'),
    ('use_generation_config=3', 'sampling.use_generation_config'),
    ('logprobs=-1', 'sampling.logprobs=-1: expected'),
    ('logprobs=1001', 'sampling.logprobs=1001: expected an integer <= 1000'),
    ('logprobs=all', 'sampling.logprobs'),
  ],
)
def test_bad_values_are_named_before_anything_loads(
  launch, monkeypatch, setting, said
):
  monkeypatch.setattr(common, 'load_engine', None)
  ended = launch('--prompt=x', f'--config.sampling.{setting}')
  assert_refused(ended, said, setting.partition('=')[2].split(',')[-1].strip())


def test_fewer_tokens_at_most_than_at_least(launch, loaded):
  flags = ['--prompt=x', '--config.sampling.min_new_tokens=9']
  ended = launch(*flags, '--config.sampling.max_new_tokens=8')
  assert_refused(ended, 'sampling.min_new_tokens=9', 'max_new_tokens=8 (given)')
  ended = launch(*flags, *TINY)  # which says 8
  assert_refused(ended, 'sampling.min_new_tokens=9', 'max_new_tokens=8 (given)')


def test_an_end_that_is_no_token(launch, loaded):
  flag = '--config.sampling.eos_token_id=2048'
  assert_refused(
    launch('--prompt=x', flag), 'sampling.eos_token_id=(2048,)', '2048'
  )


# ---- chats


def test_the_demo_is_no_chat_model(launch, loaded, tmp_path):
  ended = launch('--chat', '--prompt=x')
  assert_refused(ended, '--prompt: ', 'no chat template')
  file = lines(tmp_path, {'messages': [{'role': 'user', 'content': 'x'}]})
  ended = launch('--chat', f'--prompts_file={file}')
  assert_refused(ended, f'--prompts_file={file}, line 1: ', 'no chat template')


@pytest.mark.parametrize(
  'value',
  [
    {'messages': 'hi'},
    {'messages': []},
    {'messages': None},
    {'messages': {'role': 'user', 'content': 'x'}},
    {'messages': ['hi']},
    {'messages': [{'content': 'x'}]},
    {'messages': [{'role': 3, 'content': 'x'}]},
    {'messages': [{'role': 'user', 'content': 'x'}, 'hi']},
    {'message': [{'role': 'user', 'content': 'x'}]},
    [{'role': 'user', 'content': 'x'}],
  ],
  ids=str,
)
def test_bad_messages_are_named_by_their_line(
  launch, monkeypatch, tmp_path, value
):
  monkeypatch.setattr(common, 'load_engine', None)
  file = lines(tmp_path, {'prompt': 'fine'}, value)
  ended = launch('--chat', f'--prompts_file={file}')
  assert_refused(ended, f'--prompts_file={file}, line 2: ')


def test_messages_are_for_chats(launch, monkeypatch, tmp_path):
  monkeypatch.setattr(common, 'load_engine', None)
  file = lines(tmp_path, {'messages': [{'role': 'user', 'content': 'x'}]})
  ended = launch(f'--prompts_file={file}')
  assert_refused(ended, f'--prompts_file={file}, line 1: ', '"prompt"')


def test_a_template_that_refuses_names_the_line(
  launch, loaded, monkeypatch, tmp_path
):
  template = "{% if messages | length > 1 %}{{ raise_exception('one\n!') }}"
  template += '{% endif %}{{ messages[0].content }}'
  monkeypatch.setattr(loaded.tokenizer, 'chat_template', template)
  message = {'role': 'user', 'content': 'x'}
  file = lines(tmp_path, {'prompt': 'x'}, {'messages': [message, message]})
  ended = launch('--chat', f'--prompts_file={file}')
  assert_refused(ended, f'--prompts_file={file}, line 2: ', 'one !')


def test_a_chat_is_its_template_continued(
  launch, loaded, monkeypatch, tmp_path
):
  """Prompts and messages in one file, two a batch; texts, records and all."""
  monkeypatch.setattr(loaded.tokenizer, 'chat_template', TEMPLATE)
  talk = [
    {'role': 'system', 'content': 'import os'},
    {'role': 'user', 'content': 'def main():'},
  ]
  file = lines(tmp_path, {'prompt': 'class A:'}, {'messages': talk})
  output = tmp_path / 'out.jsonl'
  flags = [
    *('--config.decode.method=plain', '--config.sampling.max_new_tokens=8'),
    QUIET,
  ]
  status, out, err = launch(
    '--chat',
    f'--prompts_file={file}',
    f'--output_json={output}',
    '--config.decode.batch_size=2',
    *flags,
  )
  assert (status, err) == (0, '')
  records = [json.loads(line) for line in output.read_text().splitlines()]
  asked = [[{'role': 'user', 'content': 'class A:'}], talk]
  assert [record['prompt'] for record in records] == asked
  # The same text where the template is written out by hand.
  written = ['user: class A:\n', 'system: import os\nuser: def main():\n']
  file = lines(tmp_path, *({'prompt': text} for text in written))
  again = launch(
    f'--prompts_file={file}', '--config.decode.batch_size=2', *flags
  )
  assert again == (0, out, '')
  assert [record['text'] in out for record in records] == [True, True]


@pytest.mark.parametrize(
  'value, said',
  [
    ('{', ': not JSON: '),
    ('', ': not JSON: '),
    ('[1]', ': expected a JSON object'),
    ('"x"', ': expected a JSON object'),
    ('null', ': expected a JSON object'),
    ('[' * 100_000, ': not JSON: '),
  ],
)
def test_template_arguments_that_are_no_object(
  launch, monkeypatch, value, said
):
  monkeypatch.setattr(common, 'load_engine', None)
  flag = f'--chat_template_kwargs={value}'
  shown = f'--chat_template_kwargs={value!r:.80}{said}'
  assert_refused(launch('--chat', '--prompt=x', flag), shown)


def test_template_arguments_that_cannot_be_given(launch, monkeypatch, tmp_path):
  monkeypatch.setattr(common, 'load_engine', None)
  flag = '--chat_template_kwargs={"tokenize": false}'
  ended = launch('--chat', '--prompt=x', flag)
  said = 'chat_template_kwargs: tokenize=False: cannot be given: '
  assert_refused(ended, f'generate.py: --{said}')
  flag = '--chat_template_kwargs={}'
  assert_refused(
    launch('--prompt=x', flag), f"{flag[:23]}'{{}}': is for --chat"
  )
  for given, wanted in [
    ({'chat_template_kwargs': {'tokenize': False}}, said),
    ({'chat_template_kwargs': 3}, 'chat_template_kwargs=3: expected values'),
    ({'tools': 'find'}, "tools='find': expected a list of objects"),
    (
      {'tools': [], 'chat_template_kwargs': {'tools': []}},
      '"tools" and chat_template_kwargs: expected one of them',
    ),
  ]:
    file = lines(tmp_path, {'prompt': 'x'}, {'prompt': 'y', **given})
    ended = launch('--chat', f'--prompts_file={file}')
    assert_refused(ended, f'--prompts_file={file}, line 2: ', wanted)


def test_a_template_is_given_what_the_flag_and_the_line_have(
  launch, loaded, monkeypatch, tmp_path
):
  """The same text where the prompt is written out by hand."""
  template = (
    '{% for m in messages %}{{ m.content }}\n{% endfor %}# {{ style }}\n'
    '{% for t in tools or [] %}def {{ t.name }}({% endfor %}'
  )
  monkeypatch.setattr(loaded.tokenizer, 'chat_template', template)
  message = {'role': 'user', 'content': 'import os'}
  file = lines(
    tmp_path,
    {'prompt': 'import os'},
    {'messages': [message], 'chat_template_kwargs': {'style': 'own'}},
    {'messages': [message], 'tools': [{'name': 'find'}]},
  )
  flags = [
    *('--config.decode.method=plain', '--config.sampling.max_new_tokens=4'),
    QUIET,
  ]
  given = '--chat_template_kwargs={"style": "all"}'
  talk = launch('--chat', f'--prompts_file={file}', given, *flags)
  written = [
    'import os\n# all\n',
    'import os\n# own\n',
    'import os\n# all\ndef find(',
  ]
  file = lines(tmp_path, *({'prompt': text} for text in written))
  assert launch(f'--prompts_file={file}', *flags) == talk
  assert talk[0] == 0 and talk[2] == ''


def test_the_answer_that_is_begun_is_continued(
  launch, loaded, monkeypatch, tmp_path
):
  monkeypatch.setattr(loaded.tokenizer, 'chat_template', TEMPLATE + '#')
  talk = [
    {'role': 'user', 'content': 'code'},
    {'role': 'assistant', 'content': 'def main('},
  ]
  file, seen = lines(tmp_path, {'messages': talk}), []
  real = loaded.generate

  def generate(prompts, *how, **indices):
    seen.append(loaded.tokenizer.decode(prompts[0]))
    return real(prompts, *how, **indices)

  monkeypatch.setattr(loaded, 'generate', generate)
  flags = [
    *('--config.decode.method=plain', '--config.sampling.max_new_tokens=2'),
    QUIET,
  ]
  close = '--chat_template_kwargs={"continue_final_message": false}'
  for more in ([], [close]):
    assert launch('--chat', f'--prompts_file={file}', *more, *flags)[0] == 0
  begun = 'user: code\nassistant: def main('
  assert seen == [begun, f'{begun}\n#']


def test_what_is_done_to_prompts_and_chats_is_said_once(
  launch, loaded, monkeypatch, tmp_path
):
  """In a chat the ends, in a text the beginning: a line on standard error."""
  tokenizer = copy.deepcopy(loaded.tokenizer)
  tokenizer.chat_template = TEMPLATE
  tokenizer.eos_token = '#'  # what a comment begins with ends a chat
  tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
    single='<|endoftext|> $A', special_tokens=[('<|endoftext|>', 0)]
  )
  monkeypatch.setattr(loaded, 'tokenizer', tokenizer)
  flags = [
    *('--config.decode.method=plain', '--config.sampling.max_new_tokens=2'),
    QUIET,
  ]
  texts = ['<|endoftext|>import os', '<|endoftext|>def f(', 'class A']
  file = lines(tmp_path, *({'prompt': text} for text in texts))
  for chat, said in [
    (
      '--nochat',
      "a prompt that begins with '<|endoftext|>' gets no second one",
    ),
    (
      '--chat',
      f"a chat ends at the tokenizer's '#' ({tokenizer.eos_token_id})",
    ),
  ]:
    monkeypatch.setattr(loaded, 'remarks', [])
    status, _, err = launch(chat, f'--prompts_file={file}', *flags)
    assert status == 0 and err.count('\n') == 1
    assert err.startswith(f'generate.py: {said}')


# ---- what is applied and not asked for


def test_what_was_not_asked_for_is_said(launch, loaded):
  plain = [
    *('--config.decode.method=plain', '--config.sampling.max_new_tokens=2'),
    QUIET,
  ]
  drawn = ['--prompt=x', *plain, '--config.sampling.temperature=0.6']
  status, _, err = launch(*drawn)
  assert status == 0 and err.count('\n') == 1
  assert err.startswith(
    'generate.py: sampling: temperature=0.6, top_k=50 (default), '
  )
  assert launch(*drawn, '--config.sampling.top_k=50')[2] == ''
  assert launch('--prompt=x', *plain)[2] == ''
  status, _, err = launch('--prompt=x', *plain, '--config.sampling.top_p=0.9')
  assert status == 0 and err.count('\n') == 1
  assert err.startswith('generate.py: greedy decoding: ')
  assert err.endswith('; without effect: top_p=0.9\n')


def shell(*arguments):
  """The real program; (stdout, stderr)."""
  done = subprocess.run(
    [sys.executable, ROOT / 'launch' / 'generate.py', *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout, done.stderr


@pytest.mark.nightly
def test_a_drawn_text_is_the_same_in_a_batch(tmp_path):
  """In a shell: standard error holds one line, logged or printed."""
  file = lines(tmp_path, {'prompt': 'import os\n'}, {'prompt': 'import os\n'})
  flags = [
    *TINY,
    f'--prompts_file={file}',
    '--config.search.enabled=False',
    '--config.sampling.temperature=0.6',
    '--config.sampling.seed=3',
    '--config.sampling.max_new_tokens=24',
  ]
  out, err = shell(*flags, '--config.decode.batch_size=1')
  assert err.count('\n') == 1, err
  assert 'top_k=50 (default)' in err and 'seed=3' in err
  assert shell(*flags, '--config.decode.batch_size=2') == (out, err)
  # Equal prompts are drawn apart.
  first, second = out.removeprefix('--- prompt 1 of 2\n').split(
    '--- prompt 2 of 2\n'
  )
  assert first != second and len(first) > 8 and len(second) > 8


# ---- log-probabilities


def test_log_probabilities_go_to_the_record(launch, loaded, tmp_path):
  """For a text of the demo, as a shell gets it."""
  output = tmp_path / 'out.jsonl'
  flags = [
    *('--config.decode.method=plain', '--config.sampling.max_new_tokens=8'),
    QUIET,
    '--prompt=def main():',
  ]
  asked = [f'--output_json={output}', '--config.sampling.logprobs=2']
  status, out, err = launch(*flags, *asked)
  assert (status, err) == (0, '')
  record = json.loads(output.read_text())
  found = record['logprobs']
  assert list(record)[-1] == 'logprobs' and list(found) == ['chosen', 'top']
  assert len(found['chosen']) == len(found['top']) == len(record['tokens']) == 8
  pairs = zip(record['tokens'], found['chosen'], found['top'], strict=True)
  for token, value, (first, second) in pairs:
    assert first == [token, value]  # greedy
    assert 0 >= first[1] >= second[1] and first[0] != second[0]
  # Without a file to go to, they are left out, and the text is the same.
  status, again, err = launch(*flags, asked[1])
  assert (status, again) == (0, out)
  assert err == (
    'generate.py: sampling.logprobs=2: none are taken; generate.py writes them'
    ' to --output_json\n'
  )


# ---- the model's generation_config.json


@pytest.fixture
def folder(tmp_path):
  """The demo, but for what is said of generation."""
  made = tmp_path / 'model'
  made.mkdir()
  for name in os.listdir(DEMO_MODEL):
    if name != 'generation_config.json':
      (made / name).symlink_to(pathlib.Path(DEMO_MODEL).resolve() / name)
  return made


def test_a_files_setting_that_is_not_supported(launch, folder):
  path = folder / 'generation_config.json'
  path.write_text(json.dumps({'eos_token_id': 0, 'num_beams': 4}))
  flags = [
    *('--prompt=x', f'--config.model.path={folder}', *TINY),
    *('--config.decode.method=plain', '--config.sampling.max_new_tokens=1'),
  ]
  advice = 'sampling.use_generation_config=False'
  assert_refused(launch(*flags), f'{path}: num_beams=4 is not supp', advice)
  # The advice helps.
  status, out, err = launch(*flags, f'--config.{advice}')
  assert (status, err) == (0, '')


def test_what_the_file_says_is_done_and_said(launch, folder):
  path = folder / 'generation_config.json'
  path.write_text(
    json.dumps({'do_sample': True, 'temperature': 0.7, 'top_k': 1})
  )
  flags = [
    *('--prompt=x', f'--config.model.path={folder}', *TINY),
    *('--config.decode.method=plain', '--config.sampling.max_new_tokens=1'),
  ]
  status, _, err = launch(*flags)
  assert status == 0 and err.count('\n') == 1
  assert err.startswith(
    'generate.py: sampling: temperature=0.7 (generation_config.json), '
  )
  assert 'top_k=1 (generation_config.json)' in err
  status, _, err = launch(*flags, '--config.sampling.do_sample=False')
  assert (status, err) == (0, '')
