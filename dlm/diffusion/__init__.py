"""The forward process: noise schedules, times and absorbing corruption."""
