"""Who may do what on NATS: text for servers and tokens, and nothing that speaks to one."""
