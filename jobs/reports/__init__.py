"""What a table tells people: reports on its committed rows, which change nothing in it.

evaluate.py   how good the labels are, against references
arguments.py  the arguments of the commands that read a table
columns.py    which columns of a table they read
drift.py      how far a run's labels are from those of earlier runs
verify.py     whether the table is intact
summary.py    how one run ended, as JSON
"""
