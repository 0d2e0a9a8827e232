"""One run of a thinking agent: its log, and the loop that writes it. What a goal is, is known in `goals` only."""
