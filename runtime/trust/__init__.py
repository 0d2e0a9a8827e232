"""Who said it, and who may read it: keys, what is signed or sealed by them. No message is sent or read here."""
