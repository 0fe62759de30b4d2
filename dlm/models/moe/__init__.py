"""Experts in place of an MLP: who chooses whom (config, token_choice, expert_choice), how many
(schedules, capacity), what computes (layer, experts, exchange), and what training asks of routers.
"""
