"""Prompts of `generate.py` from a flag or a file, checked before a model is read."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

from cli.arguments import unescaped

from swift_jax.config.checks import require_text
from swift_jax.errors import InputError
from swift_jax.evaluation.task_files import read_bytes, unpacked
from swift_jax.files import atomic
from swift_jax.runtime import chat_template


class Prompt(NamedTuple):
  """A prompt, and where it came from.

  Attributes:
    where: the flag, or the file and the line.
    text: the text; in a chat the messages.
    arguments: in a chat, the prompt's own arguments of the chat template.
  """

  where: str
  text: str | list[dict[str, Any]]
  arguments: dict[str, Any] = {}


def read_prompts(
  prompt: str | None, path: str | None, is_chat: bool = False
) -> list[Prompt]:
  """Reads the prompts that the flags name.

  Raises:
    InputError: a prompt is wrong; the error names the flag, or the file and line.
  """
  if prompt is not None and path is not None:
    raise InputError(
      f'--prompt={prompt!r} and --prompts_file={path}: expected one of them'
    )
  if path is not None:
    return _read_file(path, is_chat)
  if prompt is None:
    raise InputError('--prompt or --prompts_file is needed')
  prompt = unescaped('--prompt', prompt)
  return [_as_chat(_checked('--prompt', prompt), is_chat)]


def _as_chat(prompt: Prompt, is_chat: bool) -> Prompt:
  """In a chat, the prompt's text as a user's message; else the prompt as it is."""
  if not is_chat or not isinstance(prompt.text, str):
    return prompt
  message = {'role': 'user', 'content': prompt.text}
  return prompt._replace(text=[message])


def _read_file(path: str, is_chat: bool) -> list[Prompt]:
  where = f'--prompts_file={path}'
  raw = _standard_input(where) if path == '-' else read_bytes(path, where)
  # Bytes are split, not text: JSON strings may hold other line separators.
  prompts = [
    _as_chat(_parse_line(f'{where}, line {number}', line, is_chat), is_chat)
    for number, line in enumerate(raw.split(b'\n'), 1)
    if line.strip()
  ]
  if not prompts:
    raise InputError(f'{where}: holds no prompts')
  return prompts


def _standard_input(where: str) -> bytes:
  if sys.stdin is None:  # closed by the process that started this one
    raise InputError(f'{where}: standard input is closed')
  with atomic.named_errors(where):
    return unpacked(sys.stdin.buffer.read(), where)


def _parse_line(where: str, line: bytes, is_chat: bool) -> Prompt:
  try:
    value = json.loads(line.decode('utf-8-sig'))
  except (ValueError, RecursionError) as error:
    raise InputError(f'{where}: not JSON: {error}') from None
  arguments = {}
  if isinstance(value, dict):
    _check_keys(where, value, is_chat)
  if is_chat and isinstance(value, dict):
    arguments = _arguments(where, value)
    if 'messages' in value:
      return Prompt(where, _messages(where, value['messages']), arguments)
  if not isinstance(value, dict) or not isinstance(value.get('prompt'), str):
    wanted = 'expected an object with a string "prompt"'
    if isinstance(value, dict) and 'messages' in value:
      wanted += ', or --chat for "messages"'
    raise InputError(f'{where}: {wanted}, found {value!r:.80}')
  return _checked(where, value['prompt'])._replace(arguments=arguments)


def _check_keys(where: str, line: dict[str, Any], is_chat: bool) -> None:
  """Refuses keys that would have no effect."""
  if 'prompt' in line and 'messages' in line:
    raise InputError(f'{where}: "prompt" and "messages": expected one of them')
  for name in ('tools', 'chat_template_kwargs'):
    if name in line and not is_chat:
      raise InputError(f'{where}: "{name}": is for --chat')


def _arguments(where: str, line: dict[str, Any]) -> dict[str, Any]:
  """A line's arguments for the chat template."""
  given = line.get('chat_template_kwargs')
  tools = {'tools': line['tools']} if 'tools' in line else {}
  try:
    found = chat_template.check(given)
    if found.keys() & tools:
      raise InputError('"tools" and chat_template_kwargs: expected one of them')
    return {**found, **chat_template.check(tools)}
  except InputError as error:
    raise InputError(f'{where}: {error}') from None


def read_arguments(text: str | None, is_chat: bool) -> dict[str, Any]:
  """Reads the flag's arguments for the chat template.

  Raises:
    InputError: the value is wrong; the error names the flag.
  """
  if text is None:
    return {}
  where = f'--chat_template_kwargs={text!r:.80}'
  if not is_chat:
    raise InputError(f'{where}: is for --chat')
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(f'{where}: not JSON: {error}') from None
  if not isinstance(value, dict):
    raise InputError(f'{where}: expected a JSON object')
  try:
    return chat_template.check(value)
  except InputError as error:
    raise InputError(f'--{error}') from None


def _messages(where: str, value: Any) -> list[dict[str, Any]]:
  ok = isinstance(value, list) and all(
    isinstance(m, dict) and isinstance(m.get('role'), str) for m in value
  )
  if not ok or not value:
    raise InputError(
      f'{where}: expected "messages" with role and content, found {value!r:.80}'
    )
  require_text(f'{where}: messages', value)
  return value


def _checked(where: str, prompt: str) -> Prompt:
  if not prompt:
    raise InputError(f'{where}: the prompt is empty')
  require_text(f'{where}: the prompt', prompt)
  return Prompt(where, prompt)
