"""Files that a finished job hands out, behind a release."""
