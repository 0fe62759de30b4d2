"""P-ReAct (DLLM-Searcher, 2602.07035): tools run while the model that called them still writes."""

from dlm.agent.react import Agent, Episode, Turn

__all__ = ["Agent", "Episode", "Turn"]
