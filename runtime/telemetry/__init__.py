"""What happens in a process, and who hears of it. Tracers, metrics and trails listen; nothing here knows them."""
