"""What rounds cost, what drafts are worth, and one price for both."""
