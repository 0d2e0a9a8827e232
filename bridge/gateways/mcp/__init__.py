"""MCP: topics as tools, tasks as the Tasks extension, on the wires of 2026-07-28 and 2025-11-25."""
