"""What this machine can do, measured: one file a suite, named in `suites`."""
