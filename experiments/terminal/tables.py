"""Tables as Markdown."""

import pandas as pd
from tabulate import tabulate


def markdown(table: pd.DataFrame) -> str:
    """Of cells that are text already. A bar inside a cell is escaped."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in table.values.tolist()]
    return tabulate(rows, list(table.columns), tablefmt="github", disable_numparse=True) + "\n"
