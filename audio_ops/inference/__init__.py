"""Finding, loading and feeding models. No file here imports torch or transformers when imported.

checkpoint.py        a checkpoint, identified without torch; `load` and `load_model` in the actor
checkpoint_files.py  the files that a checkpoint must have
batching.py          windows of unequal length -> micro-batches under a budget of padded seconds
features.py          feature extractors on the model's device
dtype.py             the dtype in which a model computes
finite.py            NaN and Inf in a model's outputs
wav2vec2.py          shortest sound and padding of wav2vec2 and its relatives
light_import.py      transformers without what only training and compiling need
transformers_compat.py  undocumented uses of transformers
cpu_bfloat16.py      attention and linear layers in bfloat16 on CPUs without AMX
gpu.py               errors and memory of GPUs
torch_compat.py      undocumented uses of torch
runner.py            a model on padded micro-batches; the window at fault alone
ctranslate2.py       Whisper in CTranslate2's format -> a checkpoint, for the demo
"""
