"""What a task emits, written and read without a gap. Nothing here knows who asked."""
