"""Published Llama models, one name each.

  python launch/generate.py --config=configs/llama.py:llama3_1_8b --prompt='...'

Expect the same text as with plain decoding, sampled or greedy (in bfloat16 up to
near ties). `skipped` of a model's `free` sublayers are skipped when drafting:

  name                layers  free  skipped  published set
  codellama_13b           40    76       34  codellama-13b/humaneval
  codellama_34b           48    92       41  codellama-34b/humaneval
  deepseek_coder_33b      62   120       54  -
  llama2_7b               32    60       24  -
  llama2_7b_chat          32    60       24  -
  llama2_13b              40    76       34  llama-2-13b/cnndm
  llama2_13b_chat         40    76       34  llama-2-13b-chat/cnndm
  llama2_70b              80   156       78  llama-2-70b/cnndm
  llama2_70b_chat         80   156       78  -
  llama3_70b              80   156       70  -
  llama3_1_8b             32    60       24  -
  llama3_2_1b             16    28       11  -
  llama3_2_3b             28    52       20  -
  yi_34b                  60   116       52  -

The models whose names end in `_chat` were trained on conversations. For them
`--chat` of launch/generate.py puts a prompt into the model's chat template.

A run can start with the set that the official repository publishes for its model,
without a search:

  --config.search.cache=published --config.search.cache_name=llama-2-13b/cnndm
"""

import ml_collections

# The model's id on the hub, and the share of free sublayers to skip.
MODELS = {
  'codellama_13b': ('codellama/CodeLlama-13b-hf', 0.45),
  'codellama_34b': ('codellama/CodeLlama-34b-hf', 0.45),
  'deepseek_coder_33b': ('deepseek-ai/deepseek-coder-33b-base', 0.45),
  'llama2_7b': ('meta-llama/Llama-2-7b-hf', 0.4),
  'llama2_7b_chat': ('meta-llama/Llama-2-7b-chat-hf', 0.4),
  'llama2_13b': ('meta-llama/Llama-2-13b-hf', 0.45),
  'llama2_13b_chat': ('meta-llama/Llama-2-13b-chat-hf', 0.45),
  'llama2_70b': ('meta-llama/Llama-2-70b-hf', 0.5),
  'llama2_70b_chat': ('meta-llama/Llama-2-70b-chat-hf', 0.5),
  'llama3_70b': ('meta-llama/Meta-Llama-3-70B', 0.45),
  'llama3_1_8b': ('meta-llama/Llama-3.1-8B', 0.4),
  'llama3_2_1b': ('meta-llama/Llama-3.2-1B', 0.4),
  'llama3_2_3b': ('meta-llama/Llama-3.2-3B', 0.4),
  'yi_34b': ('01-ai/Yi-34B', 0.45),
}


def get_config(name=''):
  if name not in MODELS:
    problem = f'no model is called {name!r}' if name else 'a name is missing'
    raise ValueError(
      f'{problem}; expected configs/llama.py:NAME with one of'
      f' {", ".join(MODELS)}'
    )
  path, skip_ratio = MODELS[name]
  config = ml_collections.ConfigDict()
  config.model = {'path': path, 'dtype': 'bfloat16'}
  config.search = {'skip_ratio': skip_ratio}
  return config
