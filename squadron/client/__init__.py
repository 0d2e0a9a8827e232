"""`Squad` and what it hands out, with and without `await`. The command line is above it, all rules are below."""
