"""The engine: a checkpoint, its tokenizer and the search, ready to generate text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from swift_jax.checkpoint import fitting, hub, load, quantised
from swift_jax.config.checks import require
from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import (
  WEIGHTS,
  DecodeConfig,
  DraftConfig,
  ModelConfig,
  SearchConfig,
)
from swift_jax.errors import InputError
from swift_jax.model.llama import GraphDef, Params
from swift_jax.model.skip_mask import (
  SkipMask,
  checked_bits,
  from_bits,
  num_free,
)
from swift_jax.parallel import sharding
from swift_jax.runtime import results, search_files, texts
from swift_jax.runtime.chat_template import Arguments
from swift_jax.runtime.model import Model
from swift_jax.runtime.prompts import Prompt, as_list, check_indices, split
from swift_jax.runtime.results import Result
from swift_jax.runtime.rows import Piece
from swift_jax.runtime.search_files import SearchFiles
from swift_jax.runtime.session import Session
from swift_jax.runtime.texts import Texts, checked
from swift_jax.search.paper import recipe as paper
from swift_jax.search.searcher import Searcher


class Engine(Texts):
  """Generates text, plainly or with SWIFT. Both give the same text, drawn or greedy.

  The search goes on from call to call: the mask that it found drafts the next prompt.

  Attributes:
    name: the folder or hub id of the checkpoint; empty for a model from memory.
    cfg: the model's shape.
    tokenizer: a transformers tokenizer; None if prompts are token ids, or if the
      tokenizer cannot be read.
    defaults: sampling settings of the model's `generation_config.json`.
    remarks: a line for each change that was made unasked to the model, a prompt or
      the end of a chat; the logger `swift_jax` has these lines as warnings.
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
    """Makes an engine of loaded parameters.

    Args:
      defaults: sampling settings of the model's `generation_config.json`.
      tokenizer, draft, search, mesh: see `from_pretrained`.
    """
    super().__init__(cfg, tokenizer, defaults or SamplingConfig())
    search = search or SearchConfig()
    if search.context_window > cfg.max_position_embeddings:
      raise InputError(
        f'search.context_window={search.context_window}: the context holds only'
        f' max_position_embeddings={cfg.max_position_embeddings}'
      )
    self.name = ''
    self.model = Model(cfg, graphdef, params, draft or DraftConfig(), mesh)
    search_files.check(search, mesh)
    self.searcher = paper.make_searcher(search, cfg.num_hidden_layers)
    self._files = SearchFiles(self.model, self.searcher)

  def __repr__(self) -> str:
    skipped = self.skip_mask.num_skipped()
    free = num_free(self.cfg.num_hidden_layers)
    return (
      f'Engine({self.describe()}, {DecodeConfig().method} by default,'
      f' skips {skipped} of {free} sublayers)'
    )

  def describe(self) -> str:
    """The model's name, its size, its number types and its devices, in one line."""
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

  @property
  def fingerprint(self) -> str:
    """A hash that ties skip sets and search states to this model."""
    return self._files.fingerprint

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

    A tokenizer or a `generation_config.json` that cannot be used is an error only
    when it is needed. Prompts of token ids need no tokenizer, and settings with
    `use_generation_config=False` need no such file.

    Args:
      path: a local folder or a hub id.
      dtype: bfloat16, float16 or float32; None: the checkpoint's own.
      weights: `int8` rounds the projections' weights to whole numbers; see `quantised`.
      mesh: devices with axes `data` and `tensor`; None: one device.
      draft: how blocks are drafted.
      search: how the skip mask is found.
      require_tokenizer: refuse a tokenizer that cannot be read, before the weights
        are loaded.

    Raises:
      InputError: the checkpoint has a fault, or is not supported.
    """
    require(weights in WEIGHTS, 'model.weights', weights, "'' or 'int8'")
    if search is not None:  # bad files are refused before weights are fetched
      search_files.check(search, mesh)
    folder = hub.resolve(path)
    remarks: list[str] = []
    cfg = load.load_config(folder, dtype, remarks.append)
    cfg = fitting.fitted(cfg, mesh)
    if search is not None and search.cache:
      search_files.cached_mask(search, cfg)
    tokenizer, defaults, *faults = texts.load(
      folder, cfg, require_tokenizer, remarks.append
    )
    graphdef, params = load.load_params(folder, cfg, mesh)
    if weights:
      cfg, graphdef, params = quantised.quantise(cfg, params, mesh)
    given = tokenizer, defaults, draft, search, mesh
    made = cls(cfg, graphdef, params, *given)
    made.name, (made._no_tokenizer, made._no_defaults) = path, faults
    for line in remarks:
      made._remark(line)
    return made

  @property
  def skip_mask(self) -> SkipMask:
    """The mask that drafts at present."""
    return from_bits(self.searcher.incumbent)

  @property
  def matchness(self) -> float | None:
    """The mask's share of hits over the last windows; None before the first."""
    return self.searcher.matchness

  def set_skip_mask(self, mask: SkipMask) -> None:
    """Drafts with `mask` from now on; the search rests."""
    bits = checked_bits(mask, self.cfg.num_hidden_layers)
    self.searcher.start_from(bits)

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
      prompts: one prompt, or a list of prompts. A prompt is a string, token ids, or
        a conversation: a list of `{'role': ..., 'content': ...}`. A conversation
        goes through the tokenizer's chat template. The model answers it, or
        continues its last message if that message is the assistant's.
      decode: method, limits, batch size, sampling.
      on_text: called with a prompt's index and each new piece of its text.
      streamer: a transformers `BaseStreamer`, for one prompt. It gets the prompt's
        token ids, the text's token ids as they come, and the text's end.
      indices: the prompts' indices in the run; None: 0, 1, ... The draws depend on
        the seed and on the index.
      chat_template_kwargs: arguments of the chat template: `tools`, `documents`,
        `chat_template` (another template or its name), and arguments that the
        template defines, such as `enable_thinking`. `continue_final_message=False`
        closes a last message of the assistant's; another message follows it.

    Returns:
      A list with one result for each prompt, in order.

    Raises:
      InputError: a prompt is of no known kind, is empty, is longer than the context
        or has a token outside the vocabulary; the chat template refuses a
        conversation; settings contradict each other; a file is needed and cannot be
        used; or logits are not finite.
    """
    prompts = as_list(prompts)
    if on_text is not None:
      self._check_tokenizer()
    if streamer is not None and not hasattr(streamer, 'put'):
      raise InputError(f'streamer={streamer!r:.80}: expected a BaseStreamer')
    if streamer is not None and len(prompts) != 1:
      raise InputError(f'streamer: expected one prompt, not {len(prompts)}')
    found: list[Result] = []
    with contextlib.ExitStack() as stack:
      if streamer is not None:
        self.resolve(checked(decode).sampling)
        encoded = self.encode(prompts, chat_template_kwargs)
        streamer.put(np.asarray(encoded))
        # A reader of the streamer waits for the end.
        stack.callback(streamer.end)
      # If a reader fails, the steps are closed at once: the skip set is kept.
      steps = self._write(prompts, decode, indices, chat_template_kwargs)
      for step in stack.enter_context(contextlib.closing(steps)):
        if isinstance(step, Result):
          found.append(step)
          continue
        if on_text is not None and step.text:
          on_text(step.row, step.text)
        if streamer is not None and step.tokens:
          streamer.put(np.asarray(step.tokens))
    return found

  def stream(
    self,
    prompt: Prompt,
    decode: DecodeConfig | None = None,
    index: int = 0,
    chat_template_kwargs: Arguments | None = None,
  ) -> Iterator[str]:
    """Yields the text of one prompt piece by piece.

    A piece splits no character and holds no part of a stop string. To stop early,
    drop the iterator. For many prompts, use `on_text` of `generate`. Only text
    comes: log-probabilities are not computed, whatever `decode` says.

    Args:
      prompt: a prompt, as for `generate`.
      decode: as for `generate`.
      index: the prompt's index in the run, as in `indices` of `generate`.
      chat_template_kwargs: as for `generate`.

    Raises:
      InputError: as for `generate`, when the first piece is asked for.
    """
    prompts = as_list(prompt)
    if len(prompts) != 1:
      raise InputError(
        f'prompt={prompts!r:.80}: expected one prompt, not {len(prompts)}'
      )
    self._check_tokenizer()
    decode = checked(decode)
    sampling = dataclasses.replace(decode.sampling, logprobs=None)
    decode = dataclasses.replace(decode, sampling=sampling)
    for step in self._write(prompts, decode, [index], chat_template_kwargs):
      if isinstance(step, Piece) and step.text:
        yield step.text

  def _write(
    self,
    prompts: Sequence[Prompt],
    decode: DecodeConfig | None,
    indices: Sequence[int] | None,
    chat_template_kwargs: Arguments | None,
  ) -> Generator[Piece | Result, None, None]:
    """For each batch yields pieces as they come, then a result for each prompt."""
    decode = checked(decode)
    encoded = self.encode(prompts, chat_template_kwargs)
    indices = check_indices(indices, len(encoded))
    try:
      for rows, settings in split(prompts, decode, self.for_chats):
        session = self.session(
          encoded[rows], settings, self.searcher, indices[rows]
        )
        for piece in session.run():
          yield piece._replace(row=rows.start + piece.row)
        self._files.save_set()
        session.keep_evidence()
        told = session.log_probs()
        parts = zip(prompts[rows], session.rows, told, strict=True)
        del session.state  # its cache makes room for the next batch's
        for prompt, row, log_probs in parts:
          yield results.of_row(prompt, row, session, log_probs)
    except BaseException as error:  # the set is kept, whatever ends the run
      with contextlib.suppress(InputError):
        self._files.save_set()
      if self._files.saved is not None:
        error.add_note(f'the skip set is in {self.searcher.cfg.save}')
      raise

  def save_search(self, path: str) -> None:
    """Writes all that the search has learnt, for `load_search`.

    Raises:
      InputError: the file cannot be written; it has not changed.
    """
    self._files.save_state(path)

  def search_state(self) -> str:
    """All that the search has learnt, in the form that `save_search` writes."""
    return self._files.state()

  def load_search(self, path: str) -> None:
    """Continues the search from a file of `save_search`.

    Raises:
      InputError: the file is missing or damaged, or belongs to another model or to
        other settings; the search has not changed.
    """
    self._files.load_state(path)

  def restore_search(self, text: str | bytes, where: str) -> None:
    """Continues the search from a text of `search_state`.

    Args:
      where: the text's name in errors.

    Raises:
      InputError: as for `load_search`.
    """
    self._files.restore(text, where)

  def warmup(
    self,
    decode: DecodeConfig | None = None,
    prompt_length: int = 2,
    search: bool = True,
  ) -> None:
    """Compiles the programs that `generate` runs for prompts up to this length.

    The search's Gaussian process is not compiled: it starts when the budget allows
    it (at once if `time_budget` is 1). A search at rest compiles when it wakes.

    Args:
      search: compile the scoring too. Otherwise it is compiled beside the text, in
        a run that lasts.
    """
    decode = checked(decode)
    prompts = [[0] * prompt_length] * decode.batch_size
    # A spare searcher: compiling must not change the search or its budget.
    layers, evidence = self.cfg.num_hidden_layers, self.model.evidence
    spare = paper.make_searcher(self.searcher.cfg, layers)
    is_active, is_swift = self.searcher.active, decode.method == 'swift'
    if not is_active:
      spare.start_from(self.searcher.incumbent)
    self.session(prompts, decode, spare).warm_up(
      scores=search and is_swift and is_active,
      specialises=is_swift and not is_active,
    )
    self.model.dispatches, self.model.evidence = 0, evidence
    self.model.keep_warm(decode.batch_size)

  def session(
    self,
    prompts: Sequence[Sequence[int]],
    decode: DecodeConfig,
    searcher: Searcher | None = None,
    indices: Sequence[int] | None = None,
  ) -> Session:
    """A batch of prompts as token ids, already in the cache; `generate` runs it."""
    decode = self._resolved(decode)
    sharding.check_batch(decode.batch_size, self.model.mesh)
    return Session(
      self.model,
      searcher or self.searcher,
      prompts,
      self._token_bytes(decode.sampling.skip_special_tokens),
      decode,
      indices,
    )
