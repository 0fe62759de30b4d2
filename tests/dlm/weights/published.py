"""config.json of every family, key for key as its authors publish it, and by transformers 5."""

BOOK = {"architectures": ["X"], "transformers_version": "4.52.3", "torch_dtype": "bfloat16"}
AUTO = BOOK | {"auto_map": {"AutoConfig": "configuration.X", "AutoModel": "modeling.X"}}

QWEN = BOOK | dict(
  attention_dropout=0.0, bos_token_id=151643, eos_token_id=151645, hidden_act="silu",
  hidden_size=3584, initializer_range=0.02, intermediate_size=18944,
  max_position_embeddings=131072, max_window_layers=28, num_attention_heads=28,
  num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-6, rope_theta=1e6,
  sliding_window=131072, tie_word_embeddings=False, use_cache=True, use_sliding_window=False,
  vocab_size=152064,
)  # fmt: skip
QWEN3 = QWEN | dict(
  attention_bias=False, head_dim=128, hidden_size=4096, intermediate_size=12288,
  max_position_embeddings=40960, max_window_layers=36, num_attention_heads=32,
  num_hidden_layers=36, num_key_value_heads=8, rope_scaling=None, sliding_window=None,
  vocab_size=151936,
)  # fmt: skip
SDAR = QWEN3 | AUTO | dict(
  attn_implementation="flex_attention", debug=False, eos_token_id=151643, block_size=4,
  mask_token_id=151669, ep_size=1, fuse_cross_entropy=True, max_position_embeddings=32768,
  micro_forward=False, skip_checkpoint=False, use_cache=False, use_deepep=False,
)  # fmt: skip

