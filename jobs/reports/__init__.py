"""Reports on a table's committed rows. They change nothing in it.

arguments.py  the arguments of the commands that read a table
columns.py    the columns that reports read, as each task declares them
evaluate.py   the labels' quality, compared with references
drift.py      the distance of a run's labels from those of earlier runs
verify.py     whether the table is intact
summary.py    how one run ended, as JSON
page/         `earmark report`: a page with figures, and clips to listen to
"""
