"""Models: found, loaded, fed in batches, and kept fast.

checkpoint.py           a checkpoint, identified without torch; `load` and `load_model` in the actor
checkpoint_files.py     which files a checkpoint must have
batching.py             ragged sound -> micro-batches under a budget of padded seconds
features.py             feature extractors on the model's device
dtype.py                the number format that a model computes in
finite.py               NaN and Inf among a model's numbers
wav2vec2.py             lengths and padding of wav2vec2 and its relatives
transformers_compat.py  what the code uses of transformers beyond its documentation
cpu_bfloat16.py         attention and linear layers in bfloat16 on CPUs without AMX

Importing any of these imports neither torch nor transformers.
"""
