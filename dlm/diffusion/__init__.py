"""The forward process: noise schedules, times, and corruption by masks or random ids."""
