"""The roles the rules need from the outside, as protocols. `bridge` implements each; no rule lives here."""
