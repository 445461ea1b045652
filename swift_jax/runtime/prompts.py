"""Prompts: strings, token ids or conversations; their token ids and their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from swift_jax.config.checks import require_text
from swift_jax.config.settings import DecodeConfig, ModelConfig
from swift_jax.errors import InputError
from swift_jax.runtime import chat_template
from swift_jax.runtime.chat_template import Conversation

Prompt = str | Sequence[int] | npt.NDArray[np.integer[Any]] | Conversation
"""A string, token ids or a conversation."""


def as_list(given: Prompt | Sequence[Prompt]) -> list[Prompt]:
  """The prompts as a list, for a single prompt too.

  Raises:
    InputError: the value is no prompt and no list. Its items are checked later.
  """
  plain = _plain(given)
  if isinstance(plain, str):
    return [plain]
  if not _is_list(plain):
    raise _wrong_kind(0, plain)
  prompts = [_plain(prompt) for prompt in plain]
  is_one = bool(prompts) and isinstance(prompts[0], (int, Mapping))
  return [plain] if is_one else prompts


def needs_tokenizer(prompt: Prompt) -> bool:
  """Whether a prompt of `as_list` is a string or a conversation."""
  return isinstance(prompt, str) or is_conversation(prompt)


def encode(
  index: int,
  prompt: Prompt,
  tokenizer: Any,
  cfg: ModelConfig,
  remark: Callable[[str], None],
  arguments: chat_template.Arguments | None = None,
) -> list[int]:
  """Token ids of a prompt that the model can take.

  Args:
    index: the prompt's number in errors.
    remark: called as by `encode_text`.
    arguments: arguments of the chat template, for a conversation.

  Raises:
    InputError: the prompt is of no known kind, is empty, is longer than the context
      or has a token outside the vocabulary.
  """
  ids = _ids(index, prompt, tokenizer, remark, arguments)
  for token in ids:
    if not 0 <= token < cfg.vocab_size:
      raise InputError(
        f'prompt {index}: token {token} is outside the vocabulary of'
        f' {cfg.vocab_size}'
      )
  context = cfg.max_position_embeddings
  if len(ids) > context:
    raise InputError(
      f'prompt {index} has {len(ids)} tokens, but the context holds'
      f' max_position_embeddings={context}'
    )
  return ids


def _ids(
  index: int,
  prompt: Any,
  tokenizer: Any,
  remark: Callable[[str], None],
  arguments: chat_template.Arguments | None,
) -> list[int]:
  ids: Sequence[Any]
  if isinstance(prompt, str):
    if tokenizer is None and prompt:
      raise InputError(f'prompt {index}: the engine has no tokenizer')
    name = f'prompt {index}'
    ids = encode_text(prompt, tokenizer, remark, name) if prompt else []
  elif not _is_list(prompt):
    raise _wrong_kind(index, prompt)
  elif is_conversation(prompt):
    try:
      ids = chat_template.encode(prompt, tokenizer, arguments)
    except InputError as error:
      raise InputError(f'prompt {index}: {error}') from error
  else:
    ids = prompt
  ids = [_plain(token) for token in ids]
  if not ids:
    raise InputError(f'prompt {index} is empty: {prompt!r}')
  for token in ids:
    if not isinstance(token, int) or isinstance(token, bool):
      raise InputError(f'prompt {index}: {token!r:.80} is no token id')
  return ids


def encode_text(
  text: str, tokenizer: Any, remark: Callable[[str], None], name: str = 'text'
) -> list[int]:
  """Token ids of a text that the model continues.

  The tokens that the tokenizer sets before each text are left off if the text begins
  with them already. An end of text that it sets behind each text is left off always.

  Args:
    text: at least one character.
    remark: called with a line that says so, the same line for all texts.
    name: the text's name in errors.

  Raises:
    InputError: the value is no string, or has half a character.
  """
  if not isinstance(text, str):
    raise InputError(f'{name}={text!r:.80}: expected a string')
  require_text(name, text)
  encoded = tokenizer(text, return_special_tokens_mask=True)
  ids, is_set = list(encoded['input_ids']), encoded['special_tokens_mask']
  own = [at for at, mark in enumerate(is_set) if not mark] or [len(ids)]
  before, body, behind = (
    ids[: own[0]],
    ids[own[0] : own[-1] + 1],
    ids[own[-1] + 1 :],
  )
  if before and body[: len(before)] == before:
    remark(
      f'a prompt that begins with {_names(before, tokenizer)} gets no second one'
      ' from the tokenizer'
    )
    before = []
  end = getattr(tokenizer, 'eos_token_id', None)
  if end in behind:
    remark(
      f'the {_names([end], tokenizer)} that the tokenizer sets behind a prompt'
      ' is left off: the text goes on'
    )
    behind = [token for token in behind if token != end]
  return before + body + behind


def _names(ids: Sequence[int | None], tokenizer: Any) -> str:
  return repr(''.join(tokenizer.convert_ids_to_tokens(ids)))


def is_conversation(prompt: object) -> bool:
  """Whether a prompt is a list with a message in it."""
  return _is_list(prompt) and any(isinstance(p, Mapping) for p in prompt)


def split(
  prompts: Sequence[Prompt],
  decode: DecodeConfig,
  for_chats: Callable[[DecodeConfig], DecodeConfig],
) -> Iterator[tuple[slice, DecodeConfig]]:
  """Yields the batches: a slice of the prompts, and the settings of the batch.

  A chat may end at other tokens than a text, and all texts of a batch end at the
  same tokens. So a batch holds only chats or only other prompts.

  Args:
    for_chats: the settings with which a conversation is answered.
  """
  is_chat = [is_conversation(prompt) for prompt in prompts]
  chats = for_chats(decode) if any(is_chat) else decode
  settings = [chats if chat else decode for chat in is_chat]
  at = 0
  for kind, group in itertools.groupby(settings):
    end = at + len(list(group))
    for start in range(at, end, decode.batch_size):
      yield slice(start, min(start + decode.batch_size, end)), kind
    at = end


def check_indices(
  indices: Sequence[int] | None, num_prompts: int
) -> Sequence[int]:
  """The prompts' indices in the run; 0, 1, ... for None.

  Raises:
    InputError: there is not one index for each prompt, or an index is no integer in
      [0, 2**32).
  """
  if indices is None:
    return range(num_prompts)
  if len(indices) != num_prompts:
    raise InputError(
      f'indices={list(indices)!r:.80}: expected one a prompt, {num_prompts}'
    )
  for index in indices:
    is_int = isinstance(index, (int, np.integer))
    if not is_int or not 0 <= index < 2**32:
      raise InputError(
        f'indices={list(indices)!r:.80}: {index!r} is no integer in [0, 2**32)'
      )
  return indices


def _plain(value: Any) -> Any:
  """An array as a list and its number as Python's, NumPy's or another library's."""
  return value.tolist() if hasattr(value, 'tolist') else value


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
  is_bytes = isinstance(value, (bytes, bytearray))
  return isinstance(value, Sequence) and not is_bytes


def _wrong_kind(index: int, value: object) -> InputError:
  shown = ' '.join(repr(value).split())
  return InputError(
    f'prompt {index}: {shown:.80}: expected a string, token ids or messages'
  )
