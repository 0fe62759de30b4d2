"""What `dlm.build` offers, by file: strict tables, training runs, samplers."""
