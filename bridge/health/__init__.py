"""Whether a system is well, and what ails it: facts that are gathered once, and checks that judge them."""
