"""What travels and what it means: subjects, envelope, outcomes, topics, limits. Values only."""
