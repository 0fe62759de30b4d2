"""P-ReAct (DLLM-Searcher, 2602.07035): tools run while the model that called them still writes.

tools   what calls may name; each call runs in a thread of its own
corpus  the tools that are here without a network: BM25 over a file, and its documents
react   turns of thoughts, a call and its response; then the answer
"""

from dlm.agent.corpus import Corpus
from dlm.agent.react import Agent, Episode, Turn
from dlm.agent.tools import Tools

__all__ = ["Agent", "Corpus", "Episode", "Tools", "Turn"]
