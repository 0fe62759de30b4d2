"""Requests that come and go over one sampler: an engine whose rows do not see each other.

asks       what an engine is asked, and what it tells
scheduler  who runs next: two classes, a budget of query tokens, deadlines     (host, no arrays)
prefixes   which prefixes of prompts have cached keys                          (host, no arrays)
text       text of tokens that come bit by bit, and where stop strings end it  (host, no arrays)
memory     whether all of it fits, before a request is taken
grammars   what a hole may say: automata over tokens; regular is its process for expressions
holds      what that leaves for each slot of a row, forward by forward        (host, no arrays)
programs   what runs on the device, compiled before the engine is ready
compiles   how many programs a thread has compiled: none, while it serves
engine     all of that together: submit, tick, cancel; offline: a file of prompts over it

runner     the thread that drives an engine, and what asyncio sees of it
protocol   OpenAI's request bodies in               replies   and its replies out
metrics    what is counted, for Prometheus          doors     what a server lets in
config     what a server's config may say           app       routes; playground.html is its page
"""
