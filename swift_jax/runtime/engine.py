"""The engine: a checkpoint, its tokenizer and the search, ready to write."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import logging
import reprlib
from typing import Any
import weakref

import jax
import numpy as np

from swift_jax.checkpoint import hf_config, hub, load
from swift_jax.config.checks import require
from swift_jax.config.sampling import Resolved, SamplingConfig, resolve
from swift_jax.config.settings import (
  WEIGHTS,
  DecodeConfig,
  DraftConfig,
  ModelConfig,
  SearchConfig,
)
from swift_jax.errors import InputError
from swift_jax.files import atomic
from swift_jax.model import quantised
from swift_jax.model.llama import GraphDef, Params
from swift_jax.model.skip_mask import SkipMask, num_free
from swift_jax.parallel import sharding
from swift_jax.runtime import chat_template
from swift_jax.runtime.chat_template import Arguments, Conversation
from swift_jax.runtime.metrics import LogProbs, Metrics, Round, ratio
from swift_jax.runtime.model import Model
from swift_jax.runtime.prompts import (
  Prompt,
  as_list,
  encode,
  encode_text,
  is_conversation,
  needs_tokenizer,
)
from swift_jax.runtime.rows import Piece, Row, Seen
from swift_jax.runtime.session import Session
from swift_jax.runtime.token_bytes import TokenBytes, special_tokens
from swift_jax.search.budget import Estimate
from swift_jax.search.files import cached_sets, records
from swift_jax.search.paper import recipe as paper
from swift_jax.search.searcher import Searcher
from swift_jax.version import __version__

_LOGGER = logging.getLogger('swift_jax')
_DEFAULT_NAME = 'default'  # of a set that is saved
_STATE_FORMAT = 'swift_jax search state'


@dataclasses.dataclass(frozen=True)
class Result:
  """What one prompt became.

  Attributes:
    prompt: as it was given, an array as a list.
    text: the generated text up to a stop string, without special tokens (those
      that end a text among them) unless `sampling.skip_special_tokens` is False.
    tokens: generated token ids, the one that ended the text included.
    finish_reason: `eos`, `stop` (a stop string) or `length`.
    metrics: what it cost.
    rounds: what each pass of the target did.
    logprobs: log-probabilities, where `SamplingConfig.logprobs` asks for them.
  """

  prompt: Prompt
  text: str
  tokens: list[int]
  finish_reason: str
  metrics: Metrics
  rounds: list[Round]
  logprobs: LogProbs | None = None

  def __repr__(self) -> str:
    """In short: the fields have all of it."""
    speed = self.metrics.tokens_per_second
    parts = [
      reprlib.repr(self.text),
      self.finish_reason,
      f'{len(self.tokens)} tokens',
      *([] if speed is None else [f'{speed:.1f} tokens/s']),
    ]
    return f'Result({", ".join(parts)})'


class Engine:
  """Generates text, plainly or with SWIFT: the same text, drawn or not.

  The search goes on from call to call: what it found drafts the next prompt.

  Attributes:
    name: the folder or hub id that it was loaded from, if it was.
    cfg: the model's shape.
    tokenizer: a transformers tokenizer; None where prompts are token ids, and
      where it cannot be read.
    defaults: sampling settings of the model's `generation_config.json`.
    remarks: a line for each thing that was done unasked, to the model, a prompt or
      the end of a chat; the logger `swift_jax` has them as warnings.
    searcher: the search and its incumbent.
    model: the target on its devices.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    graphdef: GraphDef,
    params: Params,
    tokenizer: Any = None,
    defaults: SamplingConfig | None = None,
    draft: DraftConfig | None = None,
    search: SearchConfig | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """An engine on parameters that are loaded.

    Args:
      defaults: what the model's `generation_config.json` says of sampling.
      tokenizer, draft, search, mesh: see `from_pretrained`.
    """
    search = search or SearchConfig()
    if search.context_window > cfg.max_position_embeddings:
      raise InputError(
        f'search.context_window={search.context_window}: the context holds only'
        f' max_position_embeddings={cfg.max_position_embeddings}'
      )
    self.name = ''
    self.cfg = cfg
    self.tokenizer = tokenizer
    self.defaults = defaults or SamplingConfig()
    # What is wrong with that file and with the tokenizer, for who uses them.
    self._refused: InputError | None = None
    self._no_tokenizer: InputError | None = None
    self._said: set[str] = set()  # settings that have been logged
    self.remarks: list[str] = []
    self.model = Model(cfg, graphdef, params, draft or DraftConfig(), mesh)
    self.searcher = self._make_searcher(search)

  def __repr__(self) -> str:
    skipped = self.skip_mask.num_skipped()
    free = num_free(self.cfg.num_hidden_layers)
    return (
      f'Engine({self.describe()}, {DecodeConfig().method} by default,'
      f' skips {skipped} of {free} sublayers)'
    )

  def describe(self) -> str:
    """Which model it is, in which numbers and on which devices."""
    cfg = self.cfg
    devices: list[Any] = list(sharding.replicated(self.model.mesh).device_set)
    parts = [
      self.name and repr(self.name),
      f'{cfg.num_hidden_layers} layers of {cfg.hidden_size}',
      cfg.dtype,
      cfg.weights and f'{cfg.weights} weights',
      f'{len(devices)} x {devices[0].device_kind}',
    ]
    return ', '.join(filter(None, parts))

  def _make_searcher(self, search: SearchConfig) -> Searcher:
    _check_files(search, self.model.mesh)
    self._saved: cached_sets.CachedSet | None = None
    self._saved_at = 0  # passes
    searcher = paper.make_searcher(search, self.cfg.num_hidden_layers)
    if search.cache:
      mask = _cached_mask(search, self.cfg, self.fingerprint)
      searcher.start_from(mask, may_restart=True)
    if search.record and sharding.is_first(self.model.mesh):
      layers, settings = self.cfg.num_hidden_layers, dataclasses.asdict(search)
      header = records.Header(layers, self.fingerprint, settings)
      record = records.Writer(search.record, header)
      weakref.finalize(self, record.close)
      searcher.on_pass = record.write
    return searcher

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash that ties skip sets and search states to this model."""
    return load.fingerprint(self.cfg, self.model.params)

  @classmethod
  def from_pretrained(
    cls,
    path: str,
    dtype: str | None = None,
    weights: str = '',
    mesh: jax.sharding.Mesh | None = None,
    draft: DraftConfig | None = None,
    search: SearchConfig | None = None,
    require_tokenizer: bool = False,
  ) -> Engine:
    """Loads a Hugging Face Llama checkpoint.

    A tokenizer or `generation_config.json` that cannot be used is an error once it
    is needed: prompts that are token ids, and settings with
    `use_generation_config=False`, do without.

    Args:
      path: a local folder or a hub id.
      dtype: bfloat16, float16 or float32; the checkpoint's own if None.
      weights: `int8` for projections of whole numbers, on one device; see
        `quantised`.
      mesh: devices with axes `data` and `tensor`; one device if None.
      draft: how blocks are drafted.
      search: how the skip mask is found.
      require_tokenizer: refuse a tokenizer that cannot be read at once, before
        weights load.

    Raises:
      InputError: something about the checkpoint is wrong or not supported.
    """
    require(weights in WEIGHTS, 'model.weights', weights, "'' or 'int8'")
    if weights and mesh is not None:
      raise InputError(
        f'model.weights={weights!r}: on one device, but mesh is'
        f' {dict(mesh.shape)}'
      )
    if search is not None:  # bad files are refused before weights are fetched
      _check_files(search, mesh)
    folder = hub.resolve(path)
    remarks: list[str] = []
    cfg = load.load_config(folder, dtype, remarks.append)
    if search is not None and search.cache:
      _cached_mask(search, cfg, None)
    tokenizer, no_tokenizer, refused = None, None, None
    try:
      tokenizer = hub.load_tokenizer(folder, cfg)
    except InputError as error:  # whose prompts are token ids may go on
      if require_tokenizer:
        raise
      no_tokenizer = error
      remarks.append(f'{error}; texts of token ids are empty')
    try:
      defaults = hf_config.generation_defaults(folder)
    except InputError as error:  # who does not use the file may go on
      defaults, refused = hf_config.eos_defaults(folder), error
    graphdef, params = load.load_params(folder, cfg, mesh)
    if weights:
      cfg, graphdef, params = quantised.quantise(cfg, params)
    made = cls(cfg, graphdef, params, tokenizer, defaults, draft, search, mesh)
    made.name, made._refused, made._no_tokenizer = path, refused, no_tokenizer
    for line in remarks:
      made._remark(line)
    return made

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

  def resolve(self, sampling: SamplingConfig | None = None) -> Resolved:
    """The settings that `generate` applies, and where each comes from.

    Raises:
      InputError: settings that contradict each other, an end of text that is no
        token of the model, more log-probabilities than it has tokens, or a file
        that cannot be used and that they need.
    """
    sampling = sampling or SamplingConfig()
    if self._refused is not None and sampling.use_generation_config:
      raise InputError(str(self._refused)) from self._refused
    resolved = resolve(sampling, self.defaults)
    for token in sampling.eos_token_id or ():
      if token >= self.cfg.vocab_size:
        raise InputError(
          f'sampling.eos_token_id={resolved.config.eos_token_id!r:.80}: token'
          f' {token} is outside the vocabulary of {self.cfg.vocab_size}'
        )
    if resolved.config.stop_strings:
      self._check_stop_strings(
        resolved.config, resolved.config.eos_token_id or ()
      )
    most = self.cfg.vocab_size
    wanted = f'an integer <= {most}, the tokens of the vocabulary'
    asked = sampling.logprobs
    require((asked or 0) <= most, 'sampling.logprobs', asked, wanted)
    return resolved

  def _check_stop_strings(
    self, cfg: SamplingConfig, eos_token_ids: Sequence[int]
  ) -> None:
    """Refuses a stop string that no text can hold, but not the name of a token that
    ends the text in any case."""
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

  def _check_tokenizer(self) -> None:
    """For who asks for text.

    Raises:
      InputError: the tokenizer could not be read.
    """
    if self._no_tokenizer is not None and self.tokenizer is None:
      raise InputError(str(self._no_tokenizer)) from self._no_tokenizer

  def for_chats(self, decode: DecodeConfig | None = None) -> DecodeConfig:
    """The settings with which a conversation is answered.

    They end an answer at the tokenizer's end of text too, as well as at those of
    the model's files, unless the caller gives `eos_token_id`. `generate` does that
    by itself for a conversation that it gets as messages; this is for one that is
    token ids already.
    """
    decode = _checked(decode)
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
    """The tokenizer's end of text, if the model can write it."""
    token: int | None = getattr(self.tokenizer, 'eos_token_id', None)
    return None if token is None or token >= self.cfg.vocab_size else token

  def _remark(self, line: str) -> None:
    if line not in self.remarks:
      self.remarks.append(line)
      _LOGGER.warning(line)

  def generate(
    self,
    prompts: Prompt | Sequence[Prompt],
    decode: DecodeConfig | None = None,
    on_text: Callable[[int, str], None] | None = None,
    streamer: Any = None,
    indices: Sequence[int] | None = None,
    chat_template_kwargs: Arguments | None = None,
  ) -> list[Result]:
    """Continues one or many prompts.

    Args:
      prompts: one, or a list of any kinds: a string; token ids; or a conversation,
        `{'role': ..., 'content': ...}` in turn, which is put into the tokenizer's
        chat template for the answer, or for what follows the last message if that
        is the assistant's.
      decode: method, limits, batch size, sampling.
      on_text: called with a prompt's index and a piece of its text as it comes.
      streamer: a transformers `BaseStreamer`, for one prompt: gets the prompt's
        token ids, those of the text as they come, and its end.
      indices: of the prompts in the run, on which with the seed their draws depend;
        0, 1, ... if None.
      chat_template_kwargs: for the chat template of every conversation: `tools`,
        `documents`, `chat_template` (another one, or its name), and what the
        template knows, as `enable_thinking`; `continue_final_message=False` closes
        a last message of the assistant's, to be followed by another one.

    Returns:
      A result a prompt, in order: a list for one prompt too.

    Raises:
      InputError: what is no prompt, an empty one, one longer than the context, a
        token outside the vocabulary, a conversation that the chat template
        refuses, settings that contradict each other, a file that cannot be used
        and is needed, or logits that are not finite.
    """
    prompts = as_list(prompts)
    if on_text is not None:
      self._check_tokenizer()
    if streamer is not None and not hasattr(streamer, 'put'):
      raise InputError(f'streamer={streamer!r:.80}: expected a BaseStreamer')
    if streamer is not None and len(prompts) != 1:
      raise InputError(f'streamer: expected one prompt, not {len(prompts)}')
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
      if streamer is not None:
        self.resolve(_checked(decode).sampling)
        encoded = self.encode(prompts, chat_template_kwargs)
        streamer.put(np.asarray(encoded))
        stack.callback(streamer.end)  # whoever reads it waits for that
      # Closed at once if a reader fails: what was found is kept.
      steps = self._write(prompts, decode, indices, chat_template_kwargs)
      for step in stack.enter_context(contextlib.closing(steps)):
        if isinstance(step, Result):
          results.append(step)
          continue
        if on_text is not None and step.text:
          on_text(step.row, step.text)
        if streamer is not None and step.tokens:
          streamer.put(np.asarray(step.tokens))
    return results

  def stream(
    self,
    prompt: Prompt,
    decode: DecodeConfig | None = None,
    index: int = 0,
    chat_template_kwargs: Arguments | None = None,
  ) -> Iterator[str]:
    """The text of one prompt, in pieces that split no character and hold no
    part of a stop string; to leave off early, drop the iterator.

    Of many prompts at once, `on_text` of `generate` gets the pieces. Text is all
    that there is here: no log-probabilities are taken, whatever `decode` says.

    Args:
      prompt: of a kind that `generate` takes.
      decode: as there.
      index: of the prompt in the run, as `indices` there.
      chat_template_kwargs: as there.

    Raises:
      InputError: as `generate`, when the first piece is asked for.
    """
    prompts = as_list(prompt)
    if len(prompts) != 1:
      raise InputError(
        f'prompt={prompts!r:.80}: expected one prompt, not {len(prompts)}'
      )
    self._check_tokenizer()
    decode = _checked(decode)
    sampling = dataclasses.replace(decode.sampling, logprobs=None)
    decode = dataclasses.replace(decode, sampling=sampling)
    for step in self._write(prompts, decode, [index], chat_template_kwargs):
      if isinstance(step, Piece) and step.text:
        yield step.text

  def encode_chat(
    self,
    messages: Conversation,
    chat_template_kwargs: Arguments | None = None,
  ) -> list[int]:
    """Token ids of a conversation, up to where the model goes on.

    However long it is: `encode` refuses one that the context does not hold.

    Args:
      messages: a last one of the assistant's is continued.
      chat_template_kwargs: as for `generate`.

    Raises:
      InputError: the tokenizer has no template, or it refuses the messages.
    """
    self._check_tokenizer()
    return chat_template.encode(messages, self.tokenizer, chat_template_kwargs)

  def encode_text(self, text: str) -> list[int]:
    """Token ids of a text to go on with.

    With what the tokenizer sets before each text, once, and without an end of text.
    However long it is: `encode` refuses one that the context does not hold.

    Raises:
      InputError: the text is empty, or there is no tokenizer.
    """
    if not text:
      raise InputError('the prompt is empty')
    self._check_tokenizer()
    if self.tokenizer is None:
      raise InputError('the engine has no tokenizer')
    return encode_text(text, self.tokenizer, self._remark)

  def _write(
    self,
    prompts: Sequence[Prompt],
    decode: DecodeConfig | None,
    indices: Sequence[int] | None,
    chat_template_kwargs: Arguments | None,
  ) -> Generator[Piece | Result, None, None]:
    """Batch by batch: pieces as they come, then a result a prompt."""
    decode = _checked(decode)
    encoded = self.encode(prompts, chat_template_kwargs)
    if indices is None:
      indices = range(len(encoded))
    if len(indices) != len(encoded):
      raise InputError(
        f'indices={list(indices)!r:.80}: expected one a prompt, {len(encoded)}'
      )
    for index in indices:
      is_int = isinstance(index, (int, np.integer))
      if not is_int or not 0 <= index < 2**32:
        raise InputError(
          f'indices={list(indices)!r:.80}: {index!r} is no integer in [0, 2**32)'
        )
    try:
      for rows, settings in self._batches(prompts, decode):
        session = self.session(
          encoded[rows], settings, self.searcher, indices[rows]
        )
        for piece in session.run():
          yield piece._replace(row=rows.start + piece.row)
        self._save_set()
        told = session.rounds(), session.log_probs()
        parts = zip(prompts[rows], session.rows, *told, strict=True)
        del session.state  # its cache makes room for the next batch's
        for prompt, row, passes, log_probs in parts:
          yield self._result(prompt, row, session, passes, log_probs)
    except BaseException as error:  # what was found is kept, whatever ends it
      with contextlib.suppress(InputError):
        self._save_set()
      if self._saved is not None:
        error.add_note(f'the skip set is in {self.searcher.cfg.save}')
      raise

  def _batches(
    self, prompts: Sequence[Prompt], decode: DecodeConfig
  ) -> Iterator[tuple[slice, DecodeConfig]]:
    """Which prompts ride together, and where their texts end.

    A chat may end at other tokens than a text; a batch has one set of them.
    """
    is_chat = [is_conversation(prompt) for prompt in prompts]
    chats = self.for_chats(decode) if any(is_chat) else decode
    settings = [chats if chat else decode for chat in is_chat]
    at = 0
    for kind, group in itertools.groupby(settings):
      end = at + len(list(group))
      for start in range(at, end, decode.batch_size):
        yield slice(start, min(start + decode.batch_size, end)), kind
      at = end

  def _resolved(self, decode: DecodeConfig) -> DecodeConfig:
    """The settings without a gap."""
    resolved = self.resolve(decode.sampling)
    line = resolved.describe()
    if resolved.is_remarkable and line not in self._said:
      self._said.add(line)
      _LOGGER.warning(line)
    if decode.ignore_eos and resolved.config.stop_strings:
      self._check_stop_strings(resolved.config, ())
    return dataclasses.replace(decode, sampling=resolved.config)

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
    found = cached_sets.CachedSet(
      name=search.cache_name or _DEFAULT_NAME,
      model=self.fingerprint,
      matchness=searcher.estimate.mean,
      positions=round(searcher.estimate.positions),
      skip_ratio=searcher.incumbent.skip_ratio(),
      context_window=search.context_window,
      date=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      version=__version__,
      **{k: tuple(v) for k, v in searcher.incumbent.to_lists().items()},
    )

    def stays(rival: cached_sets.CachedSet) -> bool:
      is_better = _low(rival) > searcher.estimate.low
      is_like_ours = rival.skip_ratio == found.skip_ratio
      return rival != self._saved and is_like_ours and is_better

    if sharding.is_first(self.model.mesh):
      if not cached_sets.save(search.save, found, stays):
        return
    self._saved, self._saved_at = found, searcher.iterations

  def save_search(self, path: str) -> None:
    """Writes all that the search has learnt, for `load_search`.

    Raises:
      InputError: the file cannot be written, and is as it was.
    """
    where = f'search state {path!r}'
    target = atomic.writable(path, where)
    atomic.replace(target, self.search_state(), where)

  def search_state(self) -> str:
    """All that the search has learnt, as `save_search` writes it."""
    state = {'model': self.fingerprint, 'search': self.searcher.state()}
    return json.dumps({_STATE_FORMAT: 1, **state}, allow_nan=False) + '\n'

  def load_search(self, path: str) -> None:
    """Goes on from what `save_search` wrote.

    Raises:
      InputError: no such file, damaged, or of another model or other settings;
        the search is as it was.
    """
    where = f'search state {path!r}'
    self.restore_search(atomic.read(path, where), where)

  def restore_search(self, text: str | bytes, where: str) -> None:
    """Goes on from what `search_state` gave.

    Args:
      where: what errors call it.

    Raises:
      InputError: as `load_search`.
    """
    try:
      saved = json.loads(text)
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
    self,
    decode: DecodeConfig | None = None,
    prompt_length: int = 2,
    search: bool = True,
  ) -> None:
    """Compiles what `generate` runs for prompts up to this length.

    Not the search's process: it starts when the budget affords that (at once where
    `time_budget` is 1). A search at rest compiles when it wakes.

    Args:
      search: compile scoring too; else that is done beside the text, in a run that
        lasts.
    """
    decode = _checked(decode)
    prompts = [[0] * prompt_length] * decode.batch_size
    # A searcher of its own: compiling must not move the search or its budget.
    layers, evidence = self.cfg.num_hidden_layers, self.model.evidence
    spare = paper.make_searcher(self.searcher.cfg, layers)
    if not self.searcher.active:
      spare.start_from(self.searcher.incumbent)
    session = self.session(prompts, decode, spare)
    if search and decode.method == 'swift' and self.searcher.active:
      session.turns.prepare(session.state)
      candidates = spare.candidates()
      scores = session.turns.score(session.state, candidates)
      # Nothing has been written yet; what follows needs a text to weigh.
      everything = np.ones_like(scores.compared)
      spare.observe(candidates, scores._replace(compared=everything), 1)
      spare.state()  # waits for the Gaussian process, where there is one
    if decode.method == 'swift' and not self.searcher.active:
      session.specialise(self.searcher.incumbent, waits=True)
    session.state = jax.block_until_ready(session.advance(2))
    if decode.method != 'plain' and decode.phase_interval:
      session.state = session.in_halves()
    Seen.of(session.state, self.model)
    session.rounds()
    if decode.sampling.logprobs is not None:
      session.force(0)
    sharding.agreed(True, self.model.mesh)
    self.model.dispatches, self.model.evidence = 0, evidence

  def session(
    self,
    prompts: Sequence[Sequence[int]],
    decode: DecodeConfig,
    searcher: Searcher | None = None,
    indices: Sequence[int] | None = None,
  ) -> Session:
    """A batch of token ids, its prompts in the cache; `generate` runs it."""
    decode = self._resolved(decode)
    sharding.check_batch(decode.batch_size, self.model.mesh)
    skips = decode.sampling.skip_special_tokens
    return Session(
      self.model,
      searcher or self.searcher,
      prompts,
      TokenBytes(self.tokenizer, self.cfg.vocab_size, skips),
      decode,
      indices,
    )

  def encode(
    self,
    prompts: Prompt | Sequence[Prompt],
    chat_template_kwargs: Arguments | None = None,
  ) -> list[list[int]]:
    """Token ids of each prompt.

    Args:
      chat_template_kwargs: as for `generate`.

    Raises:
      InputError: as `generate`; names the prompt by its index.
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

  def _result(
    self,
    prompt: Prompt,
    row: Row,
    session: Session,
    passes: list[Round],
    log_probs: LogProbs | None,
  ) -> Result:
    tokens, counts, seconds = row.text.tokens, row.counts, session.seconds
    finish_reason = 'length'
    if row.text.stopped:
      finish_reason = 'stop'
    elif tokens and tokens[-1] in session.eos_token_ids:
      finish_reason = 'eos'
    is_swift = session.decode.method == 'swift'
    total = seconds.prefill + seconds.decode + seconds.search
    return Result(
      prompt=prompt,
      text=row.text.text,
      tokens=tokens,
      finish_reason=finish_reason,
      rounds=passes,
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
        skip_ratio=self.skip_mask.skip_ratio() if is_swift else None,
        matchness=self.matchness if is_swift else None,
        tokens_per_second=ratio(len(tokens), total),
      ),
    )


def _checked(decode: DecodeConfig | None) -> DecodeConfig:
  """The settings of a call; the default ones for None."""
  if decode is None:
    return DecodeConfig()
  if not isinstance(decode, DecodeConfig):
    raise InputError(
      f'decode={decode!r:.80}: expected a DecodeConfig, which has `sampling`'
    )
  return decode


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


def _check_files(search: SearchConfig, mesh: jax.sharding.Mesh | None) -> None:
  """Refuses what could not be written once there is something to write."""
  if search.save:
    cached_sets.check_writable(search.save)
    cached_sets.check_name(
      search.cache_name or _DEFAULT_NAME, 'search.cache_name'
    )
  # To ask is to lock the file for a moment: only for who will write it.
  if search.record and sharding.is_first(mesh):
    records.check_writable(search.record)
    if search.save and atomic.is_same(search.record, search.save):
      raise InputError(
        f'search.record={search.record!r}: is the file of search.save too'
      )
