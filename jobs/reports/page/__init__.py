"""`earmark report TABLE`: a folder with a page that opens in a browser without a server.

command.py   the command line; the folder appears whole or not at all
build.py     sums -> lists -> clips -> page
database.py  the table's rows in DuckDB, and the columns of its tasks
sums.py      counts, distributions, suspects, calibration, runs
lists.py     which clips the page shows, and why
clips.py     reads clips again, in a process that may die in place of its parent
media.py     a clip's Opus, waveform and spectrogram
edits.py     a text against its reference, edits marked
rows.py      a table's row as the page shows it
render.py    web/ and the figures -> index.html
web/         the page: templates, style, scripts; vendor/ has uPlot 1.6.32, which draws the charts (MIT)
"""
