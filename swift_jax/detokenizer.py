"""Tokens to text as they come, with stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = '\ufffd'  # what bytes that are not yet a character decode to


class Detokenizer:
  """One row's text; pieces never split a character or a stop string.

  Tokens are decoded behind the end of the prompt: on their own, many tokenizers
  would drop the space that the first of them begins with.

  Attributes:
    tokens: the row's tokens; after a stop, up to the one that completed it.
    text: the text that counts: all of it, or what precedes the stop string.
    stopped: a stop string was found.
  """

  def __init__(
    self,
    decode: Callable[[Sequence[int]], str],
    stop_strings: Sequence[str] = (),
    context: Sequence[int] = (),
  ):
    """Begins an empty text.

    Args:
      decode: text of token ids.
      stop_strings: the text ends before the first of these.
      context: the prompt's last tokens; their text is not part of this one.
    """
    self._decode_all = decode
    self._context = list(context)
    self._context_text = decode(self._context) if self._context else ''
    self._stops = tuple(stop_strings)
    self._emitted = 0
    self.tokens: list[int] = []
    self.text = ''
    self.stopped = False

  def push(self, tokens: Sequence[int]) -> str:
    """Adds tokens and returns the text that has become certain."""
    if self.stopped or not tokens:
      return ''
    seen = len(self.tokens)
    self.tokens.extend(tokens)
    self.text = self._decode(self.tokens)
    if any(stop in self.text for stop in self._stops):
      self._cut(seen + 1)
      return self._emit(len(self.text))
    certain = len(self.text.rstrip(_INCOMPLETE))
    return self._emit(certain - self._held_back(self.text[:certain]))

  def finish(self) -> str:
    """The rest: what might have become a stop string and did not."""
    return self._emit(len(self.text))

  def _decode(self, tokens: Sequence[int]) -> str:
    text = self._decode_all([*self._context, *tokens])
    if text.startswith(self._context_text):
      return text[len(self._context_text) :]
    # The prompt ends within a character, which these tokens complete.
    return text[len(self._context_text.rstrip(_INCOMPLETE)) :]

  def _emit(self, until: int) -> str:
    piece = self.text[self._emitted : until]
    self._emitted = max(self._emitted, until)
    return piece

  def _cut(self, first: int) -> None:
    """Keeps the tokens a one-token-a-time decoder would have stopped after."""
    for count in range(first, len(self.tokens) + 1):
      text = self._decode(self.tokens[:count])
      found = [text.find(stop) for stop in self._stops if stop in text]
      if found:
        self.tokens = self.tokens[:count]
        self.text = text[: min(found)]
        self.stopped = True
        return

  def _held_back(self, text: str) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    longest = max((len(stop) for stop in self._stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
      if any(stop.startswith(text[-size:]) for stop in self._stops):
        return size
    return 0
