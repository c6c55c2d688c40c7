"""Programs and the people who start them: command lines, refusals, progress."""
