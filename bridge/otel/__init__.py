"""Traces: what happens in a process, as spans of OpenTelemetry. Nothing of it is imported where that is off."""
