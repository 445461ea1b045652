"""The engine: a checkpoint, its tokenizer and the search, ready to write."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from swift_jax.checkpoint import hub, load
from swift_jax.config.checks import require
from swift_jax.config.sampling import Resolved, SamplingConfig
from swift_jax.config.settings import (
  WEIGHTS,
  DecodeConfig,
  DraftConfig,
  ModelConfig,
  SearchConfig,
)
from swift_jax.errors import InputError
from swift_jax.model import quantised
from swift_jax.model.llama import GraphDef, Params
from swift_jax.model.skip_mask import (
  SkipMask,
  checked_bits,
  from_bits,
  num_free,
)
from swift_jax.parallel import sharding
from swift_jax.runtime import results, search_files
from swift_jax.runtime.chat_template import Arguments, Conversation
from swift_jax.runtime.model import Model
from swift_jax.runtime.prompts import Prompt, as_list, check_indices, split
from swift_jax.runtime.results import Result
from swift_jax.runtime.rows import Piece
from swift_jax.runtime.search_files import SearchFiles
from swift_jax.runtime.session import Session
from swift_jax.runtime.texts import Texts
from swift_jax.search.paper import recipe as paper
from swift_jax.search.searcher import Searcher


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
    self._texts = Texts(cfg, tokenizer, defaults or SamplingConfig())
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

  @property
  def fingerprint(self) -> str:
    """A hash that ties skip sets and search states to this model."""
    return self._files.fingerprint

  @property
  def tokenizer(self) -> Any:
    """A transformers tokenizer, or None."""
    return self._texts.tokenizer

  @tokenizer.setter
  def tokenizer(self, tokenizer: Any) -> None:
    self._texts.tokenizer = tokenizer

  @property
  def defaults(self) -> SamplingConfig:
    """Sampling settings of the model's `generation_config.json`."""
    return self._texts.defaults

  @defaults.setter
  def defaults(self, defaults: SamplingConfig) -> None:
    self._texts.defaults = defaults

  @property
  def remarks(self) -> list[str]:
    """A line for each thing that was done unasked."""
    return self._texts.remarks

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
      search_files.check(search, mesh)
    folder = hub.resolve(path)
    remarks: list[str] = []
    cfg = load.load_config(folder, dtype, remarks.append)
    if search is not None and search.cache:
      search_files.cached_mask(search, cfg)
    texts = Texts.load(folder, cfg, require_tokenizer, remarks.append)
    graphdef, params = load.load_params(folder, cfg, mesh)
    if weights:
      cfg, graphdef, params = quantised.quantise(cfg, params)
    given = texts.tokenizer, texts.defaults, draft, search, mesh
    made = cls(cfg, graphdef, params, *given)
    made.name, made._texts = path, texts
    for line in remarks:
      texts.remark(line)
    return made

  @property
  def skip_mask(self) -> SkipMask:
    """The mask that drafts at present."""
    return from_bits(self.searcher.incumbent)

  @property
  def matchness(self) -> float | None:
    """That mask's share of hits over the last windows; None before one."""
    return self.searcher.matchness

  def set_skip_mask(self, mask: SkipMask) -> None:
    """Drafts with `mask` from now on; the search rests."""
    bits = checked_bits(mask, self.cfg.num_hidden_layers)
    self.searcher.start_from(bits)

  def resolve(self, sampling: SamplingConfig | None = None) -> Resolved:
    """The settings that `generate` applies, and where each comes from.

    Raises:
      InputError: settings that contradict each other, an end of text that is no
        token of the model, more log-probabilities than it has tokens, or a file
        that cannot be used and that they need.
    """
    return self._texts.resolve(sampling or SamplingConfig())

  def for_chats(self, decode: DecodeConfig | None = None) -> DecodeConfig:
    """The settings with which a conversation is answered.

    They end an answer at the tokenizer's end of text too, as well as at those of
    the model's files, unless the caller gives `eos_token_id`. `generate` does that
    by itself for a conversation that it gets as messages; this is for one that is
    token ids already.
    """
    return self._texts.for_chats(_checked(decode))

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
      self._texts.check_tokenizer()
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
    self._texts.check_tokenizer()
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
    return self._texts.encode_chat(messages, chat_template_kwargs)

  def encode_text(self, text: str) -> list[int]:
    """Token ids of a text to go on with.

    With what the tokenizer sets before each text, once, and without an end of text.
    However long it is: `encode` refuses one that the context does not hold.

    Raises:
      InputError: the text is empty, or there is no tokenizer.
    """
    return self._texts.encode_text(text)

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
    except BaseException as error:  # what was found is kept, whatever ends it
      with contextlib.suppress(InputError):
        self._files.save_set()
      if self._files.saved is not None:
        error.add_note(f'the skip set is in {self.searcher.cfg.save}')
      raise

  def save_search(self, path: str) -> None:
    """Writes all that the search has learnt, for `load_search`.

    Raises:
      InputError: the file cannot be written, and is as it was.
    """
    self._files.save_state(path)

  def search_state(self) -> str:
    """All that the search has learnt, as `save_search` writes it."""
    return self._files.state()

  def load_search(self, path: str) -> None:
    """Goes on from what `save_search` wrote.

    Raises:
      InputError: no such file, damaged, or of another model or other settings;
        the search is as it was.
    """
    self._files.load_state(path)

  def restore_search(self, text: str | bytes, where: str) -> None:
    """Goes on from what `search_state` gave.

    Args:
      where: what errors call it.

    Raises:
      InputError: as `load_search`.
    """
    self._files.restore(text, where)

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
    is_active, is_swift = self.searcher.active, decode.method == 'swift'
    if not is_active:
      spare.start_from(self.searcher.incumbent)
    self.session(prompts, decode, spare).warm_up(
      scores=search and is_swift and is_active,
      specialises=is_swift and not is_active,
    )
    self.model.dispatches, self.model.evidence = 0, evidence

  def session(
    self,
    prompts: Sequence[Sequence[int]],
    decode: DecodeConfig,
    searcher: Searcher | None = None,
    indices: Sequence[int] | None = None,
  ) -> Session:
    """A batch of token ids, its prompts in the cache; `generate` runs it."""
    decode = self._texts.resolved(decode)
    sharding.check_batch(decode.batch_size, self.model.mesh)
    return Session(
      self.model,
      searcher or self.searcher,
      prompts,
      self._texts.token_bytes(decode.sampling.skip_special_tokens),
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
    return self._texts.encode(prompts, chat_template_kwargs)


def _checked(decode: DecodeConfig | None) -> DecodeConfig:
  """The settings of a call; the default ones for None."""
  if decode is None:
    return DecodeConfig()
  if not isinstance(decode, DecodeConfig):
    raise InputError(
      f'decode={decode!r:.80}: expected a DecodeConfig, which has `sampling`'
    )
  return decode
