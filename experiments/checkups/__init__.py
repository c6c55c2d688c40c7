"""The doctor's checks: what is measured of a target and a drafter, and what that means. And those
of a head's files."""
