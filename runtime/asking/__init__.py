"""The side that asks: a task goes out, its one outcome comes back. Nothing here runs a handler."""
