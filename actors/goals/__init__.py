"""The pursuit of a goal: rules, plan, supervisor. Models come from `thinking`, never from a provider here."""
