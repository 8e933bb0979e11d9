"""Finding, loading and feeding models. No file here imports torch or transformers when imported.

Checked before the run, without torch:
checkpoint.py           a checkpoint and what identifies it; `load` and `load_model`, for the actor
checkpoint_files.py     the files that a checkpoint must have
weights.py              names and shapes of the tensors in safetensors files
extractor.py            whether a feature extractor fits the model beside it
adapter.py              whether a PEFT adapter can be merged
extras.py               optional packages that some checkpoints need

In the actor:
light_import.py         transformers without what only training and compiling need
merge.py                merges a PEFT adapter into its model
dtype.py                the dtype in which a model computes
batching.py             windows of unequal length -> micro-batches under a budget of padded seconds
runner.py               runs a model on micro-batches; isolates the window at fault
features.py             feature extractors on the model's device
granite.py, fun_asr.py  features for which transformers needs torchaudio
wav2vec2.py             shortest sound and padding of wav2vec2 and its relatives
finite.py               NaN and Inf in a model's outputs
gpu.py                  errors and memory of GPUs
cpu_bfloat16.py         attention and linear layers in bfloat16 on CPUs without AMX
torch_compat.py         undocumented uses of torch
transformers_compat.py  undocumented uses of transformers

ctranslate2.py          Whisper in CTranslate2's format -> a checkpoint, for the demo
"""
