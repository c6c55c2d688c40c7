"""Files, and the machine that something was run on."""
