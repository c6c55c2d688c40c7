"""Programs and the people who start them.

refusals.py  how every program ends that cannot go on: a line or two, no traceback
program.py   programs that take a Hydra configuration
options.py   small programs that take key=value
help.py      what --help prints: every key with its meaning
meanings.py  the meaning of every key, read from the sources; the documentation site uses it too
progress.py  a bar, or a line now and then
tables.py    tables as Markdown
"""
