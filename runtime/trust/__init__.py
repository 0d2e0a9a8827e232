"""Who said it, and who may read it: keys, and what is signed or sealed by them. Values and arithmetic and files of keys; no message is sent or read from here."""
