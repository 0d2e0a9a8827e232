"""Who said it: keys, and what is signed by them. Values and arithmetic; no message is sent or read from here."""
