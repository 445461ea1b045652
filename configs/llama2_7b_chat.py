"""Llama-2 7B chat.

  python launch/generate.py --config=configs/llama2_7b_chat.py --prompt='...'

Expect plain decoding's text, drawn or not (in bfloat16 up to near ties). The model
has 32 layers: 24 of its 60 free sublayers are skipped when drafting.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'meta-llama/Llama-2-7b-chat-hf', 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': 0.4}
  return config
