"""dlm: efficient diffusion language models in JAX, Flax linen and Pallas.

Everything hangs on two paths. Each arrow is found in one file, in this order, in `dlm/train.py`
and in `dlm/generate.py` + `dlm/sampling/loop.py`:

  training   config -> build -> rows -> Batch -> objective.corrupt -> Noisy -> denoise
             -> objective.loss -> LossSum -> update
             rows may be what the model itself writes: prompts -> sampling -> Batch (`rollout`)
  sampling   prompt -> Canvas -> [ plan -> denoise -> LogitHead -> token_stats -> policy.decide
             -> commit ]* -> text

An objective may have parameters of its own (a schedule that is learned). They are trained, averaged
and saved beside the model's, under "objective"; corruption sees them, and no sampler does.

The tree. Start with `types.py`: the values and protocols that all others speak.

  kernels_pallas/  one folder an op, one function each, several implementations behind it:
                   token_stats (hidden x unembedding -> statistics per token), linear_xent
                   (-> cross-entropy), linear_distill (-> KL from a teacher): [rows, V] logits
                   never exist in memory; block_attention (masks are ranges of keys). dispatch
                   chooses, shards splits an op over a mesh, aot compiles for devices that are not
                   here
  dlm/types        structs of arrays, protocols       masks       attention as ranges of key slots
  dlm/edits        text that is inserted or deleted in rows of fixed length
  dlm/diffusion    schedules, times, corruption       objectives  one paper's training recipe a
                                                                  file; estimators of log p
  dlm/models       the transformer, linen inside;     sampling    one loop; policies (what to
                   outside, a bound `Denoiser`                    commit) and caches are small files
  dlm/parallel     mesh, sharding, over_batch         data        tokenizers, sources, rows, prompts
  dlm/build        the only reader of a config        train       THE training path
  dlm/facts        what a sampler must know of a      seeds       the one rule for seeds
                   model
  dlm/files        what appears on disk is whole      completions prompts in, JSON lines out
  dlm/checkpoint   orbax, checksums                   workdir     a run's folder explains itself
  dlm/generate     THE sampling path                  answers     a model's own, to train on
  dlm/rollout      rows that a model writes while it learns; stepwise: and each state of theirs
  dlm/targets      what a teacher says, written before a run that learns from it
  dlm/rewards      what a completion is worth, and what is learned from that
  dlm/serving      requests that come and go: an engine, and an OpenAI server in front of it
  dlm/weights      Hugging Face directories in and    preemption  a run that is asked to stop
                   out, GGUF files in;
                   autoregressive -> diffusion
  dlm/optimizer    optax from the config's table      metrics     scalars to disk and screen
  dlm/processes    one program in several processes, and what becomes of it when one dies; tunnel:
                   how they reach each other
  dlm/roofline     what a forward costs at least on a chip: operations and bytes
  dlm/programs     products of a traced program, collectives of a compiled one
  dlm/plan         an update or a sampler compiled for TPUs that are not here, and its costs
  dlm/evaluation   likelihood, tasks, accuracy        live        denoising in the terminal
                   against tokens per forward,
                   policies on exact laws, energy
  dlm/waiting      at a terminal: what takes so long
  dlm/named        a user's own functions, as configs name them
  dlm/agent        tools that run while the model writes: a loop around the sampling loop, too
  dlm/tools        what may be called: functions of texts, and a search
  dlm/episodes     an agent's trajectories as rows to learn from
  dlm/difftester   samples that share their syntax: a loop around the sampling loop, on the host
  experiments/     mains: flags and one call; studies configs/    what a paper sets: tables
  tests/           mirrors the tree

A published method is one small file (a policy, a cache, an objective, a schedule), one line in the
name table of its folder's `__init__`, one test that holds the authors' numbers, one config. What it
may say beyond its rule is declared in its base class: `dlm.sampling.policy`, `caching.plan`.

Imports point one way; tests/layering_test.py holds the table:

  kernels_pallas -> jax                               types -> kernels_pallas (its words)
  masks, edits, diffusion, parallel -> types            data -> numpy, files
  rewards, tools -> data, named
  models -> types, masks, kernels_pallas
  sampling -> types, masks, kernels_pallas            (never models: it is handed a Denoiser)
  objectives -> types, masks, diffusion, kernels_pallas                      (never models, too)
  weights -> models;  rollout, generate -> all above, and build;  agent -> generate
  episodes -> agent;  train -> rollout, episodes and all above
  evaluation -> generate and all above but models;  serving -> generate and all above
  difftester -> types, sampling;  roofline -> models;  plan -> train, generate, roofline, programs
  build -> all but train, generate, serving, evaluation;  experiments -> anything

The core (kernels_pallas, types, masks, models, diffusion, objectives, sampling, weights) needs no
package but jax, flax, optax, numpy and safetensors, so it runs where nothing else is installed.

Names. The shape is a suffix, `x_BxLxD`, its letters fixed once:

  B row   L canvas length   W window of queries   A asked positions   S cache slots
  R key ranges (in kernels: rows)   N heads   K kv heads   H head dim   D width   F mlp width
  V vocabulary   Y layers

  canvas   prompt and answer, with the mask id where the sampler may write
  commit   to write a token; also: to keep a finished block's keys and values
  settled  of a draft: checked, and not taken back any more
  NFE      number of function evaluations: forwards      TPF   tokens per forward

Static parts are frozen dataclasses (equal ones share one compile), arrays travel in flax structs,
`key_B` holds one key per row, so a row alone equals the row in any batch: to the bit where shapes
are equal (`Generator.row_tile`), else unless two candidates lie within rounding. Losses are sums,
divided once. Errors are ValueErrors that name the field, its value and the rule.
"""

__version__ = "0.1.0"
