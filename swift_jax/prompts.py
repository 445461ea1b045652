"""What a text may begin with: a string, token ids or a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from swift_jax.checks import require_text
from swift_jax.config import ModelConfig
from swift_jax.errors import InputError
from swift_jax.hf_config import one_line

Conversation = Sequence[Mapping[str, Any]]
"""`{'role': ..., 'content': ...}` in turn, the last one to answer."""
Prompt = str | Sequence[int] | npt.NDArray[np.integer[Any]] | Conversation
"""A string, token ids or a conversation."""


def as_list(given: Prompt | Sequence[Prompt]) -> list[Prompt]:
  """The prompts, where it is only one too.

  Raises:
    InputError: it is none of the kinds; what it holds is looked at later.
  """
  plain = _plain(given)
  if isinstance(plain, str):
    return [plain]
  if not _is_list(plain):
    raise _wrong_kind(0, plain)
  prompts = [_plain(prompt) for prompt in plain]
  is_one = bool(prompts) and isinstance(prompts[0], (int, Mapping))
  return [plain] if is_one else prompts


def encode(
  index: int, prompt: Prompt, tokenizer: Any, cfg: ModelConfig
) -> list[int]:
  """Token ids of a prompt that the model can take.

  Args:
    index: what errors call it.

  Raises:
    InputError: of no kind that is known, empty, longer than the context, or a
      token outside the vocabulary.
  """
  ids = _ids(index, prompt, tokenizer)
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


def _ids(index: int, prompt: Any, tokenizer: Any) -> list[int]:
  if isinstance(prompt, str):
    require_text(f'prompt {index}', prompt)
    if tokenizer is None and prompt:
      raise InputError(f'prompt {index}: the engine has no tokenizer')
    ids = tokenizer(prompt)['input_ids'] if prompt else []
  elif not _is_list(prompt):
    raise _wrong_kind(index, prompt)
  elif any(isinstance(part, Mapping) for part in prompt):
    try:
      ids = encode_chat(prompt, tokenizer)
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


def encode_chat(messages: Conversation, tokenizer: Any) -> list[int]:
  """Token ids of a conversation, up to where the answer begins.

  Raises:
    InputError: the tokenizer has no template, or it refuses the messages.
  """
  for message in messages:
    # What else a message needs is its template's to say.
    if not isinstance(message, Mapping) or 'role' not in message:
      raise InputError(f'message {message!r:.80}: expected role and content')
  require_text('messages', messages)
  if getattr(tokenizer, 'chat_template', None) is None:
    raise InputError(
      'the tokenizer has no chat template: this is no chat model'
    )
  try:
    encoded = tokenizer.apply_chat_template(
      list(messages), add_generation_prompt=True, return_dict=True
    )
  # Templates raise jinja's errors, and what their expressions run into.
  except Exception as error:
    kind = type(error).__name__
    raise InputError(
      f'the chat template refuses {messages!r:.80}: {kind}: {one_line(error)}'
    ) from error
  return list(encoded['input_ids'])


def _plain(value: Any) -> Any:
  """Arrays and their numbers, NumPy's or another's, as Python has them."""
  return value.tolist() if hasattr(value, 'tolist') else value


def _is_list(value: Any) -> bool:
  is_bytes = isinstance(value, (bytes, bytearray))
  return isinstance(value, Sequence) and not is_bytes


def _wrong_kind(index: int, value: object) -> InputError:
  shown = ' '.join(repr(value).split())
  return InputError(
    f'prompt {index}: {shown:.80}: expected a string, token ids or messages'
  )
