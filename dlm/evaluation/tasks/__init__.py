"""Tasks whose answers a program can judge."""
