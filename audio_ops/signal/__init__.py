"""What is computed with samples.

wave.py       downmix, resample and measure, in a stream of blocks
waveforms.py  waveforms in Arrow, as 16-bit integers where they are stored so
voice.py      voice activity (Silero VAD, without torch)
segment.py    long sound -> windows, cut in pauses
"""
