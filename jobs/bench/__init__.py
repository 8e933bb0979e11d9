"""`make bench`: Earmark beside its peers on the same clips, in the same run, by turns.

__main__.py   the command line
measure.py    wall time, CPU time and memory of a command and all that it starts
ways.py       one way of doing the work as a process of its own; medians of several, by turns
report.py     tables, targets, Markdown
speech.py, classification.py, decoding.py, scale.py, planning.py: the measurements
peers.py      the peers, each as its users would write it
testbed.py    sound, models and packagings to measure on
"""