LLADA2 = AUTO | dict(
  model_type="llada2_moe",
  attention_dropout=0.0,
  num_hidden_layers=20,
  hidden_size=2048,
  intermediate_size=5120,
  first_k_dense_replace=1,
  hidden_act="silu",
  max_position_embeddings=16384,
  moe_intermediate_size=512,
  norm_topk_prob=True,
  num_experts_per_tok=8,
  norm_head=False,
  num_attention_heads=16,
  num_experts=256,
  num_key_value_heads=4,
  rope_theta=600000,
  rope_scaling=None,
  tie_word_embeddings=False,
  use_bias=False,
  use_rmsnorm=True,
  rms_norm_eps=1e-6,
  head_dim=128,
  num_shared_experts=1,
  use_cache=False,
  use_qkv_bias=False,
  use_qk_norm=True,
  embedding_dropout=0.0,
  norm_softmax=False,
  output_dropout=0.0,
  vocab_size=157184,
  rotary_dim=64,
  using_split_qkv_in_self_attention=False,
  router_dtype="fp32",
  moe_router_enable_expert_bias=True,
  routed_scaling_factor=2.5,
  n_group=8,
  topk_group=4,
  score_function="sigmoid",
  initializer_range=0.02,
  max_window_layers=28,
  output_router_logits=False,
  pad_token_id=156892,
  partial_rotary_factor=0.5,
  use_sliding_window=False,
)
CONFIGS = {
  "llada": AUTO | dict(
    model_type="llada", activation_type="silu", alibi=False, alibi_bias_max=8.0,
    attention_dropout=0.0, attention_layer_norm=False, attention_layer_norm_with_affine=True,
    bias_for_layer_norm=False, block_group_size=1, block_type="llama", d_model=4096,
    embedding_dropout=0.0, embedding_size=126464, eos_token_id=126081, flash_attention=False,
    include_bias=False, include_qkv_bias=False, init_cutoff_factor=None, init_device="meta",
    init_fn="mitchell", init_std=0.02, input_emb_norm=False, layer_norm_type="rms",
    layer_norm_with_affine=True, mask_token_id=126336, max_sequence_length=4096,
    mlp_hidden_size=12288, mlp_ratio=4, multi_query_attention=None, n_heads=32, n_kv_heads=32,
    n_layers=32, pad_token_id=126081, precision="amp_bf16", residual_dropout=0.0,
    rms_norm_eps=1e-5, rope=True, rope_full_precision=True, rope_theta=5e5, scale_logits=False,
    use_cache=False, vocab_size=126464, weight_tying=False,
  ),
  "llada_moe": AUTO | dict(
    model_type="llada", attention_bias=False, attention_dropout=0.0, clip_qkv=None,
    dense_intermediate_size=8192, eos_token_id=156892, expert_intermediate_size=1024,
    hidden_act="silu", hidden_size=2048, initializer_range=0.02, max_position_embeddings=8192,
    moe_layer_freq=[1] * 16, moe_router_enable_expert_bias=False,
    moe_router_score_function="softmax", norm_topk_prob=None, num_attention_heads=16,
    num_experts=64, num_experts_per_tok=8, num_hidden_layers=16, num_key_value_heads=16,
    output_router_logits=False, pad_token_id=156892, partial_rotary_factor=1, qk_layernorm=True,
    rms_norm_eps=1e-5, rope_scaling=None, rope_theta=50000, routed_scaling_factor=1,
    router_aux_loss_coef=0.01, router_num_group=None, router_topk_group=None,
    shared_expert_intermediate_size=None, tie_word_embeddings=False, use_cache=False,
    vocab_size=157184,
  ),
  "llada2_moe": LLADA2,
  "llada22_moe": LLADA2 | dict(
    num_hidden_layers=32, hidden_size=4096, intermediate_size=9216, moe_intermediate_size=1024,
    num_attention_heads=32, max_position_embeddings=131072, rope_theta=3000000, block_size=32,
    expert_capacity=48, delete_token_id=156930, split_token_id=156931,
    eos_token_id=[156892, 156900],
  ),
  "dream": QWEN | AUTO | dict(
    model_type="Dream", architectures=["DreamModel"], eos_token_id=151643, mask_token_id=151666,
    pad_token_id=151643, rope_scaling=None, sliding_window=None, use_mrope=False,
  ),
  "dream_reasoner": QWEN3 | AUTO | dict(
    model_type="Dream", architectures=["DreamForCausalLM"], block_size=32, mask_token_id=151669,
  ),
  "qwen2": QWEN | dict(
    model_type="qwen2", architectures=["Qwen2ForCausalLM"], use_mrope=False,
  ),
  "qwen3": QWEN3 | dict(model_type="qwen3", architectures=["Qwen3ForCausalLM"]),
  # z-lab's for Qwen3-8B
  "dflash": QWEN3 | dict(
    model_type="qwen3", architectures=["DFlashDraftModel"], block_size=16, num_hidden_layers=5,
    auto_map={"AutoModel": "dflash.DFlashDraftModel"}, max_window_layers=5, num_target_layers=36,
    dflash_config={"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
  ),
  # SmolLM2-135M, and Mistral-7B-v0.3
  "llama": BOOK | dict(
    model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=False,
    attention_dropout=0.0, bos_token_id=1,
    eos_token_id=2, hidden_act="silu", hidden_size=576, initializer_range=0.041666666666666664,
    intermediate_size=1536, is_llama_config=True, max_position_embeddings=8192, mlp_bias=False,
    num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3, pad_token_id=2,
    pretraining_tp=1, rms_norm_eps=1e-5, rope_interleaved=False, rope_scaling=None,
    rope_theta=100000, tie_word_embeddings=True, use_cache=True, vocab_size=49152,
    **{"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}},
  ),
  "mistral": BOOK | dict(
    model_type="mistral", architectures=["MistralForCausalLM"], attention_dropout=0.0,
    bos_token_id=1, eos_token_id=2,
    hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
    max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=1e6, sliding_window=None,
    tie_word_embeddings=False, use_cache=True, vocab_size=32768,
  ),
  "stable_diffcoder": AUTO | dict(
    model_type="llama", architectures=["StableDiffcoderForCausalLM"], attention_bias=False,
    attention_dropout=0.0, bos_token_id=0, eos_token_id=2, head_dim=128, hidden_act="silu",
    hidden_size=4096, initializer_range=0.009882118, intermediate_size=14336,
    max_position_embeddings=8192, mlp_bias=False, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, pad_token_id=1, pretraining_tp=1, rms_norm_eps=1e-6,
    rope_scaling=None, rope_theta=5e5, tie_word_embeddings=False, use_cache=True,
    vocab_size=155136,
  ),
  "rnd1": QWEN3 | AUTO | dict(
    model_type="rnd1", decoder_sparse_step=1, hidden_size=2048, intermediate_size=6144,
    is_causal=False, mask_token_id=151669, max_window_layers=48, mlp_only_layers=[],
    moe_backend="hf", moe_intermediate_size=768, norm_topk_prob=True, num_attention_heads=32,
    num_diffusion_steps=256, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48,
    num_key_value_heads=4, output_router_logits=False, pad_token_id=151643, rope_scaling=False,
    router_aux_loss_coef=0.001, sliding_window=False, use_cache=False,
  ),
  "wedlm": QWEN3 | AUTO | dict(
    model_type="wedlm", architectures=["WeDLMForCausalLM"], mask_token_id=151665,
    pad_token_id=151643, qk_norm=True, rope_scaling=None, sliding_window=None,
  ),
  "sdar": SDAR | dict(model_type="sdar"),
  "sdar_moe": SDAR | dict(
    model_type="sdar_moe", decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=768,
    norm_topk_prob=True, num_experts=128, num_experts_per_tok=8, output_router_logits=False,
    router_aux_loss_coef=0.001,
  ),
  "fast_dllm_v2": QWEN | AUTO | dict(
    model_type="Fast_dLLM_Qwen", bd_size=32, rope_scaling=None, sliding_window=None,
  ),
  "nemotron_labs_diffusion": AUTO | dict(  # 8B
    model_type="nemotron_labs_diffusion", ar_loss_weight=1.0,
    architectures=["NemotronLabsDiffusionModel"], attention_bias=False, attention_dropout=0.0,
    attn_implementation="sdpa", block_size=32, bos_token_id=1, dlm_loss_weight=None,
    dlm_paradigm="bidirectional", dp_varying_mask_ratio=False, eos_token_id=11, head_dim=128,
    hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
    mask_token_id=100, max_position_embeddings=262144, mlp_bias=False, num_attention_heads=32,
    num_hidden_layers=34, num_key_value_heads=8, rms_norm_eps=1e-5, sliding_window=None,
    tie_word_embeddings=False, use_cache=False, vocab_size=131072, rope_parameters=dict(
      beta_fast=32.0, beta_slow=1.0, factor=16.0, llama_4_scaling_beta=0.1, mscale=1.0,
      mscale_all_dim=1.0, original_max_position_embeddings=16384, rope_theta=1e6,
      rope_type="yarn",
    ),
  ),
  "bd3lm": AUTO | dict(
    model_type="bd3lm", adaln=True, attn_backend="flex", block_size=16, causal=False,
    cond_dim=128, cross_attn=True, dropout=0.1, hidden_dim=768, model_length=1024, n_blocks=12,
    n_heads=12, return_dict=False, sampling_eps_max=1.0, sampling_eps_min=0.001,
    time_conditioning=False, torch_dtype="float32", var_min=True, vocab_size=50258,
  ),
  "modernbert": BOOK | dict(  # base
    model_type="modernbert", architectures=["ModernBertForMaskedLM"], attention_bias=False,
    attention_dropout=0.0, bos_token_id=50281, classifier_activation="gelu", classifier_bias=False,
    classifier_dropout=0.0, classifier_pooling="mean", cls_token_id=50281, decoder_bias=True,
    deterministic_flash_attn=False, embedding_dropout=0.0, eos_token_id=50282,
    global_attn_every_n_layers=3, global_rope_theta=160000.0, gradient_checkpointing=False,
    hidden_activation="gelu", hidden_size=768, initializer_cutoff_factor=2.0,
    initializer_range=0.02, intermediate_size=1152, layer_norm_eps=1e-5, local_attention=128,
    local_rope_theta=10000.0, max_position_embeddings=8192, mlp_bias=False, mlp_dropout=0.0,
    norm_bias=False, norm_eps=1e-5, num_attention_heads=12, num_hidden_layers=22,
    pad_token_id=50283, position_embedding_type="absolute", sep_token_id=50282,
    tie_word_embeddings=True, torch_dtype="float32", vocab_size=50368,
  ),
  # By the sizes of google-deepmind/gemma, as transformers 5.24 writes it
  "diffusion_gemma": dict(
    model_type="diffusion_gemma", architectures=["DiffusionGemmaForBlockDiffusion"],
    boi_token_id=255999, canvas_length=256, torch_dtype="bfloat16", eoi_token_id=258882,
    image_token_id=258880, initializer_range=0.02, tie_word_embeddings=True,
    transformers_version="5.24.0", vision_config=dict(model_type="gemma4_vision"),
    text_config=dict(
      model_type="diffusion_gemma_text", attention_bias=False, attention_dropout=0.0,
      bos_token_id=2, eos_token_id=[1, 106], final_logit_softcapping=30.0, head_dim=256,
      hidden_activation="gelu_pytorch_tanh", hidden_size=2816, initializer_range=0.02,
      intermediate_size=2112, layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 5,
      max_position_embeddings=131072, moe_intermediate_size=704, num_attention_heads=16,
      num_experts=128, num_hidden_layers=30, num_key_value_heads=8, pad_token_id=0,
      per_layer_config={
        str(i): dict(head_dim=512, num_key_value_heads=2) for i in range(5, 30, 6)
      },
      rms_norm_eps=1e-6, sliding_window=1024, tie_word_embeddings=True, top_k_experts=8,
      use_bidirectional_attention="vision", vocab_size=262144, rope_parameters=dict(
        full_attention=dict(
          partial_rotary_factor=0.25, rope_theta=1e6, rope_type="proportional",
        ),
        sliding_attention=dict(rope_theta=1e4, rope_type="default"),
      ),
    ),
  ),
  "a2d-llama": BOOK | dict(  # of Llama-3.2-1B
    model_type="a2d-llama", attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
    eos_token_id=128001, head_dim=64, hidden_act="silu", hidden_size=2048, initializer_range=0.02,
    intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False,
    num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8, pretraining_tp=1,
    rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=True, use_cache=True,
    vocab_size=128256, rope_scaling=dict(
      factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
      original_max_position_embeddings=8192, rope_type="llama3",
    ),
  ),
  "a2d-qwen2": QWEN | dict(model_type="a2d-qwen2", right_shift_logits=False),
  "a2d-qwen3": QWEN3 | dict(model_type="a2d-qwen3"),
}  # fmt: skip

# Of transformers 5 alone, whatever the model.
LIBRARY = dict(
  _name_or_path="", chunk_size_feed_forward=0, id2label={"0": "LABEL_0", "1": "LABEL_1"},
  is_encoder_decoder=False, label2id={"LABEL_0": 0, "LABEL_1": 1}, output_attentions=False,
  output_hidden_states=False, problem_type=None, return_dict=True, transformers_version="5.24.0",
)  # fmt: skip


def by_transformers_5(config: dict) -> dict:
  """The same model, as transformers 5 writes it, library defaults included."""
  config = dict(config) | LIBRARY
  config["dtype"] = config.pop("torch_dtype")
  if "num_experts" in config:
    config["num_local_experts"] = config.pop("num_experts")
  scaling = config.pop("rope_scaling", None) or {"rope_type": "default"}
  if "rope_theta" in config:
    moved = {**scaling, "rope_theta": config.pop("rope_theta")}
    if "partial_rotary_factor" in config:
      moved["partial_rotary_factor"] = config.pop("partial_rotary_factor")
      config.pop("rotary_dim", None)
    config["rope_parameters"] = moved
  if config["model_type"] in ("qwen2", "qwen3"):
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
  return config
