"""Tokens to text as they come, with stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

_UTF8 = codecs.getincrementaldecoder('utf-8')
_LONGEST = 4  # bytes of a character


class Bytes(Protocol):
  """See `token_bytes.TokenBytes`."""

  def __call__(self, token: int, begins_text: bool = False) -> bytes: ...


class Detokenizer:
  """One row's text; pieces never split a character or a stop string.

  The text is the tokens' bytes, decoded as UTF-8, with U+FFFD for bytes that are no
  character. It depends on the tokens alone and not on the blocks in which they come.
  The cost of a token does not depend on its place.

  Attributes:
    tokens: the row's tokens; after a stop, up to the token that completed the stop
      string.
    stopped: a stop string was found.
  """

  def __init__(
    self,
    token_bytes: Bytes,
    stop_strings: Sequence[str] = (),
    prompt: Sequence[int] = (),
  ):
    """Begins an empty text.

    Args:
      token_bytes: the bytes of a token.
      stop_strings: the text ends before the first of these.
      prompt: the tokens before the text. If the prompt ends within a character and
        the text completes it, the character belongs to the text.
    """
    self._bytes = token_bytes
    self._stops = tuple(stop_strings)
    self._decoder = _UTF8('replace')
    self._unfinished, self._begins_text = _end_of(prompt, token_bytes)
    self._given: list[str] = []
    self._held = ''  # may become a stop string
    self.tokens: list[int] = []
    self.stopped = False

  @property
  def text(self) -> str:
    """The text so far; after a stop, the text before the stop string."""
    return ''.join(self._given) + self._held

  def push(self, tokens: Sequence[int]) -> str:
    """Adds tokens and returns the text that has become certain."""
    start = len(self._given)
    for token in tokens:
      if self.stopped:
        break
      self.tokens.append(token)
      self._add(self._characters(token))
    return ''.join(self._given[start:])

  def finish(self) -> str:
    """Returns the rest, which might have become a character or a stop string."""
    start = len(self._given)
    if not self.stopped:
      self._add(self._decoder.decode(b'', final=True))
    self._give(len(self._held))
    return ''.join(self._given[start:])

  def _characters(self, token: int) -> str:
    """The characters that a token completes."""
    found = self._bytes(token)
    if not found:
      return ''
    if self._begins_text:
      found, self._begins_text = self._bytes(token, True), False
    if self._unfinished:
      before, self._unfinished = self._unfinished, b''
      if _goes_on(before, found):
        found = before + found
    return self._decoder.decode(found)

  def _add(self, text: str) -> None:
    """Adds text and gives all of it that is certain; the undecided end is held."""
    self._held += text
    found = [self._held.find(stop) for stop in self._stops]
    if any(at >= 0 for at in found):
      self._held = self._held[: min(at for at in found if at >= 0)]
      self.stopped = True
    self._give(len(self._held) - (0 if self.stopped else self._undecided()))

  def _give(self, size: int) -> None:
    if size:
      self._given.append(self._held[:size])
      self._held = self._held[size:]

  def _undecided(self) -> int:
    """Length of the longest end of the held text that begins a stop string."""
    longest = max((len(stop) for stop in self._stops), default=1) - 1
    for size in range(min(longest, len(self._held)), 0, -1):
      if any(stop.startswith(self._held[-size:]) for stop in self._stops):
        return size
    return 0


def _end_of(prompt: Sequence[int], token_bytes: Bytes) -> tuple[bytes, bool]:
  """The bytes of an unfinished character at a prompt's end.

  Returns:
    The bytes, and whether the prompt has no text at all.
  """
  end = b''
  for token in reversed(prompt):
    if len(end) >= _LONGEST:
      break
    end = token_bytes(token) + end
  decoder = _UTF8('replace')
  decoder.decode(end)
  unfinished, _ = decoder.getstate()
  return unfinished, not end


def _goes_on(unfinished: bytes, following: bytes) -> bool:
  """Whether bytes continue the character that the unfinished bytes began."""
  try:
    _UTF8('strict').decode(unfinished + following[:1])
  except UnicodeDecodeError:
    return False
  return True
