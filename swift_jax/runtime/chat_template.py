"""A conversation to token ids, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import datetime
import hashlib
import json
import string
from typing import Any

from swift_jax.checkpoint.hf_config import one_line
from swift_jax.config.checks import require_text
from swift_jax.errors import InputError

Conversation = Sequence[Mapping[str, Any]]
"""Messages `{'role': ..., 'content': ...}`; the model answers or continues the last."""
Arguments = Mapping[str, Any]
"""Arguments of a template beside the messages: `tools`, `enable_thinking`, ..."""

_NAME = 'chat_template_kwargs'
_CONTINUE = 'continue_final_message'
# Arguments of `apply_chat_template` that a caller may not set, and the reason.
_OURS = {
  'add_generation_prompt': f'{_CONTINUE} says how the prompt ends',
  **dict.fromkeys(
    ('conversation', 'conversations', 'messages'), 'the prompt has them'
  ),
  **dict.fromkeys(
    (
      'tokenize',
      'return_dict',
      'return_tensors',
      'return_assistant_tokens_mask',
      'padding',
      'truncation',
      'max_length',
      'tokenizer_kwargs',
    ),
    'the token ids of the whole prompt are needed',
  ),
}


def check(arguments: Arguments | None) -> dict[str, Any]:
  """The arguments of a template as a dictionary.

  Raises:
    InputError: an argument is wrong, or this module sets it; the error names the
      argument and its value.
  """
  if arguments is None:
    return {}
  is_mapping = isinstance(arguments, Mapping)
  if not is_mapping or not all(isinstance(name, str) for name in arguments):
    raise InputError(
      f'{_NAME}={arguments!r:.80}: expected values by their name'
    )
  require_text(_NAME, arguments)
  for name, value in arguments.items():
    where = f'{_NAME}: {name}={value!r:.60}'
    if name in _OURS:
      raise InputError(f'{where}: cannot be given: {_OURS[name]}')
    if name == _CONTINUE and not isinstance(value, (bool, str, type(None))):
      raise InputError(f'{where}: expected true, false or the name of a field')
    if name == 'chat_template' and not isinstance(value, (str, type(None))):
      raise InputError(f'{where}: expected a template or the name of one')
    if name in ('tools', 'documents') and not _is_list_of_objects(value):
      raise InputError(f'{where}: expected a list of objects')
  return dict(arguments)


def _is_list_of_objects(value: object) -> bool:
  """Whether a value is a list of objects, or None.

  A tool may be a function: its annotations are its schema.
  """
  if not isinstance(value, (list, tuple)):
    return value is None
  return all(isinstance(item, Mapping) or callable(item) for item in value)


def encode(
  messages: Conversation, tokenizer: Any, arguments: Arguments | None = None
) -> list[int]:
  """Token ids of a conversation, up to the place where the model goes on.

  The model goes on behind the header of an answer. If the last message is the
  assistant's, the model goes on within it, unless `continue_final_message` is
  False.

  Args:
    arguments: arguments of the template.

  Raises:
    InputError: the tokenizer has no template, the template refuses the messages, or
      an argument may not be given.
  """
  given = check(arguments)
  if not isinstance(messages, (list, tuple)):
    raise InputError(f'messages={messages!r:.80}: expected a list of messages')
  for message in messages:
    # The template checks the other fields of a message.
    if not isinstance(message, Mapping) or 'role' not in message:
      raise InputError(f'message {message!r:.80}: expected role and content')
  require_text('messages', messages)
  if source(tokenizer, given) is None:
    raise InputError(
      'the tokenizer has no chat template: this is no chat model'
    )
  continues = given.pop(_CONTINUE, None)
  if continues is None:
    continues = _is_begun(messages)
  try:
    encoded = tokenizer.apply_chat_template(
      list(messages),
      add_generation_prompt=not continues,
      return_dict=True,
      **{_CONTINUE: continues},
      **given,
    )
  # Templates raise jinja's errors, and any error of their expressions.
  except Exception as error:
    said = one_line(error)
    if continues and _CONTINUE in said:  # transformers adds the message's text
      raise InputError(
        f'the last message {messages[-1]!r:.80} cannot be continued:'
        f' {said:.120}; {_CONTINUE}=False in {_NAME} closes it'
      ) from error
    raise InputError(
      f'the chat template refuses {messages!r:.80}:'
      f' {type(error).__name__}: {said}'
    ) from error
  return list(encoded['input_ids'])


def _is_begun(messages: Conversation) -> bool:
  """Whether the last message begins an answer: it has text and calls no tool."""
  last = messages[-1] if messages else {}
  content = last.get('content')
  has_text = isinstance(content, str)
  if isinstance(content, (list, tuple)):
    has_text = any(isinstance(c, Mapping) and 'text' in c for c in content)
  is_answer = last.get('role') == 'assistant' and not last.get('tool_calls')
  return is_answer and has_text


def source(tokenizer: Any, arguments: Arguments | None = None) -> str | None:
  """The template's text; None if there is no template.

  Raises:
    InputError: there are several templates, and none of them is the default.
  """
  given = arguments or {}
  has_own = getattr(tokenizer, 'chat_template', None) is not None
  named = given.get('chat_template')
  if tokenizer is None or not (has_own or named):
    return None
  try:
    found: str = tokenizer.get_chat_template(named, given.get('tools'))
  except ValueError as error:
    raise InputError(f'the chat template: {one_line(error)}') from error
  return found


def fingerprint(template: str) -> str:
  """A hash of the template: 16 hexadecimal digits."""
  return hashlib.sha256(template.encode()).hexdigest()[:16]


def dated(template: str, now: datetime.datetime) -> str:
  """The template with a `strftime_now` that takes `now` in place of the clock.

  It is a macro, since transformers passes no function of ours to a template.
  """
  if 'strftime_now' not in template:
    return template
  codes = [f'%{dash}{c}' for dash in ('', '-') for c in string.ascii_letters]
  values = [[code, now.strftime(code)] for code in codes]
  known = json.dumps([pair for pair in values if pair[0] != pair[1]])
  # jinja drops this line break, so that the template begins as before.
  return (
    '{% macro strftime_now(format) %}{% set text = namespace(value=format) %}'
    f'{{% for code, value in {known} %}}'
    '{% set text.value = text.value | replace(code, value) %}{% endfor %}'
    '{{ text.value }}{% endmacro %}\n' + template
  )
