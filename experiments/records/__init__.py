"""Records of drafted trees, and what is worked out from them without a model.

wide.py       decoding that drafts a wide tree at every position and keeps none of it
folder.py     the files of a record: how they are written, read and checked
recording.py  prompts -> a record
shapes.py     which nodes of a wide tree a smaller shape has
laws.py       p and q at those nodes, as the rules take them
rounds.py     rounds of a shape under a rule, in large batches
estimate.py   rounds -> tau, its interval, and what is cut off
results.py    a replay as the result of a run, for tables and reports
lookups.py    lookup drafters on recorded outputs
"""
