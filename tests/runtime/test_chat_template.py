"""Conversations to token ids: what the template is given, and where it ends."""

import copy
import datetime
import re

import chain_model
import pytest
from transformers.utils import chat_template_utils

from swift_jax.errors import InputError
from swift_jax.runtime import chat_template

END = '<|im_end|>'
# As Llama 3's: an answer has a header, and its text is stripped.
STRIPS = (
  '{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}'
  '<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
)
KEEPS = STRIPS.replace(' | trim', '')
PARTS = (
  '{% for m in messages %}<{{ m.role }}>{% for part in m.content %}'
  '{% if part.type == "text" %}{{ part.text }}{% else %}[x]{% endif %}'
  '{% endfor %}<|im_end|>{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)
ASKED = {'role': 'user', 'content': 'hi'}
BEGUN = {'role': 'assistant', 'content': 'a b'}
MESSAGES = [ASKED, BEGUN]


def make_tokenizer(template, make=chain_model.byte_level):
  tokenizer = copy.deepcopy(make())
  tokenizer.chat_template = template
  return tokenizer


def text(messages, template=KEEPS, arguments=None):
  """What a conversation becomes."""
  tokenizer = make_tokenizer(template)
  return tokenizer.decode(
    chat_template.encode(messages, tokenizer, arguments),
    clean_up_tokenization_spaces=False,
  )


def refusal(messages, template=KEEPS, arguments=None):
  with pytest.raises(InputError) as caught:
    text(messages, template, arguments)
  said = str(caught.value)
  assert '\n' not in said
  return said


# ---- where a prompt ends


@pytest.mark.parametrize(
  'make', [chain_model.byte_fallback, chain_model.byte_level]
)
@pytest.mark.parametrize('template', [KEEPS, STRIPS])
@pytest.mark.parametrize('content', ['a b', 'a b ', 'a\n\n', '', ' é'])
def test_an_answer_that_is_begun_is_continued_as_transformers_does(
  make, template, content
):
  tokenizer = make_tokenizer(template, make)
  messages = [ASKED, {**BEGUN, 'content': content}]
  whole = tokenizer.apply_chat_template(
    messages, tokenize=False, continue_final_message=True
  )
  shown = content if template == KEEPS else content.strip()
  assert whole == f'<s><user>hi<|im_end|><assistant>{shown}'
  found = chat_template.encode(messages, tokenizer)
  assert found == tokenizer(whole, add_special_tokens=False)['input_ids']
  assert tuple(messages) == (ASKED, {**BEGUN, 'content': content})


def test_a_question_is_answered_under_a_new_header():
  assert text([ASKED]) == '<s><user>hi<|im_end|><assistant>'
  whole = '<s><user>hi<|im_end|><assistant>a b<|im_end|>'
  assert text([*MESSAGES, ASKED]) == f'{whole}<user>hi<|im_end|><assistant>'


@pytest.mark.parametrize('role', ['user', 'system', 'tool'])
def test_only_the_assistants_message_is_continued_unasked(role):
  other = {'role': role, 'content': 'a b'}
  assert text([ASKED, other]).endswith(f'<{role}>a b<|im_end|><assistant>')
  continued = text([ASKED, other], arguments={'continue_final_message': True})
  assert continued.endswith(f'<{role}>a b')


@pytest.mark.parametrize('asked', [None, True])
def test_a_message_may_be_closed_instead(asked):
  begun = text(MESSAGES)
  given = {'continue_final_message': asked}
  assert text(MESSAGES, arguments=given) == begun
  closed = text(MESSAGES, arguments={'continue_final_message': False})
  assert closed == f'{begun}<|im_end|><assistant>'


def test_of_content_in_parts_the_last_text_is_continued():
  parts = [
    {'type': 'text', 'text': 'a'},
    {'type': 'image'},
    {'type': 'text', 'text': 'b c'},
  ]
  asked = {'role': 'user', 'content': parts[:1]}
  begun = {'role': 'assistant', 'content': parts}
  whole = '<user>a<|im_end|><assistant>a[x]b c'
  assert text([asked, begun], PARTS) == whole
  no_text = {'role': 'assistant', 'content': [{'type': 'image'}]}
  closed = '<user>a<|im_end|><assistant>[x]<|im_end|><assistant>'
  assert text([asked, no_text], PARTS) == closed


@pytest.mark.parametrize(
  'more',
  [{'content': None}, {'content': 'a', 'tool_calls': [{'name': 'f'}]}, {}],
)
def test_a_message_without_text_or_with_calls_is_complete(more):
  template = KEEPS.replace('m.content', "m.content | default('-')")
  calls = {'role': 'assistant', **more}
  assert text([ASKED, calls], template).endswith('<|im_end|><assistant>')


def test_another_field_may_be_continued():
  template = KEEPS.replace('m.content', 'm.content + (m.thinking or "")')
  begun = {'role': 'assistant', 'content': '', 'thinking': 'a b'}
  given = {'continue_final_message': 'thinking'}
  assert text([ASKED, begun], template, given).endswith('<assistant>a b')


def test_what_a_template_leaves_out_cannot_be_continued():
  template = KEEPS.replace('m.content', "m.content.split('b')[-1]")
  said = refusal(MESSAGES, template)
  assert said.startswith(f'the last message {BEGUN!r} cannot be continued: ')
  advice = 'continue_final_message=False in chat_template_kwargs closes it'
  assert said.endswith(f'; {advice}') and len(said) < 400
  closed = {'continue_final_message': False}
  assert text(MESSAGES, template, closed).endswith('<assistant>')


# ---- arguments


def test_arguments_are_the_templates_own():
  template = (
    '{{ messages[0].content }}{% if enable_thinking is false %}no{% endif %}'
  )
  assert text([ASKED], template) == 'hi'
  assert text([ASKED], template, {'enable_thinking': False}) == 'hino'
  assert text([ASKED], template, {'enable_thinking': True}) == 'hi'


def double(number: int) -> int:
  """Twice a number.

  Args:
    number: any.
  """
  return 2 * number


def test_tools_and_documents_are_what_transformers_makes_of_them():
  template = (
    '{{ messages[0].content }}{% for t in tools or [] %}'
    '{{ t.function.name }}{% endfor %}{% for d in documents or [] %}'
    '{{ d.title }}{% endfor %}'
  )
  schema = {'type': 'function', 'function': {'name': 'find'}}
  given = {'tools': [schema, double], 'documents': [{'title': 'x'}]}
  assert text([ASKED], template, given) == 'hifinddoublex'
  assert text([ASKED], template, {'tools': None}) == 'hi'


def test_a_template_may_be_given_or_named():
  templates = {'default': 'd', 'tool_use': 't', 'rag': 'r'}
  tool = {'type': 'function', 'function': {'name': 'find'}}
  for arguments, wanted in [
    ({}, 'd'),
    ({'tools': [tool]}, 't'),
    ({'chat_template': 'rag'}, 'r'),
    ({'chat_template': '{{ messages[0].role }}'}, 'user'),
  ]:
    assert text([ASKED], templates, arguments) == wanted
    source = chat_template.source(make_tokenizer(templates), arguments)
    assert text([ASKED], source) == wanted
  assert text([ASKED], None, {'chat_template': 'own'}) == 'own'
  wanted = 'the tokenizer has no chat template: this is no chat model'
  assert refusal([ASKED], None) == wanted
  assert chat_template.source(None, {'chat_template': 'own'}) is None
  several = {'a': 'x', 'b': 'y'}
  assert 'multiple chat templates' in refusal([ASKED], several)


@pytest.mark.parametrize(
  'name, value',
  [
    ('add_generation_prompt', True),
    ('conversation', []),
    ('max_length', 3),
    ('messages', []),
    ('padding', True),
    ('return_assistant_tokens_mask', True),
    ('return_dict', False),
    ('return_tensors', 'np'),
    ('tokenize', False),
    ('tokenizer_kwargs', {}),
    ('truncation', True),
  ],
)
def test_what_is_set_here_is_refused_by_name(name, value):
  said = refusal([ASKED], arguments={'enable_thinking': True, name: value})
  start = f'chat_template_kwargs: {name}={value!r}: cannot be given: '
  assert said.startswith(start)


@pytest.mark.parametrize(
  'arguments, said',
  [
    ([1], 'chat_template_kwargs=[1]: expected values by their name'),
    ({1: 2}, 'chat_template_kwargs={1: 2}: expected values by their name'),
    (
      {'continue_final_message': 1},
      'chat_template_kwargs: continue_final_message=1: expected true, false or'
      ' the name of a field',
    ),
    (
      {'tools': {'name': 'x'}},
      "chat_template_kwargs: tools={'name': 'x'}: expected a list of objects",
    ),
    (
      {'documents': ['x']},
      "chat_template_kwargs: documents=['x']: expected a list of objects",
    ),
  ],
)
def test_arguments_of_another_kind(arguments, said):
  assert refusal([ASKED], arguments=arguments) == said


# ---- the day

NOW = datetime.datetime(2026, 11, 5, 8, 3, 9)
# As Llama 3.2's has it, with more formats than anybody needs.
DATED = """
  {% if not date_string is defined %}
  {%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}{% endif %}{% endif %}
{% macro year(code) %}{{ strftime_now('%' + code) }}{% endmacro %}
{{ date_string }} {{ year('Y') }} {{ strftime_now('%-d/%m, %A %H:%M:%S %p %j') }}
{%- for m in messages %}{{ m.content }}{% endfor %}
"""


class Clock(datetime.datetime):
  @classmethod
  def now(cls, tz=None):
    return NOW


def test_a_dated_template_is_the_template_at_that_time(monkeypatch):
  dated = chat_template.dated(DATED, NOW)
  another_day = text([ASKED], dated)
  assert '05 Nov 2026 2026 5/11, Thursday 08:03:09' in another_day
  assert text([ASKED], DATED) != another_day
  monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
  assert text([ASKED], DATED) == text([ASKED], dated) == another_day
  # Who gives a date has it.
  given = {'date_string': '26 Jul 2024'}
  assert text([ASKED], dated, given) == text([ASKED], DATED, given)
  assert re.search('26 Jul 2024 2026', text([ASKED], dated, given))


def test_a_template_without_a_date_stays_as_it_is():
  assert chat_template.dated(KEEPS, NOW) is KEEPS


@pytest.mark.parametrize('value', [{'a': 1}, [1], 3])
def test_a_template_is_a_text_or_a_name(value):
  said = f'chat_template_kwargs: chat_template={value!r}: expected a template'
  with pytest.raises(InputError, match=re.escape(said)):
    text(MESSAGES, arguments={'chat_template': value})


@pytest.mark.parametrize('messages', [None, 3, 'hi', ASKED])
def test_messages_are_a_list(messages):
  with pytest.raises(InputError, match='^messages=.*: expected a list'):
    chat_template.encode(messages, make_tokenizer(KEEPS))
