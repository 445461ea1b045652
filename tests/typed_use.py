"""What a type checker makes of a caller's code; checked by mypy, never run."""

from collections.abc import Iterator
from typing import assert_type

import numpy as np

import swift_jax
from swift_jax import (
  Conversation,
  DecodeConfig,
  DraftConfig,
  Engine,
  InputError,
  LogProbs,
  Metrics,
  ModelConfig,
  Prompt,
  Result,
  Round,
  SamplingConfig,
  SearchConfig,
  SkipMask,
)

engine = Engine.from_pretrained(
  'demo', dtype='float32', draft=DraftConfig(), search=SearchConfig()
)
greedy = SamplingConfig(temperature=0, eos_token_id=(1,), stop_strings=('\n',))
SamplingConfig(logprobs=5)
decode = DecodeConfig(method='plain', batch_size=2, sampling=greedy)
chat: Conversation = [{'role': 'user', 'content': 'hi'}]

# One of each kind, many, and a mixture.
assert_type(engine.generate('text'), list[Result])
engine.generate([1, 2])
engine.generate(np.arange(3))
engine.generate(chat)
engine.generate([{'role': 'user', 'content': 'hi'}], decode)
engine.generate(['text', 'more'], decode, on_text=print, indices=[3, 4])
engine.generate([[1, 2], (3, 4)])
mixed: list[Prompt] = ['text', [1, 2], np.arange(3), chat]
engine.generate(mixed)
for prompt in mixed:
  assert_type(engine.stream(prompt, decode, index=3), Iterator[str])
told = {'enable_thinking': False, 'tools': [{'type': 'function'}]}
engine.generate(chat, decode, chat_template_kwargs=told)
engine.stream(chat, chat_template_kwargs={'continue_final_message': False})
assert_type(engine.encode(chat, told), list[list[int]])
assert_type(engine.encode_chat(chat, told), list[int])
assert_type(engine.for_chats(decode), DecodeConfig)

# What is none is refused: mypy warns of an `ignore` that it does not need.
engine.generate(None)  # type: ignore[arg-type]
engine.generate({'role': 'user', 'content': 'hi'})  # type: ignore[arg-type]
engine.generate([0.5])  # type: ignore[arg-type]
engine.stream(['text', 3.0])  # type: ignore[arg-type]
engine.generate('text', greedy)  # type: ignore[arg-type]
engine.generates('text')  # type: ignore[attr-defined]
print(swift_jax.Engin)  # type: ignore[attr-defined]
DecodeConfig(methods='plain')  # type: ignore[call-arg]

for result in engine.generate('text'):
  assert_type(result.prompt, Prompt)
  assert_type(result.text, str)
  assert_type(result.tokens, list[int])
  assert_type(result.finish_reason, str)
  assert_type(result.metrics, Metrics)
  assert_type(result.rounds, list[Round])
  assert_type(result.logprobs, LogProbs | None)
  if result.logprobs is not None:
    assert_type(result.logprobs.chosen, list[float])
    assert_type(result.logprobs.top, list[list[tuple[int, float]]])
  assert_type(result.metrics.tokens_per_second, float | None)

assert_type(engine.cfg, ModelConfig)
assert_type(engine.skip_mask, SkipMask)
assert_type(engine.skip_mask.to_lists(), dict[str, list[int]])
assert_type(engine.matchness, float | None)
assert_type(engine.encode('text'), list[list[int]])
try:
  engine.warmup(decode, prompt_length=9)
  engine.save_search('search.json')
  engine.load_search('search.json')
except InputError as error:
  print(error)
