"""Texts to token ids: the tokenizer of a model, and the ends of its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import logging
import pathlib
from typing import Any

from swift_jax.checkpoint import hf_config, hub
from swift_jax.config.checks import require
from swift_jax.config.sampling import Resolved, SamplingConfig, resolve
from swift_jax.config.settings import DecodeConfig, ModelConfig
from swift_jax.errors import InputError
from swift_jax.runtime import chat_template
from swift_jax.runtime.chat_template import Arguments, Conversation
from swift_jax.runtime.prompts import (
  Prompt,
  as_list,
  encode,
  encode_text,
  is_conversation,
  needs_tokenizer,
)
from swift_jax.runtime.token_bytes import TokenBytes, special_tokens

_LOGGER = logging.getLogger('swift_jax')


class Texts:
  """The base class of `Engine`: tokenizer, prompts and ends of texts.

  Attributes:
    cfg: the model's shape.
    tokenizer: a transformers tokenizer, or None.
    defaults: sampling settings of the model's `generation_config.json`.
    remarks: a line for each change that was made unasked.
  """

  def __init__(
    self, cfg: ModelConfig, tokenizer: Any, defaults: SamplingConfig
  ):
    self.cfg, self.tokenizer, self.defaults = cfg, tokenizer, defaults
    self.remarks: list[str] = []
    # The faults of the two files, for those who need what is in them.
    self._no_tokenizer: InputError | None = None
    self._no_defaults: InputError | None = None
    self._said: set[str] = set()  # settings that have been logged

  def _remark(self, line: str) -> None:
    """Logs a line and keeps it among the remarks, once."""
    if line not in self.remarks:
      self.remarks.append(line)
      _LOGGER.warning(line)

  def _check_tokenizer(self) -> None:
    """Refuses a request for text if there is a tokenizer that cannot be read.

    Raises:
      InputError: the tokenizer could not be read.
    """
    if self._no_tokenizer is not None and self.tokenizer is None:
      raise InputError(str(self._no_tokenizer)) from self._no_tokenizer

  def _token_bytes(self, skip_special_tokens: bool) -> TokenBytes:
    """The bytes that each token adds to a text."""
    size = self.cfg.vocab_size
    return TokenBytes(self.tokenizer, size, skip_special_tokens)

  # ---- token ids

  def encode(
    self,
    prompts: Prompt | Sequence[Prompt],
    chat_template_kwargs: Arguments | None = None,
  ) -> list[list[int]]:
    """Token ids of each prompt.

    Args:
      chat_template_kwargs: as for `generate`.

    Raises:
      InputError: as for `generate`; the error names the prompt by its index.
    """
    prompts = as_list(prompts)
    if any(map(needs_tokenizer, prompts)):
      self._check_tokenizer()
    given = chat_template.check(chat_template_kwargs)
    if given and not any(map(is_conversation, prompts)):
      self._remark(
        'chat_template_kwargs: without effect, since no prompt is a conversation'
      )
    return [
      encode(i, prompt, self.tokenizer, self.cfg, self._remark, given)
      for i, prompt in enumerate(prompts)
    ]

  def encode_chat(
    self,
    messages: Conversation,
    chat_template_kwargs: Arguments | None = None,
  ) -> list[int]:
    """Token ids of a conversation, up to the place where the model goes on.

    The conversation may have any length; `encode` refuses one that the context does
    not hold.

    Args:
      messages: the messages. If the last one is the assistant's, it is continued.
      chat_template_kwargs: as for `generate`.

    Raises:
      InputError: the tokenizer has no template, or it refuses the messages.
    """
    self._check_tokenizer()
    return chat_template.encode(messages, self.tokenizer, chat_template_kwargs)

  def encode_text(self, text: str) -> list[int]:
    """Token ids of a text that the model continues.

    The tokens that the tokenizer sets before each text come first, once. No end of
    text follows. The text may have any length; `encode` refuses one that the context
    does not hold.

    Raises:
      InputError: the text is empty, or there is no tokenizer.
    """
    if not text:
      raise InputError('the prompt is empty')
    self._check_tokenizer()
    if self.tokenizer is None:
      raise InputError('the engine has no tokenizer')
    return encode_text(text, self.tokenizer, self._remark)

  # ---- settings; some ends of a text need the tokenizer

  def resolve(self, sampling: SamplingConfig | None = None) -> Resolved:
    """The settings that `generate` applies, and the source of each.

    Raises:
      InputError: settings contradict each other; an end of text is no token of the
        model; the vocabulary has fewer tokens than the log-probabilities that were
        asked for; or a file is needed and cannot be used.
    """
    sampling = sampling or SamplingConfig()
    if self._no_defaults is not None and sampling.use_generation_config:
      raise InputError(str(self._no_defaults)) from self._no_defaults
    resolved = resolve(sampling, self.defaults)
    for token in sampling.eos_token_id or ():
      if token >= self.cfg.vocab_size:
        raise InputError(
          f'sampling.eos_token_id={resolved.config.eos_token_id!r:.80}: token'
          f' {token} is outside the vocabulary of {self.cfg.vocab_size}'
        )
    if resolved.config.stop_strings:
      ends = resolved.config.eos_token_id or ()
      self._check_stop_strings(resolved.config, ends)
    most = self.cfg.vocab_size
    wanted = f'an integer <= {most}, the tokens of the vocabulary'
    asked = sampling.logprobs
    require((asked or 0) <= most, 'sampling.logprobs', asked, wanted)
    return resolved

  def _resolved(self, decode: DecodeConfig) -> DecodeConfig:
    """The settings with a value for each field; remarkable values are logged once."""
    resolved = self.resolve(decode.sampling)
    line = resolved.describe()
    if resolved.is_remarkable and line not in self._said:
      self._said.add(line)
      _LOGGER.warning(line)
    if decode.ignore_eos and resolved.config.stop_strings:
      self._check_stop_strings(resolved.config, ())
    return dataclasses.replace(decode, sampling=resolved.config)

  def _check_stop_strings(
    self, cfg: SamplingConfig, eos_token_ids: Sequence[int]
  ) -> None:
    """Refuses a stop string that no text can hold.

    The name of a token that ends the text in any case is allowed.
    """
    self._check_tokenizer()
    if self.tokenizer is None:
      raise InputError(
        f'sampling.stop_strings={cfg.stop_strings}: the engine has no tokenizer,'
        ' so that there is no text'
      )
    if not cfg.skip_special_tokens:
      return
    special = special_tokens(self.tokenizer)
    for token, name in special.items():
      for stop in cfg.stop_strings or ():
        if name not in stop or (name == stop and token in eos_token_ids):
          continue
        raise InputError(
          f'sampling.stop_strings={cfg.stop_strings}: {name!r} is a special token,'
          f' and texts leave these out: expected sampling.eos_token_id={token},'
          ' or sampling.skip_special_tokens=False to keep them'
        )

  def for_chats(self, decode: DecodeConfig | None = None) -> DecodeConfig:
    """The settings with which a conversation is answered.

    With them an answer also ends at the tokenizer's end of text, and not only at
    those of the model's files. An `eos_token_id` of the caller's stays alone.
    `generate` does this by itself for a conversation that it gets as messages. Call
    this method for a conversation of token ids.
    """
    decode = checked(decode)
    sampling, token = decode.sampling, self._end_of_turn()
    if sampling.eos_token_id is not None or token is None:
      return decode
    ends = resolve(sampling, self.defaults).config.eos_token_id or ()
    if token in ends:
      return decode
    if not decode.ignore_eos:
      others = (
        f"as well as at {', '.join(map(str, ends))} of the model's files"
        if ends
        else "since the model's files name no end of text"
      )
      name = self.tokenizer.convert_ids_to_tokens(token)
      self._remark(
        f"a chat ends at the tokenizer's {name!r} ({token}), {others};"
        ' sampling.eos_token_id says otherwise'
      )
    sampling = dataclasses.replace(sampling, eos_token_id=(*ends, token))
    return dataclasses.replace(decode, sampling=sampling)

  def _end_of_turn(self) -> int | None:
    """The tokenizer's end-of-text token, if the vocabulary has it."""
    token: int | None = getattr(self.tokenizer, 'eos_token_id', None)
    return None if token is None or token >= self.cfg.vocab_size else token


