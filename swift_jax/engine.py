"""The engine: a checkpoint, its tokenizer and the search, ready to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import datetime
import functools
import json
from typing import Any
import weakref

import jax
import numpy as np

import swift_jax
from swift_jax import checkpoint, sharding
from swift_jax.config import (
  DecodeConfig,
  DraftConfig,
  ModelConfig,
  SearchConfig,
)
from swift_jax.errors import InputError
from swift_jax.llama import GraphDef, Params
from swift_jax.metrics import Metrics, ratio
from swift_jax.search import atomic_file, cached_sets, paper, records
from swift_jax.search.budget import Estimate
from swift_jax.search.searcher import Searcher
from swift_jax.session import MAX_EOS_IDS, Model, Row, Session
from swift_jax.skip_mask import SkipMask

Prompt = str | Sequence[int]
_DEFAULT_NAME = 'default'  # of a set that is saved
_STATE_FORMAT = 'swift_jax search state'


@dataclasses.dataclass(frozen=True)
class Result:
  """What one prompt became.

  Attributes:
    prompt: as it was given.
    text: the generated text, without end-of-text token and stop string.
    tokens: generated token ids, the one that ended the text included.
    finish_reason: `eos`, `stop` (a stop string) or `length`.
    metrics: what it cost.
  """

  prompt: Prompt
  text: str
  tokens: list[int]
  finish_reason: str
  metrics: Metrics


class Engine:
  """Generates text, plainly or with SWIFT; the text is the same.

  The search goes on from call to call: what it found drafts the next prompt.

  Attributes:
    cfg: the model's shape.
    tokenizer: a transformers tokenizer; None where prompts are token ids.
    searcher: the search and its incumbent.
    model: the target on its devices.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    graphdef: GraphDef,
    params: Params,
    tokenizer: Any = None,
    eos_token_ids: Sequence[int] = (),
    draft: DraftConfig | None = None,
    search: SearchConfig | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ):
    if len(eos_token_ids) > MAX_EOS_IDS:
      raise InputError(
        f'eos_token_id={list(eos_token_ids)}: expected at most {MAX_EOS_IDS}'
      )
    search = search or SearchConfig()
    if search.context_window > cfg.max_position_embeddings:
      raise InputError(
        f'search.context_window={search.context_window}: the context holds only'
        f' max_position_embeddings={cfg.max_position_embeddings}'
      )
    self.cfg = cfg
    self.tokenizer = tokenizer
    self._eos = tuple(eos_token_ids)
    self.model = Model(cfg, graphdef, params, draft or DraftConfig(), mesh)
    self.searcher = self._make_searcher(search)

  def _make_searcher(self, search: SearchConfig) -> Searcher:
    _check_files(search)
    self._has_saved, self._saved_at = False, 0
    searcher = paper.make_searcher(search, self.cfg.num_hidden_layers)
    if search.cache:
      mask = _cached_mask(search, self.cfg, self.fingerprint)
      searcher.start_from(mask, may_restart=True)
    if search.record and jax.process_index() == 0:
      layers, settings = self.cfg.num_hidden_layers, dataclasses.asdict(search)
      header = records.Header(layers, self.fingerprint, settings)
      record = records.Writer(search.record, header)
      weakref.finalize(self, record.close)
      searcher.on_pass = record.write
    return searcher

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash that ties skip sets and search states to this model."""
    return checkpoint.fingerprint(self.cfg, self.model.params)

  @classmethod
  def from_pretrained(
    cls,
    path: str,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    draft: DraftConfig | None = None,
    search: SearchConfig | None = None,
  ) -> Engine:
    """Loads a Hugging Face Llama checkpoint.

    Args:
      path: a local folder or a hub id.
      dtype: bfloat16, float16 or float32; the checkpoint's own if None.
      mesh: devices with axes `data` and `tensor`; one device if None.
      draft: how blocks are drafted.
      search: how the skip mask is found.

    Raises:
      InputError: something about the checkpoint is wrong or not supported.
    """
    folder = checkpoint.resolve(path)
    cfg = checkpoint.load_config(folder, dtype)
    if search is not None:  # a bad file is refused before weights load
      _check_files(search)
      if search.cache:
        _cached_mask(search, cfg, None)
    tokenizer = checkpoint.load_tokenizer(folder, cfg)
    eos = sorted(checkpoint.eos_token_ids(folder))
    graphdef, params = checkpoint.load_params(folder, cfg, mesh)
    return cls(cfg, graphdef, params, tokenizer, eos, draft, search, mesh)

  @property
  def skip_mask(self) -> SkipMask:
    """The mask that drafts at present."""
    return self.searcher.incumbent

  @property
  def matchness(self) -> float | None:
    """That mask's share of hits over the last windows; None before one."""
    return self.searcher.matchness

  def set_skip_mask(self, mask: SkipMask) -> None:
    """Drafts with `mask` from now on; the search rests."""
    self.searcher.start_from(mask)

  def generate(
    self,
    prompts: Prompt | Sequence[Prompt],
    decode: DecodeConfig | None = None,
    on_text: Callable[[int, str], None] | None = None,
  ) -> list[Result]:
    """Continues one or many prompts.

    Args:
      prompts: strings, or token ids.
      decode: method, limits, batch size.
      on_text: called with a prompt's index and a piece of its text as it comes.

    Returns:
      A result a prompt, in order.

    Raises:
      InputError: an empty prompt, one longer than the context, a token outside
        the vocabulary, or logits that are not finite.
    """
    decode = decode or DecodeConfig()
    if isinstance(prompts, str) or (
      len(prompts) and isinstance(prompts[0], (int, np.integer))
    ):
      prompts = [prompts]
    encoded = self.encode(prompts)
    results: list[Result] = []
    try:
      for at in range(0, len(encoded), decode.batch_size):
        session = self.session(
          encoded[at : at + decode.batch_size], decode, self.searcher
        )

        def hand_on(row: int, piece: str, at: int = at) -> None:
          if on_text is not None:
            on_text(at + row, piece)

        session.run(hand_on)
        self._save_set()
        results += [
          self._result(prompts[at + b], row, session)
          for b, row in enumerate(session.rows)
        ]
    except BaseException:  # what was found is kept, whatever ends the text
      with contextlib.suppress(InputError):
        self._save_set()
      raise
    return results

  def _save_set(self) -> None:
    """Writes the set that drafts, if it was scored since the last time.

    A better one of another run stays: what skips as much and has the higher score,
    an error bar below, for the score of a few windows is flattering.
    """
    searcher, search = self.searcher, self.searcher.cfg
    if not search.save or not searcher.iterations > self._saved_at:
      return
    if searcher.estimate.mean is None:  # just chosen, not yet scored
      return
    name = search.cache_name or _DEFAULT_NAME
    skip_ratio = searcher.incumbent.skip_ratio()
    if not self._has_saved:
      rival = cached_sets.saved(search.save, name, self.fingerprint)
      is_alike = rival is not None and rival.skip_ratio == skip_ratio
      if is_alike and _low(rival) > searcher.estimate.low:
        return
    found = cached_sets.CachedSet(
      name=name,
      model=self.fingerprint,
      matchness=searcher.estimate.mean,
      positions=round(searcher.estimate.positions),
      skip_ratio=skip_ratio,
      context_window=search.context_window,
      date=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      version=swift_jax.__version__,
      **{k: tuple(v) for k, v in searcher.incumbent.to_lists().items()},
    )
    if jax.process_index() == 0:
      cached_sets.save(search.save, found)
    self._has_saved, self._saved_at = True, searcher.iterations

  def save_search(self, path: str) -> None:
    """Writes all that the search has learnt, for `load_search`.

    Raises:
      InputError: the file cannot be written, and is as it was.
    """
    where = f'search state {path!r}'
    target = atomic_file.writable(path, where)
    state = {'model': self.fingerprint, 'search': self.searcher.state()}
    text = json.dumps({_STATE_FORMAT: 1, **state}, allow_nan=False)
    atomic_file.replace(target, f'{text}\n', where)

  def load_search(self, path: str) -> None:
    """Goes on from what `save_search` wrote.

    Raises:
      InputError: no such file, damaged, or of another model or other settings;
        the search is as it was.
    """
    where = f'search state {path!r}'
    try:
      saved = json.loads(atomic_file.read(path, where))
      if saved[_STATE_FORMAT] != 1:
        raise ValueError(f'version {saved[_STATE_FORMAT]!r}')
      model, state = saved['model'], saved['search']
    except (KeyError, TypeError, ValueError, RecursionError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f'{where}: is no search state: {error}') from None
    if model != self.fingerprint:
      raise InputError(
        f'{where}: is of model {model!r}, this one is {self.fingerprint!r}'
      )
    try:
      self.searcher.restore(state)
    except InputError as error:
      raise InputError(f'{where}: {error}') from None

  def warmup(
    self, decode: DecodeConfig | None = None, prompt_length: int = 2
  ) -> None:
    """Compiles what `generate` runs for prompts up to this length.

    Not what the search may need later: its process starts when the budget affords
    that (at once where `time_budget` is 1), and a search at rest compiles when it
    wakes.
    """
    decode = decode or DecodeConfig()
    prompts = [[0] * prompt_length] * decode.batch_size
    # A searcher of its own: compiling must not move the search or its budget.
    search = self.searcher.cfg
    spare = paper.make_searcher(search, self.cfg.num_hidden_layers)
    session = self.session(prompts, decode, spare)
    if decode.method == 'swift' and self.searcher.active:
      session.prepare_search()
      candidates = spare.candidates()
      scores = session.score(candidates)
      # Nothing has been written yet; what follows needs a text to weigh.
      everything = np.ones_like(scores.compared)
      spare.observe(candidates, scores._replace(compared=everything), 1)
      spare.state()  # waits for the Gaussian process, where there is one
    jax.block_until_ready(session.advance(1))

  def session(
    self,
    prompts: Sequence[Sequence[int]],
    decode: DecodeConfig,
    searcher: Searcher | None = None,
  ) -> Session:
    """A batch of token ids, its prompts in the cache; `generate` runs it."""
    sharding.check_batch(decode.batch_size, self.model.mesh)
    return Session(
      self.model,
      searcher or self.searcher,
      self._eos,
      prompts,
      self._detokenize,
      decode,
    )

  def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
      InputError: as `generate`; names the prompt by its index.
    """
    return [self._encode(i, prompt) for i, prompt in enumerate(prompts)]

  def _encode(self, index: int, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str) and prompt:
      if self.tokenizer is None:
        raise InputError(f'prompt {index}: the engine has no tokenizer')
      ids = list(self.tokenizer(prompt)['input_ids'])
    else:
      ids = [int(token) for token in prompt]
    if not ids:
      raise InputError(f'prompt {index} is empty: {prompt!r}')
    for token in ids:
      if not 0 <= token < self.cfg.vocab_size:
        raise InputError(
          f'prompt {index}: token {token} is outside the vocabulary of'
          f' {self.cfg.vocab_size}'
        )
    context = self.cfg.max_position_embeddings
    if len(ids) > context:
      raise InputError(
        f'prompt {index} has {len(ids)} tokens, but the context holds'
        f' max_position_embeddings={context}'
      )
    return ids

  def _detokenize(self, tokens: Sequence[int]) -> str:
    if self.tokenizer is None:
      return ''
    return self.tokenizer.decode(
      tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )

  def _result(self, prompt: Prompt, row: Row, session: Session) -> Result:
    tokens, counts, seconds = row.text.tokens, row.counts, session.seconds
    finish_reason = 'length'
    if row.text.stopped:
      finish_reason = 'stop'
    elif tokens and tokens[-1] in self._eos and not session.decode.ignore_eos:
      finish_reason = 'eos'
    is_swift = session.decode.method == 'swift'
    total = seconds.prefill + seconds.decode + seconds.search
    return Result(
      prompt=prompt,
      text=row.text.text,
      tokens=tokens,
      finish_reason=finish_reason,
      metrics=Metrics(
        method=session.decode.method,
        new_tokens=len(tokens),
        prefill_s=seconds.prefill,
        decode_s=seconds.decode,
        search_s=seconds.search,
        **counts,
        acceptance_rate=ratio(counts['accepted'], counts['drafted']),
        mean_accepted_length=ratio(len(tokens), counts['verify_passes']),
        skip_ratio=self.skip_mask.skip_ratio() if is_swift else None,
        matchness=self.matchness if is_swift else None,
        tokens_per_second=ratio(len(tokens), total),
      ),
    )


def _cached_mask(
  search: SearchConfig, cfg: ModelConfig, model: str | None
) -> SkipMask:
  layers = cfg.num_hidden_layers
  return cached_sets.load(search.cache, search.cache_name, layers, model)


def _low(found: cached_sets.CachedSet) -> float:
  """A saved score, an error bar below."""
  if found.matchness is None or not found.positions:
    return 0.0
  return Estimate(found.matchness * found.positions, found.positions).low


def _check_files(search: SearchConfig) -> None:
  """Refuses what could not be written once there is something to write."""
  if search.save:
    cached_sets.check_writable(search.save)
    cached_sets.check_name(
      search.cache_name or _DEFAULT_NAME, 'search.cache_name'
    )
  if search.record:
    atomic_file.writable(search.record, f'search.record={search.record!r}')
