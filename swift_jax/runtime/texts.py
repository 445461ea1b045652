"""Between texts and token ids: the tokenizer of a model, and where its texts end."""

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
  """What the files of a model say of its texts.

  Attributes:
    tokenizer: a transformers tokenizer, or None.
    defaults: sampling settings of its `generation_config.json`.
    remarks: a line for each thing that was done unasked.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    tokenizer: Any,
    defaults: SamplingConfig,
    no_tokenizer: InputError | None = None,
    refused: InputError | None = None,
  ):
    """Of what is loaded.

    Args:
      no_tokenizer, refused: what is wrong with the tokenizer and with
        `generation_config.json`, for who uses them.
    """
    self._cfg, self.tokenizer, self.defaults = cfg, tokenizer, defaults
    self._no_tokenizer, self._refused = no_tokenizer, refused
    self._said: set[str] = set()  # settings that have been logged
    self.remarks: list[str] = []

  @classmethod
  def load(
    cls,
    folder: pathlib.Path,
    cfg: ModelConfig,
    require_tokenizer: bool,
    remark: Callable[[str], None],
  ) -> Texts:
    """From a checkpoint; what cannot be used is an error once it is needed.

    Args:
      require_tokenizer: at once, if it is the tokenizer.
      remark: called with a line for who goes on without one.

    Raises:
      InputError: a tokenizer that is required cannot be read.
    """
    tokenizer, no_tokenizer, refused = None, None, None
    try:
      tokenizer = hub.load_tokenizer(folder, cfg)
    except InputError as error:  # whose prompts are token ids may go on
      if require_tokenizer:
        raise
      no_tokenizer = error
      remark(f'{error}; texts of token ids are empty')
    try:
      defaults = hf_config.generation_defaults(folder)
    except InputError as error:  # who does not use the file may go on
      defaults, refused = hf_config.eos_defaults(folder), error
    return cls(cfg, tokenizer, defaults, no_tokenizer, refused)

  def remark(self, line: str) -> None:
    """Says it once."""
    if line not in self.remarks:
      self.remarks.append(line)
      _LOGGER.warning(line)

  def check_tokenizer(self) -> None:
    """For who asks for text.

    Raises:
      InputError: the tokenizer could not be read.
    """
    if self._no_tokenizer is not None and self.tokenizer is None:
      raise InputError(str(self._no_tokenizer)) from self._no_tokenizer

  def token_bytes(self, skip_special_tokens: bool) -> TokenBytes:
    """The bytes that each token adds to a text."""
    size = self._cfg.vocab_size
    return TokenBytes(self.tokenizer, size, skip_special_tokens)

  # ---- token ids

  def encode(
    self,
    prompts: Prompt | Sequence[Prompt],
    chat_template_kwargs: Arguments | None,
  ) -> list[list[int]]:
    """As `Engine.encode`."""
    prompts = as_list(prompts)
    if any(map(needs_tokenizer, prompts)):
      self.check_tokenizer()
    given = chat_template.check(chat_template_kwargs)
    if given and not any(map(is_conversation, prompts)):
      self.remark(
        'chat_template_kwargs: without effect, since no prompt is a conversation'
      )
    return [
      encode(i, prompt, self.tokenizer, self._cfg, self.remark, given)
      for i, prompt in enumerate(prompts)
    ]

  def encode_chat(
    self, messages: Conversation, chat_template_kwargs: Arguments | None
  ) -> list[int]:
    """As `Engine.encode_chat`."""
    self.check_tokenizer()
    return chat_template.encode(messages, self.tokenizer, chat_template_kwargs)

  def encode_text(self, text: str) -> list[int]:
    """As `Engine.encode_text`."""
    if not text:
      raise InputError('the prompt is empty')
    self.check_tokenizer()
    if self.tokenizer is None:
      raise InputError('the engine has no tokenizer')
    return encode_text(text, self.tokenizer, self.remark)

  # ---- settings, of which where a text ends is one that needs the tokenizer

  def resolve(self, sampling: SamplingConfig) -> Resolved:
    """As `Engine.resolve`."""
    if self._refused is not None and sampling.use_generation_config:
      raise InputError(str(self._refused)) from self._refused
    resolved = resolve(sampling, self.defaults)
    for token in sampling.eos_token_id or ():
      if token >= self._cfg.vocab_size:
        raise InputError(
          f'sampling.eos_token_id={resolved.config.eos_token_id!r:.80}: token'
          f' {token} is outside the vocabulary of {self._cfg.vocab_size}'
        )
    if resolved.config.stop_strings:
      ends = resolved.config.eos_token_id or ()
      self._check_stop_strings(resolved.config, ends)
    most = self._cfg.vocab_size
    wanted = f'an integer <= {most}, the tokens of the vocabulary'
    asked = sampling.logprobs
    require((asked or 0) <= most, 'sampling.logprobs', asked, wanted)
    return resolved

  def resolved(self, decode: DecodeConfig) -> DecodeConfig:
    """The settings without a gap; what is remarkable about them is logged once."""
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
    """Refuses a stop string that no text can hold, but not the name of a token that
    ends the text in any case."""
    self.check_tokenizer()
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

  def for_chats(self, decode: DecodeConfig) -> DecodeConfig:
    """As `Engine.for_chats`."""
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
      self.remark(
        f"a chat ends at the tokenizer's {name!r} ({token}), {others};"
        ' sampling.eos_token_id says otherwise'
      )
    sampling = dataclasses.replace(sampling, eos_token_id=(*ends, token))
    return dataclasses.replace(decode, sampling=sampling)

  def _end_of_turn(self) -> int | None:
    """The tokenizer's end of text, if the model can write it."""
    token: int | None = getattr(self.tokenizer, 'eos_token_id', None)
    return None if token is None or token >= self._cfg.vocab_size else token