def load(
  folder: pathlib.Path,
  cfg: ModelConfig,
  require_tokenizer: bool,
  remark: Callable[[str], None],
) -> tuple[Any, SamplingConfig, InputError | None, InputError | None]:
  """Reads a checkpoint's tokenizer and sampling settings.

  A fault in one of the files is returned: it is an error once the file is needed.

  Args:
    require_tokenizer: whether a tokenizer that cannot be read is an error at once.
    remark: called with a line if the run goes on without a tokenizer.

  Returns:
    The tokenizer, the sampling settings, and the faults of both files.

  Raises:
    InputError: a tokenizer that is required cannot be read.
  """
  tokenizer, no_tokenizer, no_defaults = None, None, None
  try:
    tokenizer = hub.load_tokenizer(folder, cfg)
  except InputError as error:  # prompts of token ids do without
    if require_tokenizer:
      raise
    no_tokenizer = error
    remark(f'{error}; texts of token ids are empty')
  try:
    defaults = hf_config.generation_defaults(folder)
  except InputError as error:  # callers that do not use the file do without
    defaults, no_defaults = hf_config.eos_defaults(folder), error
  return tokenizer, defaults, no_tokenizer, no_defaults


def checked(decode: DecodeConfig | None) -> DecodeConfig:
  """The settings of a call; the default ones for None."""
  if decode is None:
    return DecodeConfig()
  if not isinstance(decode, DecodeConfig):
    raise InputError(
      f'decode={decode!r:.80}: expected a DecodeConfig, which has `sampling`'
    )
  return decode
