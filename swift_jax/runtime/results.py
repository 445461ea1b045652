"""The result of a prompt: its text, the text's end and the cost."""

from __future__ import annotations

import dataclasses
import reprlib

from swift_jax.runtime.metrics import (
  LogProbs,
  Metrics,
  Round,
  ratio,
  totals,
)
from swift_jax.runtime.prompts import Prompt
from swift_jax.runtime.rows import Row
from swift_jax.runtime.session import Session


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of one prompt.

  Attributes:
    prompt: the prompt as it was given; an array as a list.
    text: the generated text up to a stop string. It has no special tokens, such as
      those that end a text, unless `sampling.skip_special_tokens` is False.
    tokens: generated token ids, with the token that ended the text.
    finish_reason: `eos`, `stop` (a stop string) or `length`.
    metrics: the figures of the prompt.
    rounds: for each pass of the target the tokens drafted, accepted and returned.
    logprobs: log-probabilities, if `SamplingConfig.logprobs` asks for them.
  """

  prompt: Prompt
  text: str
  tokens: list[int]
  finish_reason: str
  metrics: Metrics
  rounds: list[Round]
  logprobs: LogProbs | None = None

  def __repr__(self) -> str:
    """A short form; the fields have the whole text."""
    speed = self.metrics.tokens_per_second
    parts = [
      reprlib.repr(self.text),
      self.finish_reason,
      f'{len(self.tokens)} tokens',
      *([] if speed is None else [f'{speed:.1f} tokens/s']),
    ]
    return f'Result({", ".join(parts)})'


def of_row(
  prompt: Prompt,
  row: Row,
  session: Session,
  log_probs: LogProbs | None,
) -> Result:
  """The result of a row, once its batch has ended."""
  tokens, seconds = row.text.tokens, session.seconds
  counts = totals(row.rounds)
  if session.decode.method == 'plain':
    counts['bonus_tokens'] = 0  # there is no draft to go beyond
  finish_reason = 'length'
  if row.text.stopped:
    finish_reason = 'stop'
  elif tokens and tokens[-1] in session.eos_token_ids:
    finish_reason = 'eos'
  searcher = session.searcher if session.decode.method == 'swift' else None
  total = seconds.prefill + seconds.decode + seconds.search
  return Result(
    prompt=prompt,
    text=row.text.text,
    tokens=tokens,
    finish_reason=finish_reason,
    rounds=row.rounds,
    logprobs=log_probs,
    metrics=Metrics(
      method=session.decode.method,
      new_tokens=len(tokens),
      prefill_s=seconds.prefill,
      decode_s=seconds.decode,
      draft_s=seconds.draft,
      verify_s=seconds.verify,
      search_s=seconds.search,
      **counts,
      acceptance_rate=ratio(counts['accepted'], counts['drafted']),
      mean_accepted_length=ratio(len(tokens), counts['verify_passes']),
      skip_ratio=searcher.skip_ratio if searcher else None,
      matchness=searcher.matchness if searcher else None,
      tokens_per_second=ratio(len(tokens), total),
    ),
  )
