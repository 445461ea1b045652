"""The bytes that each token adds to a text.

A tokenizer's own decoder sees tokens in runs, and the text of a run may change while
the run grows: with byte fallback, an incomplete character turns the whole run of byte
tokens before it into U+FFFD. The bytes of a token are always the same. So a text that
is made of bytes does not depend on the places where blocks of tokens end.
"""

from __future__ import annotations

import re
from typing import Any

_INCOMPLETE = '\ufffd'  # a decoder writes it for half a character
_BYTE_NAME = re.compile(
  '<0x([0-9A-Fa-f]{2})>'
)  # name of a token of byte fallback
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# How a byte-level BPE spells a byte in the name of a token (GPT-2).
_SPELLED = {chr(byte): byte for byte in _PRINTABLE}
_SPELLED |= {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


class TokenBytes:
  """The bytes of each token of a tokenizer; without a tokenizer no token has any."""

  def __init__(
    self, tokenizer: Any, vocab_size: int, skip_special_tokens: bool = True
  ):
    """Makes a table that fills as tokens are asked for.

    Args:
      tokenizer: has `decode` and `convert_ids_to_tokens` as in transformers; or None.
      vocab_size: token ids are below it.
      skip_special_tokens: special tokens add nothing to a text.
    """
    self._tokenizer, self._skips = tokenizer, skip_special_tokens
    self._known: dict[tuple[int, bool], bytes] = {}
    self._before = self._word(vocab_size)
    self._before_text = self._decode(self._before)

  def __call__(self, token: int, begins_text: bool = False) -> bytes:
    """The bytes of a token.

    Args:
      begins_text: nothing stands before the token. Some tokenizers then drop the
        space at the token's beginning.
    """
    key = token, begins_text
    if key not in self._known:
      self._known[key] = self._find(token, begins_text)
    return self._known[key]

  def _find(self, token: int, begins_text: bool) -> bytes:
    before, before_text = self._before, self._before_text
    if begins_text:
      before, before_text = [], ''
    text = self._decode([*before, token])
    own = text[len(before_text) :]
    if _INCOMPLETE not in text:
      return own.encode()
    # The token is no text by itself: its name tells the bytes.
    name = self._name(token)
    if byte := _BYTE_NAME.fullmatch(name):
      return bytes([int(byte[1], 16)])
    if name and all(symbol in _SPELLED for symbol in name):
      return bytes(_SPELLED[symbol] for symbol in name)
    return own.encode()

  def _word(self, vocab_size: int) -> list[int]:
    """A token with text of its own: others are decoded behind it."""
    for token in range(vocab_size):
      text = self._decode([token])
      is_text = bool(text) and _INCOMPLETE not in text
      if is_text and not _BYTE_NAME.fullmatch(self._name(token)):
        return [token]
    return []

  def _name(self, token: int) -> str:
    name_of = getattr(self._tokenizer, 'convert_ids_to_tokens', None)
    return (name_of and name_of(token)) or ''

  def _decode(self, tokens: list[int]) -> str:
    if self._tokenizer is None:
      return ''
    text: str = self._tokenizer.decode(
      tokens,
      skip_special_tokens=self._skips,
      clean_up_tokenization_spaces=False,
    )
    return text


def special_tokens(tokenizer: Any) -> dict[int, str]:
  """The special tokens of a tokenizer: for each id the token's text."""
  added = getattr(tokenizer, 'added_tokens_decoder', {})
  return {i: t.content for i, t in added.items() if t.special and t.content}
