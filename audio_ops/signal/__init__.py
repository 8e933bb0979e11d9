"""Signal processing: samples -> samples, levels, probabilities of speech.

wave.py       downmix, resample and measure level, block by block
waveforms.py  waveforms in Arrow, with 16 bits per sample if that is how they are stored
output.py     a waveform that grows block by block
oddities.py   clipping, offsets, silent or cancelling channels
voice.py      voice activity (Silero VAD, without torch)
segment.py    long sound -> windows, cut in pauses
"""
