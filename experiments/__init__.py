"""Mains: flags and one call. Run them by path: `python experiments/train.py --help`."""
