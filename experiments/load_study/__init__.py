"""What load does to speculation: requests arrive at a `specdec.Engine`; how long do they take?

arrivals.py      when requests arrive: poisson, burst, the times of a file, or as others end
play.py          one load: submit what has arrived, run rounds, note what happened
measures.py      one load in figures; speed-up over plain decoding; where it ends
study.py         all loads of all drafters, played in turn on the same requests
page.py          tables, figures and the page
record.py        what is on disk: written, found again, drawn
"""
