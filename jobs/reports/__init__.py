"""Reports on a table's committed rows. They change nothing in it,
but for the sums that it keeps.

arguments.py  the arguments of the commands that read a table
columns.py    the columns that reports read, as each task declares them
totals.py     what reports add up, of each set of data files; kept_totals.py keeps it
labels.py     the rows in DuckDB
evaluate.py   the labels' quality, compared with references
drift.py      the distance of a run's labels from those of earlier runs
verify.py     whether the table is intact; prints.py checks the fingerprints in it
summary.py    how one run ended, as JSON; exit_code.py reads it for schedulers
forecast.py   `earmark plan`: what a run would do
page/         `earmark report`: a page with figures, and clips to listen to
"""
