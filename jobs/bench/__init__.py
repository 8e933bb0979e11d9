"""`make bench`: Earmark compared with its peers, on the same clips and in alternation.

__main__.py   the command line
measure.py    wall time, CPU time and memory of a command and all its descendants
ways.py       Earmark or a peer as a separate process; medians of alternating runs
report.py     tables, targets, Markdown
speech.py, recognition.py, classification.py, decoding.py, scale.py, planning.py, reports.py:
              the measurements
peers.py      the peers, each written as its users would
testbed.py    the audio that is measured, and its packagings
checkpoints.py  models of published sizes with random weights
big_table.py  tables of millions of clips
"""
